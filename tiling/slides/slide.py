"""The only opener of slides: pixels, levels and scale of a whole-slide image, and nothing else that it carries.

What reads which format: tiling.slides.readers. Label and macro images, names,
dates and free text are never read. Coordinates are level-0 pixels, (x, y), top-left; arrays are [y, x, rgb].
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Self

import cv2
import numpy as np
import tifffile

from tiling.core.arrays import Icc, UInt8Array
from tiling.core.errors import SlideError
from tiling.core.threads import read_ahead
from tiling.core.tiff import DAMAGE
from tiling.grid import MAX_SIDE0, Bounds, Frame
from tiling.slides.colour import to_srgb
from tiling.slides.direct import open_tiled_levels
from tiling.slides.files import entry_file, slide_sha256
from tiling.slides.jpeg_stream import ScaleDenom
from tiling.slides.reader import SlideReader, exact_downsamples, unreadable
from tiling.slides.readers import open_reader
from tiling.slides.tiff_picture import compression_name
from tiling.slides.tiled_levels import TiledLevels

# Scanners and field formats lie between; outside, the "resolution" is a printing default such as 72 dpi.
PLAUSIBLE_MPP = (0.02, 60.0)
_READ_PX = 4096  # longest side of one read: bounds memory at any slide size
_PART_PX = 1024  # longest side of a part of an overview, of which more is made than kept
_DENOMS: tuple[ScaleDenom, ...] = (8, 4, 2, 1)
_MIN_PART_PX = 16  # a damaged part of an overview is looked at again in quarters, down to this side
_MAX_OVERVIEW_FAILURES = 1000
_HOLD_THE_SLIDE = {"pillow"}  # readers that have the whole picture in memory: one is enough
_TRIED_PX = 64  # side of what is decoded of each level to see whether it can be

log = logging.getLogger(__name__)


class Slide:
    """An open slide. `with Slide(path) as slide: slide.read_region(x0, y0, level, width, height)`.

    `mpp` (micrometres per pixel at level 0) given here overrides the file's own. With `icc` "srgb" its pixels are given
    in sRGB, by the ICC profile in the file; without a profile they are taken for sRGB. Raises SlideError if the file
    cannot be read as a slide, or its profile is asked for and damaged. May be read by several threads at once.
    """

    def __init__(self, path: Path | str, *, mpp: float | None = None, icc: Icc = "none") -> None:
        self.path = Path(path)
        if mpp is not None and not PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]:
            fix = f"pass micrometres a pixel, from {PLAUSIBLE_MPP[0]:g} to {PLAUSIBLE_MPP[1]:g}"
            raise SlideError(self.path, f"cannot have pixels of the given {mpp:g} micrometres", fix)
        self._reader_name, self._reader = open_reader(self.path)
        self.vendor = self._reader.vendor
        self._downsamples = exact_downsamples(self._reader.levels)
        self.levels = tuple(
            replace(level, downsample=(across + down) / 2)
            for level, (across, down) in zip(self._reader.levels, self._downsamples, strict=True)
        )
        self.objective_power = self._reader.objective_power
        self.plane = self._reader.plane
        self.width, self.height = self.levels[0].width, self.levels[0].height
        self.frame = Frame((self.width, self.height), self._reader.bounds)
        if max(self.width, self.height) > MAX_SIDE0:
            what = f"claims {self.width} x {self.height} px, more than any slide has"
            raise SlideError(self.path, what, "copy or scan the slide again")
        self._given_mpp = mpp
        try:
            self._to_srgb = to_srgb(self.path, self._reader) if icc == "srgb" else None
        except SlideError:
            self._reader.close()
            raise
        self.lacks_profile = icc == "srgb" and self._to_srgb is None
        """Whether its pixels are taken for sRGB because the file has no ICC profile."""
        self._readers = _Readers(self.path, self._reader, alone=self._reader_name in _HOLD_THE_SLIDE)
        self._fast = _open_fast(self.path, self._reader)
        if self.plane:
            log.info("%s: %s is read", self.path, self.plane)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file. Not while a thread reads."""
        self._readers.close()
        if self._fast is not None:
            self._fast.close()

    @property
    def mpp(self) -> float:
        """Micrometres per level-0 pixel. Raises SlideError, saying what to pass, if neither file nor user gives it."""
        if self._given_mpp is not None:
            return self._given_mpp
        power = f" (objective power {self.objective_power:g})" if self.objective_power else ""
        fix = f"pass --slide-mpp, or fill the manifest's mpp column{power}"
        if self._reader.mpp_xy is None:
            raise SlideError(self.path, "does not say how many micrometres a pixel measures", fix)
        mpp_x, mpp_y = self._reader.mpp_xy
        if not all(PLAUSIBLE_MPP[0] <= m <= PLAUSIBLE_MPP[1] for m in (mpp_x, mpp_y)):
            raise SlideError(
                self.path,
                f"says that a pixel measures {mpp_x:g} x {mpp_y:g} micrometres, which no scanner does",
                fix,
            )
        if abs(mpp_x / mpp_y - 1) > 0.02:
            raise SlideError(self.path, f"has pixels that are not square ({mpp_x:g} x {mpp_y:g} micrometres)", fix)
        return (mpp_x + mpp_y) / 2

    @property
    def reader(self) -> str:
        """The name of the slide's reader in READERS, and of what decodes its tiles where that is faster and agrees."""
        return self._reader_name + ("" if self._fast is None else ", tiles decoded directly")

    @property
    def has_profile(self) -> bool:
        """Whether the file has an ICC profile. Raises SlideError for one that cannot be used."""
        return to_srgb(self.path, self._reader) is not None

    def try_levels(self) -> None:
        """Decode a part of every level. Raises SlideError, naming the level, if of one no part that is tried can be."""
        scanned = self.frame.scanned
        for number, level in enumerate(self.levels):
            across, down = self._downsamples[number]
            width, height = min(_TRIED_PX, level.width), min(_TRIED_PX, level.height)
            for place in (0.5, 0.0, 1.0):  # the middle, the first, the last
                x = int((scanned.x0 + max(0, scanned.width0 - width * across) * place) / across)
                y = int((scanned.y0 + max(0, scanned.height0 - height * down) * place) / down)
                try:
                    self.read_region(round(x * across), round(y * down), number, width, height)
                    break
                except SlideError as error:
                    failed = error
            else:
                raise SlideError(self.path, f"cannot be decoded at level {number}: it {failed.what}", failed.fix)

    def read_region(self, x0: int, y0: int, level: int, width: int, height: int) -> UInt8Array:
        """Pixels of a rectangle of one level, uint8 (height, width, 3), RGB: OpenSlide's, whichever reader gives them.

        Args:
            x0: Left edge, level-0 pixels.
            y0: Upper edge, level-0 pixels.
            level: Index into the levels, 0 the finest.
            width: Width in pixels of the level.
            height: Height in pixels of the level.

        Returns:
            The pixels, white where the slide has none.

        Raises:
            SlideError: If they cannot be decoded.
        """
        across, down = self._downsamples[level]
        x, y = round(x0 / across), round(y0 / down)
        fast = self._fast_at(level)
        if fast is not None and (x * across, y * down) == (x0, y0):  # between pixels OpenSlide interpolates
            return self.coloured(fast.read(level, x, y, width, height))
        return self.coloured(self._read(x0, y0, level, width, height))

    def read_scaled(self, x0: int, y0: int, size0: tuple[int, int], size: tuple[int, int]) -> UInt8Array:
        """A level-0 rectangle resampled by area to a given size, uint8 (h, w, 3), RGB.

        Reads the coarsest level that is still at least as fine as the result, and of a JPEG level as little of the DCT
        as suffices, in parts of bounded size, so that a slide without pyramid fits in memory too.

        Args:
            x0: Left edge, level-0 pixels.
            y0: Upper edge, level-0 pixels.
            size0: (width, height) of the rectangle, level-0 pixels.
            size: (width, height) of the result, pixels.

        Returns:
            The pixels, white where the slide has none.

        Raises:
            SlideError: If they cannot be decoded.
        """
        level = self._level_for(size0, size)
        parts = list(self._parts(level, size0, size))
        if len(parts) == 1:
            return self.coloured(self._read_part(level, x0, y0, size0, size))
        picture = np.empty((size[1], size[0], 3), np.uint8)
        for part in parts:
            picture[part.rows, part.columns] = self._read_part(level, x0 + part.x0, y0 + part.y0, part.size0, part.size)
        return self.coloured(picture)

    def coloured(self, pixels: UInt8Array) -> UInt8Array:
        """Pixels of the file, (h, w, 3), in the colours that the slide was opened for."""
        return pixels if self._to_srgb is None else self._to_srgb(pixels)

    def overview(
        self, size0: tuple[int, int], size: tuple[int, int], *, unit: int = 1, threads: int = 1
    ) -> Iterator[tuple[slice, slice, UInt8Array | None]]:
        """The level-0 rectangle of `size0` at the slide's corner, resampled to `size`, a part at a time.

        Gives a part's rows and columns in the result, which begin and end at multiples of `unit`, as `size` does, and
        its pixels uint8 (h, w, 3), or None where a damaged part of the slide lies there. Parts outside what was scanned
        are left out; colours are the file's, whatever `icc`, see `coloured`. Read by `threads`. Raises SlideError if
        more of the slide is damaged than is worth looking for.
        """
        level, failures = self._level_for(size0, size), 0
        waiting = list(self._parts(level, size0, size, unit))
        while waiting:
            parts, waiting = [part for part in waiting if part.meets(self.frame.scanned)], []
            tasks = (partial(self._tried, level, part) for part in parts)
            with closing(read_ahead(tasks, threads, threads if threads == 1 else threads + 1)) as found:
                for part, pixels in zip(parts, found, strict=True):
                    if not isinstance(pixels, SlideError):
                        yield part.rows, part.columns, pixels
                        continue
                    failures += 1
                    if failures > _MAX_OVERVIEW_FAILURES:
                        fix = "copy or scan the slide again"
                        raise SlideError(self.path, "is damaged or incomplete in too many places", fix) from pixels
                    if max(part.size) <= max(_MIN_PART_PX, unit):
                        yield part.rows, part.columns, None
                    else:
                        waiting += part.quarters(size0, size, unit)
        if self._fast is not None:
            self._fast.forget()  # what is read after an overview is of another scale

    def _tried(self, level: int, part: _Part) -> UInt8Array | SlideError:
        """The part's pixels, or why they cannot be decoded."""
        try:
            return self._read_part(level, part.x0, part.y0, part.size0, part.size)
        except SlideError as error:
            return error

    @property
    def tile_px(self) -> tuple[int, int] | None:
        """Width and height of the tiles that level 0 is decoded by, pixels; None if they are not decoded directly."""
        return None if self._fast is None else self._fast.tile_px(0)

    def keep_decoded(self, decoded_bytes: int) -> None:
        """Keep at least so many bytes of decoded tiles, for regions that are read in any order and not row by row."""
        if self._fast is not None:
            self._fast.keep(decoded_bytes)

    def native_tile_px(self, level: int) -> tuple[int, int] | None:
        """Width and height of the level's own JPEG tiles, its pixels; None if it has none that can be copied as is."""
        return None if self._fast is None or self._to_srgb is not None else self._fast.jpeg_tile_px(level)

    def native_stream(self, level: int, column: int, row: int) -> bytes | None:
        """One of the level's own tiles as a JPEG file, not decoded; None if it is left out. Raises SlideError."""
        if self._fast is None:
            raise SlideError(self.path, "has no JPEG tiles that can be copied", "use --codec jpeg:90 or lossless")
        return self._fast.stream(level, column, row)

    @property
    def direct(self) -> bool:
        """Whether the tiles of every level are decoded directly, and none by the library that opened the slide."""
        return all(self._fast_at(level) is not None for level in range(len(self.levels)))

    def _fast_at(self, level: int) -> TiledLevels | None:
        """What decodes the level's tiles directly; None if the general reader reads it."""
        return self._fast if self._fast is not None and self._fast.holds(level) else None

    def _level_for(self, size0: tuple[int, int], size: tuple[int, int]) -> int:
        return max(i for i, down in enumerate(self._downsamples) if i == 0 or _covers(down, size0, size))

    def _parts(self, level: int, size0: tuple[int, int], size: tuple[int, int], unit: int = 1) -> Iterator[_Part]:
        """The rectangle in parts that are read one at a time."""
        px0 = max(size0[0] / size[0], size0[1] / size[1])
        whole = min(int(_READ_PX * self.levels[level].downsample / px0), _READ_PX if unit == 1 else _PART_PX)
        step = max(1, whole // unit) * unit
        for y in range(0, size[1], step):
            for x in range(0, size[0], step):
                yield _Part.of(x, y, min(x + step, size[0]), min(y + step, size[1]), size0, size)

    def _read_part(self, level: int, x0: int, y0: int, size0: tuple[int, int], size: tuple[int, int]) -> UInt8Array:
        across, down = self._downsamples[level]
        width, height = max(1, round(size0[0] / across)), max(1, round(size0[1] / down))
        fast = self._fast_at(level)
        if fast is None:
            pixels = self._read(x0, y0, level, width, height)
        else:
            x, y = round(x0 / across), round(y0 / down)
            denom: ScaleDenom = next(d for d in _DENOMS if _reduces((x, y, width, height), d, size))
            pixels = fast.read(level, x, y, width, height, denom)
        if pixels.shape[1::-1] == size:
            return pixels
        return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)

    def _read(self, x0: int, y0: int, level: int, width: int, height: int) -> UInt8Array:
        """Pixels of the general reader, whose own downsample of the level need not be the exact one."""
        own = self._reader.levels[level].downsample
        x0, y0 = (round(at / exact * own) for at, exact in zip((x0, y0), self._downsamples[level], strict=True))
        with self._readers.borrowed() as reader:
            return reader.read(x0, y0, level, width, height)

    def sha256(self, unwanted: threading.Event | None = None) -> str:
        """SHA-256 of the slide as stored. Raises SlideError if its files cannot be read, or once it is `unwanted`."""
        return slide_sha256(self.path, unwanted)

    def compression(self) -> str:
        """The compression of level 0 ("JPEG", "JPEG2000", "LZW", ...), "unknown" where the container does not tell."""
        if self._reader.compression:
            return self._reader.compression
        try:
            with entry_file(self.path).open("rb") as f, tifffile.TiffFile(f) as tiff:
                return compression_name(tiff.pages.first.compression)
        except (OSError, *DAMAGE):
            return "unknown"


