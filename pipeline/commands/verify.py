"""Whether files are what was written."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from pipeline import console


def verify(
    paths: Annotated[list[Path], typer.Argument(help="Stores, model folders and heatmap folders.", readable=False)],
) -> None:
    """Check stores, models and results against the hashes they were written with; every byte is read.

    Example: `specslide verify stores/*.zarr run/model`
    """
    from tiling.files import folder_faults
    from tiling.store import verify_store

    found = Counter[str]()
    for path in paths:
        try:
            faults = verify_store(path) if (path / "zarr.json").exists() else folder_faults(path)
        except PermissionError as error:
            faults = [f"{path}: cannot be read ({error.strerror})"]
        for fault in faults:
            console.show_error(fault)
        found["intact" if not faults else "damaged"] += 1
    console.say(f"{found['intact']} intact, {found['damaged']} damaged")
    if found["damaged"]:
        raise typer.Exit(1)
