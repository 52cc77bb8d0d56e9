"""What each address holds, against the slide's own pixels and the heatmap's own table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import simplejpeg
import tifffile

from inference.viewer.cohort import find_cohort
from inference.viewer.pictures import Pictures
from inference.viewer.site import Site
from inference.viewer.slide_picture import SlidePicture, SlideSource
from inference.viewer.zooms import Square
from pipeline.demo.synthetic import write_pyramid
from tests.inference.viewer.conftest import BLACK, SIZE0, TILE0, Places, black_tile, got
from tests.pipeline.test_phi import LIME, MAGENTA, make_canary
from tiling import Slide
from tiling.core.arrays import UInt8Array
from tiling.manifest import ManifestRow
from tiling.slides.jpeg_stream import ScaleDenom
from tiling.slides.tiled_levels import TiledLevels
from tiling.stores.store import TileStore


def pixels_of(data: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    return np.asarray(simplejpeg.decode_jpeg(data)).astype(np.int16)


def test_the_list_says_what_is_known_and_no_file(site: Site, places: Places) -> None:
    text = got(site, "data/slides.json").decode()
    listed = json.loads(text)["slides"]
    assert [(one["slide_id"], one["label"], one["pixels"]) for one in listed] == [
        ("one", "tumour", "slide"), ("two", "benign", "slide"),
    ]  # fmt: skip
    assert listed[0]["score"] == pytest.approx(np.mean([0.98, 0.45, 0.45, 0.44]), abs=0.02)  # 5% of 72 tiles are 4
    for address in site.addresses():
        if address.endswith(".json"):
            said = got(site, address).decode()
            assert str(places.slides.parent) not in said
            assert "one-file" not in said


@pytest.mark.parametrize("at", [(3, 2, 1), (3, 4, 3), (2, 1, 1), (1, 0, 0), (0, 0, 0)])
def test_a_tile_is_the_slides_pixels_area_resampled(site: Site, places: Places, at: tuple[int, int, int]) -> None:
    zoom, column, row = at
    side0 = 256 << (3 - zoom)
    with Slide(places.slides / "one-file.tif") as slide:
        whole = slide.read_region(0, 0, 0, *SIZE0)
    padded = np.full((8 * 256, 8 * 256, 3), 255, np.uint8)
    padded[: SIZE0[1], : SIZE0[0]] = whole
    part = padded[row * side0 : (row + 1) * side0, column * side0 : (column + 1) * side0]
    times = side0 // 256
    expected = part.reshape(256, times, 256, times, 3).mean((1, 3))
    found = pixels_of(got(site, f"data/0/{zoom}/{column}-{row}.jpg"))
    assert np.abs(found - expected).mean() < 2


def test_a_store_is_drawn_where_its_slide_is(places: Places) -> None:
    """The black tile, within a pixel, at the finest level and below it; what is not tissue comes of the thumbnail."""
    site = Site(find_cohort([places.heatmaps / "one", places.stores]))
    left, top = BLACK[0] * TILE0, BLACK[1] * TILE0
    for zoom in (3, 2):
        times = 2 ** (3 - zoom)
        column, row = left // (256 * times), top // (256 * times)
        dark = pixels_of(got(site, f"data/0/{zoom}/{column}-{row}.jpg")).max(-1) < 100
        rows, columns = np.nonzero(dark)
        found = [columns.min(), columns.max() + 1, rows.min(), rows.max() + 1]
        x, y = (left - column * 256 * times) / times, (top - row * 256 * times) / times
        assert found == pytest.approx([x, x + TILE0 / times, y, y + TILE0 / times], abs=1)


def test_without_pixels_it_is_grey_and_says_so(places: Places) -> None:
    site = Site(find_cohort([places.heatmaps / "two"]))
    assert json.loads(got(site, "data/0/slide.json"))["pixels"] == "none"
    assert len(np.unique(pixels_of(got(site, "data/0/0/0-0.jpg")))) == 1


def test_numbers_are_the_tables(site: Site, places: Places) -> None:
    table = pyarrow.parquet.read_table(places.heatmaps / "one" / "predictions.parquet")
    about = json.loads(got(site, "data/0/slide.json"))["models"][0]
    data = got(site, "data/0/0/tiles.bin")
    count = int(np.frombuffer(data, "<i4", 1)[0])
    assert count == about["tiles"] == table.num_rows
    x0, y0 = np.frombuffer(data, "<i4", 2 * count, 4).reshape(2, count)
    assert (x0 == table["minx"].to_numpy()).all()
    assert (y0 == table["miny"].to_numpy()).all()
    names = [layer["name"] for layer in about["layers"]]
    values = np.frombuffer(data, "<f4", len(names) * count, 4 + 8 * count).reshape(len(names), count)
    assert names[:3] == ["prob_tumour", "prob_benign", "entropy"]
    assert {"tissue", "blur"} <= set(names), "columns of the store"
    for name, of in zip(names[:3], values, strict=False):
        assert (of == table[name].to_numpy()).all()


def test_a_map_is_the_values_in_their_places(site: Site, places: Places) -> None:
    about = json.loads(got(site, "data/0/slide.json"))["models"][0]["map"]
    values = np.frombuffer(got(site, "data/0/0/map-0.bin"), "<f4").reshape(about["shape"])
    assert (about["downsample"], values.shape) == (TILE0, (8, 10))
    assert np.isnan(values[:, 9]).all()
    assert values[BLACK[1], BLACK[0]] == np.float32(0.98)


def test_the_tissue_mask_is_the_stores(site: Site, places: Places) -> None:
    expected = TileStore(places.stores / "one.zarr").mask
    data = got(site, "data/0/mask.bin")
    shape, (downsample,) = tuple(np.frombuffer(data, "<i4", 2)), np.frombuffer(data, "<f4", 1, 8)
    assert (np.frombuffer(data, np.uint8, offset=12).reshape(shape) == expected.values).all()
    assert downsample == pytest.approx(expected.downsample)
    assert site.get("data/1/mask.bin") is None, "it has no store"


def test_every_address_is_answered_and_no_other(site: Site) -> None:
    addresses = list(site.addresses())
    assert len(addresses) == len(set(addresses)) > 80
    assert all(site.get(address) is not None for address in addresses)
    for address in (
        "", "data", "data/2/slide.json", "data/00/slide.json", "data/0/1/tiles.bin", "data/0/0/map-99.bin",
        "data/0/4/0-0.jpg", "data/0/3/5-0.jpg", "../slide.py", "site.py", "leaflet/leaflet-src.js", "DATA/slides.json",
        "data/٣/slide.json", "data/1_0/slide.json", "data/+1/slide.json", "data/0/slide.json\n",
    ):  # fmt: skip
        assert site.get(address) is None, address


def test_a_damaged_tile_is_grey_and_costs_itself(places: Places, tmp_path: Path) -> None:
    """The slide's compressed data are overwritten in the middle; other tiles stay."""
    path = tmp_path / "one.tif"
    data = bytearray((places.slides / "one-file.tif").read_bytes())
    middle = len(data) // 3
    data[middle : middle + 400] = bytes(400)
    path.write_bytes(data)
    site = Site(find_cohort([path]))
    drawn = [pixels_of(got(site, f"data/0/3/{x}-{y}.jpg")) for x in range(5) for y in range(4)]
    grey = [bool(np.abs(tile - 200).mean() < 12) for tile in drawn]
    assert 0 < sum(grey) < len(grey)


