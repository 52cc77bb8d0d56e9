"""Whether files are what was written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from pipeline import console
from tiling.core.artefact import COMMIT, PROVENANCE, folder_faults
from tiling.core.errors import SpecslideError


def verify(
    paths: Annotated[
        list[Path], typer.Argument(help="What specslide made, or folders that hold such: a study.", readable=False)
    ],
) -> None:
    """Check stores, models and all other results in some folders, by the hashes they were written with, byte for byte.

    The exit code is 0 if every one of them is intact.

    Examples: `specslide verify stores/*.zarr run/model`; `specslide verify results`
    """
    checked = dict(pair for path in paths for pair in _checked(path))
    for faults in checked.values():
        for fault in faults:
            console.show_error(fault)
    intact = sum(not faults for faults in checked.values())
    console.say(f"{intact} intact, {len(checked) - intact} damaged")
    if intact < len(checked):
        raise typer.Exit(1)


def _checked(path: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each artefact in a folder, or what cannot be checked, with what is wrong with it."""
    from pipeline.provenance import artefacts_in

    unreadable: list[OSError] = []
    found = list(artefacts_in(path, unreadable.append))
    for error in unreadable:
        yield Path(error.filename), [f"{error.filename}: cannot be read ({error.strerror})"]
    if not found and not unreadable:
        what = "holds nothing that specslide has finished, or has listed"
        yield path, [str(SpecslideError(path, what, "pass a folder of its results, or make them again"))]
    for folder in found:
        try:
            yield folder, _faults(folder)
        except PermissionError as error:
            yield folder, [f"{folder}: cannot be read ({error.strerror})"]


def _faults(folder: Path) -> list[str]:
    """Everything wrong with an artefact; of a store or model also whether this version can read it."""
    if (folder / "zarr.json").exists():
        from tiling.stores.features import is_feature_store, verify_features
        from tiling.stores.store import verify_store

        return verify_features(folder) if is_feature_store(folder) else verify_store(folder)
    if (folder / "model.json").exists():
        from training.models.folder import verify_model  # torch takes seconds

        return verify_model(folder)
    if (folder / PROVENANCE).exists() and not (folder / COMMIT).exists():
        what = f"has no {COMMIT}, as version 0.1 wrote none here, and cannot be checked"
        return [str(SpecslideError(folder, what, "make it again with the same command"))]
    return folder_faults(folder)
