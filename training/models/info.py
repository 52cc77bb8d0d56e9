"""What model.json holds: all that is needed to use a model, and how it came to be. Knows nothing of torch.

`ModelInfo` of a tile classifier, `BagInfo` of a model of bags.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tiling.core.arrays import Icc
from tiling.core.errors import ModelError
from tiling.core.files import read_json
from tiling.core.settings import first_fault
from tiling.grid import Mpp, TilePx
from tiling.stores.features import Encoder
from training.evaluation.bootstrap import Interval
from training.models.backbone_args import MAX_INPUT_PX, refused_args
from training.models.stain_targets import StainTarget

log = logging.getLogger(__name__)

INFO = "model.json"
IN_COLOURS: dict[Icc, str] = {"none": "as in the slide's file", "srgb": "in sRGB by ICC profile"}

Level = Annotated[float, Field(ge=0, le=1)]
Spread = Annotated[float, Field(gt=0, le=100)]


class SplitSummary(BaseModel):
    """What one split holds; of a model of bags, its `tiles` are bags."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cases: int
    slides: int
    tiles: int
    tiles_per_class: dict[str, int]


class GroupSummary(BaseModel):
    """The metrics of the tiles, or bags, of one site or scanner."""

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


class SelectionSummary(BaseModel):
    """How the model was chosen among candidates; see training.tune."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: str
    """By what: a key of training.selection.rules.RULES."""
    text: str
    """What the rule does."""
    shifts: tuple[str, ...]
    """What the copies of validation were shifted in."""
    candidates: int
    """How many there were."""
    seeds: int
    """How many seeds each was trained under."""
    chosen: str
    """The name of the candidate."""
    others: dict[str, str]
    """By rule, the name of the candidate that it would have taken."""


class ModelRecord(BaseModel):
    """What the records of all models have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal["specslide-model"] = "specslide-model"
    version: Literal[1] = 1
    classes: tuple[str, ...] = Field(min_length=2, max_length=1000)
    """Names of the outputs, in order."""
    positive_class: str
    """The class that `threshold` is for."""
    mpp: Mpp | None
    """Micrometres per pixel of the tiles it was trained on; None if unknown."""
    tile_px: TilePx
    """Side of the tiles it was trained on, pixels."""
    icc: Icc = "none"
    """The colours of the tiles it was trained on: see `tiling.TilingConfig.icc`."""
    temperature: float = Field(ge=1e-3, le=1e3)
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
    selection: SelectionSummary | None = None
    """How it was chosen among candidates; None: it was trained by itself."""
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

    @model_validator(mode="after")
    def _knows_its_positive_class(self) -> Self:
        if self.positive_class not in self.classes:
            raise ValueError(f"positive_class {self.positive_class!a} is none of the classes")
        return self

    @property
    def positive(self) -> int:
        """Index of the positive class."""
        return self.classes.index(self.positive_class)

    @property
    def limits(self) -> str:
        """What each report by it says of its limits, beside what holds for any model; "" if nothing."""
        return self.said("limits")

    def warn_of_colours(self, icc: Icc, where: object) -> None:
        """Log a warning if the pixels there are in other colours than those that it was trained on."""
        warn_of_colours(self.icc, icc, where, "model", "probabilities")

    def said(self, name: str) -> str:
        """What its maker said of it under `tissue`, `licence` or `limits`; "" if nothing."""
        return str(self.training.get(name) or "")

    @property
    def noun(self) -> str:
        """What it classifies: tiles, or bags."""
        raise NotImplementedError

    @property
    def network(self) -> str:
        """The network's name."""
        raise NotImplementedError


