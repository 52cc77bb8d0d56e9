"""Every slide of the development data behaves as its row in shared/data/README.md says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from tiling import Slide, TileStore, TilingConfig, tile_slide
from tiling.slides.files import slide_files
from tiling.stores.store import verify_store

LOSSLESS = TilingConfig(mpp=0.5, tile_px=240, codec="lossless")


def test_the_aperio_svs(svs: Path, tmp_path: Path) -> None:
    """2220 x 2967, one level, 0.499 mpp, 20x, JPEG tiles 240 x 240, label and macro images."""
    with Slide(svs) as slide:
        assert (slide.width, slide.height, len(slide.levels)) == (2220, 2967, 1)
        assert (slide.mpp, slide.objective_power, slide.vendor) == (0.499, 20.0, "aperio")
        assert slide.compression() == "JPEG"
        assert slide.sha256() == "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7"
    with tifffile.TiffFile(svs) as tiff:
        assert tiff.pages[0].chunks == (240, 240, 3)
    store = TileStore(tile_slide(svs, tmp_path, LOSSLESS).store)
    assert verify_store(store.path) == []
    assert (store.grid.columns, store.grid.rows, store.grid.tile_px0) == (10, 13, 240)
    assert store.attributes.mpp == 0.499
    assert 35 <= len(store) <= 75, "a strip of skin across, glass on both sides"
    assert_equal_to_openslide(store, svs, slice(None, None, 7))


def test_label_and_macro_images_stay_in_the_slide(svs: Path, tmp_path: Path) -> None:
    with openslide.OpenSlide(svs) as slide:
        assert {"label", "macro"} <= set(slide.associated_images)
    report = tile_slide(svs, tmp_path, LOSSLESS)
    members = {p.parent.relative_to(report.store).as_posix() for p in report.store.rglob("zarr.json")}
    assert not {name for name in members if "label" in name or "macro" in name}


def test_the_dicom_slide(svs: Path, dicom: Path, tmp_path: Path) -> None:
    """The same slide; OpenSlide opens any of the four files; one slide is one folder."""
    files = slide_files(dicom)
    assert len(files) == 4
    hashes = set()
    for path in (dicom, *files):
        with Slide(path) as slide:
            assert (slide.width, slide.height, len(slide.levels)) == (2220, 2967, 1)
            assert (slide.mpp, slide.vendor, slide.compression()) == (0.499, "dicom", "JPEG")
            hashes.add(slide.sha256())
    assert len(hashes) == 1
    report = tile_slide(files[0], tmp_path, LOSSLESS)
    assert report.slide_id == "CMU-1-Small-Region-dicom"
    assert tile_slide(dicom, tmp_path, LOSSLESS).reused, "by its folder or by any of its files: one slide"
    store = TileStore(report.store)
    same = TileStore(tile_slide(svs, tmp_path, LOSSLESS).store)
    assert (store.grid, len(store)) == (same.grid, len(same))
    assert_equal_to_openslide(store, files[0], slice(None, None, 7))


def test_the_fluorescence_ndpi(ndpi: Path, tmp_path: Path) -> None:
    """3968 x 4864, 7 levels, 0.228 mpp, 40x; one untiled JPEG per level; a negative case: an empty store."""
    with Slide(ndpi) as slide:
        assert (slide.width, slide.height, len(slide.levels)) == (3968, 4864, 7)
        assert slide.mpp == pytest.approx(0.228, abs=5e-4)
        assert (slide.objective_power, slide.vendor) == (40.0, "hamamatsu")
        dark = slide.read_region(0, 0, 6, slide.levels[6].width, slide.levels[6].height)
        assert np.median(dark) < 40
    with tifffile.TiffFile(ndpi) as tiff:
        for page in tiff.pages:
            assert isinstance(page, tifffile.TiffPage)
            assert "TileWidth" not in page.tags
            assert len(page.tags["StripOffsets"].value) == 1
    report = tile_slide(ndpi, tmp_path, TilingConfig(mpp=0.5))
    store = TileStore(report.store)
    assert report.tiles == len(store) == 0
    assert not store.mask.values.any()
    assert store.read(slice(None)).shape == (0, 256, 256, 3)
    assert verify_store(report.store) == []


def test_the_ome_tiff(ome: Path, tmp_path: Path) -> None:
    """1101 x 1101, one level, 0.227 mpp; OpenSlide refuses it, tifffile reads it."""
    assert openslide.OpenSlide.detect_format(ome) is None
    with Slide(ome) as slide:
        assert (slide.width, slide.height, len(slide.levels)) == (1101, 1101, 1)
        assert slide.mpp == pytest.approx(0.227, abs=5e-4)
        assert (slide.vendor, slide.objective_power) == ("ome-tiff", None)
        mpp = slide.mpp
    report = tile_slide(ome, tmp_path, TilingConfig(mpp=mpp, tile_px=256, codec="lossless"))
    assert report.slide_id == "carcinoma-crop"
    store = TileStore(report.store)
    assert len(store) >= 16, "a crop of a carcinoma: tissue everywhere"
    whole = tifffile.imread(ome)
    assert whole.shape == (1101, 1101, 3)
    padded = np.pad(whole, ((0, 256), (0, 256), (0, 0)), constant_values=255)
    for x, y, tile in zip(store.tiles.x0.tolist(), store.tiles.y0.tolist(), store.read(slice(None)), strict=True):
        np.testing.assert_array_equal(tile, padded[y : y + 256, x : x + 256])


def test_nothing_else_lies_there(svs: Path) -> None:
    """A slide that is added to the data needs a test here."""
    assert sorted(p.name for p in svs.parent.iterdir()) == [
        "CMU-1-Small-Region-dicom", "CMU-1-Small-Region.svs", "carcinoma-crop.ome.tif", "fluorescence-dapi.ndpi",
        "her2st_B4.tif", "her2st_C2.tif",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["her2st_B4", "her2st_C2"])
def test_a_section_on_tinted_glass(data_dir: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """Breast carcinoma, haematoxylin of another laboratory."""
    path = data_dir(f"slides/{name}.tif")
    config = TilingConfig(mpp=0.686, tile_px=512, min_tissue=0.9, codec="lossless")
    store = TileStore(tile_slide(path, tmp_path, config, slide_mpp=0.686).store)
    assert len(store) > 20
    assert not store.quality["pen"].any(), "nobody drew on them"
    assert_equal_to_openslide(store, path, slice(None, None, 8))


def assert_equal_to_openslide(store: TileStore, path: Path, rows: slice) -> None:
    """Those tiles of a store of level-0 scale are what OpenSlide reads, white beyond the slide."""
    side = store.grid.tile_px
    with openslide.OpenSlide(path) as slide:
        for x, y, tile in zip(
            store.tiles.x0[rows].tolist(), store.tiles.y0[rows].tolist(), store.read(rows), strict=True
        ):
            rgba = np.asarray(slide.read_region((x, y), 0, (side, side)))
            expected = np.where(rgba[..., 3:] == 255, rgba[..., :3], 255)
            np.testing.assert_array_equal(tile, expected)
