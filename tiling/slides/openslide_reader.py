"""Slides that OpenSlide recognises: SVS, NDPI, MIRAX, SCN, BIF, tiled TIFF and others; the pixels of DICOM too."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import openslide
import tifffile
from PIL.ImageCms import ImageCmsProfile
from tifffile import COMPRESSION, PHOTOMETRIC, PLANARCONFIG

from tiling.core.arrays import UInt8Array
from tiling.core.errors import SlideError, UnsupportedSlideError
from tiling.core.tiff import TIFF_DAMAGE, open_tiff
from tiling.grid import Bounds
from tiling.slides.aperio_jpeg2000 import AperioStreams, aperio_streams
from tiling.slides.colour import profile_of
from tiling.slides.dicom_jpeg2000 import DicomStreams
from tiling.slides.reader import Level, damaged, number_of
from tiling.slides.tiff_picture import compression_name, not_rgb
from tiling.slides.tiled_tiff import PHILIPS, PLAIN_VENDORS


def open_with_openslide(path: Path, entry: Path) -> OpenSlideReader | None:
    """The reader of what OpenSlide recognises; None for anything else, and for plain TIFFs that it misreads.

    DICOM has an opener of its own.
    """
    container = openslide.OpenSlide.detect_format(str(entry))
    if container in (None, "dicom"):
        return None
    plane, streams = None, None
    if container in (*PLAIN_VENDORS, PHILIPS):
        try:
            with entry.open("rb") as f, open_tiff(f) as tiff:
                streams = aperio_streams(path, entry, tiff) if container == "aperio" else None
                _require_tiles(path, tiff)
                if container == "generic-tiff" and _misread(tiff):
                    return None
                plane = _plane(tiff) if container == "generic-tiff" else None
        except TIFF_DAMAGE:
            pass  # OpenSlide may do better
    return OpenSlideReader(path, entry, plane=plane, streams=streams)


def _pages(tiff: tifffile.TiffFile) -> Iterator[tifffile.TiffPage]:
    return (page.aspage() for page in tiff.pages)


def _require_tiles(path: Path, tiff: tifffile.TiffFile) -> None:
    """Raises SlideError if a page claims to be larger than its list of tiles covers: nobody waits for such a size."""
    for page in _pages(tiff):
        listed = page.tags.get("TileOffsets")
        if page.is_tiled and listed is not None and listed.count < math.prod(page.chunked):
            raise damaged(path, ValueError())


def _misread(tiff: tifffile.TiffFile) -> bool:
    """Is a tiled TIFF of a kind that OpenSlide takes for a plain one, or whose pixels it makes up?

    Of OME-TIFF and ImageJ it misses the scale, the pyramid and the planes. What is grey or CMYK it shows as RGB. Of
    JPEG in a plane for each colour, which libtiff decodes for it, it does not notice where a stream is cut short.
    """
    page = tiff.pages.first
    exact = page.photometric == PHOTOMETRIC.PALETTE or not_rgb(page) is None
    planes = page.compression == COMPRESSION.JPEG and page.planarconfig == PLANARCONFIG.SEPARATE
    return bool(tiff.is_ome or tiff.is_imagej or planes or not exact)


def _plane(tiff: tifffile.TiffFile) -> str | None:
    """What OpenSlide reads of several pages that are each as large as the slide."""
    first = tiff.pages.first
    alike = sum(page.is_tiled and not page.is_reduced and page.shape == first.shape for page in _pages(tiff))
    return f"page 1 of {alike}" if alike > 1 else None


def _one_plane(sizes: Sequence[tuple[int, int]], *, planes_as_levels: bool) -> tuple[list[int], int, int]:
    """Of OpenSlide's levels those that are read, one of each size; how many planes there are, and which that is.

    OpenSlide lists the focal planes of an Aperio slide as levels of equal size (`planes_as_levels`): the middle plane
    is read. In other formats only a damaged header makes such levels, and the first is read.
    """
    alike = [[i for i, other in enumerate(sizes) if other == size] for size in dict.fromkeys(sizes)]
    planes = len(alike[0]) if planes_as_levels and len({len(numbers) for numbers in alike}) == 1 else 1
    return [numbers[planes // 2] for numbers in alike], planes, planes // 2


def _bounds(known: Mapping[str, str]) -> Bounds | None:
    """The part that was scanned; as for QuPath, what is not whole and in whole numbers is not declared."""
    names = (
        openslide.PROPERTY_NAME_BOUNDS_X, openslide.PROPERTY_NAME_BOUNDS_Y,
        openslide.PROPERTY_NAME_BOUNDS_WIDTH, openslide.PROPERTY_NAME_BOUNDS_HEIGHT,
    )  # fmt: skip
    try:
        x0, y0, width0, height0 = (int(known[name]) for name in names)
    except (KeyError, ValueError):
        return None
    return Bounds(x0=x0, y0=y0, width0=width0, height0=height0) if min(width0, height0) > 0 else None


def _profile_tag(entry: Path, level: Level) -> bytes | None:
    """The ICC profile of the page of that size; None for what is no TIFF, or has none. Raises OSError, DAMAGE."""
    try:
        with entry.open("rb") as f, open_tiff(f) as tiff:
            fits = (page for page in _pages(tiff) if (page.imagewidth, page.imagelength) == (level.width, level.height))
            page = next(fits, None)
            return None if page is None else page.tags.valueof("InterColorProfile")
    except tifffile.TiffFileError:
        return None


class OpenSlideReader:
    """Reads whatever OpenSlide recognises."""

    def __init__(
        self,
        path: Path,
        entry: Path,
        compression: str | None = None,
        *,
        plane: str | None = None,
        streams: AperioStreams | DicomStreams | None = None,
    ) -> None:
        self._path, self._entry, self._streams = path, entry, streams
        self.compression, self.plane = compression, plane
        try:
            if streams is not None:
                streams.require_first()
            self._slide = openslide.OpenSlide(str(entry))
            if streams is not None:
                streams.require_levels(self._slide.level_dimensions)
        except openslide.OpenSlideError as error:
            raise _failed(path, error) from error
        known = self._slide.properties
        self.vendor = known.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
        self.objective_power = number_of(known.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER))
        mpp = (
            number_of(known.get(openslide.PROPERTY_NAME_MPP_X)),
            number_of(known.get(openslide.PROPERTY_NAME_MPP_Y)),
        )
        self.mpp_xy = None if mpp[0] is None or mpp[1] is None else (mpp[0], mpp[1])
        sizes, downs = self._slide.level_dimensions, self._slide.level_downsamples
        if min(min(size) for size in sizes) < 1:  # as Philips's XML may say, by which OpenSlide divides
            self._slide.close()
            raise damaged(path, ValueError())
        self._numbers, planes, taken = _one_plane(sizes, planes_as_levels=self.vendor == "aperio")
        if planes > 1:
            self.plane = f"focal plane {taken + 1} of {planes}"
        self.levels = tuple(Level(*sizes[number], float(downs[number])) for number in self._numbers)
        self.bounds = _bounds(known)
        background = known.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "ffffff")
        self._background = tuple(int(background[i : i + 2], 16) for i in (0, 2, 4))

    def read(self, x0: int, y0: int, level: int, width: int, height: int) -> UInt8Array:
        """As `SlideReader.read`."""
        if self._streams is not None:
            down = self.levels[level].downsample
            self._streams.require(self._numbers[level], x0 / down, y0 / down, width, height)
        try:
            rgba = np.asarray(self._slide.read_region((x0, y0), self._numbers[level], (width, height)))
        except openslide.OpenSlideError as error:
            raise damaged(self._path, error) from error
        rgb = rgba[..., :3]
        if (rgba[..., 3] == 255).all():
            return np.ascontiguousarray(rgb)
        alpha = rgba[..., 3:].astype(np.uint16)  # absent pixels: laid over the slide's own background colour
        over = rgb * alpha + np.array(self._background, np.uint16) * (255 - alpha)
        return ((over + 127) // 255).astype(np.uint8)

    def icc_profile(self) -> ImageCmsProfile | None:
        """As `SlideReader.icc_profile`: OpenSlide's, which reads none of NDPI, or that of level 0's page in a TIFF."""
        return self._slide.color_profile or profile_of(_profile_tag(self._entry, self.levels[0]))

    def close(self) -> None:
        """Release the file."""
        self._slide.close()


def _failed(path: Path, error: openslide.OpenSlideError) -> SlideError:
    """What an error at opening means. Of its text, which may quote the file, only numbers are shown."""
    text = str(error)
    found = re.search(r"[Uu]nsupported TIFF compression:? ([0-9]+)", text)
    if found is None and not re.search(r"[Uu]nsupported|not support|annot handle|can not handle", text):
        return damaged(path, error)
    what = f"in {compression_name(int(found[1]))} compression" if found else "of a flavour of its format"
    return UnsupportedSlideError(
        path, f"is {what} that OpenSlide does not read", "convert it to a tiled RGB pyramid TIFF"
    )
