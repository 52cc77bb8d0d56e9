"""Heatmaps for a project of QuPath."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import console
from pipeline.commands.options import Overwrite


def export_qupath(
    heatmaps: Annotated[list[Path], typer.Argument(help="Folders of heatmaps, or what heatmap wrote them into.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the files.")],
    overwrite: Overwrite = False,
) -> None:
    """The objects of many heatmaps in one folder, and a script that loads them all into the project open in QuPath.

    Example: `specslide export qupath heatmaps --out qupath`
    """
    from inference.export_qupath import export_qupath as verb

    paths = verb(heatmaps, out, overwrite=overwrite)
    console.say(
        f"{len(paths) - 1} files in {out}; in QuPath, with the project open: Automate > Script editor, {paths[-1]}"
    )
