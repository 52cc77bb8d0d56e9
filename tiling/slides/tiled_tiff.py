"""The tiles of tiled TIFFs (SVS, plain and BigTIFF, OME-TIFF): JPEG through libjpeg-turbo alone, LZW, deflate,
zstd and uncompressed ones through imagecodecs.

Several times as fast as OpenSlide, with the same pixels bit for bit; JPEG 2000, which is hardly faster this way, stays
with it. What is not fully understood is refused when the file is opened (`open_tiled_levels` gives None) and stays with
the general readers. A level is a raster of its own pixels, (x, y), top-left; arrays are [y, x, rgb].
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, get_args

import cv2
import imagecodecs
import numpy as np
import openslide
import tifffile
from numpy.typing import NDArray

from tiling.core.arrays import UInt8Array
from tiling.core.errors import SlideError
from tiling.core.tiff import TIFF_DAMAGE, open_tiff
from tiling.slides.jpeg_stream import (
    TRANSFORM,
    Header,
    NotUnderstoodError,
    ScaleDenom,
    decode_stream,
    header_of,
    stream_prefix,
)
from tiling.slides.tile_cache import TileCache

Unpack = Callable[[bytes, int], bytes]  # stored bytes, bytes of pixels -> pixels
ReadRegion = Callable[[int, int, int, int, int], UInt8Array]  # x0, y0 (level-0 px), level, width, height (level px)

_log = logging.getLogger(__name__)

_WHITE = 255
# OpenSlide shows these two as the TIFF stores them (None: it leaves the file to tifffile); it rearranges the others.
PLAIN_VENDORS = ("aperio", "generic-tiff", None)
_DENOMS: tuple[ScaleDenom, ...] = get_args(ScaleDenom)
# A stream may grow beyond the pixels it codes, but not like this: bounds what a damaged byte count makes us read.
_LONGEST_STREAM = 4
_LARGEST_TILE_PX = 4096  # bounds the memory that one tile asks for
_SAMPLE_PX = 512  # longest side of what is compared with OpenSlide at one place

_imagecodecs: Any = imagecodecs  # its stubs leave out arguments
_UNPACK: dict[int, Unpack] = {
    tifffile.COMPRESSION.NONE: lambda data, size: data,
    tifffile.COMPRESSION.LZW: lambda data, size: bytes(_imagecodecs.lzw_decode(data, out=size)),
    tifffile.COMPRESSION.ADOBE_DEFLATE: lambda data, size: bytes(_imagecodecs.zlib_decode(data, out=size)),
    tifffile.COMPRESSION.ZSTD: lambda data, size: bytes(_imagecodecs.zstd_decode(data, out=size)),
    tifffile.COMPRESSION.DEFLATE: lambda data, size: bytes(_imagecodecs.zlib_decode(data, out=size)),
}


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
class _TiledLevel:
    """One level's tiles as the TIFF stores them; all sizes in pixels of the level."""

    width: int
    height: int
    tile_w: int
    tile_h: int
    offsets: NDArray[np.int64]  # (tiles,), in reading order
    counts: NDArray[np.int64]  # (tiles,), bytes; 0 where the file leaves the tile out
    prefix: bytes  # of JPEG tiles: start of image, colour space and shared tables
    unpack: Unpack | None  # of other tiles: the lossless compression undone
    differences: bool  # TIFF's horizontal predictor: stored are the differences between neighbours

    @property
    def across(self) -> int:
        return math.ceil(self.width / self.tile_w)

    @property
    def down(self) -> int:
        return math.ceil(self.height / self.tile_h)

    def inside(self, column: int, row: int) -> tuple[int, int]:
        """Width and height of the part of a tile that lies on the level."""
        return min(self.tile_w, self.width - column * self.tile_w), min(self.tile_h, self.height - row * self.tile_h)


