"""Where DICOM slides keep their frames, by their offset tables, and how these are coded.

JPEG baseline, JPEG 2000, HTJ2K, and no compression.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from tiling.core.arrays import UInt8Array
from tiling.core.errors import SlideError
from tiling.slides.dicom import Header, dicom_slide
from tiling.slides.dicom_elements import ITEM, PIXEL_DATA, SEQUENCE_END, UNDEFINED_LENGTH, elements, frame_corners
from tiling.slides.jpeg_stream import NotUnderstoodError, ScaleDenom, stream_prefix
from tiling.slides.tile_coding import Coding, Jpeg2000Tiles, JpegTiles, LosslessTiles, Memory
from tiling.slides.tiled_levels import Levels, LevelSize, TiledLevel

_PHOTOMETRIC = {"RGB": 2, "YBR_FULL_422": 6}  # as TIFF counts them
_OFFSETS, _LENGTHS = 0x7FE00001, 0x7FE00002
_MAX_FRAMES = 1 << 24
_HEAD = 8  # bytes of an item's tag and length


@dataclass(frozen=True)
class Frames:
    """The frames of one file, in their order."""

    offsets: NDArray[np.int64]
    """(frames,): where the bytes of each begin, with the head of the item that they lie in, if they do."""
    counts: NDArray[np.int64]
    """(frames,): how many those are."""
    in_items: bool
    """Whether each lies in an item: all but uncompressed ones do."""
    corners: NDArray[np.int64] | None
    """(frames, 2): x and y of each, pixels of the whole image; None: they are in reading order."""


@dataclass(frozen=True)
class ItemTiles:
    """Frames in items, one each, whose heads are stored before them and show that the table of offsets is right."""

    coding: Coding
    """Of what the items hold."""

    @property
    def size(self) -> tuple[int, int]:
        """As `Coding.size`."""
        return self.coding.size

    @property
    def copied(self) -> bool:
        """As `Coding.copied`."""
        return self.coding.copied

    def decode(self, pieces: Sequence[bytes], denom: ScaleDenom, memory: Memory) -> tuple[UInt8Array, ScaleDenom]:
        """As `Coding.decode`."""
        (item,) = pieces
        return self.coding.decode([_frame_in(item)], denom, memory)

    def stream(self, data: bytes) -> bytes:
        """As `Coding.stream`."""
        return self.coding.stream(_frame_in(data))


def _frame_in(item: bytes) -> bytes:
    """The frame in an item. Raises NotUnderstoodError where its head is none, or tells of another length."""
    group, element, length = struct.unpack_from("<HHI", item)
    # A byte that fills up an odd length may be counted or not.
    if group << 16 | element != ITEM or not 0 <= length - (len(item) - _HEAD) <= 1:
        raise NotUnderstoodError("it is no single fragment of the length that the table of offsets says")
    return item[_HEAD:]


def dicom_levels(path: Path, levels: Sequence[LevelSize]) -> tuple[list[Path], Levels]:
    """The files of a slide with pixels, and of each level the files of exactly its size.

    Args:
        path: The file that the slide is opened by.
        levels: The slide's levels, as its general reader sees them.

    Returns:
        The files, and the levels.

    Raises:
        NotUnderstoodError: For what is not fully understood.
        OSError: If a file cannot be read.
    """
    try:
        slide = dicom_slide(path)
    except SlideError as error:
        raise NotUnderstoodError(error.what) from error
    if slide is None:
        raise NotUnderstoodError("it is no DICOM")
    files = [file for file, _ in slide.pyramid]
    found = []
    for level in levels:
        parts = [(i, h) for i, (_, h) in enumerate(slide.pyramid) if h.size == (level.width, level.height)]
        found.append(_level([(i, header, read_frames(files[i], header)) for i, header in parts]))
    return files, tuple(found)


def read_frames(file: Path, header: Header) -> Frames:
    """Where the frames of a file lie, by its offset table or, without one, by a look at each.

    A frame of several fragments is not understood. Raises NotUnderstoodError, OSError.
    """
    if not 0 < header.frames <= _MAX_FRAMES or 0 in header.tile:
        raise NotUnderstoodError(f"{header.frames} frames of {header.tile[0]} x {header.tile[1]} px")
    with file.open("rb") as f:
        try:
            f.seek(header.beyond)
            corners = frame_corners(f, header.frames) if header.own_places else None
            if corners is not None and len(corners) != header.frames:
                raise NotUnderstoodError(f"{len(corners)} places of {header.frames} frames")
            tables = dict(
                elements(f, {_OFFSETS, _LENGTHS}, explicit=True, last=PIXEL_DATA, max_bytes=8 * header.frames)
            )
            if PIXEL_DATA not in tables:
                raise NotUnderstoodError("no pixels")
            length = struct.unpack("<I", f.read(4))[0]
            in_items = length == UNDEFINED_LENGTH
            if in_items:
                offsets, counts = _fragments(f, header.frames, tables)
            else:
                size = header.tile[0] * header.tile[1] * 3
                if length < size * header.frames:
                    raise NotUnderstoodError("fewer pixels than the frames have")
                counts = np.full(header.frames, size, np.int64)
                offsets = f.tell() + np.arange(header.frames, dtype=np.int64) * size
        except (ValueError, struct.error) as error:
            raise NotUnderstoodError(f"damaged elements ({type(error).__name__})") from error
    return Frames(offsets, counts, in_items, None if corners is None else np.array(corners, np.int64))


def _fragments(f: BinaryIO, frames: int, tables: dict[int, bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the frames' items begin, and how many bytes they have; `f` is at the first item of encapsulated pixels."""
    basic = np.frombuffer(f.read(_item_bytes(f)), "<u4").astype(np.int64)
    first = f.tell()
    if _OFFSETS in tables and _LENGTHS in tables and not len(basic):
        items = np.frombuffer(tables[_OFFSETS], "<i8") + first
        counts = np.frombuffer(tables[_LENGTHS], "<i8").astype(np.int64)
    elif len(basic):
        items = basic + first
        f.seek(int(items[-1]))
        counts = np.append(np.diff(items) - _HEAD, _item_bytes(f))
    else:
        ends = list(itertools.accumulate(range(frames), lambda at, _: _passed(f, at), initial=first))
        items = np.array(ends[:-1], np.int64)
        counts = np.diff(ends) - _HEAD
        f.seek(ends[-1])
        if f.read(4) != struct.pack("<HH", SEQUENCE_END >> 16, SEQUENCE_END & 0xFFFF):
            raise NotUnderstoodError("frames of several fragments")
    if len(items) != frames or len(counts) != frames or (counts <= 0).any() or (np.diff(items) <= 0).any():
        raise NotUnderstoodError("an offset table that does not fit the frames")  # or that counts beyond 32 bits
    f.seek(int(items[0]))
    _frame_in(f.read(_HEAD + int(counts[0])))  # raises for several fragments: OpenSlide reads the slide
    return items, counts + _HEAD