def test_the_cache_stays_within_its_bytes(places: Places) -> None:
    cohort = find_cohort([places.slides])
    pictures = Pictures(cohort.slides, cache_bytes=20_000)
    kept = {pictures.jpeg(0, Square(x, y, 64)) for _ in range(2) for x in range(0, 1024, 64) for y in range(0, 512, 64)}
    assert len(kept) > 1
    assert sum(map(len, pictures._kept.values())) == pictures._bytes <= 20_000
    pictures.close()


@pytest.mark.parametrize("side", [240, 256, 512])
def test_a_tile_of_the_slides_own_is_copied_without_its_texts(tmp_path: Path, side: int) -> None:
    """The very coefficients, so the pixels of the slide exactly; what the stream says beside them is left out."""
    path = tmp_path / "own.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            black_tile(), tile=(side, side), photometric="rgb", compression="jpeg", compressionargs={"level": 90},
            resolution=(20_000, 20_000), resolutionunit="CENTIMETER", metadata=None,
        )  # fmt: skip
    site = Site(find_cohort([path]))
    about = json.loads(got(site, "data/0/slide.json"))
    last = about["zooms"]
    assert about["tile_px"] == side
    with Slide(path) as slide:
        expected = slide.native_stream(0, 1, 1)
        assert expected is not None
        assert got(site, f"data/0/{last}/1-1.jpg") == expected
        assert (simplejpeg.decode_jpeg(expected) == slide.read_region(side, side, 0, side, side)).all()
        four = slide.read_region(0, 0, 0, 2 * side, 2 * side)
    drawn = pixels_of(got(site, f"data/0/{last - 1}/0-0.jpg"))
    assert np.abs(drawn - four.reshape(side, 2, side, 2, 3).mean((1, 3))).mean() < 2, "coarser ones are drawn"


