"""Which pages of a TIFF are the slide, how they hold colour, and their scale. Decodes no pixels.

A TIFF may hold several pictures, focal planes and time points: the largest picture is the slide, and of it the middle
focal plane, the first of everything else. What is not surely red, green and blue is refused by its name.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tifffile
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, PLANARCONFIG

from tiling.core.errors import UnsupportedSlideError
from tiling.slides.reader import number_of

READABLE = frozenset(
    {
        COMPRESSION.NONE, COMPRESSION.LZW, COMPRESSION.JPEG, COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE,
        COMPRESSION.PACKBITS, COMPRESSION.LZMA, COMPRESSION.ZSTD, COMPRESSION.ZSTD_DEPRECATED, COMPRESSION.PNG,
        COMPRESSION.WEBP, COMPRESSION.WEBP_DEPRECATED, COMPRESSION.JPEGXL, COMPRESSION.JPEGXL_DNG, COMPRESSION.JPEGXR,
        COMPRESSION.JPEGXR_NDPI, COMPRESSION.JPEG2000, COMPRESSION.JPEG_2000_LOSSY, COMPRESSION.APERIO_JP2000_RGB,
    }
)  # fmt: skip
"""The compressions that tifffile and imagecodecs decode exactly; Aperio's JPEG 2000 of YCbCr they leave in YCbCr."""

MAX_SEGMENT_BYTES = 256 << 20
"""Of a compressed strip or tile, decoded: it has to be decoded whole, however little of it is wanted."""

_FIX = "convert it to a tiled RGB pyramid TIFF, for example with `vips tiffsave --tile --pyramid`"
_AXES = {"Z": "focal plane", "T": "time point", "I": "page", "Q": "page"}
_UM_PER_UNIT = {
    "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0,
    "\\u00b5m": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "inch": 25400.0,
}  # fmt: skip
_WORDS = {PHOTOMETRIC.MINISBLACK: "grey, ", PHOTOMETRIC.MINISWHITE: "grey, ", PHOTOMETRIC.SEPARATED: "CMYK, "}
_CHANNELS = {"r": 0, "red": 0, "g": 1, "green": 1, "b": 2, "blue": 2}
_COLOURS = {0xFF0000: 0, 0x00FF00: 1, 0x0000FF: 2}


@dataclass(frozen=True)
class TiffLevel:
    """One level: where its samples lie. All sizes in pixels of the level."""

    sources: tuple[tuple[Any, int], ...]
    """(page, index of its first strip or tile): one of interleaved samples, or one for each sample on its own."""
    width: int
    height: int
    segment_w: int
    segment_h: int

    @property
    def page(self) -> Any:
        """The page that tells how its samples are stored."""
        return self.sources[0][0]

    @property
    def across(self) -> int:
        """Strips or tiles side by side."""
        return math.ceil(self.width / self.segment_w)

    def inside(self, column: int, row: int) -> tuple[int, int]:
        """Height and width of the part of a strip or tile that lies on the level."""
        across, down = self.width - column * self.segment_w, self.height - row * self.segment_h
        return min(self.segment_h, down), min(self.segment_w, across)


@dataclass(frozen=True)
class TiffPicture:
    """The slide in a TIFF: its levels, scale and colour."""

    levels: tuple[TiffLevel, ...]
    vendor: str
    mpp_xy: tuple[float, float] | None
    objective_power: float | None
    plane: str | None
    """Which of several pictures, focal planes or time points it is; None if there is one only."""


def tiff_picture(path: Path, tiff: tifffile.TiffFile) -> TiffPicture:
    """The slide in an open TIFF. Raises UnsupportedSlideError, and what tifffile raises for damaged files."""
    every = tiff.series
    series = max(every, key=_area)
    chosen = [_chosen(path, level) for level in series.levels]
    if any(page is not None and page.parent is not tiff for level in series.levels for page in level.pages):
        # OME-XML may name other files: they are not hashed, and their offsets mean nothing in this one
        raise _unsupported(path, "it is one of several files of a picture", "convert it to a single pyramid TIFF")
    image = _ome_image(tiff.ome_metadata, chosen[0][0][0].index) if tiff.is_ome else None
    order = _channel_order(path, image)
    levels = tuple(_level(path, pages, order) for pages, _ in chosen)
    if any(level.width > levels[0].width or level.height > levels[0].height for level in levels):
        raise ValueError("a level larger than the slide")
    which = [f"picture {every.index(series) + 1} of {len(every)}"] if tiff.is_ome and len(every) > 1 else []
    plane = ", ".join(which + chosen[0][1]) or None
    vendor, mpp_xy, power = "tiff", _tag_mpp(levels[0].page), None
    if tiff.is_ome:
        vendor, mpp_xy = "ome-tiff", _ome_mpp(image)
    elif tiff.is_imagej:
        vendor, mpp_xy = "imagej", _imagej_mpp(tiff.imagej_metadata or {}, levels[0].page) or mpp_xy
    elif tiff.is_svs:
        vendor = "aperio"
        mpp, power = (_aperio_number(tiff.pages.first.description, name) for name in ("MPP", "AppMag"))
        mpp_xy = None if mpp is None else (mpp, mpp)
    return TiffPicture(levels, vendor, mpp_xy, power, plane)