def _item_bytes(f: BinaryIO) -> int:
    """The length of the item at the file's position, left behind its head. Raises NotUnderstoodError, struct.error."""
    group, element, length = struct.unpack("<HHI", f.read(_HEAD))
    if group << 16 | element != ITEM or length == UNDEFINED_LENGTH:
        raise NotUnderstoodError("fragments that are no items")
    return int(length)


def _passed(f: BinaryIO, at: int) -> int:
    """Where the item at a place ends."""
    f.seek(at)
    return at + _HEAD + _item_bytes(f)


def _level(parts: list[tuple[int, Header, Frames]]) -> TiledLevel:
    """The level that some files, by number, make up with their frames. Raises NotUnderstoodError."""
    headers = [header for _, header, _ in parts]
    if len({(header.size, header.tile, header.transfer_syntax, header.colours) for header in headers}) != 1:
        raise NotUnderstoodError("no file or several kinds of a level's size")
    (width, height), tile = headers[0].size, headers[0].tile
    across, down = (math.ceil(side / px) for side, px in zip((width, height), tile, strict=True))
    if across * down > _MAX_FRAMES:
        raise NotUnderstoodError(f"{across} x {down} places for frames")
    offsets, counts = np.zeros(across * down, np.int64), np.zeros(across * down, np.int64)
    files = np.zeros(across * down, np.uint16)
    for number, header, frames in parts:
        index = _index(header, frames, across, down)
        if counts[index].any() or len(np.unique(index)) != len(index):
            raise NotUnderstoodError("two frames in one place")
        offsets[index], counts[index], files[index] = frames.offsets, frames.counts, number
    if headers[0].in_order and not counts.all():
        raise NotUnderstoodError("frames that are missing")
    stored, coding = (offsets, counts), _coding(headers[0])
    if any(frames.in_items for *_, frames in parts):
        coding = ItemTiles(coding)
    if across * down == 1:  # the level's only frame may have any size
        tile = (math.ceil(tile[0] / 16) * 16, math.ceil(tile[1] / 16) * 16)
    return TiledLevel(width, height, *tile, *stored, coding, files)


def _index(header: Header, frames: Frames, across: int, down: int) -> NDArray[np.int64]:
    """Which of the level's tiles the frames are, in reading order. Raises NotUnderstoodError for what is none."""
    if frames.corners is None:
        index = header.frames_before + np.arange(len(frames.offsets), dtype=np.int64)
        outside = index >= across * down
    else:
        columns, rows = (frames.corners // header.tile).T
        outside = (columns < 0) | (columns >= across) | (rows < 0) | (rows >= down)
        outside |= (frames.corners % header.tile).any(axis=1)
        index = rows * across + columns
    if outside.any():
        raise NotUnderstoodError("frames beyond the level, or between its tiles")
    return index


def _coding(header: Header) -> Coding:
    """How the frames are coded. Raises NotUnderstoodError for colours that are not known."""
    if header.compression == "JPEG" and header.colours in _PHOTOMETRIC:
        return JpegTiles(stream_prefix(None, _PHOTOMETRIC[header.colours]), header.tile)
    if header.compression == "NONE" and header.colours == "RGB":
        return LosslessTiles(header.tile, lambda data, size: data)
    if header.compression in ("JPEG2000", "HTJ2K"):
        return Jpeg2000Tiles(header.tile)
    raise NotUnderstoodError(f"frames in {header.compression}")