def open_tiled_levels(path: Path, levels: Sequence[LevelSize], *, cache_bytes: int = 256 << 20) -> TiledLevels | None:
    """The fast reader of `path`, or None (the reason is logged at debug level) for what it does not fully understand.

    `levels` are the slide's levels as its general reader sees them; each must be one tiled page of exactly that size:
    three interleaved samples of 8 bits, JPEG as RGB or YCbCr, LZW, deflate or uncompressed as RGB. `cache_bytes` bounds
    the decoded tiles kept in memory; most slides need less. Call `agrees_with` before trusting the pixels. Raises
    OSError if the file cannot be read.
    """
    try:
        vendor = openslide.OpenSlide.detect_format(str(path))
        if vendor not in PLAIN_VENDORS:
            raise NotUnderstoodError(f"a {vendor} slide is put together in its own way")
        with path.open("rb") as f, open_tiff(f) as tiff:
            found = tuple(_tiled_level(_page_of(tiff, level)) for level in levels)
        if vendor == "aperio" and any((level.counts == 0).any() for level in found):
            raise NotUnderstoodError("OpenSlide fills the missing tiles of an Aperio slide from other levels")
    except NotUnderstoodError as reason:
        _log.debug("%s: not read as a tiled TIFF: %s", path, reason)
        return None
    except TIFF_DAMAGE as error:
        _log.debug("%s: not read as a tiled TIFF: %s", path, type(error).__name__)  # its text may quote the file
        return None
    return TiledLevels(path, found, cache_bytes)


