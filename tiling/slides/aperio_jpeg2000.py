"""Aperio's JPEG 2000 tiles, looked at before OpenSlide decodes them.

OpenSlide 4.0.1 takes it that the samples of a stream fill its tile. Where an offset or the subsampling of a damaged
header leaves fewer, it shows what lies behind them in memory: other pixels each time, and no error.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from tifffile import COMPRESSION

from tiling.core.tiff import TIFF_DAMAGE
from tiling.slides.jpeg2000_stream import HEADER_BYTES, fills
from tiling.slides.reader import damaged, unreadable

_JPEG2000 = (COMPRESSION.APERIO_JP2000_YCBC, COMPRESSION.APERIO_JP2000_RGB)


@dataclass(frozen=True)
class _Level:
    """Where one level keeps its tiles."""

    width: int
    height: int
    tile_w: int
    tile_h: int
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    fit: NDArray[np.bool_]
    """Which tiles have been looked at, and may be decoded."""


class AperioStreams:
    """The JPEG 2000 tiles of an Aperio slide by OpenSlide's levels."""

    def __init__(self, path: Path, entry: Path, pages: Sequence[Any]) -> None:
        self._path, self._entry = path, entry
        try:
            self._levels = tuple(_level(page) for page in pages)
        except TIFF_DAMAGE as error:
            raise damaged(path, error) from error
        self._gaps = [bool((level.counts == 0).any()) for level in self._levels]

    def require_levels(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Raises SlideError if the levels are not of those (width, height)."""
        if [(level.width, level.height) for level in self._levels] != list(sizes):
            raise damaged(self._path, ValueError())

    def require_first(self) -> None:
        """Raises SlideError if the first tile of a level, which OpenSlide decodes at opening, is not to be decoded."""
        for level in self._levels:
            self._look(level, np.zeros(1, np.int64))

    def require(self, number: int, x: float, y: float, width: int, height: int) -> None:
        """Raises SlideError if a tile is not to be decoded of those that a rectangle of a level is read from.

        Corner and size in the level's pixels. Where a tile is left out, OpenSlide shows the level before instead.
        """
        level = self._levels[number]
        across = math.ceil(level.width / level.tile_w)
        right, lower = min(x + width, level.width), min(y + height, level.height)
        columns = np.arange(max(0, x) // level.tile_w, math.ceil(right / level.tile_w), dtype=np.int64)
        rows = np.arange(max(0, y) // level.tile_h, math.ceil(lower / level.tile_h), dtype=np.int64)
        tiles = (rows[:, None] * across + columns).ravel()
        self._look(level, tiles)
        if number and len(tiles) and any(self._gaps[: number + 1]):
            before = self._levels[number - 1]
            along, down = before.width / level.width, before.height / level.height
            left, top = int(columns[0]) * level.tile_w - 1, int(rows[0]) * level.tile_h - 1  # a pixel more all around
            size = len(columns) * level.tile_w + 2, len(rows) * level.tile_h + 2
            corner = left * along, top * down
            self.require(number - 1, *corner, math.ceil(size[0] * along), math.ceil(size[1] * down))

    def _look(self, level: _Level, tiles: NDArray[np.int64]) -> None:
        """Raises SlideError if one of those tiles, by number, is not to be decoded. None is looked at twice."""
        unseen = tiles[~level.fit[tiles]]
        if not len(unseen):
            return
        try:
            with self._entry.open("rb", buffering=0) as file:
                file_bytes = os.fstat(file.fileno()).st_size
                for index in unseen.tolist():
                    offset, count = int(level.offsets[index]), int(level.counts[index])
                    if count:
                        if not (0 <= offset < offset + count <= file_bytes):  # OpenSlide takes memory for any count
                            raise damaged(self._path, ValueError())
                        file.seek(offset)
                        if not fills(file.read(min(count, HEADER_BYTES)), level.tile_w, level.tile_h):
                            raise damaged(self._path, ValueError())
                    level.fit[index] = True
        except OSError as error:
            raise unreadable(self._path, error) from error


def aperio_streams(path: Path, entry: Path, tiff: tifffile.TiffFile) -> AperioStreams | None:
    """The JPEG 2000 tiles of an Aperio slide; None if its tiles are of something else.

    Raises SlideError, and what tifffile raises for damaged files whose first page is not in JPEG 2000.
    """
    try:
        tiled = [page for page in (page.aspage() for page in tiff.pages) if page.is_tiled]
    except TIFF_DAMAGE as error:
        if tiff.pages.first.compression in _JPEG2000:
            raise damaged(path, error) from error
        raise
    return AperioStreams(path, entry, tiled) if any(page.compression in _JPEG2000 for page in tiled) else None


def _level(page: Any) -> _Level:
    """Where a page keeps its tiles. Raises what tifffile does, ValueError if not all are listed."""
    offsets, counts = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)
    tiles = math.prod(page.chunked)
    if min(len(offsets), len(counts)) < tiles:
        raise ValueError("a list of tiles that is too short")
    fit = np.full(len(counts), page.compression not in _JPEG2000)
    return _Level(page.imagewidth, page.imagelength, page.tilewidth, page.tilelength, offsets, counts, fit)
