"""DICOM's frames decoded directly: OpenSlide's pixels bit for bit, or OpenSlide."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.encaps import generate_frames

from tests.tiling.dicom_files import TILE_PX, frame_place, frames, jpeg, write_instance
from tests.tiling.slides.test_slide import noise
from tiling import TileStore, TilingConfig, tile_slide
from tiling.core.errors import SlideError
from tiling.slides.dicom import read_header
from tiling.slides.jpeg_stream import NotUnderstoodError
from tiling.slides.reader import Level
from tiling.slides.readers import open_reader
from tiling.slides.slide import Slide
from tiling.slides.tiled_dicom import dicom_levels, read_frames

U8 = NDArray[np.uint8]
DIRECTLY = "dicom, tiles decoded directly"
JPEG_2000 = "1.2.840.10008.1.2.4"
NATIVE = "1.2.840.10008.1.2.1"
SPARSE: dict[str, Any] = {"DimensionOrganizationType": "TILED_SPARSE"}


def in_colours(tile: U8, colorspace: str, subsampling: str) -> bytes:
    return bytes(
        imagecodecs.jpeg8_encode(tile, level=90, colorspace="RGB", outcolorspace=colorspace, subsampling=subsampling)
    )


def jpeg2000(tile: U8, **how: Any) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(tile, codecformat="j2k", **({"mct": True} | how)))


def raw(tile: U8) -> bytes:
    return tile.tobytes()


def places(picture: U8, kept: list[int], shift: int = 0) -> list[Any]:
    """Where those of a picture's tiles lie."""
    across = -(-picture.shape[1] // TILE_PX)
    return [frame_place(i % across * TILE_PX + 1 + shift, i // across * TILE_PX + 1) for i in kept]


KEPT = [5, 2, 0, 3, 4]  # of six, the second left out
KINDS: dict[str, dict[str, Any]] = {
    "basic table": {},
    "extended table": {"table": "extended"},
    "no table": {"table": "none"},
    "4:2:2": {"encode": partial(in_colours, colorspace="YCbCr", subsampling="422")},
    "4:2:0": {"encode": partial(in_colours, colorspace="YCbCr", subsampling="420")},
    "rgb": {"colours": "RGB", "encode": partial(in_colours, colorspace="RGB", subsampling="444")},
    "uncompressed": {"syntax": NATIVE, "colours": "RGB", "encode": raw},
    "jpeg 2000, lossless": {
        "syntax": f"{JPEG_2000}.90",
        "colours": "YBR_RCT",
        "encode": partial(jpeg2000, reversible=True),
    },
    "jpeg 2000, lossy": {"syntax": f"{JPEG_2000}.91", "colours": "YBR_ICT", "encode": partial(jpeg2000, level=40)},
    "jpeg 2000, rgb": {"syntax": f"{JPEG_2000}.91", "colours": "RGB", "encode": partial(jpeg2000, mct=False, level=40)},
    "other tiles": {"tile": (240, 112)},
    "sparse": {**SPARSE, "frames_of": KEPT},
    "sparse, undefined lengths": {**SPARSE, "frames_of": KEPT},
}  # fmt: skip


@pytest.fixture(scope="module")
def picture() -> U8:
    return noise(400, 700)


def write(path: Path, picture: U8, kind: str, **more: Any) -> Path:
    how = KINDS[kind] | more
    if "frames_of" in how:
        how["PerFrameFunctionalGroupsSequence"] = places(picture, how["frames_of"])
    write_instance(path, picture, **how)
    if kind == "sparse, undefined lengths":
        ds = pydicom.dcmread(path)
        for item in ds.PerFrameFunctionalGroupsSequence:
            item.is_undefined_length_sequence_item = True
            item["PlanePositionSlideSequence"].is_undefined_length = True
        ds["PerFrameFunctionalGroupsSequence"].is_undefined_length = True
        ds.save_as(path)
    return path.parent


def assert_equals_openslide(path: Path, reader: str = DIRECTLY) -> None:
    with Slide(path) as slide:
        assert slide.reader == reader
        general = open_reader(path)[1]
        for number, level in enumerate(slide.levels):
            ours = slide.read_region(0, 0, number, level.width + 40, level.height + 40)
            np.testing.assert_array_equal(ours, general.read(0, 0, number, level.width + 40, level.height + 40))
        general.close()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_equals_openslide(tmp_path: Path, picture: U8, kind: str) -> None:
    assert_equals_openslide(write(tmp_path / "case/a.dcm", picture, kind))


def test_the_real_slide_equals_openslide(dicom: Path) -> None:
    assert_equals_openslide(dicom)


def test_levels_and_one_of_a_single_frame_of_its_own_size(tmp_path: Path, picture: U8) -> None:
    half, quarter = (np.ascontiguousarray(picture[::d, ::d]) for d in (2, 4))
    write_instance(tmp_path / "case/a", picture)
    write_instance(tmp_path / "case/b", half, mpp=1.0, tile=(128, 64))
    write_instance(tmp_path / "case/c", quarter, mpp=2.0, tile=(175, 100))
    assert_equals_openslide(tmp_path / "case")
    with Slide(tmp_path / "case") as slide:
        assert [slide.native_tile_px(level) for level in range(3)] == [(256, 256), (128, 64), None]
        ours = slide.read_scaled(0, 0, (700, 400), (87, 50))
        area = cv2.resize(quarter, (87, 50), interpolation=cv2.INTER_AREA)
    assert np.abs(ours.astype(int) - area).mean() < 2


@pytest.mark.parametrize("kind", ["basic table", "extended table", "no table", "uncompressed"])
def test_a_level_cut_into_files(tmp_path: Path, picture: U8, kind: str) -> None:
    for part in (1, 0):
        write(tmp_path / "case" / str(part), picture, kind, part=part)
    assert_equals_openslide(tmp_path / "case")


@pytest.mark.parametrize("table", ["basic", "extended", "none"])
def test_frames_lie_where_pydicom_finds_them(tmp_path: Path, picture: U8, table: Any) -> None:
    path = write_instance(tmp_path / "a.dcm", picture, table=table)
    header = read_header(path)
    assert header is not None
    found, data = read_frames(path, header), path.read_bytes()
    items = zip(found.offsets.tolist(), found.counts.tolist(), strict=True)
    stored = [data[at:][8:size] for at, size in items]  # behind the head of the item
    assert stored == list(generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=6))
    assert [stream.rstrip(b"\0") for stream in stored] == [jpeg(tile) for tile in frames(picture)]
    assert found.corners is None


@pytest.mark.parametrize("kind", ["basic table", "rgb"])
def test_source_copies_the_frames(tmp_path: Path, picture: U8, kind: str) -> None:
    folder = write(tmp_path / "case/a.dcm", np.ascontiguousarray(np.tile(picture, (2, 2, 1))), kind)
    config = TilingConfig(mpp=0.5, tile_px=TILE_PX, min_tissue=0.0, codec="source")
    store = TileStore(tile_slide(folder, tmp_path / "stores", config).store)
    with Slide(folder) as slide:
        assert len(store) == 15
        for (x0, y0), tile in zip(store.tiles.places(), store.read(slice(None)), strict=True):
            np.testing.assert_array_equal(tile, slide.read_region(x0, y0, 0, TILE_PX, TILE_PX))


# ------------------------------------------------------------------------------------------------ left to OpenSlide


LEFT: dict[str, dict[str, Any]] = {
    "tiles that do not scale": {"tile": (200, 200)},
}  # fmt: skip


@pytest.mark.parametrize("kind", LEFT)
def test_what_is_left_to_openslide(tmp_path: Path, picture: U8, kind: str) -> None:
    write_instance(tmp_path / "case/a.dcm", picture, **LEFT[kind])
    assert_equals_openslide(tmp_path / "case", "dicom")


def changed(path: Path, before: bytes, after: bytes) -> None:
    data = path.read_bytes()
    assert data.count(before) == 1
    path.write_bytes(data.replace(before, after))


def with_item(path: Path, number: int, change: Callable[[bytes], bytes]) -> None:
    """Another item in place of that of a frame; the table of offsets follows its length."""
    header = read_header(path)
    assert header is not None
    found, data = read_frames(path, header), path.read_bytes()
    at, end = int(found.offsets[number]), int((found.offsets + found.counts)[number])
    item, offsets = change(data[at:end]), found.offsets - found.offsets[0]
    table = data.index(struct.pack("<6I", *offsets.tolist()))
    offsets[number + 1 :] += len(item) - (end - at)
    changed_table = data[:table] + struct.pack("<6I", *offsets.tolist()) + data[table + 24 : at]
    path.write_bytes(changed_table + item + data[end:])


def in_two(item: bytes) -> bytes:
    """The frame of an item in two fragments."""
    middle = 8 + (len(item) - 8) // 4 * 2
    halves = (item[8:middle], item[middle:])
    return b"".join(item[:4] + struct.pack("<I", len(half)) + half for half in halves)


def shorter(item: bytes) -> bytes:
    """The item with a head that says less."""
    return item[:4] + struct.pack("<I", len(item) - 8 - 30) + item[8:]


@pytest.mark.parametrize("change", [in_two, shorter])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_frame_that_is_no_single_item_of_its_length_is_damaged(
    tmp_path: Path, picture: U8, number: int, change: Callable[[bytes], bytes]
) -> None:
    """Not one of those that are compared with OpenSlide, which of two fragments shows the first alone."""
    path = write_instance(tmp_path / "case/a.dcm", picture)
    row, column = divmod(number, 3)
    with Slide(path) as slide:
        whole = slide.read_region(0, 0, 0, 700, 400)
    with_item(path, number, change)
    with Slide(path) as slide:
        assert slide.reader == "dicom, tiles decoded directly"
        for other in {0, 1, 2, 3, 4, 5} - {number}:
            y, x = (TILE_PX * place for place in divmod(other, 3))
            size = min(TILE_PX, 700 - x), min(TILE_PX, 400 - y)
            np.testing.assert_array_equal(slide.read_region(x, y, 0, *size), whole[y : y + size[1], x : x + size[0]])
        with pytest.raises(SlideError, match=rf"damaged tile: level 0, column {column}, row {row}.*fragment"):
            slide.read_region(TILE_PX * column, TILE_PX * row, 0, 9, 9)


def test_tables_that_do_not_fit_are_left_to_openslide(tmp_path: Path, picture: U8) -> None:
    """As where a file is longer than an offset of 32 bits tells."""
    path = write_instance(tmp_path / "case/a.dcm", picture)
    header = read_header(path)
    assert header is not None
    offsets = read_frames(path, header).offsets
    offsets -= offsets[0]
    table = struct.pack("<6I", *offsets.tolist())
    for wrong in (offsets[[0, 2, 1, 3, 4, 5]], offsets[[0, 0, 1, 2, 3, 4]]):
        changed(path, table, struct.pack("<6I", *wrong.tolist()))
        with Slide(path) as slide:
            assert slide.reader == "dicom"
        changed(path, struct.pack("<6I", *wrong.tolist()), table)
    assert_equals_openslide(path)


def test_frames_beside_the_grid_or_twice_in_a_place_are_not_taken_for_tiles(tmp_path: Path, picture: U8) -> None:
    for number, wrong in enumerate((places(picture, [0, 1, 2, 3], shift=8), places(picture, [0, 1, 2, 2]))):
        how = {"frames_of": [0, 1, 2, 3], "PerFrameFunctionalGroupsSequence": wrong, **SPARSE}
        path = write_instance(tmp_path / str(number) / "a.dcm", picture, **how)
        with pytest.raises(NotUnderstoodError, match="frames"):
            dicom_levels(path, [Level(700, 400, 1.0)])


def test_a_damaged_frame_is_named_and_alone(tmp_path: Path, picture: U8) -> None:
    path = write_instance(tmp_path / "case/a.dcm", picture)
    header = read_header(path)
    assert header is not None
    at = int(read_frames(path, header).offsets[1])
    data = bytearray(path.read_bytes())
    data[at + 700 : at + 900] = bytes(200)
    path.write_bytes(data)
    with Slide(path) as slide:
        assert slide.reader == DIRECTLY
        with pytest.raises(SlideError, match=r"case/a\.dcm: .*level 0, column 1, row 0"):
            slide.read_region(300, 0, 0, 8, 8)
        general = open_reader(path)[1]
        np.testing.assert_array_equal(slide.read_region(0, 256, 0, 700, 144), general.read(0, 256, 0, 700, 144))
        general.close()