class _Readers:
    """A slide's general readers: one for each thread that reads at the time, for none stands two."""

    def __init__(self, path: Path, first: SlideReader, *, alone: bool) -> None:
        self._path, self._idle = path, [first]
        self._turn = threading.Lock() if alone else nullcontext()

    @contextmanager
    def borrowed(self) -> Iterator[SlideReader]:
        """A reader that no other thread has. Raises SlideError if none can be opened."""
        with self._turn:
            try:
                reader = self._idle.pop()
            except IndexError:
                reader = open_reader(self._path)[1]
            try:
                yield reader
            except SlideError:
                reader.close()  # after one damaged tile OpenSlide refuses every further read
                raise
            self._idle.append(reader)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


@dataclass(frozen=True)
class _Part:
    """A part of a resampled rectangle: its place in the result, and the level-0 pixels it shows, from the corner."""

    left: int
    top: int
    right: int
    lower: int
    x0: int
    y0: int
    size0: tuple[int, int]

    @classmethod
    def of(cls, left: int, top: int, right: int, lower: int, size0: tuple[int, int], size: tuple[int, int]) -> Self:
        """The part with those edges in a rectangle of `size0` level-0 pixels shown at `size`."""
        px0_x, px0_y = size0[0] / size[0], size0[1] / size[1]
        edges = [
            _snapped(edge * px0, px0) for edge, px0 in ((left, px0_x), (right, px0_x), (top, px0_y), (lower, px0_y))
        ]
        return cls(left, top, right, lower, edges[0], edges[2], (edges[1] - edges[0], edges[3] - edges[2]))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in the result."""
        return self.right - self.left, self.lower - self.top

    @property
    def rows(self) -> slice:
        """Its rows of the result."""
        return slice(self.top, self.lower)

    @property
    def columns(self) -> slice:
        """Its columns of the result."""
        return slice(self.left, self.right)

    def meets(self, scanned: Bounds) -> bool:
        """Whether it shows any of what was scanned."""
        ends = (a + n for a, n in zip((self.x0, self.y0), self.size0, strict=True))
        begins_before = self.x0 < scanned.opposite[0] and self.y0 < scanned.opposite[1]
        return begins_before and all(end > first for end, first in zip(ends, scanned.corner, strict=True))

    def quarters(self, size0: tuple[int, int], size: tuple[int, int], unit: int) -> list[_Part]:
        """The part cut in four at a multiple of `unit`, or in two if it is one wide or high."""
        xs = sorted({self.left, (self.left + self.right) // 2 // unit * unit, self.right})
        ys = sorted({self.top, (self.top + self.lower) // 2 // unit * unit, self.lower})
        return [_Part.of(xa, ya, xb, yb, size0, size) for ya, yb in pairwise(ys) for xa, xb in pairwise(xs)]


def _snapped(edge0: float, px0: float) -> int:
    """A whole level-0 pixel near an edge; a multiple of 8 in coarse pictures, to suit JPEG at 1/8 of its size."""
    unit = 8 if px0 >= 8 else 1
    return round(edge0 / unit) * unit


def _reduces(box: tuple[int, int, int, int], denom: int, size: tuple[int, int]) -> bool:
    """Can a rectangle (x, y, width, height) of a level be decoded at 1 / denom and still be as fine as `size`?"""
    fine = box[2] // denom >= size[0] and box[3] // denom >= size[1]
    return denom == 1 or (fine and not any(v % denom for v in box))


def _open_fast(path: Path, reader: SlideReader) -> TiledLevels | None:
    """The fast reader, if it understands the slide and a look at some tiles shows the general reader's pixels."""
    try:
        fast = open_tiled_levels(entry_file(path), reader.levels, slide=path)
    except OSError as error:
        raise unreadable(path, error) from error
    if fast is None:
        return None
    probe = open_reader(path)[1]  # a handle of its own: what is damaged must not close the other
    try:
        agrees = fast.agrees_with(probe.read, reader.levels)
    finally:
        probe.close()
    if agrees:
        return fast
    fast.close()
    return None


def _covers(downsamples: tuple[float, float], size0: tuple[int, int], size: tuple[int, int]) -> bool:
    return all(round(n / down) >= m for n, down, m in zip(size0, downsamples, size, strict=True))
