"""DICOM in HTJ2K, which OpenSlide does not read. Oracle: the pixels that were written, by OpenJPH."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from tests.tiling.dicom_files import TILE_PX, frames, write_instance
from tests.tiling.slides.test_slide import assert_one_sentence, noise
from tests.tiling.slides.test_tiled_dicom import SPARSE, places
from tests.tiling.test_icc import PROFILE
from tiling import TileStore, TilingConfig, tile_slide
from tiling.core.errors import SlideError, UnsupportedSlideError
from tiling.slides.dicom import read_header
from tiling.slides.slide import Slide
from tiling.slides.tiled_dicom import read_frames

U8 = NDArray[np.uint8]
LOSSLESS, ORDERED, LOSSY = (f"1.2.840.10008.1.2.4.20{n}" for n in (1, 2, 3))


def htj2k(tile: U8, **how: Any) -> bytes:
    return bytes(imagecodecs.htj2k_encode(tile, **how))


def write(path: Path, picture: U8, syntax: str = LOSSLESS, colours: str = "YBR_RCT", **more: Any) -> Path:
    how = {"encode": partial(htj2k, reversible=True)} | more
    return write_instance(path, picture, syntax=syntax, colours=colours, **how).parent


@pytest.fixture
def picture() -> U8:
    return noise(400, 700)


@pytest.mark.parametrize(
    ("syntax", "colours", "how"),
    [
        (LOSSLESS, "YBR_RCT", {}),
        (ORDERED, "YBR_RCT", {}),
        (LOSSY, "YBR_RCT", {}),
        (LOSSLESS, "RGB", {"rgb": False}),
    ],
)
@pytest.mark.parametrize("table", ["basic", "extended", "none"])
def test_lossless_pixels_are_those_written(
    tmp_path: Path, picture: U8, syntax: str, colours: str, how: dict[str, Any], table: str
) -> None:
    half = np.ascontiguousarray(picture[::2, ::2])
    for name, level, mpp in (("a", picture, 0.25), ("b", half, 0.5)):
        folder = write(
            tmp_path / "case" / name, level, syntax, colours, mpp=mpp, table=table,
            encode=partial(htj2k, reversible=True, **how),
        )  # fmt: skip
    with Slide(folder) as slide:
        assert (slide.mpp, slide.objective_power, slide.vendor, slide.compression()) == (0.25, 20, "dicom", "HTJ2K")
        assert [(level.width, level.height) for level in slide.levels] == [(700, 400), (350, 200)]
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 700, 400), picture)
        np.testing.assert_array_equal(slide.read_region(0, 0, 1, 350, 200), half)
        assert (slide.read_region(-20, -30, 0, 20, 30) == 255).all()


def test_lossy_pixels_are_those_written_but_for_the_loss(tmp_path: Path) -> None:
    """White and black stay so, where a decoder that does not clip turns one into the other."""
    steps = np.random.default_rng(0).integers(-127, 128, (400, 700, 3))
    picture = (np.cumsum(steps, axis=1) // 40 + 128).clip(0, 255).astype(np.uint8)
    picture[100:200, 300:500], picture[200:300, 300:500] = 255, 0
    folder = write(tmp_path / "case/a", picture, LOSSY, "YBR_ICT", encode=partial(htj2k, reversible=False))
    with Slide(folder) as slide:
        assert np.abs(slide.read_region(0, 0, 0, 700, 400).astype(int) - picture).max() <= 6


def test_frames_that_are_left_out_are_white(tmp_path: Path, picture: U8) -> None:
    kept = [4, 0, 1]
    more = SPARSE | {"PerFrameFunctionalGroupsSequence": places(picture, kept)}
    with Slide(write(tmp_path / "case/a", picture, frames_of=kept, **more)) as slide:
        for number, tile in enumerate(frames(picture)):
            x0, y0 = number % 3 * TILE_PX, number // 3 * TILE_PX
            ours = slide.read_region(x0, y0, 0, TILE_PX, TILE_PX)
            np.testing.assert_array_equal(ours, tile if number in kept else np.full_like(tile, 255))


@pytest.mark.parametrize("undefined", [False, True])
def test_scale_power_and_profile_are_found_however_sequences_are_delimited(
    tmp_path: Path, picture: U8, undefined: bool
) -> None:
    optical = Dataset()
    optical.ICCProfile, optical.ObjectiveLensPower = PROFILE + b"\0" * (len(PROFILE) % 2), 40.0
    path = write(tmp_path / "case/a", picture, OpticalPathSequence=[optical]) / "a"
    if undefined:
        ds = pydicom.dcmread(path)
        for name in ("OpticalPathSequence", "SharedFunctionalGroupsSequence"):
            ds[name].is_undefined_length = ds[name].value[0].is_undefined_length_sequence_item = True
        ds.save_as(path)
    with Slide(path) as slide:
        assert (slide.mpp, slide.objective_power, slide.has_profile) == (0.5, 40, True)


def test_a_slide_without_optics_or_spacing_asks_for_its_scale(tmp_path: Path, picture: U8) -> None:
    path = write(tmp_path / "case/a", picture) / "a"
    ds = pydicom.dcmread(path)
    del ds.OpticalPathSequence, ds.SharedFunctionalGroupsSequence
    ds.save_as(path)
    with Slide(path) as slide:
        assert (slide.objective_power, slide.has_profile) == (None, False)
        with pytest.raises(SlideError, match="--slide-mpp"):
            _ = slide.mpp


def test_it_is_tiled_like_any_slide(tmp_path: Path, picture: U8) -> None:
    folder = write(tmp_path / "case/a", np.ascontiguousarray(picture[:256, :512]))
    config = TilingConfig(mpp=0.5, tile_px=128, min_tissue=0.0, codec="lossless")
    store = TileStore(tile_slide(folder, tmp_path / "stores", config).store)
    assert len(store) == 8
    for (x0, y0), tile in zip(store.tiles.places(), store.read(slice(None)), strict=True):
        np.testing.assert_array_equal(tile, picture[y0 : y0 + 128, x0 : x0 + 128])


def test_a_damaged_frame_costs_itself(tmp_path: Path, picture: U8) -> None:
    path = write(tmp_path / "case/a", picture) / "a"
    header = read_header(path)
    assert header is not None
    found, data = read_frames(path, header), bytearray(path.read_bytes())
    start, size = int(found.offsets[1]), int(found.counts[1])
    data[start + 2 : start + size] = bytes(size - 2)
    path.write_bytes(data)
    with Slide(path) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, TILE_PX, TILE_PX), picture[:TILE_PX, :TILE_PX])
        with pytest.raises(SlideError, match="column 1, row 0") as caught:
            slide.read_region(TILE_PX, 0, 0, TILE_PX, TILE_PX)
        assert_one_sentence(caught.value, path)


def test_what_is_not_understood_is_refused(tmp_path: Path, picture: U8) -> None:
    for number, more in enumerate(({"fragments": 2}, {"tile": (200, 200)}, {"colours": "YBR_FULL"})):
        path = write(tmp_path / str(number) / "a", picture, **more)  # type: ignore[arg-type]
        with pytest.raises(UnsupportedSlideError, match="not supported") as caught:
            Slide(path)
        assert_one_sentence(caught.value, path)


def test_headers_with_changed_bytes_are_refused_or_read(tmp_path: Path, picture: U8) -> None:
    """Nothing else, as a level of no pixels or of more than memory holds."""
    path = write(tmp_path / "case/a", picture) / "a"
    data, random = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        changed = bytearray(data)
        for at in random.integers(132, 2500, 3):
            changed[at] = random.integers(0, 256)
        path.write_bytes(changed)
        try:
            with Slide(path) as slide:
                slide.read_region(0, 0, 0, 300, 300)
        except SlideError:
            refused += 1
    assert refused > 20
