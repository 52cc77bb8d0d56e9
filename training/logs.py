"""A run's log: `log/metrics.csv` always, and the loggers that are asked for. Knows nothing of models."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import Logger
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

from tiling.core.errors import ConfigError
from tiling.core.files import write_file
from training.config import LearningConfig
from training.evaluation.tables import csv_text


def require_loggers(config: LearningConfig) -> None:
    """Raise ConfigError naming the extra of a configured logger that is not installed."""
    for name in config.loggers:
        if find_spec(name) is None:
            raise ConfigError("loggers", f"{name} is not installed", f"install it: pip install 'specslide[{name}]'")


@contextmanager
def open_loggers(config: LearningConfig, folder: Path) -> Iterator[list[Logger]]:
    """The configured loggers, which write below `folder`, or where the tracker's own variables say.

    None of them needs a network unless such a variable (MLFLOW_TRACKING_URI, WANDB_MODE=online) asks for it. At the end
    they get to know whether the run came to its own.
    """
    made = [_LOGGERS[name](folder / name) for name in config.loggers]
    status = "failed"
    try:
        yield made
        status = "success"
    finally:
        for logger in made:
            logger.finalize(status)


def write_history(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """The record of each epoch as CSV, a row an epoch. Raises OutputError."""
    write_file(path, csv_text(list(history[0]), [list(record.values()) for record in history]))


def _tensorboard(folder: Path) -> Logger:
    return TensorBoardLogger(folder, name="", version="")


def _mlflow(folder: Path) -> Logger:
    server = os.environ.get("MLFLOW_TRACKING_URI")
    if server is None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 would rather have a database
    return MLFlowLogger("specslide", tracking_uri=server, save_dir=str(folder))


def _wandb(folder: Path) -> Logger:
    folder.mkdir(parents=True, exist_ok=True)
    return WandbLogger(
        project="specslide", save_dir=folder, offline=os.environ.get("WANDB_MODE", "offline") == "offline"
    )


_LOGGERS: dict[str, Callable[[Path], Any]] = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
LOGS = ("metrics.csv", *_LOGGERS)
"""What runs leave in the folder `log`."""
