"""study.yaml: the settings of a whole study. Unknown keys are refused, naming the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inference.predict import PredictConfig
from tiling import TilingConfig
from tiling.errors import ConfigError
from training.config import TrainConfig

Model = TypeVar("Model", bound=BaseModel)


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
    config = checked(StudyConfig, read_yaml(path), path)
    here = path.parent
    return config.model_copy(update={"manifest": here / config.manifest, "out": here / config.out})


def checked(model: type[Model], values: object, where: object) -> Model:
    """The validated settings. Raises ConfigError naming `where`, the key, and what is wrong with its value."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "it"
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{where}: {key}", "is not a setting", _known(model, first["loc"])) from None
        if first["type"] == "missing":
            raise ConfigError(f"{where}: {key}", "is missing", "set it") from None
        reason = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{where}: {key}", f"{first['input']!r} is refused, {reason}", "correct the value") from None


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises ConfigError."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem = getattr(error, "strerror", None) or getattr(error, "problem", None) or type(error).__name__
        raise ConfigError(path, f"cannot be read as YAML ({problem})", "correct the file") from None


def _known(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """Which settings there are in the section of an unknown one."""
    section = model
    for name in location[:-1]:
        annotation = section.model_fields[str(name)].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            section = annotation
    return f"the settings are {', '.join(section.model_fields)}"
