"""The plan of a shortcut study: its settings, the networks to train, and how a method chooses among them. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

VALIDATION = "validation"
TESTS = ("in_distribution", "unconfounded", "clean", "reversed")
"""The same test tiles with the confounder as in training, at random, nowhere, and following the other class."""


class ShortcutConfig(BaseModel):
    """Everything that shapes a shortcut study, apart from the data."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    # what is asked
    confounder: Literal["sharpness", "brightness", "hue", "marker"] = "sharpness"
    """What follows the label; see training.shortcut.confound."""
    amount: float | None = Field(None, allow_inf_nan=False)
    """How strong the change is, in the confounder's own unit. None: its usual amount."""
    strength: float = Field(0.95, ge=0, le=1)
    """The probability that a tile carries the confounder exactly if it is positive: 1 is a perfect shortcut, 0.5
    none."""
    methods: tuple[
        Literal["erm", "weight_decay", "sd", "sd+weight_decay", "stain_norm", "strong", "sd+strong"], ...
    ] = Field(("erm", "weight_decay", "sd", "sd+weight_decay"), min_length=1)
    """What is compared; "erm" is plain cross-entropy, which all others build on."""
    seeds: int = Field(10, ge=1, le=1000)
    """Seeds 0, 1, ...: each its own split, confounding, first weights and order of batches."""

    # the grid
    sd_lambdas: tuple[Positive, ...] = Field((0.01, 1.0, 5.0, 20.0, 50.0), min_length=1)
    """Lambdas of spectral decoupling to choose from, for the reduction "sum"; see training.losses."""
    weight_decays: tuple[Positive, ...] = Field((0.1, 1.0, 10.0), min_length=1)
    """Weight decays of AdamW to choose from."""
    stain_norm: Literal["macenko", "reinhard"] = "macenko"
    """How the method "stain_norm" makes the tiles' staining that of the typical training tile."""
    sd_start: float = Field(0.0, ge=0, lt=1)
    """Share of the steps that are plain cross-entropy before spectral decoupling sets in."""

    tolerance: float = Field(0.02, ge=0, le=0.5)
    """How much validation AUROC the second rule of choice gives away for regularisation; see `choose`."""

    # how each network is trained
    backbone: str = "test_resnet"
    """timm name. The default is the smallest ResNet of timm, for hundreds of runs on two cores."""
    input_px: int | None = Field(None, ge=16, le=4096)
    """Side of the picture the backbone sees, pixels. None: the tile's own, so that nothing is resampled."""
    learning_rate: float = Field(1e-2, gt=0, le=10)
    """Peak of AdamW's learning rate, reached over a tenth of the steps and followed by a cosine down to 0."""
    epochs: int = Field(6, ge=1, le=10_000)
    """Epochs; each draws as many tiles of every class as the rarer one has."""
    batch_size: int = Field(32, ge=2, le=65_536)
    """Tiles a step."""
    val_fraction: float = Field(0.15, gt=0, lt=1)
    """Share of the cases for validation."""
    test_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of the cases for testing."""

    @field_validator("methods", "sd_lambdas", "weight_decays")
    @classmethod
    def _each_once(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(values)) < len(values):
            raise PydanticCustomError("twice", "something is named twice")
        return values

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1:
            raise PydanticCustomError("val_fraction", "with test_fraction it leaves no case to train on")
        from training.shortcut.confound import amount_of  # with OpenCV, which few settings need

        amount_of(self.confounder, self.amount)
        return self


class Setting(NamedTuple):
    """The hyper-parameters that a method leaves open, and the study chooses."""

    sd_lambda: float = 0.0
    weight_decay: float = 0.0

    def __str__(self) -> str:
        parts = [f"lambda {self.sd_lambda:g}"] * (self.sd_lambda > 0)
        return ", ".join(parts + [f"weight decay {self.weight_decay:g}"] * (self.weight_decay > 0)) or "-"


@dataclass(frozen=True)
class Run:
    """One network to train."""

    seed: int
    setting: Setting
    augment: str = "none"
    """See training.augment."""
    stain: bool = False
    """Whether the tiles' stain is normalised, after the confounder, in training and tests."""


class RunRecord(BaseModel):
    """The record of a finished run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    """SHA-256 of everything that decides the figures."""
    run: Run
    metrics: dict[str, dict[str, float]]
    """By what it was tested on, VALIDATION or one of TESTS, and metric: "balanced_accuracy", "auroc", and for
    validation "log_loss" at its own best temperature."""
    seconds: float
    """CPU time of preparing the training tiles and of training, which others on the machine change little."""


Grid = Mapping[str, Mapping[Setting, Sequence[RunRecord]]]
"""By method and setting: a record a seed, in their order."""


def candidates(method: str, config: ShortcutConfig) -> list[Setting]:
    """The settings a method chooses from: the whole product of its grids, or the one setting of a method without."""
    parts = method.split("+")
    lambdas = config.sd_lambdas if "sd" in parts else (0.0,)
    decays = config.weight_decays if "weight_decay" in parts else (0.0,)
    return [Setting(*pair) for pair in itertools.product(lambdas, decays)]


def run_of(method: str, setting: Setting, seed: int) -> Run:
    """The run of a method; methods that share one (all settings 0) train it once."""
    parts = method.split("+")
    return Run(seed, setting, "strong" if "strong" in parts else "none", "stain_norm" in parts)


def planned(config: ShortcutConfig) -> list[Run]:
    """Every network the study needs, each once, seed by seed."""
    runs = [
        run_of(method, setting, seed)
        for seed in range(config.seeds)
        for method in config.methods
        for setting in candidates(method, config)
    ]
    return list(dict.fromkeys(runs))


def as_grid(records: Mapping[Run, RunRecord], config: ShortcutConfig) -> Grid:
    """The records of all planned runs, by method and setting."""
    return {
        method: {
            setting: [records[run_of(method, setting, seed)] for seed in range(config.seeds)]
            for setting in candidates(method, config)
        }
        for method in config.methods
    }


def choose(by_setting: Mapping[Setting, Sequence[RunRecord]], tolerance: float | None = None) -> list[Setting]:
    """The setting of each seed, by its in-distribution validation alone.

    With a tolerance, the strongest regularisation (the largest lambda, then the largest weight decay) whose AUROC is at
    most that much below the best; None takes the lowest log loss, and the first of equals.
    """
    seeds = len(next(iter(by_setting.values())))
    chosen = []
    for seed in range(seeds):
        seen = {setting: records[seed].metrics[VALIDATION] for setting, records in by_setting.items()}
        if tolerance is None:
            chosen.append(min(seen, key=lambda setting: seen[setting]["log_loss"]))
        else:
            enough = max(metrics["auroc"] for metrics in seen.values()) - tolerance
            chosen.append(max(setting for setting, metrics in seen.items() if metrics["auroc"] >= enough))
    return chosen
