"""HistoPrep's output into tile stores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import Overwrite
from pipeline.commands.outcomes import show_outcomes
from tiling.core.errors import InputError, SpecslideError
from tiling.core.text import counted


def histoprep(
    folders: Annotated[list[Path], typer.Argument(help="Output folders of HistoPrep or histoslice, one per slide.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the stores.")],
    mpp: Annotated[float, typer.Option(min=0.001, max=1000, help="Micrometres per pixel of the saved tiles.")],
    overwrite: Overwrite = False,
) -> None:
    """Make tile stores of HistoPrep's output: its tiles unchanged, and its metrics as quality columns.

    Example: `specslide import histoprep output/slide_1 --out stores --mpp 0.5`
    """
    from pipeline.execution.job import require_folder
    from tiling.stores.import_histoprep import import_histoprep

    folder_of: dict[str, Path] = {}
    for folder in folders:
        name = folder.resolve().name
        if name in folder_of:  # the second store would replace the first
            both = f"{folder_of[name]} and {folder}"
            raise InputError("the folders given", f"two have the name {name!r}: {both}", "give each once")
        folder_of[name] = folder
    require_folder(out)
    rows = []
    for name, folder in folder_of.items():
        try:
            report = import_histoprep(folder, out, mpp=mpp, overwrite=overwrite)
            rows.append((name, counted(report.tiles, "tile"), "kept" if report.reused else "made"))
        except SpecslideError as error:
            rows.append((name, "", str(error)))
    show_outcomes(f"stores in {out}", rows)
