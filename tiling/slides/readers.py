"""The table of slide formats: what reads which file. A new format is one module and one row."""

from __future__ import annotations

from pathlib import Path

from tiling.core.errors import SlideError
from tiling.slides.openslide_reader import open_with_openslide
from tiling.slides.reader import Opener, SlideReader, entry_file, unreadable
from tiling.slides.tifffile_reader import open_with_tifffile

READERS: dict[str, Opener] = {
    "openslide": open_with_openslide,
    "tifffile": open_with_tifffile,
}
"""The openers by name, asked in this order; the first that knows the file reads it."""


def open_reader(path: Path) -> SlideReader:
    """The reader of a slide. Raises SlideError if it cannot be opened."""
    entry = entry_file(path)
    try:
        with entry.open("rb") as f:
            if not f.read(1):
                raise SlideError(path, "is an empty file", "copy the slide again")
        for opened in READERS.values():
            if (reader := opened(path, entry)) is not None:
                return reader
    except OSError as error:
        raise unreadable(path, error) from error
    raise SlideError(path, "is not a slide that can be read", "pass a whole-slide image")
