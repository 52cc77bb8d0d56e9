"""Slides read by decoding their own tiles, one by one: the levels, the tiles kept, and the comparison with OpenSlide.

Several times as fast as OpenSlide, with the same pixels bit for bit. Knows nothing of file formats: what finds the
tiles of one is listed in tiling.slides.direct. A level is a raster of its own pixels, (x, y), top-left; arrays are
[y, x, rgb].
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, Self, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from tiling.core.arrays import UInt8Array
from tiling.core.errors import SlideError
from tiling.core.platforms import pread
from tiling.slides.jpeg_stream import NotUnderstoodError, ScaleDenom
from tiling.slides.tile_cache import TileCache
from tiling.slides.tile_coding import Coding

ReadRegion = Callable[[int, int, int, int, int], UInt8Array]  # x0, y0 (level-0 px), level, width, height (level px)

_log = logging.getLogger(__name__)

_WHITE = 255
_DENOMS: tuple[ScaleDenom, ...] = get_args(ScaleDenom)
# A stream may grow beyond the pixels it codes, but not like this: bounds what a damaged byte count makes us read.
_LONGEST_STREAM = 4
_LARGEST_TILE_PX = 4096  # bounds the memory that one tile asks for
_REGIONS_APART = 64  # between threads that share a slide's regions out among them, in the order of rows
_SAMPLE_PX = 512  # longest side of what is compared with OpenSlide at one place


class LevelSize(Protocol):
    """The size of a level, as `tiling.slides.reader.Level` gives it."""

    @property
    def width(self) -> int:
        """Pixels of this level."""

    @property
    def height(self) -> int:
        """Pixels of this level."""

    @property
    def downsample(self) -> float:
        """Level-0 pixels per pixel of this level."""


class BadTileError(SlideError):
    """One native tile is damaged or cut off; the others can still be read. `level`, `column`, `row` name it."""

    def __init__(self, where: object, level: int, column: int, row: int, why: str) -> None:
        tile = f"has a damaged tile: level {level}, column {column}, row {row} ({why})"
        super().__init__(where, tile, "copy or scan the slide again, or do without the tile")
        self.args = (str(where), level, column, row, why)  # survives the trip between processes
        self.level, self.column, self.row = level, column, row


@dataclass(frozen=True)
class TiledLevel:
    """One level's tiles as they are stored; all sizes in pixels of the level."""

    width: int
    height: int
    tile_w: int
    tile_h: int
    offsets: NDArray[np.int64]  # (tiles,) in reading order, or (tiles, pieces)
    counts: NDArray[np.int64]  # of that shape, bytes; 0 where the file leaves the tile or piece out
    coding: Coding
    files: NDArray[np.uint16] | None = None  # (tiles,): which of the slide's files each lies in; None: the first
    shrunk: int = 1  # pixels that are stored, across and down, for one of the level

    def __post_init__(self) -> None:
        """Raises NotUnderstoodError for tiles that do not scale to whole pixels, or are too large or too few."""
        if self.tile_w % 16 or self.tile_h % 16 or max(self.tile_w, self.tile_h) > _LARGEST_TILE_PX:
            raise NotUnderstoodError(f"tiles of {self.tile_w} x {self.tile_h} px")
        if len(self.offsets) != self.across * self.down or self.counts.shape != self.offsets.shape:
            raise NotUnderstoodError(f"{len(self.offsets)} tiles, not {self.across * self.down}")

    @cached_property
    def across(self) -> int:
        """Tiles in a row."""
        return math.ceil(self.width / self.tile_w)

    @cached_property
    def down(self) -> int:
        """Tiles in a column."""
        return math.ceil(self.height / self.tile_h)

    @cached_property
    def longest(self) -> int:
        """The most bytes that a tile may have."""
        return _LONGEST_STREAM * 3 * self.tile_w * self.tile_h * self.shrunk**2

    @cached_property
    def stored(self) -> NDArray[np.bool_]:
        """(tiles,): which of them the file holds."""
        return np.asarray(self.counts.reshape(len(self.counts), -1).any(axis=1))

    def inside(self, column: int, row: int) -> tuple[int, int]:
        """Width and height of the part of a tile that lies on the level."""
        return min(self.tile_w, self.width - column * self.tile_w), min(self.tile_h, self.height - row * self.tile_h)


Levels = tuple[TiledLevel | None, ...]
"""The levels of a slide; None: one whose tiles are not known, and which the general reader reads."""


