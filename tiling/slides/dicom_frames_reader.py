"""DICOM slides that OpenSlide does not read, frame by frame: those in HTJ2K."""

from __future__ import annotations

import struct
from pathlib import Path

from PIL.ImageCms import ImageCmsProfile

from tiling.core.arrays import UInt8Array
from tiling.core.errors import SlideError, UnsupportedSlideError
from tiling.grid import Bounds
from tiling.slides.colour import profile_of
from tiling.slides.dicom import DicomSlide, after_preamble
from tiling.slides.dicom_elements import elements, nested_elements
from tiling.slides.jpeg_stream import NotUnderstoodError
from tiling.slides.reader import Level, damaged, number_of
from tiling.slides.tiled_dicom import dicom_levels
from tiling.slides.tiled_levels import TiledLevels

_CACHE_BYTES = 64 << 20
_OPTICAL_PATHS, _SHARED_GROUPS = 0x00480105, 0x52009229
_POWER, _PROFILE, _SPACING = 0x00480112, 0x00282000, 0x00280030
_MAX_PROFILE = 16 << 20


class DicomFramesReader:
    """Reads the frames of a DICOM slide by their offset tables; see `SlideReader`."""

    vendor = "dicom"
    bounds: Bounds | None = None
    plane: str | None = None

    def __init__(self, path: Path, slide: DicomSlide) -> None:
        """Raises UnsupportedSlideError for frames whose places are not understood, SlideError for a damaged header."""
        sizes = sorted({header.size for _, header in slide.pyramid}, reverse=True)
        if any(0 in size for size in sizes):
            raise SlideError(path, "is damaged: a level of it has no pixels", "copy the slide again")
        self.levels = tuple(Level(width, height, sizes[0][0] / width) for width, height in sizes)
        finest, header = max(slide.pyramid, key=lambda part: part[1].size)
        self.compression: str | None = header.compression
        try:
            facts = _facts(finest)
            self._tiles = TiledLevels(path, *dicom_levels(slide.entry, self.levels), _CACHE_BYTES)
        except NotUnderstoodError as reason:
            what = f"is DICOM in {header.compression} with {reason}, which is not supported"
            raise UnsupportedSlideError(path, what, "convert it to JPEG or JPEG 2000") from reason
        except (ValueError, struct.error) as error:
            raise damaged(path, error) from error
        spacing = [number_of(part) for part in facts.get(_SPACING, b"").decode("ascii", "replace").split("\\")]
        rows, columns = spacing if len(spacing) == 2 else (None, None)
        self.mpp_xy = None if rows is None or columns is None else (columns * 1000, rows * 1000)
        self.objective_power = number_of(facts[_POWER].decode("ascii", "replace")) if _POWER in facts else None
        self._profile = facts.get(_PROFILE)

    def read(self, x0: int, y0: int, level: int, width: int, height: int) -> UInt8Array:
        """As `SlideReader.read`."""
        down = self.levels[level].downsample
        return self._tiles.read(level, round(x0 / down), round(y0 / down), width, height)

    def icc_profile(self) -> ImageCmsProfile | None:
        """As `SlideReader.icc_profile`."""
        return profile_of(self._profile)

    def close(self) -> None:
        """Release the files."""
        self._tiles.close()


def _facts(file: Path) -> dict[int, bytes]:
    """Objective power and colour profile of the first optical path, and the pixels' spacing, by their tags.

    Raises OSError, ValueError, struct.error.
    """
    found = dict[int, bytes]()
    with file.open("rb") as f:
        after_preamble(f)
        for sequence, wanted in ((_OPTICAL_PATHS, {_POWER, _PROFILE}), (_SHARED_GROUPS, {_SPACING})):
            if any(tag == sequence for tag, _ in elements(f, (), explicit=True, last=sequence)):
                for tag, value in nested_elements(f, wanted, _MAX_PROFILE):
                    found.setdefault(tag, value)
    return found
