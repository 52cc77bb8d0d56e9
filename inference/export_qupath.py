"""The verb `export_qupath`: heatmaps as a folder of GeoJSON, and a script that loads them into a project of QuPath."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from inference.exports import EXPORTS
from inference.summary import heatmap_folders, read_summary
from tiling.core.artefact import folder_faults
from tiling.core.errors import InputError, OutputError
from tiling.core.files import write_file

SCRIPT = "load_in_qupath.groovy"
_FILES = {EXPORTS["qupath"].file: ".geojson", EXPORTS["geojson"].file: ".regions.geojson"}
"""Files of a heatmap, and what those of the same content are called after the slide's id."""


def export_qupath(heatmaps: Sequence[Path], out: Path, *, overwrite: bool = False) -> list[Path]:
    """Copy the tiles of heatmaps, and their regions where there are such, into one folder with `SCRIPT`.

    Args:
        heatmaps: Folders of heatmaps, or folders that hold such.
        out: The folder. The script names it, so that it is made anew where the folder is moved.
        overwrite: Replace files that are there.

    Returns:
        The files, the script last.

    Raises:
        InputError: For a folder that holds no heatmap, a damaged one, or a second one of a slide.
        OutputError: If a file is there, unless `overwrite`, or cannot be written.
    """
    contents: dict[Path, bytes] = {}
    for folder in heatmap_folders(heatmaps):
        slide_id = read_summary(folder).slide.slide_id
        there = [name for name in _FILES if (folder / name).is_file()]
        if faults := folder_faults(folder, only=frozenset(there)):
            raise InputError(folder, f"is damaged: {faults[0]}", "make the heatmap again with --overwrite")
        for name in there:
            path = out / f"{slide_id}{_FILES[name]}"
            if path in contents:
                raise InputError(folder, f"is a second heatmap of the slide {slide_id}", "export one into a folder")
            if path.exists() and not overwrite:
                raise OutputError(path, "is there already", "choose another --out, or pass --overwrite")
            contents[path] = (folder / name).read_bytes()
    script = Path(__file__).with_name(SCRIPT).read_text(encoding="utf-8")
    place = json.dumps(out.resolve().as_posix()).replace("$", "\\$")  # a text of Groovy, too
    contents[out / SCRIPT] = script.replace("new File(FOLDER)", f"new File({place})").encode()
    for path, data in contents.items():
        write_file(path, data)
    return list(contents)
