"""The JPEG 2000 frames of DICOM slides, looked at before OpenSlide decodes them: see tiling.slides.aperio_jpeg2000."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from tiling.slides.jpeg2000_stream import BEGIN, HEADER_BYTES, fills
from tiling.slides.reader import damaged, unreadable

_PIXELS = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff"  # the element of encapsulated frames
_ITEM = b"\xfe\xff\x00\xe0"
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class FramesFile:
    """A file of a DICOM slide, and where its frames lie."""

    file: Path
    size: tuple[int, int]
    """Width and height of the level, pixels."""
    tile: tuple[int, int]
    """Width and height of a frame."""
    in_order: bool
    """Whether the frames are the level's tiles in reading order."""
    begin: int
    """A place in the file that comes before the frames."""


class DicomStreams:
    """The JPEG 2000 frames of a DICOM slide, some of whose files may be in it; each is looked through once."""

    def __init__(self, path: Path, files: Sequence[FramesFile]) -> None:
        self._path, self._files = path, files
        self._sizes: list[tuple[int, int]] = []

    def require_first(self) -> None:
        """OpenSlide decodes none at opening."""

    def require_levels(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Takes the (width, height) of the levels. Raises SlideError if a file has frames of no size."""
        self._sizes = list(sizes)
        if any(0 in known.tile for known in self._files):
            raise damaged(self._path, ValueError())

    def require(self, number: int, x: float, y: float, width: int, height: int) -> None:
        """Raises SlideError if a frame is not to be decoded of those that a rectangle of a level is read from.

        Corner and size in the level's pixels. Where frames are in no known order, each is taken for one of those.
        """
        files = [known for known in self._files if known.size == self._sizes[number]]
        for known in files:
            try:
                stat = known.file.stat()
                count, unfit = _unfit_frames(known, stat.st_mtime_ns, stat.st_size)
            except OSError as error:
                raise unreadable(self._path, error) from error
            tile_w, tile_h = known.tile
            across, down = math.ceil(known.size[0] / tile_w), math.ceil(known.size[1] / tile_h)
            ordered = known.in_order and len(files) == 1 and count == across * down
            for index in unfit:
                left, top = index % across * tile_w, index // across * tile_h
                meets = left < x + width and x < left + tile_w and top < y + height and y < top + tile_h
                if meets or not ordered:
                    raise damaged(self._path, ValueError())


@lru_cache(maxsize=32)
def _unfit_frames(known: FramesFile, mtime_ns: int, file_bytes: int) -> tuple[int, frozenset[int]]:
    """How many frames, or fragments of them, a file holds, and which begin a stream that does not fill its tile.

    By time and size of the file, so that a slide that is opened again is not looked through again. Raises OSError.
    """
    with known.file.open("rb", buffering=0) as f:
        at, count, unfit = _first_item(f, known.begin), 0, set[int]()
        while at is not None:
            f.seek(at)
            head = f.read(8 + HEADER_BYTES)
            if head[:4] != _ITEM or len(head) < 8:
                break
            size = struct.unpack_from("<I", head, 4)[0]
            stream = head[8 : 8 + size]
            if count and stream.startswith(BEGIN[:2]) and not fills(stream, *known.tile):
                unfit.add(count - 1)
            count += 1
            at += 8 + size
    return count - 1, frozenset(unfit)  # the first item is the table of offsets


def _first_item(f: BinaryIO, begin: int) -> int | None:
    """Where the items of a file's pixels begin, which come after `begin`; None if there are none. Raises OSError."""
    f.seek(begin)
    kept = b""
    while block := f.read(_BLOCK_BYTES):
        kept += block
        found = kept.find(_PIXELS + _ITEM)
        if found >= 0:
            return begin + found + len(_PIXELS)
        overlap = kept[-len(_PIXELS + _ITEM) + 1 :]
        begin += len(kept) - len(overlap)
        kept = overlap
    return None
