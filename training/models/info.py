"""`ModelInfo`, which model.json holds: what is needed to use a model, and how it came to be."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from training.evaluation.bootstrap import Interval
from training.models.stain import StainTarget


class SplitSummary(BaseModel):
    """What one split holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cases: int
    slides: int
    tiles: int
    tiles_per_class: dict[str, int]


class GroupSummary(BaseModel):
    """The metrics of the tiles of one site or scanner."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: str
    column: Literal["site", "scanner"]
    name: str
    cases: int
    tiles: int
    metrics: dict[str, Interval]


class NoveltySummary(BaseModel):
    """How the distance to the training tiles was fitted; see training.models.ood."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    features_threshold: float = Field(gt=0, allow_inf_nan=False)
    """Mahalanobis distance of the features beyond which a tile is out of distribution."""
    appearance_threshold: float = Field(gt=0, allow_inf_nan=False)
    """The same of the pixels' appearance."""
    quantile: float = Field(gt=0, lt=1)
    """Of the validation tiles, the part that lies within both."""
    train_tiles: int
    """Tiles it was fitted on."""
    val_tiles: int
    """Tiles the thresholds were taken from."""


class ModelInfo(BaseModel):
    """Everything but the weights: what is needed to use a model, and how it came to be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["specslide-model"] = "specslide-model"
    version: Literal[1] = 1
    backbone: str
    """timm name."""
    backbone_args: dict[str, Any] = {}
    """What else timm needs to make it."""
    classes: tuple[str, ...] = Field(min_length=2)
    """Names of the outputs, in order."""
    positive_class: str
    """The class that `threshold` is for."""
    input_px: int = Field(gt=0)
    """Side of the picture the backbone sees, pixels."""
    mean: tuple[float, float, float]
    """Per channel, for pixels in [0, 1]."""
    std: tuple[float, float, float]
    """Per channel, for pixels in [0, 1]."""
    stain_norm: StainTarget | None = None
    """The staining that each tile is given first; None: its own."""
    mpp: float | None = Field(gt=0)
    """Micrometres per pixel of the tiles it was trained on; None if unknown."""
    tile_px: int = Field(gt=0)
    """Side of the tiles it was trained on, pixels."""
    temperature: float = Field(gt=0)
    """What logits are divided by before the softmax."""
    threshold: float = Field(ge=0, le=1)
    """The positive class is called from this probability on, after the temperature."""
    training: dict[str, Any]
    """The whole training configuration."""
    best_epoch: int
    """The epoch, from 1, whose weights these are."""
    data: dict[str, SplitSummary]
    """By split."""
    metrics: dict[str, dict[str, Interval]]
    """By split and metric."""
    ece_before: dict[str, Interval] = {}
    """By split, the ECE of the logits not divided by the temperature; {} in models of earlier versions."""
    groups: tuple[GroupSummary, ...] = ()
    """Metrics by site and scanner, where known."""
    novelty: NoveltySummary | None = None
    """Where the tiles it knows end; None: it does not tell, as models of earlier versions."""
    hashes: dict[str, str]
    """SHA-256 of the weights file, and the identities of the training data and run."""
    software: dict[str, str]
    """Versions it was trained with."""

    @field_validator("classes")
    @classmethod
    def _differ(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) < len(classes):
            raise ValueError(f"the classes {', '.join(classes)} do not all differ")
        return classes

    @property
    def positive(self) -> int:
        """Index of the positive class."""
        return self.classes.index(self.positive_class)