class TiledLevels:
    """The levels of a slide, read tile by tile; `close` it, or use it in a `with`.

    Keeps recently decoded tiles, so that regions read row by row decode each native tile once; in a slide so wide that
    a row of tiles exceeds the memory given, once for each row of regions. Safe to use from several threads (decoding
    releases the GIL) and after a fork while no other thread reads: pread has no position to share. Not picklable.
    """

    def __init__(self, path: Path, files: Sequence[Path], levels: Levels, cache_bytes: int) -> None:
        self._path, self._levels = path, levels
        self._cache = TileCache(cache_bytes)
        self._fds: list[int] = []
        try:
            for file in files:
                self._fds.append(os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)))
            self._bytes = [os.fstat(fd).st_size for fd in self._fds]
        except OSError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the files and the decoded tiles. May be called twice; not while another thread reads."""
        fds, self._fds = self._fds, [-1] * len(self._fds)
        for fd in fds:
            if fd >= 0:
                os.close(fd)
        self._cache.clear()

    def keep(self, decoded_bytes: int) -> None:
        """From now on keep at least so many bytes of decoded tiles, for regions that are read in any order."""
        self._cache.keep(decoded_bytes)

    def forget(self) -> None:
        """Drop the decoded tiles, for their memory; as many are kept again as `keep` and further reads ask for."""
        self._cache.clear()

    def holds(self, level: int) -> bool:
        """Whether the tiles of a level are known; of another, nothing may be asked but its `jpeg_tile_px`."""
        return self._levels[level] is not None

    def tile_px(self, level: int) -> tuple[int, int] | None:
        """Width and height of the native tiles of a level, in its pixels; None if they are not known."""
        shape = self._levels[level]
        return None if shape is None else (shape.tile_w, shape.tile_h)

    def jpeg_tile_px(self, level: int) -> tuple[int, int] | None:
        """Width and height of the native JPEG tiles of a level, in its pixels: multiples of 16; None if it has none."""
        shape = self._levels[level]
        own = shape is not None and shape.coding.copied and shape.coding.size == (shape.tile_w, shape.tile_h)
        return shape.coding.size if shape and own else None

    def read(self, level: int, x: int, y: int, width: int, height: int, scale_denom: ScaleDenom = 1) -> UInt8Array:
        """The rectangle of a level at (x, y), uint8 (height // scale_denom, width // scale_denom, 3), RGB.

        With `scale_denom` d pixel [i, j] shows the level's rows i * d to (i + 1) * d and columns j * d to (j + 1) * d.
        Native tiles are multiples of 16 px, so each decodes to whole pixels of one grid that starts at the level's
        corner. Tiles cut by the edge are decoded in full and area-averaged with the white beyond, 4:2:2 from 1/2 on.

        Args:
            level: Index of the level.
            x, y, width, height: The rectangle, the level's own pixels, multiples of d; it may reach beyond the level.
            scale_denom: d, the fraction of their size at which tiles are decoded: 1, 2, 4 or 8.

        Returns:
            The pixels, owned by the caller; white beyond the level and where a tile is left out.

        Raises:
            ValueError: For a rectangle that is empty or not aligned.
            BadTileError: For a tile that cannot be decoded.
            SlideError: If the file cannot be read.
        """
        if scale_denom not in _DENOMS or any(v % scale_denom for v in (x, y, width, height)) or min(width, height) < 1:
            raise ValueError(f"x {x}, y {y}, width {width}, height {height} at 1/{scale_denom}: see the docstring")
        shape = self._level(level)
        out = np.empty((height // scale_denom, width // scale_denom, 3), np.uint8)
        if x < 0 or y < 0 or x + width > shape.width or y + height > shape.height:
            out[:] = _WHITE
        rows = _tiles_over(y, height, shape.tile_h, shape.height)
        columns = _tiles_over(x, width, shape.tile_w, shape.width)
        # One row of tiles more than regions of this height touch: what the next row of regions shares with this one;
        # and for each other thread as much of a row as it may be ahead.
        row_bytes = 3 * shape.tile_w * shape.tile_h * shape.across // scale_denom**2
        ahead = min(1.0, _REGIONS_APART * width / shape.width)
        with self._cache.reading(row_bytes * (len(rows) + 1), int(row_bytes * ahead)):
            across = [(i, *_overlap(x, width, i, shape.tile_w, shape.width, scale_denom)) for i in columns]
            down = [(i, *_overlap(y, height, i, shape.tile_h, shape.height, scale_denom)) for i in rows]
            for (row, ys, ty), (column, xs, tx) in itertools.product(down, across):
                tile = self._tile(level, column, row, scale_denom)
                out[ys, xs] = _WHITE if tile is None else tile[ty, tx]
        return out

    def stream(self, level: int, column: int, row: int) -> bytes | None:
        """One native JPEG tile as a file that any decoder shows in the right colours; None if the slide leaves it out.

        The stored coefficients untouched: tables spliced in, an Adobe marker for the colour space, other application
        segments and comments (which may hold free text) removed. Whole tile: at the level's edge with its padding.
        Raises IndexError if there is no such tile, BadTileError, SlideError.
        """
        shape = self._level(level)
        pieces = self._stored(level, column, row)
        try:
            return shape.coding.stream(b"".join(pieces)) if pieces else None
        except NotUnderstoodError as error:
            raise BadTileError(self._path, level, column, row, str(error)) from error

    def _level(self, level: int) -> TiledLevel:
        shape = self._levels[level]
        assert shape is not None
        return shape

    def _stored(self, level: int, column: int, row: int) -> list[bytes]:
        """One native tile's bytes as they lie in the file, a piece after the other; none if it leaves the tile out."""
        shape = self._level(level)
        if not (0 <= column < shape.across and 0 <= row < shape.down):
            raise IndexError(f"level {level} has {shape.across} x {shape.down} tiles, no column {column}, row {row}")
        index = row * shape.across + column
        file = 0 if shape.files is None else int(shape.files[index])
        offsets, counts = (places[index].tolist() for places in (shape.offsets, shape.counts))
        places = zip(offsets, counts, strict=True) if isinstance(offsets, list) else ((offsets, counts),)
        pieces, longest = [], shape.longest
        for offset, count in places:
            if count and (offset < 0 or not 0 < count <= longest or offset + count > self._bytes[file]):
                raise BadTileError(self._path, level, column, row, "it lies beyond the end of the file or is too long")
            try:
                pieces += [pread(self._fds[file], count, offset)] if count else []
            except OSError as error:
                fix = "check the disk or the network"
                raise SlideError(self._path, f"cannot be read ({error.strerror})", fix) from error
        return pieces

    def agrees_with(self, read_region: ReadRegion, levels: Sequence[LevelSize]) -> bool:
        """Whether the first, middle and last tile of each level equal what `read_region` gives; if not, logs a warning.

        `read_region(x0, y0, level, width, height)` is the general reader's: corner in level-0 pixels, size in the
        level's, uint8 (height, width, 3), white where there are no pixels. Level 0 and the first tile must be
        identical. Elsewhere a level-0 corner may fall between a level's pixels, where OpenSlide interpolates; there
        its pixels must lie between ours. A damaged tile is passed over, and never asked of `read_region`; a level
        of which no tile could be compared does not agree, nor does one that makes `read_region` raise SlideError
        (OpenSlide then refuses all further reads: give this a handle of its own).
        """
        for level, size in enumerate(levels):
            if not self.holds(level):
                continue
            try:
                compared = [self._same(read_region, level, size.downsample, *at) for at in self._samples(level)]
            except SlideError as error:
                compared = []
                _log.debug("%s: level %d: %s", self._path, level, error.what)
            verdicts = [same for same in compared if same is not None]
            if not verdicts:
                _log.debug("%s: level %d: no tile could be compared", self._path, level)
                return False
            if not all(verdicts):
                _log.warning("%s: level %d is decoded otherwise by the fast reader; not using it", self._path, level)
                return False
        self.forget()  # a few tiles, and the cache that a whole row of the finest level would need
        return True

    def _tile(self, level: int, column: int, row: int, denom: ScaleDenom) -> UInt8Array | None:
        """One decoded tile, uint8 (tile_h / denom, tile_w / denom, 3); None if the file leaves it out."""
        shape = self._level(level)
        if not shape.stored[row * shape.across + column]:
            return None
        key = (level, column, row, denom)
        return self._cache.tile(key, lambda: self._decode(*key))

    def _decode(self, level: int, column: int, row: int, denom: ScaleDenom) -> UInt8Array:
        shape = self._level(level)
        pieces = self._stored(level, column, row)
        inside, whole = shape.inside(column, row), (shape.tile_w, shape.tile_h)
        cut = inside != whole
        try:
            tile, done = shape.coding.decode(pieces, 1 if cut else denom, self._cache.memory)
        except NotUnderstoodError as error:
            raise BadTileError(self._path, level, column, row, str(error)) from error
        except (ValueError, RuntimeError) as error:  # RuntimeError: imagecodecs'
            raise BadTileError(self._path, level, column, row, "its data are corrupt") from error
        if done == denom:
            return tile
        return _averaged(_on_white(tile, inside, whole) if cut else tile, denom // done)

    def _samples(self, level: int) -> list[tuple[int, int]]:
        """(column, row) of the first, middle and last tile that hold pixels, and of the first that is left out."""
        shape = self._level(level)
        stored, absent = np.flatnonzero(shape.stored), np.flatnonzero(~shape.stored)
        picked = {*stored[[0, len(stored) // 2, -1]].tolist()} if len(stored) else set()
        picked |= {*absent[:1].tolist()}
        return [(index % shape.across, index // shape.across) for index in sorted(picked)]

    def _same(self, read_region: ReadRegion, level: int, downsample: float, column: int, row: int) -> bool | None:
        """Does one tile equal `read_region`'s? None if it is damaged."""
        shape = self._level(level)
        width, height = (min(side, _SAMPLE_PX) for side in shape.inside(column, row))
        x, x0 = _level0_corner(column * shape.tile_w, downsample)
        y, y0 = _level0_corner(row * shape.tile_h, downsample)
        exact = x == x0 / downsample and y == y0 / downsample
        more = 0 if exact else 1  # the neighbours that OpenSlide interpolates with
        try:
            ours = self.read(level, x, y, width + more, height + more)
        except BadTileError:
            return None
        theirs = read_region(x0, y0, level, width, height)
        return bool(np.array_equal(ours, theirs)) if exact else _lies_between(theirs, ours)


# ------------------------------------------------------------------------------------------------ geometry; pure


def _tiles_over(start: int, length: int, tile: int, end: int) -> range:
    """Indexes along one axis of the tiles that a stretch touches."""
    first, last = max(start, 0), min(start + length, end)
    return range(first // tile, math.ceil(last / tile)) if first < last else range(0)


def _overlap(start: int, length: int, index: int, tile: int, end: int, denom: int) -> tuple[slice, slice]:
    """Along one axis, where a tile of a level and a stretch meet, in result pixels.

    Args:
        start: Where the stretch begins, pixels of the level.
        length: How long it is.
        index: Which tile it is.
        tile: How long tiles are.
        end: How long the level is.
        denom: Pixels of the level for one of the result.

    Returns:
        The slice of the stretch, and the slice of the tile.
    """
    from_px = index * tile
    first = max(start, from_px) // denom
    last = min((start + length) // denom, -(-min(from_px + tile, end) // denom))
    return slice(first - start // denom, last - start // denom), slice(
        first - from_px // denom, last - from_px // denom
    )


def _on_white(tile: UInt8Array, inside: tuple[int, int], whole: tuple[int, int]) -> UInt8Array:
    """The part of a tile that lies `inside` (width, height) the level, in the corner of a white one."""
    white = np.full((whole[1], whole[0], 3), _WHITE, np.uint8)
    white[: inside[1], : inside[0]] = tile[: inside[1], : inside[0]]
    return white


def _averaged(tile: UInt8Array, denom: int) -> UInt8Array:
    """A tile at 1 / denom by area."""
    size = (tile.shape[1] // denom, tile.shape[0] // denom)
    return np.asarray(cv2.resize(tile, size, interpolation=cv2.INTER_AREA), np.uint8)


def _lies_between(pixels: UInt8Array, ours: UInt8Array) -> bool:
    """Is each of `pixels` (h, w, 3) but the last row and column between the four of `ours` (h + 1, w + 1, 3) around?"""
    h, w = pixels.shape[:2]
    around = np.stack([ours[i : i + h, j : j + w] for i in (0, 1) for j in (0, 1)]).astype(np.int16)
    between = (around.min(axis=0) - 1 <= pixels) & (pixels <= around.max(axis=0) + 1)
    return bool(between[:-1, :-1].all())


def _level0_corner(start: int, downsample: float) -> tuple[int, int]:
    """(level pixel, level-0 pixel): the level-0 pixel at or after `start`, and the level pixel at or before that."""
    at = math.ceil(start * downsample)
    return math.floor(at / downsample), at