def test_a_strip_is_decoded_once_for_all_tiles_that_share_it(ndpi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of NDPI, strips as wide as the slide and 128 px high; asked for as browsers do, the middle first."""
    decoded, decode = list[tuple[int, int, int]](), TiledLevels._decode

    def counted(self: TiledLevels, level: int, column: int, row: int, denom: ScaleDenom) -> UInt8Array:
        decoded.append((level, column, row))
        return decode(self, level, column, row, denom)

    picture = SlidePicture(SlideSource("a", ndpi, None, None))
    monkeypatch.setattr(TiledLevels, "_decode", counted)
    places = [(column, row) for column in range(4) for row in range(4)]
    for column, row in sorted(places, key=lambda at: (at[0] - 1.5) ** 2 + (at[1] - 1.5) ** 2):
        picture.jpeg(Square(256 * column, 256 * row, 256), 256)
    picture.close()
    assert sorted(decoded) == [(0, 0, strip) for strip in range(8)]


def test_a_tile_across_the_edge_shows_white_beyond_the_slide(tmp_path: Path) -> None:
    """What a slide's own tile is filled up with there is black."""
    path = tmp_path / "cut.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            np.full((300, 300, 3), 200, np.uint8), tile=(256, 256), photometric="rgb", compression="jpeg",
            resolution=(20_000, 20_000), resolutionunit="CENTIMETER", metadata=None,
        )  # fmt: skip
    shown = pixels_of(got(Site(find_cohort([path])), "data/0/1/1-1.jpg")).astype(int)
    assert np.abs(shown[:36, :36] - 200).max() < 10
    assert shown[64:, 64:].min() > 245


def test_a_slide_that_is_another_one_is_noticed(places: Places, tmp_path: Path) -> None:
    """Of the same name and size, so that only its bytes tell."""
    path = tmp_path / "one.tif"
    write_pyramid(path, 255 - black_tile(), mpp=0.5, levels=2)
    other = Site(find_cohort([places.heatmaps / "one", path]))
    assert json.loads(got(other, "data/0/check.json")) == {"same": False}
    right = Site(find_cohort([places.heatmaps], places.rows))
    assert json.loads(got(right, "data/0/check.json")) == {"same": True}
    assert json.loads(got(Site(find_cohort([path])), "data/0/check.json")) == {"same": None}


def test_nothing_private_of_a_slide_is_at_any_address(tmp_path: Path) -> None:
    """Neither its texts, nor its name, nor its label and macro images."""
    canary = make_canary(tmp_path, 7)
    row = ManifestRow(slide_path=canary.path, slide_id=canary.slide_id, case_id="c")
    site = Site(find_cohort([], [row]))
    for address in site.addresses():
        data = got(site, address)
        assert not any(word.encode() in data for word in canary.words.values()), address
        if address.endswith(".jpg"):
            for colour in (MAGENTA, LIME):
                assert np.abs(pixels_of(data) - np.array(colour)).sum(-1).min() > 60, address
