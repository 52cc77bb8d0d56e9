"""The only opener of slides: pixels, levels and scale of a whole-slide image, and nothing else that it carries.

OpenSlide reads; tifffile reads the 8-bit RGB TIFFs that OpenSlide refuses (OME-TIFF). Label and macro images, names,
dates and free text are never read. Coordinates are level-0 pixels, (x, y), top-left; arrays are [y, x, rgb].
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from xml.etree import ElementTree

import cv2
import numpy as np
import openslide
import tifffile
from numpy.typing import NDArray

from tiling.core.errors import SlideError
from tiling.core.files import sha256_file, sha256_json
from tiling.slides.tiled_tiff import TIFF_DAMAGE, ScaleDenom, TiledLevels, open_tiled_levels

UInt8Array = NDArray[np.uint8]

logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # it quotes the free text of damaged files

# Scanners and field formats lie between; outside, the "resolution" is a printing default such as 72 dpi.
PLAUSIBLE_MPP = (0.02, 60.0)
_READ_PX = 4096  # longest side of one read: bounds memory at any slide size
_WHITE = 255
_DENOMS: tuple[ScaleDenom, ...] = (8, 4, 2, 1)
_LEAST_PART_PX = 16  # a damaged part of an overview is looked at again in quarters, down to this side
_MAX_OVERVIEW_FAILURES = 1000
_DAMAGE = (*TIFF_DAMAGE, RuntimeError, ElementTree.ParseError)  # RuntimeError: what imagecodecs raises
_DICOM_COMPRESSION = {  # by transfer syntax, DICOM PS3.6
    "1.2.840.10008.1.2": "NONE", "1.2.840.10008.1.2.1": "NONE", "1.2.840.10008.1.2.4.50": "JPEG",
    "1.2.840.10008.1.2.4.80": "JPEGLS", "1.2.840.10008.1.2.4.81": "JPEGLS", "1.2.840.10008.1.2.4.90": "JPEG2000",
    "1.2.840.10008.1.2.4.91": "JPEG2000", "1.2.840.10008.1.2.4.201": "HTJ2K", "1.2.840.10008.1.2.4.202": "HTJ2K",
    "1.2.840.10008.1.2.4.203": "HTJ2K",
}  # fmt: skip


@dataclass(frozen=True)
class Level:
    """One pyramid level: its size in its own pixels and how many level-0 pixels one of them spans."""

    width: int
    height: int
    downsample: float


class _Reader(Protocol):
    """What a backend gives: facts and one way to read. `read` may reach beyond the level; there it is white."""

    vendor: str
    levels: tuple[Level, ...]
    mpp_xy: tuple[float, float] | None
    objective_power: float | None
    compression: str | None

    def read(self, x0: int, y0: int, level: int, width: int, height: int) -> UInt8Array: ...

    def close(self) -> None: ...


class Slide:
    """An open slide. `with Slide(path) as slide: slide.read_region(x0, y0, level, width, height)`.

    `mpp` (micrometres per pixel at level 0) given here overrides the file's own. Raises SlideError if the file cannot
    be read as a slide.
    """

    def __init__(self, path: Path | str, *, mpp: float | None = None) -> None:
        self.path = Path(path)
        if mpp is not None and not PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]:
            fix = f"pass micrometres a pixel, from {PLAUSIBLE_MPP[0]:g} to {PLAUSIBLE_MPP[1]:g}"
            raise SlideError(self.path, f"cannot have pixels of the given {mpp:g} micrometres", fix)
        self._reader = _open(self.path)
        self.vendor = self._reader.vendor
        self.levels = self._reader.levels
        self.objective_power = self._reader.objective_power
        self.width, self.height = self.levels[0].width, self.levels[0].height
        self._given_mpp = mpp
        self._downsamples = tuple(_exact_downsample(self.levels[0], level) for level in self.levels)
        self._fast = _open_fast(self.path, self._reader)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self._reader.close()
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

    def read_region(self, x0: int, y0: int, level: int, width: int, height: int) -> UInt8Array:
        """Pixels of one level, uint8 (height, width, 3): corner in level-0 pixels, size in the level's own.

        White where the slide has no pixels; OpenSlide's pixels, whichever reader gives them. Raises SlideError if they
        cannot be decoded.
        """
        down = self.levels[level].downsample
        x, y = round(x0 / down), round(y0 / down)
        if self._fast is not None and (x * down, y * down) == (x0, y0):  # between pixels OpenSlide interpolates
            return self._fast.read(level, x, y, width, height)
        return self._reader.read(x0, y0, level, width, height)

    def read_scaled(self, x0: int, y0: int, size0: tuple[int, int], size: tuple[int, int]) -> UInt8Array:
        """The level-0 rectangle at (x0, y0) of `size0` (width, height), area-resampled to `size`, uint8 (h, w, 3).

        Reads the coarsest level that is still at least as fine as the result, and of a JPEG level as little of the DCT
        as suffices, in parts of bounded size, so that a slide without pyramid fits in memory too. Raises SlideError.
        """
        level = self._level_for(size0, size)
        parts = list(self._parts(level, size0, size))
        if len(parts) == 1:
            return self._read_part(level, x0, y0, size0, size)
        picture = np.empty((size[1], size[0], 3), np.uint8)
        for part in parts:
            picture[part.rows, part.columns] = self._read_part(level, x0 + part.x0, y0 + part.y0, part.size0, part.size)
        return picture

    def overview(self, size0: tuple[int, int], size: tuple[int, int]) -> tuple[UInt8Array, NDArray[np.bool_]]:
        """The level-0 rectangle of `size0` at the slide's corner, resampled to `size`, and where it cannot be decoded.

        uint8 (h, w, 3), and bool (h, w), where the picture is white because a damaged part of the slide lies there.
        Raises SlideError if more of the slide is damaged than is worth looking for.
        """
        level = self._level_for(size0, size)
        picture, unreadable = np.full((size[1], size[0], 3), _WHITE, np.uint8), np.zeros(size[::-1], np.bool_)
        waiting, failures = list(self._parts(level, size0, size)), 0
        while waiting:
            part = waiting.pop()
            try:
                picture[part.rows, part.columns] = self._read_part(level, part.x0, part.y0, part.size0, part.size)
            except SlideError as error:
                failures += 1
                if failures > _MAX_OVERVIEW_FAILURES:
                    fix = "copy or scan the slide again"
                    raise SlideError(self.path, "is damaged or incomplete in too many places", fix) from error
                self.reopen()
                if max(part.size) <= _LEAST_PART_PX:
                    unreadable[part.rows, part.columns] = True
                else:
                    waiting += part.quarters(size0, size)
        return picture, unreadable

    def reopen(self) -> None:
        """Open the slide's file again: after one damaged tile OpenSlide refuses every further read."""
        self._reader.close()
        self._reader = _open(self.path)

    def exact_downsample(self, level: int) -> float:
        """Level-0 pixels per pixel of the level; whole where rounding of the level's size is all that hides it."""
        return self._downsamples[level]

    def native_tile_px(self, level: int) -> tuple[int, int] | None:
        """Width and height of the level's own JPEG tiles, its pixels; None if it has none that can be copied."""
        return None if self._fast is None else self._fast.jpeg_tile_px(level)

    def native_stream(self, level: int, column: int, row: int) -> bytes | None:
        """One of the level's own tiles as a JPEG file, not decoded; None if it is left out. Raises SlideError."""
        if self._fast is None:
            raise SlideError(self.path, "has no JPEG tiles that can be copied", "use --codec jpeg:90 or lossless")
        return self._fast.stream(level, column, row)

    def _level_for(self, size0: tuple[int, int], size: tuple[int, int]) -> int:
        return max(i for i, lv in enumerate(self.levels) if i == 0 or _covers(lv, size0, size))

    def _parts(self, level: int, size0: tuple[int, int], size: tuple[int, int]) -> Iterator[_Part]:
        """The rectangle in parts that are read one at a time."""
        px0 = max(size0[0] / size[0], size0[1] / size[1])
        step = max(1, int(_READ_PX * self.levels[level].downsample / px0))
        for y in range(0, size[1], step):
            for x in range(0, size[0], step):
                yield _Part.of(x, y, min(x + step, size[0]), min(y + step, size[1]), size0, size)

    def _read_part(self, level: int, x0: int, y0: int, size0: tuple[int, int], size: tuple[int, int]) -> UInt8Array:
        down = self._downsamples[level]
        width, height = max(1, round(size0[0] / down)), max(1, round(size0[1] / down))
        if self._fast is None:
            pixels = self._reader.read(x0, y0, level, width, height)
        else:
            x, y = round(x0 / down), round(y0 / down)
            denom: ScaleDenom = next(d for d in _DENOMS if _reduces((x, y, width, height), d, size))
            pixels = self._fast.read(level, x, y, width, height, denom)
        if pixels.shape[1::-1] == size:
            return pixels
        return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)

    def sha256(self) -> str:
        """SHA-256 of the slide as stored: of its file, or of all files of a slide that has several.

        Raises SlideError if they cannot be read.
        """
        try:
            hashes = [sha256_file(p) for p in slide_files(self.path)]
        except OSError as error:
            raise _unreadable(self.path, error) from error
        return hashes[0] if len(hashes) == 1 else sha256_json(sorted(hashes))

    def compression(self) -> str:
        """How level 0 is compressed ("JPEG", "JPEG2000", "LZW", ...), "unknown" where the container does not tell."""
        if self._reader.compression:
            return self._reader.compression
        try:
            with _entry_file(self.path).open("rb") as f, tifffile.TiffFile(f) as tiff:
                return tifffile.COMPRESSION(tiff.pages[0].compression).name.replace("APERIO_", "").split("_LOSSY")[0]
        except (OSError, *_DAMAGE):
            return "unknown"


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

    def quarters(self, size0: tuple[int, int], size: tuple[int, int]) -> list[_Part]:
        """The part cut in four, or in two if it is one pixel wide or high."""
        xs = sorted({self.left, (self.left + self.right) // 2, self.right})
        ys = sorted({self.top, (self.top + self.lower) // 2, self.lower})
        return [_Part.of(xa, ya, xb, yb, size0, size) for ya, yb in pairwise(ys) for xa, xb in pairwise(xs)]


def slide_name(path: Path) -> str:
    """The default slide id: the file's name without its endings; for DICOM the folder's, which is the slide; for a
    store its name without `.zarr`."""
    if path.suffix == ".zarr":
        return path.stem
    if _is_folder(path):
        return path.resolve().name
    if path.suffix.lower() == ".dcm":
        return path.resolve().parent.name
    name = path.name
    for ending in (".ome.tiff", ".ome.tif", path.suffix):
        if ending and name.lower().endswith(ending.lower()):
            return name[: -len(ending)]
    return name


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # in a folder that may not be read: opening it says so
        return False


def slide_files(path: Path) -> list[Path]:
    """Every file that makes up the slide: a DICOM folder's instances, a MIRAX index and its folder, or one file."""
    entry = _entry_file(path)
    if entry.suffix.lower() == ".dcm":
        return sorted(p for p in entry.parent.iterdir() if p.suffix.lower() == ".dcm")
    companion = entry.with_suffix("")
    if entry.suffix.lower() == ".mrxs" and companion.is_dir():
        return [entry, *sorted(p for p in companion.rglob("*") if p.is_file())]
    return [entry]


def _snapped(edge0: float, px0: float) -> int:
    """A whole level-0 pixel near an edge; a multiple of 8 in coarse pictures, to suit JPEG at 1/8 of its size."""
    unit = 8 if px0 >= 8 else 1
    return round(edge0 / unit) * unit


def _reduces(box: tuple[int, int, int, int], denom: int, size: tuple[int, int]) -> bool:
    """Can a rectangle (x, y, width, height) of a level be decoded at 1 / denom and still be as fine as `size`?"""
    fine = box[2] // denom >= size[0] and box[3] // denom >= size[1]
    return denom == 1 or (fine and not any(v % denom for v in box))


def _exact_downsample(first: Level, level: Level) -> float:
    """The level's downsample; the whole number it means, where rounding the level's size is all that hides it."""
    whole = round(level.downsample)
    meant = abs(first.width - whole * level.width) < whole and abs(first.height - whole * level.height) < whole
    return float(whole) if meant else level.downsample


def _open_fast(path: Path, reader: _Reader) -> TiledLevels | None:
    """The fast reader, if it understands the slide and a look at some tiles shows the general reader's pixels."""
    entry = _entry_file(path)
    if entry.suffix.lower() == ".dcm":
        return None
    try:
        fast = open_tiled_levels(entry, reader.levels)
    except OSError as error:
        raise _unreadable(path, error) from error
    if fast is None:
        return None
    probe = _open(path)  # a handle of its own: what is damaged must not close the other
    try:
        agrees = fast.agrees_with(probe.read, reader.levels)
    finally:
        probe.close()
    if agrees:
        return fast
    fast.close()
    return None


def _covers(level: Level, size0: tuple[int, int], size: tuple[int, int]) -> bool:
    return round(size0[0] / level.downsample) >= size[0] and round(size0[1] / level.downsample) >= size[1]


def _entry_file(path: Path) -> Path:
    """The file to open: of a folder, its first DICOM instance. Raises SlideError."""
    try:
        if not path.is_dir():
            path.stat()
            return path
        instances = sorted(p for p in path.iterdir() if p.suffix.lower() == ".dcm")
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL in it
        raise _unreadable(path, error) from error
    if not instances:
        raise SlideError(path, "is a folder without DICOM files", "pass slide files, or the folder of one DICOM slide")
    return instances[0]


def _open(path: Path) -> _Reader:
    entry = _entry_file(path)
    try:
        with entry.open("rb") as f:
            if not f.read(1):
                raise SlideError(path, "is an empty file", "copy the slide again")
        container = openslide.OpenSlide.detect_format(str(entry))
        # OpenSlide takes a tiled OME-TIFF for a plain TIFF, and misses its scale and its pyramid.
        if container is not None and not (container == "generic-tiff" and _is_ome(entry)):
            return _OpenSlideReader(path, entry)
        return _TiffReader(path, entry)
    except OSError as error:
        raise _unreadable(path, error) from error


def _is_ome(entry: Path) -> bool:
    try:
        with entry.open("rb") as f, tifffile.TiffFile(f) as tiff:
            return bool(tiff.is_ome)
    except _DAMAGE:
        return False


def _unreadable(path: Path, error: OSError | ValueError) -> SlideError:
    reason = getattr(error, "strerror", None) or error
    return SlideError(path, f"cannot be read ({reason})", "check the path and its permissions")


class _OpenSlideReader:
    """Reads whatever OpenSlide recognises."""

    def __init__(self, path: Path, entry: Path) -> None:
        self._path = path
        try:
            self._slide = openslide.OpenSlide(str(entry))
        except openslide.OpenSlideError as error:
            raise self._damaged(error) from error
        known = self._slide.properties
        self.vendor = known.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
        self.objective_power = _number(known.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER))
        mpp = (
            _number(known.get(openslide.PROPERTY_NAME_MPP_X)),
            _number(known.get(openslide.PROPERTY_NAME_MPP_Y)),
        )
        self.mpp_xy = None if mpp[0] is None or mpp[1] is None else (mpp[0], mpp[1])
        self.levels = tuple(
            Level(width, height, float(down))
            for (width, height), down in zip(self._slide.level_dimensions, self._slide.level_downsamples, strict=True)
        )
        self.compression = _DICOM_COMPRESSION.get(known.get("dicom.TransferSyntaxUID", ""))
        background = known.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "ffffff")
        self._background = tuple(int(background[i : i + 2], 16) for i in (0, 2, 4))

    def read(self, x0: int, y0: int, level: int, width: int, height: int) -> UInt8Array:
        try:
            rgba = np.asarray(self._slide.read_region((x0, y0), level, (width, height)))
        except openslide.OpenSlideError as error:
            raise self._damaged(error) from error
        rgb = rgba[..., :3]
        if (rgba[..., 3] == 255).all():
            return np.ascontiguousarray(rgb)
        alpha = rgba[..., 3:].astype(np.uint16)  # absent pixels: laid over the slide's own background colour
        over = rgb * alpha + np.array(self._background, np.uint16) * (255 - alpha)
        return ((over + 127) // 255).astype(np.uint8)

    def close(self) -> None:
        self._slide.close()

    def _damaged(self, error: Exception) -> SlideError:
        return SlideError(
            self._path, f"is damaged or incomplete ({type(error).__name__})", "copy or scan the slide again"
        )


class _TiffReader:
    """Reads 8-bit RGB TIFFs, tiled or in strips, with tifffile; keeps the last decoded segments."""

    vendor = "tiff"
    objective_power: float | None = None
    compression: str | None = None  # as for any TIFF
    _KEEP = 64

    def __init__(self, path: Path, entry: Path) -> None:
        self._path = path
        self._file = entry.open("rb")
        try:
            self._tiff = tifffile.TiffFile(self._file)
        except _DAMAGE as error:
            self._file.close()
            raise SlideError(path, "is not a slide that can be read", "pass a whole-slide image") from error
        try:
            self._pages = _rgb_pages(path, self._tiff)
            self.vendor = "ome-tiff" if self._tiff.is_ome else "tiff"
            self.mpp_xy = _ome_mpp(self._tiff.ome_metadata) if self._tiff.is_ome else _tiff_mpp(self._pages[0])
        except _DAMAGE as error:
            self.close()
            raise SlideError(
                path, f"is damaged or incomplete ({type(error).__name__})", "copy the slide again"
            ) from error
        except SlideError:
            self.close()
            raise
        first = self._pages[0]
        self.levels = tuple(Level(p.imagewidth, p.imagelength, first.imagewidth / p.imagewidth) for p in self._pages)
        self._decoded: OrderedDict[tuple[int, int], UInt8Array] = OrderedDict()

    def read(self, x0: int, y0: int, level: int, width: int, height: int) -> UInt8Array:
        page, down = self._pages[level], self.levels[level].downsample
        left, top = round(x0 / down), round(y0 / down)
        out = np.full((height, width, 3), _WHITE, np.uint8)
        seg_h, seg_w = page.chunks[:2]
        across = page.chunked[1]
        x_end, y_end = min(left + width, page.imagewidth), min(top + height, page.imagelength)
        for row in range(max(top, 0) // seg_h, math.ceil(y_end / seg_h)):
            for column in range(max(left, 0) // seg_w, math.ceil(x_end / seg_w)):
                segment = self._segment(level, row * across + column)
                sy, sx = row * seg_h, column * seg_w
                ya, yb = max(sy, top, 0), min(sy + segment.shape[0], y_end)
                xa, xb = max(sx, left, 0), min(sx + segment.shape[1], x_end)
                out[ya - top : yb - top, xa - left : xb - left] = segment[ya - sy : yb - sy, xa - sx : xb - sx]
        return out

    def close(self) -> None:
        self._tiff.close()
        self._file.close()

    def _segment(self, level: int, index: int) -> UInt8Array:
        """One decoded tile or strip, uint8 (h, w, 3); white if the file leaves it out."""
        key = (level, index)
        if key not in self._decoded:
            self._decoded[key] = self._decode(self._pages[level], index)
            if len(self._decoded) > self._KEEP:
                self._decoded.popitem(last=False)
        self._decoded.move_to_end(key)
        return self._decoded[key]

    def _decode(self, page: Any, index: int) -> UInt8Array:
        try:
            size = page.databytecounts[index]
            if size == 0:
                return np.full((*page.chunks[:2], 3), _WHITE, np.uint8)
            handle = self._tiff.filehandle
            handle.seek(page.dataoffsets[index])
            data = handle.read(size)
            if len(data) < size:
                raise ValueError("the file ends too early")
            segment, _, shape = page.decode(data, index, jpegtables=page.jpegtables)
        except (OSError, *_DAMAGE) as error:
            raise SlideError(
                self._path, f"is damaged or incomplete ({type(error).__name__})", "copy the slide again"
            ) from error
        return np.asarray(segment[0, : shape[1], : shape[2]], dtype=np.uint8)


def _rgb_pages(path: Path, tiff: tifffile.TiffFile) -> list[Any]:
    """The level pages of the largest image in the file, finest first."""
    series = max(tiff.series, key=lambda s: math.prod(s.shape))
    pages: list[Any] = [level.pages[0] for level in series.levels]
    for page in pages:
        contiguous_rgb = (
            page is not None and page.axes == "YXS" and page.samplesperpixel == 3 and page.dtype == np.uint8
        )
        if not contiguous_rgb:
            raise SlideError(path, "is not an 8-bit RGB picture", "convert it to an RGB pyramid TIFF")
        if page.parent is not tiff:  # OME-XML may name other files: not hashed, and not this file's bytes
            raise SlideError(path, "is one of several files of a picture", "convert it to a single pyramid TIFF")
        if min(*page.shape, *page.chunks) < 1:
            raise ValueError("an empty level")
    return pages


def _ome_mpp(xml: str | None) -> tuple[float, float] | None:
    """PhysicalSizeX and Y of the first image in micrometres; units are those of the OME schema."""
    if not xml:
        return None
    per_um = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
    pixels = next((e for e in ElementTree.fromstring(xml).iter() if e.tag.endswith("}Pixels")), None)
    if pixels is None:
        return None
    sizes = []
    for axis in "XY":
        size, unit = _number(pixels.get(f"PhysicalSize{axis}")), pixels.get(f"PhysicalSize{axis}Unit", "µm")
        if size is None or unit not in per_um:
            return None
        sizes.append(size * per_um[unit])
    return sizes[0], sizes[1]


def _tiff_mpp(page: Any) -> tuple[float, float] | None:
    """Micrometres per pixel from the TIFF resolution tags, if they have a physical unit."""
    tags = page.tags
    um_per_unit = {2: 25400.0, 3: 10000.0}.get(int(tags.valueof("ResolutionUnit", default=2)))
    found = [tags.valueof(name) for name in ("XResolution", "YResolution")]
    if um_per_unit is None or any(not r or not r[0] or not r[1] for r in found):
        return None
    return um_per_unit * found[0][1] / found[0][0], um_per_unit * found[1][1] / found[1][0]


def _number(text: str | None) -> float | None:
    """A finite positive number, or None for anything else a header may hold."""
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
