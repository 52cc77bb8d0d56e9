"""What the jobs of all verbs share: the folder of their results, and paths that hold in any folder."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tiling.core.errors import OutputError
from tiling.core.files import output_error
from tiling.manifest import ManifestRow

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

AnyJob = TypeVar("AnyJob", bound="DataclassInstance")


def require_folder(folder: Path) -> None:
    """Make the folder for results now rather than fail once for each slide. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(folder, "cannot be written (Permission denied)", "choose an output folder you may write to")


def anywhere(job: AnyJob) -> AnyJob:
    """The same job with absolute paths, for a worker that starts in another folder."""
    values = {field.name: getattr(job, field.name) for field in fields(job)}
    changed: dict[str, Any] = {name: path.absolute() for name, path in values.items() if isinstance(path, Path)}
    for name, row in values.items():
        if isinstance(row, ManifestRow):
            paths = {key: path.absolute() for key, path in row if isinstance(path, Path)}
            changed[name] = row.model_copy(update=paths)
    return replace(job, **changed)
