"""Which file of a folder is the annotation of which slide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tiling.annotations.label_image import NAMES
from tiling.annotations.label_image import SUFFIXES as PICTURES
from tiling.core.errors import InputError

ENDINGS = (".geojson", ".json", ".xml", ".annotations", *PICTURES)
"""Of annotation files; of several that are one slide's, the first ending counts."""
_OF_SLIDES = (
    ".svs", ".ome.tif", ".ome.tiff", ".tif", ".tiff", ".btf", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu",
    ".svslide", ".dcm", ".czi", ".qptiff", ".jp2",
)  # fmt: skip


class Found(NamedTuple):
    """The annotations in a folder."""

    of: dict[str, Path]
    """By slide_id."""
    unused: list[Path]
    """Files that could be annotations and are no slide's."""


def find_annotations(folder: Path, slides: Mapping[str, Path | None]) -> Found:
    """The annotation of each slide, given the slides' files, where they are known, by slide_id.

    A slide's annotation is called by the slide's id, or as its file, with or without the ending of a slide, and has an
    ending of an annotation: of the slide `a.svs` that is `a.geojson` or `a.svs.geojson`. Raises InputError.
    """
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise InputError(folder, f"cannot be read ({error.strerror})", "check the folder of annotations") from error
    known = {path.absolute() for path in slides.values() if path is not None}
    by_name: dict[str, dict[str, Path]] = {}
    for path in files:
        ending = next((end for end in ENDINGS if path.name.lower().endswith(end)), None)
        if ending is not None and not path.name.lower().endswith(NAMES) and path.absolute() not in known:
            by_name.setdefault(path.name[: -len(ending)], {})[ending] = path
    bare = {_bare(name): name for name in by_name if _bare(name) != name}
    shared = Counter(_bare(path.name) for path in slides.values() if path is not None)
    of = {}
    for slide_id, file in slides.items():
        names = [slide_id, bare.get(slide_id, "")]
        if file is not None and shared[_bare(file.name)] == 1:  # or it could be another slide's
            names += [file.name, _bare(file.name)]
        candidates = (by_name[name] for name in names if name in by_name)
        if endings := next(candidates, None):
            of[slide_id] = next(endings[end] for end in ENDINGS if end in endings)
    used = set(of.values())
    return Found(of, [path for endings in by_name.values() for path in endings.values() if path not in used])


def _bare(name: str) -> str:
    """A name without the ending of a slide."""
    ending = next((end for end in _OF_SLIDES if name.lower().endswith(end)), "")
    return name[: len(name) - len(ending)]
