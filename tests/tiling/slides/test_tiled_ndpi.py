"""NDPI's strips decoded directly: OpenSlide's pixels bit for bit, or OpenSlide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.tiling.ndpi_files import ndpi_jpeg, strip_starts, write_jpegs, write_ndpi
from tests.tiling.slides.test_slide import noise
from tiling.core.errors import SlideError
from tiling.slides.direct import open_tiled_levels
from tiling.slides.jpeg_stream import ScaleDenom
from tiling.slides.readers import open_reader
from tiling.slides.slide import Slide

U8 = NDArray[np.uint8]
DIRECTLY = "openslide, tiles decoded directly"


@pytest.fixture(scope="module")
def picture() -> U8:
    return noise(400, 1024)


def direct_levels(path: Path) -> list[int]:
    """The levels that are decoded directly."""
    with Slide(path) as slide:
        fast = open_tiled_levels(path, slide.levels)
        if fast is None:
            return []
        with fast:
            return [number for number in range(len(slide.levels)) if fast.holds(number)]


def assert_equals_openslide(path: Path) -> None:
    with Slide(path) as slide:
        assert slide.reader == DIRECTLY
        general = open_reader(path)[1]
        for number, level in enumerate(slide.levels):
            ours = slide.read_region(0, 0, number, level.width + 40, level.height + 40)
            np.testing.assert_array_equal(ours, general.read(0, 0, number, level.width + 40, level.height + 40))
        general.close()


# Levels of OpenSlide: 1024 px and 1/2, 1/4, 1/8 of it. Strips 256 px wide, 8 or, where chroma is coarser down, 16 high.
@pytest.mark.parametrize(
    ("chroma", "restart", "directly"),
    [
        ("444", 32, [0, 1, 2, 3]), ("422", 16, [0, 1, 2, 3]), ("411", 8, [0, 1, 2, 3]), ("420", 16, []),
        ("440", 32, []), ("444", 4, [0, 1]), ("422", 64, [0, 1, 2, 3]), ("444", 3, []), ("422", 0, []),
    ],
)  # fmt: skip
def test_every_chroma_and_width_of_strips(
    tmp_path: Path, picture: U8, chroma: str, restart: int, directly: list[int]
) -> None:
    width = 1024 if restart != 3 else 1008
    path = write_ndpi(tmp_path / "a.ndpi", [np.ascontiguousarray(picture[:, :width])], chroma, restart=restart)
    assert direct_levels(path) == directly
    if directly:
        assert_equals_openslide(path)


def test_levels_of_their_own_beside_those_made_of_a_finer_one(tmp_path: Path, picture: U8) -> None:
    """The coarsest is one JPEG without markers, as scanners write it."""
    levels = [np.ascontiguousarray(picture[::d, ::d]) for d in (1, 4, 8)]
    path = write_ndpi(tmp_path / "a.ndpi", levels, restart=[16, 8, 0])
    with Slide(path) as slide:
        sizes = [(level.width, level.height) for level in slide.levels]
    assert sizes[:4] == [(1024, 400), (512, 200), (256, 100), (128, 50)]
    assert direct_levels(path)[:2] == [0, 1]
    assert 3 not in direct_levels(path)
    assert_equals_openslide(path)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_random_regions(wide: Path, data: st.DataObject) -> None:
    with Slide(wide) as slide:
        general = open_reader(wide)[1]
        number = data.draw(st.integers(0, len(slide.levels) - 1))
        level = slide.levels[number]
        x, y = data.draw(st.integers(-50, level.width)), data.draw(st.integers(-50, level.height))
        width, height = data.draw(st.integers(1, 400)), data.draw(st.integers(1, 300))
        at = (x * round(level.downsample), y * round(level.downsample))
        np.testing.assert_array_equal(
            slide.read_region(*at, number, width, height), general.read(*at, number, width, height)
        )
        general.close()


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ndpi(tmp_path_factory.mktemp("ndpi") / "a.ndpi", [noise(400, 1024)])


@pytest.mark.parametrize("chroma", ["444", "422"])
@pytest.mark.parametrize("denom", [2, 4, 8])
def test_scaled_further_it_is_close_to_area(tmp_path: Path, picture: U8, chroma: str, denom: ScaleDenom) -> None:
    path = write_ndpi(tmp_path / "a.ndpi", [picture], chroma)
    with Slide(path) as slide:
        fast = open_tiled_levels(path, slide.levels)
        assert fast is not None
        for number in (0, 1):
            level = slide.levels[number]
            whole = fast.read(number, 0, 0, level.width, level.height).astype(float)
            ours = fast.read(number, 0, 0, level.width, level.height // 8 * 8, denom)
            blocks = whole[: level.height // 8 * 8].reshape(level.height // 8 * 8 // denom, denom, -1, denom, 3)
            assert np.abs(ours - blocks.mean(axis=(1, 3))).mean() < 3
        fast.close()


# ------------------------------------------------------------------------------------------------------------- damage


def test_a_damaged_strip_costs_its_tile_alone(tmp_path: Path, picture: U8) -> None:
    jpeg = bytearray(ndpi_jpeg(picture, "422", 16))
    strip = strip_starts(bytes(jpeg))[4 * 20 + 2]  # row 20 of 50, column 2 of 4
    jpeg[strip + 10 : strip + 12] = b"\xff\xd9"
    path = write_jpegs(tmp_path / "a.ndpi", [bytes(jpeg)], [(1024, 400)])
    with Slide(path) as slide:
        assert slide.reader == DIRECTLY
        general = open_reader(path)[1]
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 512, 400), general.read(0, 0, 0, 512, 400))
        general.close()
        with pytest.raises(SlideError, match="column 2, row 1"):
            slide.read_region(520, 160, 0, 8, 8)


@pytest.mark.parametrize("change", [-2, 1, 7])
def test_a_list_of_strips_that_is_wrong_is_noticed(tmp_path: Path, picture: U8, change: int) -> None:
    """OpenSlide looks at the marker before a strip, and so do we."""
    path = write_ndpi(tmp_path / "a.ndpi", [picture])
    data, starts = path.read_bytes(), strip_starts(ndpi_jpeg(picture, "422", 16))
    listed = np.array(starts, "<u4").tobytes()
    assert data.count(listed) == 1
    wrong = list(starts)
    wrong[4 * 20 + 2] += change
    path.write_bytes(data.replace(listed, np.array(wrong, "<u4").tobytes()))
    with Slide(path) as slide:
        for x0, bad in ((512, True), (256, True), (0, False), (768, False)):
            if bad:
                with pytest.raises(SlideError):
                    slide.read_region(x0, 160, 0, 8, 8)
            else:
                slide.read_region(x0, 160, 0, 8, 8)
