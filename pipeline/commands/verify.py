"""Whether files are what was written."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from pipeline import console
from tiling.core.artefact import folder_faults


def verify(
    paths: Annotated[list[Path], typer.Argument(help="Stores, model folders and heatmap folders.", readable=False)],
) -> None:
    """Check stores, models and results against the hashes they were written with; every byte is read.

    Example: `specslide verify stores/*.zarr run/model`
    """
    found = Counter[str]()
    for path in paths:
        try:
            faults = _faults(path)
        except PermissionError as error:
            faults = [f"{path}: cannot be read ({error.strerror})"]
        for fault in faults:
            console.show_error(fault)
        found["intact" if not faults else "damaged"] += 1
    console.say(f"{found['intact']} intact, {found['damaged']} damaged")
    if found["damaged"]:
        raise typer.Exit(1)


def _faults(path: Path) -> list[str]:
    """Everything wrong with a folder; of a store or model also whether this version can read what it says of itself."""
    if (path / "zarr.json").exists():
        from tiling.stores.store import verify_store

        return verify_store(path)
    if (path / "model.json").exists():
        from training.models.folder import verify_model  # torch takes seconds

        return verify_model(path)
    return folder_faults(path)
