"""What on disk is a slide: the file it is opened by, all of its files, its name, and the slides in a folder."""

from __future__ import annotations

import re
import threading
from pathlib import Path

from tiling.core.errors import SlideError
from tiling.core.files import FEATURES, require_regular, sha256_file, sha256_json
from tiling.slides.dicom import dicom_folder, dicom_slide, is_dicom
from tiling.slides.ome_zarr_reader import MARKS, is_zarr, ome_zarr_files, ome_zarr_mark
from tiling.slides.reader import unreadable

SUFFIXES = frozenset(
    {".bif", ".btf", ".czi", ".mrxs", ".ndpi", ".qptiff", ".scn", ".svs", ".svslide", ".tf8", ".tif", ".tiff", ".vms",
     ".vmu"}
)  # fmt: skip
"""What names of slides in single files end in, lower case; DICOM goes by its first bytes."""
_PERHAPS_DICOM = re.compile(r"|\.(dcm|dicom|ima|img|\d*)", re.IGNORECASE)  # endings; named by UID it ends in a number


def entry_file(path: Path) -> Path:
    """The file to open: of a DICOM slide, given by its folder or any of its files, the first with pixels; of OME-Zarr
    the metadata of its folder.

    Raises SlideError for what is no slide or not one.
    """
    try:
        if (mark := ome_zarr_mark(path)) is not None:
            return mark
        slide = dicom_slide(path)
        if slide is not None:
            return slide.entry
        if path.is_dir():
            what = (
                "is zarr without an OME image, a tile store perhaps" if is_zarr(path) else "is a folder without slides"
            )
            raise SlideError(path, what, "pass slide files, or the folder of one DICOM or OME-Zarr slide")
        require_regular(path)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL in it
        raise unreadable(path, error) from error
    return path


def slide_files(path: Path) -> list[Path]:
    """Every file that makes up the slide: those of a DICOM series or of OME-Zarr, a MIRAX index and its folder, or one.

    Raises SlideError, OSError.
    """
    if ome_zarr_mark(path) is not None:
        return ome_zarr_files(path)
    slide = dicom_slide(path)
    if slide is not None:
        return slide.files
    entry = entry_file(path)
    companion = entry.with_suffix("")
    if entry.suffix.lower() == ".mrxs" and companion.is_dir():
        return [entry, *sorted(p for p in companion.rglob("*") if p.is_file())]
    return [entry]


def slide_sha256(path: Path, unwanted: threading.Event | None = None) -> str:
    """SHA-256 of a slide as stored, without opening it: of its file, or of all files of a slide that has several.

    Raises SlideError if they cannot be read, or once it is `unwanted`.
    """
    try:
        files = slide_files(path)
        hashes = [sha256_file(file, unwanted) for file in files]
    except OSError as error:
        raise unreadable(path, error) from error
    if entry_file(path).name in MARKS:  # OME-Zarr: a chunk's name is its place
        names = (file.relative_to(path).as_posix() for file in files)
        return sha256_json(dict(zip(names, hashes, strict=True)))
    return hashes[0] if len(hashes) == 1 else sha256_json(sorted(hashes))


def slide_name(path: Path) -> str:
    """The default slide id: the file's name without its endings; of a store without `.zarr` or `.features.zarr`.

    DICOM has its folder's name, or, where several slides lie in one folder, that of the slide's first file.
    """
    try:
        if path.name.endswith(FEATURES):
            return path.name.removesuffix(FEATURES)
        if path.suffix == ".zarr":  # a store of a slide `x.ome.svs` is `x.ome.zarr`, too
            return path.name.removesuffix(".zarr" if ome_zarr_mark(path) is None else ".ome.zarr").removesuffix(".zarr")
        if path.is_dir():
            return path.resolve().name
        if is_dicom(path):
            slides = dicom_folder(path.parent).slides
            first = next((slide.entry for slide in slides if path in slide.files), path)
            dicom = first.name if first.suffix.lower() != ".dcm" else first.stem
            return dicom if len(slides) > 1 else path.resolve().parent.name
    except (OSError, ValueError):  # what may not be read: opening it says so
        pass
    if path.suffix.lower() == ".dcm":
        return path.resolve().parent.name
    name = path.name
    for ending in (".ome.tiff", ".ome.tif", path.suffix):
        if ending and name.lower().endswith(ending.lower()):
            return name[: -len(ending)]
    return name


def is_slide(path: Path) -> bool:
    """Whether a path looks like a slide: a file by its ending or first bytes, a folder of one DICOM slide or OME-Zarr.

    Plain pictures are slides only where they are named: in folders they are previews mostly.

    Cheap, and no promise that it can be read. Raises OSError.
    """
    if path.is_dir():
        return ome_zarr_mark(path) is not None or len(dicom_folder(path).slides) == 1
    return path.is_file() and (path.suffix.lower() in SUFFIXES or _may_be_dicom(path))


def slides_in(folder: Path) -> list[Path]:
    """The slides that lie directly in a folder, by name: files that look like one, DICOM slides by their first file.

    Hidden files are left out, and folders: of these `is_slide` tells OME-Zarr. Cheap, and no promise that they can be
    read. Raises OSError.
    """
    found = [
        path for path in folder.iterdir() if not path.name.startswith(".") and not path.is_dir() and is_slide(path)
    ]
    dicom = [path for path in found if path.suffix.lower() not in SUFFIXES]
    slides = [slide.entry for slide in dicom_folder(folder).slides] if dicom else []
    return sorted({*found} - {*dicom} | {*slides})


def _may_be_dicom(path: Path) -> bool:
    return _PERHAPS_DICOM.fullmatch(path.suffix) is not None and is_dicom(path)
