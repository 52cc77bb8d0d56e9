"""Heatmaps as DICOM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import Overwrite, found_slides, require_there
from pipeline.commands.outcomes import show_outcomes
from tiling.core.errors import InputError, SpecslideError


def export_dicom(
    heatmaps: Annotated[list[Path], typer.Argument(help="Folders of heatmaps, or what heatmap wrote them into.")],
    slides: Annotated[
        list[Path], typer.Option("--slides", "-s", help="The DICOM slides, or folders of them; may be repeated.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the files, one folder per slide.")],
    overwrite: Overwrite = False,
) -> None:
    """Heatmaps of DICOM slides as DICOM: a parametric map of probabilities, and a segmentation of what is called.

    As DICOM demands, the files carry the patient and the study of the slide: keep them as you keep the slide. Needs
    `pip install 'specslide[dicom]'`.

    Example: `specslide export dicom heatmaps --slides slides --out dicom`
    """
    from inference.export_dicom import export_dicom as verb
    from inference.saved_heatmap import Heatmap
    from inference.summary import heatmap_folders
    from tiling.slides.files import slide_name

    require_there(*heatmaps)
    named = found_slides(slides).slides
    require_there(*named)
    rows = []
    for folder in heatmap_folders(heatmaps):
        try:
            name = Heatmap(folder).slide.slide_id
            of_name = [slide for slide in named if slide_name(slide) == name] or (named if len(named) == 1 else [])
            if len(of_name) != 1:
                raise InputError(folder, f"is of the slide {name!r}, which is not among --slides", "name its folder")
            paths = verb(folder, of_name[0], out, overwrite=overwrite)
            rows.append((name, ", ".join(path.name for path in paths), ""))
        except SpecslideError as error:
            rows.append((folder.name, "", str(error)))
    show_outcomes(f"DICOM in {out}", rows)
