"""study.yaml: the settings of a whole study. Unknown keys are refused, naming the key."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from inference.predict import PredictConfig
from tiling import TilingConfig
from tiling.settings import checked, read_settings
from training.config import TrainConfig


class HeatmapConfig(PredictConfig):
    """The heatmaps of a study."""

    slides: Literal["test", "all"] = "test"
    """Which slides get one: those of the test split, or all."""


class StudyConfig(BaseModel):
    """One study: which slides, what is done with them, and where the results go."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    manifest: Path
    """Table of the slides; relative to study.yaml."""
    out: Path
    """Folder of the results; relative to study.yaml."""
    tile: TilingConfig = TilingConfig()
    train: TrainConfig = TrainConfig()
    heatmap: HeatmapConfig = HeatmapConfig()
    workers: int | None = Field(None, ge=1)
    """Processes for tiling; None: one a core."""


def load_study(path: Path) -> StudyConfig:
    """The study of a YAML file, its paths made relative to the working directory. Raises ConfigError naming the key."""
    config = checked(StudyConfig, read_settings(path), path)
    here = path.parent
    return config.model_copy(update={"manifest": here / config.manifest, "out": here / config.out})