def not_rgb(page: Any) -> str | None:
    """Why the samples of a page are not surely red, green and blue; None if they are.

    Of whatever compression: an 8-bit or full 16-bit picture in RGB, or in the YCbCr of JPEG, with or without alpha.
    """
    bits, samples, extra = page.bitspersample, page.samplesperpixel, tuple(page.extrasamples)
    if page.sampleformat != tifffile.SAMPLEFORMAT.UINT or bits not in (8, 16):
        return f"{bits}-bit samples ({_name(tifffile.SAMPLEFORMAT, page.sampleformat)})"
    if bits == 16 and page.tags.valueof("MaxSampleValue", default=0xFFFF) not in (0xFFFF, (0xFFFF,) * samples):
        return "16-bit samples that use fewer bits"
    if page.imagedepth > 1:
        return "a volume"
    if int(page.tags.valueof("Orientation", default=1)) != 1:
        return f"orientation {int(page.tags.valueof('Orientation'))}"
    interleaved = page.planarconfig == PLANARCONFIG.CONTIG
    coded = page.photometric == PHOTOMETRIC.YCBCR and page.compression == COMPRESSION.JPEG and interleaved
    if page.photometric != PHOTOMETRIC.RGB and not coded:
        return (
            f"{_WORDS.get(page.photometric, '')}{_name(PHOTOMETRIC, page.photometric)}, {samples} x {bits} bits a pixel"
        )
    alpha = extra in ((EXTRASAMPLE.ASSOCALPHA,), (EXTRASAMPLE.UNASSALPHA,))
    if samples != 3 + alpha:
        return f"{samples} samples a pixel, which are not colour and alpha"
    return None


def compression_name(compression: int) -> str:
    """The usual name of a TIFF compression ("JPEG", "JPEG2000", "LZW", ...), or its number."""
    return _name(COMPRESSION, compression).replace("APERIO_", "").split("_LOSSY")[0]


def _name(names: Any, number: int) -> str:
    try:
        return str(names(number).name)
    except ValueError:
        return str(number)


def _area(series: Any) -> int:
    page = series.pages[0]
    return 0 if page is None else page.imagewidth * page.imagelength


def _unsupported(path: Path, what: str, fix: str = _FIX) -> UnsupportedSlideError:
    return UnsupportedSlideError(path, f"cannot be read: {what}", fix)


def _chosen(path: Path, level: Any) -> tuple[list[Any], list[str]]:
    """The pages of a level that are read, one or one a channel, and which of how many planes they are."""
    page = level.pages[0]
    axes = [(axis, size) for axis, size in zip(level.axes, level.shape, strict=True) if axis not in "YXS"]
    if page is not None and page.axes.startswith("S"):  # ImageJ and Bio-Formats call separate samples channels
        axes = [(axis, size) for axis, size in axes if axis != "C"]
    if math.prod(size for _, size in axes) != len(level.pages):
        raise _unsupported(path, "its planes do not lie in pages of their own")
    index, channels, said = 0, range(1), []
    for at, (axis, size) in enumerate(axes):
        stride = math.prod(s for _, s in axes[at + 1 :])
        if axis == "C":
            channels = range(0, size * stride, stride)
            continue
        taken = size // 2 if axis == "Z" else 0
        index += taken * stride
        if size > 1:
            said.append(f"{_AXES.get(axis, f'place on axis {axis}')} {taken + 1} of {size}")
    return [level.pages[index + channel] for channel in channels], said


def _level(path: Path, pages: list[Any], order: tuple[int, int, int]) -> TiffLevel:
    """The level in one page of colour, or in three pages of one channel each."""
    if any(page is None for page in pages):
        raise ValueError("a plane is missing")
    pages = [page.aspage() for page in pages]
    page = pages[0]
    if page.compression not in READABLE:
        raise _unsupported(path, f"{compression_name(page.compression)} compression")
    if len(pages) == 1:
        reason = not_rgb(page)
        if reason is None and page.planarconfig == PLANARCONFIG.CONTIG and page.axes not in ("YXS", "YX"):
            reason = f"axes {page.axes}"
    else:
        reason = _not_a_channel(pages)
    if reason:
        raise _unsupported(path, f"it is no RGB picture: {reason}")
    tiled = page.is_tiled
    width, height = page.imagewidth, page.imagelength
    segment = (page.tilewidth, page.tilelength) if tiled else (width, min(page.rowsperstrip, height))
    if min(width, height, *segment) < 1:
        raise ValueError("an empty level")
    apart = math.ceil(width / segment[0]) * math.ceil(height / segment[1])
    if len(pages) > 1:
        sources = tuple((pages[i], 0) for i in order)
    elif page.planarconfig == PLANARCONFIG.SEPARATE:
        sources = tuple((page, i * apart) for i in range(page.samplesperpixel))
    else:
        sources = ((page, 0),)
    for source, first in sources:
        if min(len(source.dataoffsets), len(source.databytecounts)) < first + apart:
            raise ValueError("a list of tiles or strips that does not cover the picture")
    decoded = segment[0] * segment[1] * page.samplesperpixel * page.bitspersample // 8
    if page.compression != COMPRESSION.NONE and decoded > MAX_SEGMENT_BYTES:
        kind = "tiles" if tiled else "compressed strips"
        raise _unsupported(path, f"{kind} of {segment[0]} x {segment[1]} px, {decoded >> 20} MB each once decoded")
    return TiffLevel(sources, width, height, *segment)