class ModelInfo(ModelRecord):
    """The record of a tile classifier: everything but the weights."""

    backbone: str = Field(pattern=r"^[A-Za-z0-9_.]{1,128}$")
    """timm name; no hub's, and no path."""
    backbone_args: dict[str, Any] = {}
    """What else timm needs to make it; of BACKBONE_ARGS alone."""
    input_px: int = Field(gt=0, le=MAX_INPUT_PX)
    """Side of the picture the backbone sees, pixels."""
    mean: tuple[Level, Level, Level]
    """Per channel, for pixels in [0, 1]."""
    std: tuple[Spread, Spread, Spread]
    """Per channel, for pixels in [0, 1]."""
    stain_norm: StainTarget | None = None
    """The staining that each tile is given first; None: its own."""
    novelty: NoveltySummary | None = None
    """Where the tiles it knows end; None: it does not tell, as models of earlier versions."""

    @field_validator("backbone_args")
    @classmethod
    def _safe(cls, args: dict[str, Any]) -> dict[str, Any]:
        if why := refused_args(args):
            raise ValueError(why)
        return args

    @property
    def noun(self) -> str:
        """See `ModelRecord`."""
        return "tile"

    @property
    def network(self) -> str:
        """See `ModelRecord`."""
        return self.backbone


class BagInfo(ModelRecord):
    """The record of a model of bags (multiple-instance learning): everything but the weights."""

    kind: Literal["mil"] = "mil"
    head: Literal["mean", "max", "top-k", "attention", "gated", "transformer"]
    """One of training.mil.heads.HEADS."""
    head_dim: int = Field(ge=4, le=4096, multiple_of=4)
    """Numbers that a tile's features are embedded in."""
    dropout: float = Field(ge=0, lt=1)
    """Of the embedded numbers, in training."""
    top_k: int = Field(5, ge=1)
    """Of the head `top-k`: the tiles whose logits are a bag's."""
    bag: Literal["slide", "case", "case-mean"]
    """What a bag is."""
    encoder: Encoder
    """What makes the features of its tiles."""

    @property
    def noun(self) -> str:
        """See `ModelRecord`."""
        return "bag"

    @property
    def network(self) -> str:
        """See `ModelRecord`."""
        return f"{self.head} on {self.encoder.name}"


def warn_of_colours(trained: Icc, icc: Icc, where: object, noun: str, results: str) -> None:
    """Log a warning if pixels are in other colours than those that a network was trained on.

    Args:
        trained: The colours of its training.
        icc: The colours of the pixels.
        where: Where the pixels are.
        noun: What the network is: a model, or an encoder.
        results: What may be off.
    """
    if icc != trained:
        what = "%s: its pixels are %s, and the %s was trained on pixels %s: its %s may be off"
        log.warning(what, where, IN_COLOURS[icc], noun, IN_COLOURS[trained], results)


def read_info(folder: Path) -> ModelInfo:
    """What `model.json` of a tile classifier says; the folder's hashes are not checked. Raises ModelError."""
    record = read_record(folder)
    if not isinstance(record, ModelInfo):
        fix = "pass a tile classifier, or use specslide evaluate --bags and specslide heatmap"
        raise ModelError(folder, "classifies bags of tiles' features, not tiles", fix)
    return record


def read_bag_info(folder: Path) -> BagInfo:
    """What `model.json` of a model of bags says; the folder's hashes are not checked. Raises ModelError."""
    record = read_record(folder)
    if not isinstance(record, BagInfo):
        raise ModelError(folder, "classifies tiles, not bags of their features", "pass a model trained with --bags")
    return record


def read_record(folder: Path) -> ModelInfo | BagInfo:
    """What `model.json` says; the folder's hashes are not checked. Raises ModelError."""
    path = folder / INFO
    try:
        found = read_json(path)
        kind = BagInfo if isinstance(found, dict) and "kind" in found else ModelInfo
        return kind.model_validate(found)
    except OSError as error:
        raise ModelError(path, f"cannot be read ({error.strerror})", "make it readable, or train again") from None
    except ValueError as error:
        reason = first_fault(error) if isinstance(error, ValidationError) else str(error)
        what = f"does not describe a model that this version of specslide can use ({reason})"
        raise ModelError(path, what, "train again with this version of specslide") from None