class TiledLevels:
    """The levels of a tiled JPEG TIFF. Made by `open_tiled_levels`; `close` it, or use it in a `with`.

    Keeps recently decoded tiles, so that regions read row by row decode each native tile once; in a slide so wide that
    a row of tiles exceeds the memory given, once for each row of regions. Safe to use from several threads (decoding
    releases the GIL) and after a fork: files are read with pread, which has no position to share. Not picklable.
    """

    def __init__(self, path: Path, levels: tuple[_TiledLevel, ...], cache_bytes: int) -> None:
        self._path, self._levels = path, levels
        self._cache = TileCache(cache_bytes)
        self._headers: dict[int, Header] = {}  # by level, of the tile last read: most tiles share theirs
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._file_bytes = os.fstat(self._fd).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file and the decoded tiles. May be called twice; not while another thread reads."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
        self._cache.clear()

    def jpeg_tile_px(self, level: int) -> tuple[int, int] | None:
        """Width and height of the native JPEG tiles of a level, in its pixels: multiples of 16; None if it has none."""
        shape = self._levels[level]
        return None if shape.unpack else (shape.tile_w, shape.tile_h)

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
        shape = self._levels[level]
        out = np.empty((height // scale_denom, width // scale_denom, 3), np.uint8)
        if x < 0 or y < 0 or x + width > shape.width or y + height > shape.height:
            out[:] = _WHITE
        rows = _tiles_over(y, height, shape.tile_h, shape.height)
        columns = _tiles_over(x, width, shape.tile_w, shape.width)
        # One row of tiles more than regions of this height touch: what the next row of regions shares with this one.
        row_bytes = 3 * shape.tile_w * shape.tile_h * shape.across // scale_denom**2
        with self._cache.reading(row_bytes * (len(rows) + 1)):
            for row, column in itertools.product(rows, columns):
                tile = self._tile(level, column, row, scale_denom)
                inside_w, inside_h = shape.inside(column, row)
                ys, ty = _overlap(y, height, row * shape.tile_h, inside_h, scale_denom)
                xs, tx = _overlap(x, width, column * shape.tile_w, inside_w, scale_denom)
                out[ys, xs] = _WHITE if tile is None else tile[ty, tx]
        return out

    def stream(self, level: int, column: int, row: int) -> bytes | None:
        """One native JPEG tile as a file that any decoder shows in the right colours; None if the slide leaves it out.

        The stored coefficients untouched: tables spliced in, an Adobe marker for the colour space, other application
        segments and comments (which may hold free text) removed. Whole tile: at the level's edge with its padding.
        Raises IndexError if there is no such tile, BadTileError, SlideError.
        """
        data = self._stored(level, column, row)
        return None if data is None else self._whole(level, column, row, data)[0]

    def _stored(self, level: int, column: int, row: int) -> bytes | None:
        """One native tile's bytes as they lie in the file; None if it leaves the tile out."""
        shape = self._levels[level]
        if not (0 <= column < shape.across and 0 <= row < shape.down):
            raise IndexError(f"level {level} has {shape.across} x {shape.down} tiles, no column {column}, row {row}")
        index = row * shape.across + column
        offset, count = int(shape.offsets[index]), int(shape.counts[index])
        if count == 0:
            return None
        longest = _LONGEST_STREAM * 3 * shape.tile_w * shape.tile_h
        if offset < 0 or not 0 < count <= longest or offset + count > self._file_bytes:
            raise BadTileError(self._path, level, column, row, "it lies beyond the end of the file or is too long")
        try:
            return os.pread(self._fd, count, offset)
        except OSError as error:
            raise SlideError(
                self._path, f"cannot be read ({error.strerror})", "check the disk or the network"
            ) from error

    def _whole(self, level: int, column: int, row: int, data: bytes) -> tuple[bytes, Header]:
        """A stored JPEG stream as a file of its own, and its header."""
        shape, header = self._levels[level], self._headers.get(level)
        if header is None or not data.startswith(header.stored):
            try:
                header = self._headers[level] = header_of(data, shape.tile_w, shape.tile_h)
            except NotUnderstoodError as error:
                raise BadTileError(self._path, level, column, row, str(error)) from error
        return b"".join((shape.prefix, header.kept, memoryview(data)[len(header.stored) :])), header

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
            try:
                compared = [self._same(read_region, level, size.downsample, *at) for at in self._samples(level)]
            except SlideError as error:
                compared = []
                _log.debug("%s: level %d: %s", self._path, level, error.what)
            verdicts = [same for same in compared if same is not None]
            if not verdicts or not all(verdicts):
                _log.warning("%s: level %d is decoded otherwise by the fast reader; not using it", self._path, level)
                return False
        return True

    def _tile(self, level: int, column: int, row: int, denom: ScaleDenom) -> UInt8Array | None:
        """One decoded tile, uint8 (tile_h / denom, tile_w / denom, 3); None if the file leaves it out."""
        shape = self._levels[level]
        if not shape.counts[row * shape.across + column]:
            return None
        key = (level, column, row, denom)
        tile = self._cache.get(key)
        if tile is None:
            tile = self._decode(level, column, row, denom)
            self._cache.put(key, tile)
        return tile

    def _decode(self, level: int, column: int, row: int, denom: ScaleDenom) -> UInt8Array:
        shape = self._levels[level]
        data = self._stored(level, column, row)
        assert data is not None
        inside = shape.inside(column, row)
        cut = inside != (shape.tile_w, shape.tile_h)
        in_dct: ScaleDenom = 1
        try:
            if shape.unpack:
                tile = _unpacked(data, shape)
            else:
                stream, header = self._whole(level, column, row, data)
                in_dct = 1 if cut else header.dct_denom(denom)
                memory = self._cache.memory((shape.tile_h // in_dct, shape.tile_w // in_dct, 3))
                tile = decode_stream(stream, shape.tile_w, shape.tile_h, in_dct, memory)
        except (ValueError, RuntimeError) as error:  # RuntimeError: imagecodecs'
            raise BadTileError(self._path, level, column, row, "its data are corrupt") from error
        return tile if in_dct == denom else _averaged(tile, inside if cut else None, denom // in_dct)

    def _samples(self, level: int) -> list[tuple[int, int]]:
        """(column, row) of the first, middle and last tile that hold pixels, and of the first that is left out."""
        shape = self._levels[level]
        stored, absent = np.flatnonzero(shape.counts), np.flatnonzero(shape.counts == 0)
        picked = {*stored[[0, len(stored) // 2, -1]].tolist()} if len(stored) else set()
        picked |= {*absent[:1].tolist()}
        return [(index % shape.across, index // shape.across) for index in sorted(picked)]

    def _same(self, read_region: ReadRegion, level: int, downsample: float, column: int, row: int) -> bool | None:
        """Does one tile equal `read_region`'s? None if it is damaged."""
        shape = self._levels[level]
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


def _unpacked(data: bytes, shape: _TiledLevel) -> UInt8Array:
    """A losslessly stored tile, uint8 (tile_h, tile_w, 3). Raises ValueError or RuntimeError if it is corrupt."""
    assert shape.unpack
    size = shape.tile_h * shape.tile_w * 3
    pixels = np.frombuffer(shape.unpack(data, size), np.uint8)
    if len(pixels) != size:
        raise ValueError(f"{len(pixels)} bytes of pixels, not {size}")
    tile = pixels.reshape(shape.tile_h, shape.tile_w, 3)
    return np.asarray(np.cumsum(tile, axis=1, dtype=np.uint8)) if shape.differences else tile


# ------------------------------------------------------------------------------------------------ geometry; pure


def _tiles_over(start: int, length: int, tile: int, end: int) -> range:
    """Indexes along one axis of the tiles that a stretch touches."""
    first, last = max(start, 0), min(start + length, end)
    return range(first // tile, math.ceil(last / tile)) if first < last else range(0)


def _overlap(start: int, length: int, tile_start: int, tile_length: int, denom: int) -> tuple[slice, slice]:
    """Along one axis, where a tile and a stretch meet: (slice of the stretch, slice of the tile), in result pixels."""
    begin = max(start, tile_start) // denom
    end = min((start + length) // denom, math.ceil((tile_start + tile_length) / denom))
    return slice(begin - start // denom, end - start // denom), slice(
        begin - tile_start // denom, end - tile_start // denom
    )


def _averaged(tile: UInt8Array, inside: tuple[int, int] | None, denom: int) -> UInt8Array:
    """A tile at 1 / denom by area; if only `inside` (width, height) of it lies on the level, white beyond."""
    if inside is not None:
        white = np.full_like(tile, _WHITE)
        white[: inside[1], : inside[0]] = tile[: inside[1], : inside[0]]
        tile = white
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


# -------------------------------------------------------------------------------------------------- the TIFF page


def _page_of(tiff: tifffile.TiffFile, level: LevelSize) -> Any:
    """The only tiled page of exactly the level's size."""
    found = [
        p for p in _pages(tiff.pages) if p.is_tiled and (p.imagewidth, p.imagelength) == (level.width, level.height)
    ]
    if len(found) != 1:
        raise NotUnderstoodError(f"{len(found)} tiled pages of {level.width} x {level.height} px")
    return found[0]


def _pages(pages: Any) -> Iterator[Any]:
    """The pages of a file, and one floor below them those of OME pyramids."""
    for page in pages:
        yield page
        yield from page.pages or ()


def _tiled_level(page: Any) -> _TiledLevel:
    """Where a page keeps its tiles. Raises NotUnderstoodError unless every property that matters is known."""
    across, down = math.ceil(page.imagewidth / page.tilewidth), math.ceil(page.imagelength / page.tilelength)
    must_be = {
        "bits per sample": (page.bitspersample, 8),
        "sample format": (page.sampleformat, tifffile.SAMPLEFORMAT.UINT),
        "samples per pixel": (page.samplesperpixel, 3),
        "planar configuration": (page.planarconfig, tifffile.PLANARCONFIG.CONTIG),
        "fill order": (page.fillorder, tifffile.FILLORDER.MSB2LSB),
        "depth": ((page.imagedepth, page.tiledepth), (1, 1)),
        "orientation": (int(page.tags.valueof("Orientation", default=1)), 1),
        "tiles": ((len(page.dataoffsets), len(page.databytecounts)), (across * down,) * 2),
    }
    for name, (value, expected) in must_be.items():
        if value != expected:
            raise NotUnderstoodError(f"{name} {value}")
    unpack = _UNPACK.get(page.compression)
    predictors = (1, 2) if page.compression not in (tifffile.COMPRESSION.JPEG, tifffile.COMPRESSION.NONE) else (1,)
    if unpack is None and page.compression != tifffile.COMPRESSION.JPEG:
        raise NotUnderstoodError(f"compression {page.compression}")
    if page.photometric not in (TRANSFORM if unpack is None else (tifffile.PHOTOMETRIC.RGB,)):
        raise NotUnderstoodError(f"photometric interpretation {page.photometric}")
    if page.predictor not in predictors:
        raise NotUnderstoodError(f"predictor {page.predictor}")
    if page.tilewidth % 16 or page.tilelength % 16 or max(page.tilewidth, page.tilelength) > _LARGEST_TILE_PX:
        raise NotUnderstoodError(f"tiles of {page.tilewidth} x {page.tilelength} px")
    return _TiledLevel(
        page.imagewidth,
        page.imagelength,
        page.tilewidth,
        page.tilelength,
        np.asarray(page.dataoffsets, np.int64),
        np.asarray(page.databytecounts, np.int64),
        b"" if unpack else stream_prefix(page.jpegtables, _coded_as(page)),
        unpack,
        page.predictor == tifffile.PREDICTOR.HORIZONTAL,
    )


def _coded_as(page: Any) -> int:
    """The photometric interpretation of the streams: the page's, as OpenSlide has it, but for one contradiction.

    Bio-Formats calls pages RGB whose streams are JFIF, which is YCbCr: tifffile believes the stream, OpenSlide the
    page; so in OME-TIFFs the pixels agree, and elsewhere `agrees_with` will tell.
    """
    return int(tifffile.PHOTOMETRIC.YCBCR if page.is_jfif else page.photometric)
