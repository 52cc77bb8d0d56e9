"""TIFFs that OpenSlide refuses or misreads, OME-TIFF and ImageJ's among them, through tifffile and imagecodecs."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import openslide
import tifffile
from PIL.ImageCms import ImageCmsProfile
from tifffile import COMPRESSION, EXTRASAMPLE, FILLORDER

from tiling.core.arrays import AnyArray, UInt8Array
from tiling.core.errors import SlideError
from tiling.core.platforms import pread
from tiling.core.tiff import DAMAGE, open_tiff
from tiling.grid import Bounds
from tiling.slides.colour import profile_of
from tiling.slides.reader import Level, damaged, read_segments, unreadable
from tiling.slides.tiff_picture import TiffLevel, compression_name, tiff_picture
from tiling.slides.tiff_segments import decoded_segment, samples_of
from tiling.slides.tile_cache import TileCache
from tiling.slides.tiled_tiff import PLAIN_VENDORS

logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # it quotes the free text of damaged files

_CACHE_BYTES = 256 << 20
_KEPT_RAW_BYTES = 16 << 20  # larger uncompressed strips and tiles are read in part, each time anew


def open_with_tifffile(path: Path, entry: Path) -> TifffileReader | None:
    """The reader of a TIFF; None for what is no TIFF, and for those that a vendor's own geometry puts together."""
    if openslide.OpenSlide.detect_format(str(entry)) not in PLAIN_VENDORS:
        return None
    file = entry.open("rb")
    try:
        tiff = open_tiff(file)
    except DAMAGE:
        file.close()
        return None
    return TifffileReader(path, file, tiff)


class TifffileReader:
    """Reads RGB TIFFs, tiled or in strips, interleaved or in planes; keeps the last decoded tiles and strips."""

    bounds: Bounds | None = None

    def __init__(self, path: Path, file: BinaryIO, tiff: tifffile.TiffFile) -> None:
        self._path, self._file, self._tiff = path, file, tiff
        try:
            picture = tiff_picture(path, tiff)
        except DAMAGE as error:
            self.close()
            raise damaged(path, error) from error
        except SlideError:
            self.close()
            raise
        self._levels, first = picture.levels, picture.levels[0]
        self.vendor, self.mpp_xy, self.objective_power = picture.vendor, picture.mpp_xy, picture.objective_power
        self.plane = picture.plane
        self.compression: str | None = compression_name(first.page.compression)
        self.levels = tuple(Level(level.width, level.height, first.width / level.width) for level in self._levels)
        self._cache = TileCache(_CACHE_BYTES)

    def read(self, x0: int, y0: int, level: int, width: int, height: int) -> UInt8Array:
        """As `SlideReader.read`."""
        shape, down = self._levels[level], self.levels[level].downsample
        corner = round(x0 / down), round(y0 / down)
        sizes = (shape.width, shape.height), (shape.segment_w, shape.segment_h)
        with self._cache.reading(_CACHE_BYTES):
            return read_segments(*sizes, corner, (width, height), partial(self._part, level))

    def icc_profile(self) -> ImageCmsProfile | None:
        """As `SlideReader.icc_profile`."""
        return profile_of(self._levels[0].page.tags.valueof("InterColorProfile"))

    def close(self) -> None:
        """Release the file."""
        self._tiff.close()
        self._file.close()

    def _part(self, level: int, column: int, row: int, part: tuple[slice, slice]) -> UInt8Array:
        """A part (rows, columns) of one strip or tile, uint8 (h, w, 3). Raises SlideError if it cannot be decoded."""
        shape = self._levels[level]
        try:
            if _read_in_part(shape):
                index = row * shape.across + column
                raw = [self._raw(page, first + index, shape.segment_w, part) for page, first in shape.sources]
                return _as_rgb(raw, shape.page)
            key = (level, column, row, 1)
            return self._cache.tile(key, lambda: self._segment(level, column, row))[part]
        except OSError as error:
            raise unreadable(self._path, error) from error
        except DAMAGE as error:
            raise damaged(self._path, error) from error

    def _segment(self, level: int, column: int, row: int) -> UInt8Array:
        """One whole strip or tile, uint8 (h, w, 3). Raises OSError and DAMAGE."""
        shape = self._levels[level]
        index = row * shape.across + column
        whole, inside = (shape.segment_h, shape.segment_w), shape.inside(column, row)
        return _as_rgb([self._decoded(page, first + index, whole, inside) for page, first in shape.sources], shape.page)

    def _decoded(self, page: Any, index: int, whole: tuple[int, int], inside: tuple[int, int]) -> AnyArray:
        """One strip or tile, as `decoded_segment`; white if the file leaves it out.

        Raises OSError and DAMAGE.
        """
        size = page.databytecounts[index]
        if size == 0:
            return np.full((*inside, samples_of(page)), np.iinfo(page.dtype).max, page.dtype)
        return decoded_segment(page, index, _stored(self._file, page.dataoffsets[index], size), whole, inside)

    def _raw(self, page: Any, index: int, segment_w: int, part: tuple[slice, slice]) -> AnyArray:
        """A part (rows, columns) of an uncompressed strip or tile, (h, w, samples); the rest is not read. As above."""
        rows, columns = part
        samples = samples_of(page)
        dtype = np.dtype(f"{self._tiff.byteorder}u{page.bitspersample // 8}")
        pixel, width = samples * dtype.itemsize, columns.stop - columns.start
        out = np.full((rows.stop - rows.start, width, samples), np.iinfo(dtype).max, dtype)
        offset, size = page.dataoffsets[index], page.databytecounts[index]
        if size and (rows.stop * segment_w * pixel) > size:
            raise ValueError("fewer bytes than the strip or tile has")
        for i, row in enumerate(range(rows.start, rows.stop) if size else ()):
            start = offset + (row * segment_w + columns.start) * pixel
            out[i] = np.frombuffer(_stored(self._file, start, width * pixel), dtype).reshape(width, samples)
        return out


def _stored(file: BinaryIO, offset: int, size: int) -> bytes:
    """Bytes of a file, wherever else it is read. Raises OSError, ValueError if they are not all there."""
    data = pread(file.fileno(), size, offset)
    if len(data) < size:
        raise ValueError("the file ends too early")
    return data


def _read_in_part(level: TiffLevel) -> bool:
    """Are the strips or tiles of a level so large, and stored so plainly, that parts of them are read?"""
    page = level.page
    plain = (page.compression, page.predictor, page.fillorder) == (COMPRESSION.NONE, 1, FILLORDER.MSB2LSB)
    return plain and level.segment_w * level.segment_h * page.samplesperpixel > _KEPT_RAW_BYTES


def _as_rgb(sources: list[AnyArray], page: Any) -> UInt8Array:
    """Samples of each source (h, w, n) as uint8 (h, w, 3): 16 bits rounded as libtiff does, alpha laid over white."""
    samples = sources[0] if len(sources) == 1 else np.concatenate(sources, axis=2)
    if samples.dtype != np.uint8:
        samples = ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if samples.shape[2] == 3:
        return np.ascontiguousarray(samples)
    rgb, alpha = samples[..., :3].astype(np.uint16), samples[..., 3:].astype(np.uint16)
    if page.extrasamples[0] == EXTRASAMPLE.ASSOCALPHA:  # colour is stored times alpha
        return np.asarray(np.minimum(rgb + (255 - alpha), 255), np.uint8)
    return np.asarray((rgb * alpha + 255 * (255 - alpha) + 127) // 255, np.uint8)
