"""The table of slide formats: what reads which file. A new format is one module and one row."""

from __future__ import annotations

import logging
from pathlib import Path

from tiling.core.errors import SlideError
from tiling.slides.dicom_reader import open_with_dicom
from tiling.slides.files import entry_file
from tiling.slides.ome_zarr_reader import open_with_zarr
from tiling.slides.openslide_reader import open_with_openslide
from tiling.slides.picture_reader import open_with_pillow
from tiling.slides.reader import Opener, SlideReader, unreadable
from tiling.slides.tifffile_reader import open_with_tifffile

log = logging.getLogger(__name__)

READERS: dict[str, Opener] = {
    "dicom": open_with_dicom,
    "openslide": open_with_openslide,
    "tifffile": open_with_tifffile,
    "zarr": open_with_zarr,
    "pillow": open_with_pillow,
}
"""The openers by name, asked in this order; the first that can read the file reads it."""


def open_reader(path: Path) -> tuple[str, SlideReader]:
    """The reader that opens a slide, and its name in READERS.

    Raises UnsupportedSlideError if the slide is of a kind that cannot be read, SlideError if it is damaged, cannot be
    opened or is no slide.
    """
    entry, failures = entry_file(path), list[SlideError]()
    try:
        with entry.open("rb") as f:
            if not f.read(1):
                raise SlideError(path, "is an empty file", "copy the slide again")
        for name, opened in READERS.items():
            try:
                reader = opened(path, entry)
            except SlideError as error:
                log.debug("%s: not read with %s: %s", path, name, error.what)
                failures.append(error)
                continue
            if reader is not None:
                return name, reader
    except OSError as error:
        raise unreadable(path, error) from error
    if failures:  # the last reader that knows the format knows most of it
        raise failures[-1]
    raise SlideError(path, "is not a slide that can be read", "pass a whole-slide image")
