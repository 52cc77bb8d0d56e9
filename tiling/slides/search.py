"""Slides from what a user names: files, folders of slides and patterns; what is left out is counted, never silent."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tiling.core.artefact import COMMIT
from tiling.core.errors import SlideError
from tiling.core.files import FEATURES
from tiling.slides.dicom import dicom_folder
from tiling.slides.files import SUFFIXES, entry_file, slide_files, slides_in
from tiling.slides.ome_zarr_reader import ome_zarr_mark

_PICTURES = frozenset({".png", ".jpg", ".jpeg"})  # in a folder of slides: previews, labels, heatmaps
_DICOM = frozenset({".dcm", ".dicom", ""})
_STORE = ".zarr"


class Kinds(NamedTuple):
    """Which stores a search is for, beside slides."""

    stores: bool
    features: bool


@dataclass
class Found:
    """The result of a search for slides."""

    slides: list[Path] = field(default_factory=list)
    """Slides, and tile stores where they were asked for."""
    left_out: Counter[str] = field(default_factory=Counter)
    """How many files and folders are no slides, by kind."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Files and folders that may not be read, and why: nobody knows whether they are slides."""

    def __str__(self) -> str:
        what = ", ".join(f"{count} {kind}" for kind, count in sorted(self.left_out.items()) if count)
        return f"{len(self.slides)} slides" + (f"; left out: {what}" if what else "")


def find_slides(named: Sequence[Path], *, stores: bool = False, features: bool = False) -> Found:
    """The slides behind some paths: files, folders and the folders below, and patterns.

    A folder is searched by name and first bytes: hidden files (AppleDouble's `._x.svs` too), plain pictures, and
    folders that specslide made are left out. A MIRAX slide, a DICOM series and an OME-Zarr are one slide each. A
    folder without slides, or that may not be read, counts as one, which opening it refuses. With `stores`
    finished tile stores are found too, with `features` finished feature stores.
    """
    found = Found()
    for path in _expanded(named):
        if not _is_folder(path):
            _add_file(path, found)
        elif path.suffix == _STORE or _is_ome_zarr(path):
            found.slides.append(path)
        elif not _is_companion(path):
            within = Found()
            _walk(path, within, Kinds(stores, features), set())
            found.slides += within.slides or [path]
            found.left_out += within.left_out
            if not within.slides:
                within.unreadable.pop(str(path), None)  # opening it says so
            found.unreadable |= within.unreadable
    found.slides = list(dict.fromkeys(found.slides))  # what is named twice is one
    return found


def _expanded(named: Iterable[Path]) -> Iterator[Path]:
    """The paths, and those that a pattern stands for which the shell has left alone."""
    for path in named:
        pattern = glob.has_magic(str(path)) and not os.path.lexists(path)
        matches = sorted(glob.glob(str(path), recursive=True)) if pattern else []  # noqa: PTH207 - it may be absolute
        yield from map(Path, matches) if matches else (path,)


def _add_file(path: Path, found: Found) -> None:
    """A file that was named; the second file of a DICOM slide adds nothing."""
    try:
        entry = path if path.suffix.lower() in SUFFIXES else entry_file(path)
    except SlideError:
        entry = path  # opening it says what is wrong
    if entry == path or entry not in found.slides:
        found.slides.append(entry)


def _walk(folder: Path, found: Found, wanted: Kinds, seen: set[tuple[int, int]]) -> None:
    """The slides in a folder and those below it, in the order of their names; what may not be read costs itself."""
    with _noted(folder, found):
        place = folder.stat()
        if (place.st_dev, place.st_ino) in seen:  # a link that leads back
            return
        seen.add((place.st_dev, place.st_ino))
        paths = sorted(folder.iterdir())
        visible = [path for path in paths if not path.name.startswith(".")]
        found.left_out["hidden"] += len(paths) - len(visible)
        parts = set[Path]()
        with _noted(folder, found):
            parts = _add_dicom(folder, visible, found)
        for path in visible:
            with _noted(path, found):
                if path.is_dir():
                    if not _add_folder(path, found, wanted):
                        _walk(path, found, wanted, seen)
                elif path.suffix.lower() in SUFFIXES:
                    found.slides.append(path)
                elif path not in parts:
                    found.left_out[path.suffix.lower() or "without ending"] += 1


@contextmanager
def _noted(path: Path, found: Found) -> Iterator[None]:
    """Note that a file or folder may not be read, and go on."""
    try:
        yield
    except OSError as error:
        found.unreadable[str(path)] = f"cannot be read ({error.strerror})"


def _add_dicom(folder: Path, paths: Sequence[Path], found: Found) -> set[Path]:
    """The DICOM slides directly in a folder, whose files are returned. Raises OSError."""
    slides = [path for path in slides_in(folder) if path.suffix.lower() not in SUFFIXES | _PICTURES]
    if any(path.suffix.lower() in _DICOM for path in paths) and dicom_folder(folder).damaged:
        found.slides.append(folder)  # nobody knows of which slide those files are: opening it says so
    else:
        found.slides += slides
    return {file for slide in slides for file in slide_files(slide)}


def _add_folder(path: Path, found: Found, wanted: Kinds) -> bool:
    """Whether a folder is one thing, which then is added, or counted."""
    published, zarr, features = (path / COMMIT).exists(), path.suffix == _STORE, path.name.endswith(FEATURES)
    if (zarr and (wanted.features if features else wanted.stores)) if published else ome_zarr_mark(path) is not None:
        found.slides.append(path)
        return True
    if published:
        kind = "feature store" if features else "tile store" if zarr else "folder of results"
        found.left_out[kind] += 1
    elif zarr:
        found.left_out["other .zarr"] += 1
    return published or zarr or _is_companion(path)


def _is_companion(folder: Path) -> bool:
    """Whether a folder holds the pixels of a MIRAX slide beside it."""
    return folder.with_name(f"{folder.name}.mrxs").is_file()


def _is_ome_zarr(path: Path) -> bool:
    try:
        return ome_zarr_mark(path) is not None
    except OSError:  # as below
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # in a folder that may not be read: opening it says so
        return False
