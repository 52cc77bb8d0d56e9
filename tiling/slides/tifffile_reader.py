"""8-bit RGB TIFFs that OpenSlide refuses, OME-TIFF among them, through tifffile."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree

import numpy as np
import tifffile

from tiling.core.arrays import UInt8Array
from tiling.core.errors import SlideError
from tiling.slides.reader import Level, number_of
from tiling.slides.tiled_tiff import TIFF_DAMAGE

logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # it quotes the free text of damaged files

DAMAGE = (*TIFF_DAMAGE, RuntimeError, ElementTree.ParseError)  # RuntimeError: what imagecodecs raises
"""What tifffile and its codecs raise for damaged files."""


def open_with_tifffile(path: Path, entry: Path) -> TifffileReader | None:
    """The reader of a TIFF; None for what is no TIFF."""
    file = entry.open("rb")
    try:
        tiff = tifffile.TiffFile(file)
    except DAMAGE:
        file.close()
        return None
    return TifffileReader(path, file, tiff)


def is_ome(entry: Path) -> bool:
    """Whether a file is an OME-TIFF."""
    try:
        with entry.open("rb") as f, tifffile.TiffFile(f) as tiff:
            return bool(tiff.is_ome)
    except DAMAGE:
        return False


class TifffileReader:
    """Reads 8-bit RGB TIFFs, tiled or in strips, with tifffile; keeps the last decoded segments."""

    vendor = "tiff"
    objective_power: float | None = None
    compression: str | None = None  # as for any TIFF
    _KEEP = 64

    def __init__(self, path: Path, file: BinaryIO, tiff: tifffile.TiffFile) -> None:
        self._path, self._file, self._tiff = path, file, tiff
        try:
            self._pages = _rgb_pages(path, self._tiff)
            self.vendor = "ome-tiff" if self._tiff.is_ome else "tiff"
            first = self._pages[0]
            self.mpp_xy = _ome_mpp(self._tiff.ome_metadata, first.index) if self._tiff.is_ome else _tiff_mpp(first)
        except DAMAGE as error:
            self.close()
            raise SlideError(
                path, f"is damaged or incomplete ({type(error).__name__})", "copy the slide again"
            ) from error
        except SlideError:
            self.close()
            raise
        self.levels = tuple(Level(p.imagewidth, p.imagelength, first.imagewidth / p.imagewidth) for p in self._pages)
        self._decoded: OrderedDict[tuple[int, int], UInt8Array] = OrderedDict()

    def read(self, x0: int, y0: int, level: int, width: int, height: int) -> UInt8Array:
        """As `SlideReader.read`."""
        page, down = self._pages[level], self.levels[level].downsample
        left, top = round(x0 / down), round(y0 / down)
        out = np.full((height, width, 3), 255, np.uint8)
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
        """Release the file."""
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
                return np.full((*page.chunks[:2], 3), 255, np.uint8)
            handle = self._tiff.filehandle
            handle.seek(page.dataoffsets[index])
            data = handle.read(size)
            if len(data) < size:
                raise ValueError("the file ends too early")
            segment, _, shape = page.decode(data, index, jpegtables=page.jpegtables)
        except (OSError, *DAMAGE) as error:
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


def _ome_mpp(xml: str | None, ifd: int) -> tuple[float, float] | None:
    """PhysicalSizeX and Y, in micrometres, of the image with the TIFF directory `ifd`; units of the OME schema."""
    if not xml:
        return None
    per_um = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
    images = [element for element in ElementTree.fromstring(xml).iter() if element.tag.endswith("}Pixels")]
    pixels = images[0] if len(images) == 1 else next((image for image in images if _holds(image, ifd)), None)
    if pixels is None:
        return None
    sizes = []
    for axis in "XY":
        size, unit = number_of(pixels.get(f"PhysicalSize{axis}")), pixels.get(f"PhysicalSize{axis}Unit", "µm")
        if size is None or unit not in per_um:
            return None
        sizes.append(size * per_um[unit])
    return sizes[0], sizes[1]


def _holds(pixels: ElementTree.Element, ifd: int) -> bool:
    """Whether an image's Pixels name the TIFF directory `ifd` as theirs. Raises ValueError for what is no number."""
    for data in (element for element in pixels if element.tag.endswith("}TiffData")):
        first, planes = int(data.get("IFD", 0)), data.get("PlaneCount", data.get("NumPlanes"))
        if planes is None and data.get("IFD") is None:  # then all directories are meant
            return True
        if first <= ifd < first + int(planes or 1):
            return True
    return False


def _tiff_mpp(page: Any) -> tuple[float, float] | None:
    """Micrometres per pixel from the TIFF resolution tags, if they have a physical unit."""
    tags = page.tags
    um_per_unit = {2: 25400.0, 3: 10000.0}.get(int(tags.valueof("ResolutionUnit", default=2)))
    found = [tags.valueof(name) for name in ("XResolution", "YResolution")]
    if um_per_unit is None or any(not r or not r[0] or not r[1] for r in found):
        return None
    return um_per_unit * found[0][1] / found[0][0], um_per_unit * found[1][1] / found[1][0]
