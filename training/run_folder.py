"""The folder of a training run: which model stands in it, and how a new result takes its place, whole.

out/checkpoints/result/ holds a new result until all of it is written; then its files are moved into `out`, the model
last. An earlier model stands untouched until then. Killed at any moment, the next call of any run goes on from there.
Knows nothing of networks and data.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.fabric import Fabric

from tiling.core.artefact import COMMIT, DONE, PROVENANCE, TO_DO, Recipe, locked_folder, require_own, seal
from tiling.core.errors import OutputError
from tiling.core.files import locked, output_error, sync
from training.checkpoints import Checkpoints
from training.config import AnyConfig
from training.data.samples import Samples
from training.logs import LOGS
from training.models.info import INFO, BagInfo, ModelInfo, read_record
from training.recipes import model_recipe, model_state

log = logging.getLogger(__name__)

MODEL = "model"
_FILES = (PROVENANCE, "learning_curve.png", "split.csv", "predictions.csv", "metrics.json")


def checkpoints_of(out: Path, recipe: Recipe) -> Checkpoints:
    """The checkpoints of the run in `out` that makes that recipe's model."""
    return Checkpoints(out / "checkpoints", {**recipe.settings, **recipe.inputs})


def result_folder(out: Path) -> Path:
    """Where a new result is written until it is complete."""
    return out / "checkpoints" / "result"


def kept_model(out: Path, samples: Samples, config: AnyConfig, overwrite: bool) -> ModelInfo | BagInfo | None:
    """The record of the model in `out`, if it is the one asked for.

    A complete result that was not yet put in its place is put there first.

    Args:
        out: The folder of the run.
        samples: The tiles to train on.
        config: The settings to train with.
        overwrite: Whether another model may be replaced.

    Returns:
        The model's record; None if there is none, or with `overwrite` another.

    Raises:
        OutputError: For a model made otherwise or damaged, naming the difference, unless `overwrite`.
    """
    if (result_folder(out) / MODEL / COMMIT).exists():
        with locked(out / "run", wait=True):
            if (result_folder(out) / MODEL / COMMIT).exists():
                publish(out)
    found = model_state(out / MODEL, samples, config)
    if found == DONE:
        log.info("%s: complete already", out / MODEL)
        _tidy(out, checkpoints_of(out, model_recipe(samples, config)))
        return read_record(out / MODEL)
    if found == TO_DO or overwrite:
        return None
    what = found.why if found.why.startswith("is damaged") else f"was made otherwise: {found.why}"
    fix = "choose another --out, or pass --overwrite to replace it when the new one is complete"
    raise OutputError(out / MODEL, what, fix)


def _tidy(out: Path, checkpoints: Checkpoints) -> None:
    """Do what a run does last and was killed before: vouch for its files, remove its state."""
    if not (checkpoints.folder.exists() and checkpoints.is_own()):
        return
    with locked(out / "run", wait=True):
        if checkpoints.folder.exists():
            _seal(out)
            checkpoints.remove()


@contextmanager
def held_run(out: Path, checkpoints: Checkpoints, fabric: Fabric, overwrite: bool) -> Iterator[None]:
    """Hold the lock of the run in `out` in the first process; the others wait until it has it, and write nothing.

    Args:
        out: The folder of the run.
        checkpoints: The state of the run, which is made ready.
        fabric: The processes that train together.
        overwrite: Whether another model may be replaced.

    Yields:
        Nothing.

    Raises:
        OutputError: If the lock is held by another run, a model was made meanwhile, or `out` holds something else.
    """
    if not fabric.is_global_zero:
        fabric.barrier()
        yield
        return
    with locked_folder(out / "run"):
        if not overwrite and (out / MODEL / COMMIT).exists():  # since it was looked for
            raise OutputError(out / MODEL, "was made by another job meanwhile", "run the same command again")
        require_own(out / MODEL, INFO, "a model")
        checkpoints.prepare()
        if not (out / MODEL).exists():
            _remove_earlier(out, logs=not (out / "checkpoints" / "last.ckpt").exists())
        fabric.barrier()
        yield


def log_folder(out: Path) -> Path:
    """The folder of a run's log, which is not that of a model that still stands."""
    return (result_folder(out) if (out / MODEL).exists() else out) / "log"


def publish(out: Path) -> None:
    """Move the complete result of `result_folder` to its place, over an earlier one, the model last.

    To be called by who holds the run. Raises OutputError.
    """
    result = result_folder(out)
    try:
        if (out / MODEL).exists():
            _remove_earlier(out, logs=(result / "log").exists())
            shutil.rmtree(out / MODEL)
        for source in sorted(path for path in result.rglob("*") if path.is_file()):
            if result / MODEL in source.parents:
                continue
            target = out / source.relative_to(result)
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
        (result / MODEL).rename(out / MODEL)
        sync(out)
    except OSError as error:
        raise output_error(out, error) from error
    _seal(out)


def _seal(out: Path) -> None:
    """Vouch for the files beside the model."""
    names = [
        path.relative_to(out).as_posix()
        for path in (*(out / name for name in _FILES), *(out / "pictures").glob("*.png"), out / "log" / "metrics.csv")
        if path.is_file()
    ]
    seal(out, Recipe("training", dict(read_record(out / MODEL).hashes)), names)


def _remove_earlier(out: Path, *, logs: bool) -> None:
    """Remove what an earlier run left beside its model. What else lies in the folders is somebody's, and stays."""
    pictures = [path for kind in ("performance", "gallery") for path in (out / "pictures").glob(f"*_{kind}.png")]
    left = [out / COMMIT, *pictures, *(out / "log" / name for name in LOGS if logs)]
    try:
        for path in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(out, error) from error