def _not_a_channel(pages: list[Any]) -> str | None:
    """Why pages are not the three 8-bit channels of a colour picture; None if they are."""
    if len(pages) != 3:
        return f"{len(pages)} channels"
    for page in pages:
        plain = page.samplesperpixel == 1 and page.photometric in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB)
        if not plain or page.bitspersample != 8 or page.sampleformat != tifffile.SAMPLEFORMAT.UINT:
            return f"3 channels of {page.samplesperpixel} x {page.bitspersample} bits"
        if page.hash != pages[0].hash:
            return "3 channels that are stored differently"
    return None


# ------------------------------------------------------------------------------------------------ what texts say


def _ome_image(xml: str | None, ifd: int) -> Any:
    """The `Pixels` of the OME-XML that name the TIFF directory `ifd` as theirs; None if none do."""
    found = [e for e in ElementTree.fromstring(xml).iter() if e.tag.endswith("}Pixels")] if xml else []
    return found[0] if len(found) == 1 else next((image for image in found if _holds(image, ifd)), None)


def _holds(pixels: ElementTree.Element, ifd: int) -> bool:
    """Whether an image's Pixels name the TIFF directory `ifd` as theirs. Raises ValueError for what is no number."""
    for data in (element for element in pixels if element.tag.endswith("}TiffData")):
        first, planes = int(data.get("IFD", 0)), data.get("PlaneCount", data.get("NumPlanes"))
        if planes is None and data.get("IFD") is None:  # then all directories are meant
            return True
        if first <= ifd < first + int(planes or 1):
            return True
    return False


def _channel_order(path: Path, image: Any) -> tuple[int, int, int]:
    """Where red, green and blue are among three channels: as OME-XML names or colours them, in order if it does not.

    Raises UnsupportedSlideError for three channels that are something else, as those of fluorescence are.
    """
    channels = [] if image is None else [e for e in image if e.tag.endswith("}Channel")]
    if len(channels) != 3:
        return (0, 1, 2)
    names = [e.get("Name", "").strip().lower() for e in channels]
    colours = [e.get("Color") for e in channels]
    if any(names):
        places = [_CHANNELS.get(name) for name in names]
    elif any(colour is not None for colour in colours):
        places = [_COLOURS.get((int(colour or 0) >> 8) & 0xFFFFFF) for colour in colours]  # signed RGBA
    else:
        places = [0, 1, 2]
    if {0, 1, 2} != set(places):
        raise _unsupported(path, "its three channels are not called red, green and blue", "convert it to RGB")
    return (places.index(0), places.index(1), places.index(2))


def _ome_mpp(image: Any) -> tuple[float, float] | None:
    """PhysicalSizeX and Y in micrometres; units are those of the OME schema."""
    if image is None:
        return None
    sizes = []
    for axis in "XY":
        size, unit = number_of(image.get(f"PhysicalSize{axis}")), image.get(f"PhysicalSize{axis}Unit", "µm")
        if size is None or unit not in _UM_PER_UNIT:
            return None
        sizes.append(size * _UM_PER_UNIT[unit])
    return sizes[0], sizes[1]


def _imagej_mpp(metadata: dict[str, Any], page: Any) -> tuple[float, float] | None:
    """ImageJ's scale: pixels per `unit` stand in the resolution tags."""
    per_unit = _UM_PER_UNIT.get(str(metadata.get("unit", "")).strip().lower())
    return None if per_unit is None else _resolution(page, per_unit)


def _tag_mpp(page: Any) -> tuple[float, float] | None:
    """Micrometres per pixel from the TIFF resolution tags, if they have a physical unit."""
    per_unit = {2: 25400.0, 3: 10000.0}.get(int(page.tags.valueof("ResolutionUnit", default=2)))
    return None if per_unit is None else _resolution(page, per_unit)


def _resolution(page: Any, um_per_unit: float) -> tuple[float, float] | None:
    found = [page.tags.valueof(name) for name in ("XResolution", "YResolution")]
    if any(not r or not r[0] or not r[1] for r in found):
        return None
    return um_per_unit * found[0][1] / found[0][0], um_per_unit * found[1][1] / found[1][0]


def _aperio_number(description: str, name: str) -> float | None:
    """A number of Aperio's description, which is text of the form `|MPP = 0.25|AppMag = 40`."""
    found = re.search(rf"\|\s*{name}\s*=\s*([0-9.]+)", description)
    return number_of(found.group(1)) if found else None
