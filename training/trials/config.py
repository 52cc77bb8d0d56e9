"""What trials compare: settings of a network's training, METHODS' parts, and the grid each chooses from. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from training.augmentations import AUGMENTATIONS
from training.config import HeadName, known_shifts
from training.selection.rules import RULES

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
FewerThan1 = Annotated[float, Field(gt=0, le=1)]


class GridConfig(BaseModel):
    """What all studies of trials have to set: the methods, their grids, the rules, and how a network is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    of_pixels: ClassVar[bool] = False
    """Whether what is learned from has pixels; features have none that could be augmented or shifted."""

    methods: tuple[str, ...] = Field(("erm", "undertrained", "weight_decay", "l2", "sd", "sd+l2"), min_length=1)
    """What is compared, parts with + between: erm (plain cross-entropy), undertrained, weight_decay (AdamW's), l2 (in
    the loss), sd, late_sd, gamma_sd, least_squares, shifted_sd (the penalty on shifted copies alone), consistency,
    strong, light, stain_norm. Each chooses among as many settings."""
    seeds: int = Field(10, ge=1, le=1000)
    """Seeds 0, 1, ...: each its own split, first weights and order of batches, the same for all methods."""
    rules: tuple[str, ...] = Field(tuple(RULES), min_length=1)
    """How each seed chooses a method's setting by its validation: log_loss, tolerance, stress, regret, agreement,
    errors."""
    positive_class: str | None = None
    """The class that counts as positive. None: the last that is not called normal, benign or the like."""

    # the grids, as many values each
    sd_lambdas: tuple[Positive, ...] = Field((1.0, 5.0, 10.0, 20.0, 50.0), min_length=1)
    """Lambdas of spectral decoupling to choose from, for the reduction "sum"; see training.losses."""
    weight_decays: tuple[Positive, ...] = Field((0.1, 0.3, 1.0, 3.0, 10.0), min_length=1)
    """Weight decays of AdamW to choose from; each step takes the learning rate times as much off."""
    l2s: tuple[Positive, ...] = Field((1e-5, 1e-4, 1e-3, 1e-2, 1e-1), min_length=1)
    """Weights of the classic penalty to choose from: l2/2 times the squared norm of the weights is added to the
    loss."""
    rate_shares: tuple[FewerThan1, ...] = Field((1.0, 0.5, 0.3, 0.1, 0.03), min_length=1)
    """Shares of the learning rate that "undertrained" chooses from, each with the epoch share of its place."""
    epoch_shares: tuple[FewerThan1, ...] = Field((0.5, 1.0, 1.0, 1.0, 1.0), min_length=1)
    """Shares of the epochs that "undertrained" chooses from."""
    sd_start: float = Field(0.5, ge=0, lt=1)
    """Share of the steps of "late_sd" that are plain cross-entropy before spectral decoupling sets in."""
    sd_gamma: tuple[float, ...] = (0.44, 2.5)
    """What "gamma_sd" draws the logits to instead of 0, one number per class, the negative class first."""

    # how each network is trained
    learning_rate: float = Field(1e-2, gt=0, le=10)
    """Peak of AdamW's learning rate, reached over a tenth of the steps and followed by a cosine down to 0."""
    epochs: int = Field(6, ge=1, le=10_000)
    """Epochs; each draws as many of every class as the rarer one has."""
    batch_size: int = Field(32, ge=2, le=65_536)
    """Tiles, or bags, per step."""
    val_fraction: float = Field(0.15, gt=0, lt=1)
    """Share of the cases for validation."""

    @field_validator("methods", "rules", "sd_lambdas", "weight_decays", "l2s")
    @classmethod
    def _each_once(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(values)) < len(values):
            raise PydanticCustomError("twice", "something is named twice")
        return values

    @field_validator("sd_lambdas", "weight_decays", "l2s")
    @classmethod
    def _weakest_first(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(values))

    @field_validator("methods")
    @classmethod
    def _known_parts(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        known = {name: part for name, part in PARTS.items() if cls.of_pixels or not part.of_pixels}
        _refuse_unknown([part for method in methods for part in method.split("+")], known)
        return methods

    @field_validator("rules")
    @classmethod
    def _known_rules(cls, rules: tuple[str, ...]) -> tuple[str, ...]:
        known = {name: rule for name, rule in RULES.items() if cls.of_pixels or not rule.looks_at_copies}
        _refuse_unknown(rules, known)
        return rules

    @model_validator(mode="after")
    def _grids_are_of_one_size(self) -> Self:
        used = dict.fromkeys(name for method in self.methods for name in grids_of(method))
        sizes = {name: len(getattr(self, name)) for name in used}
        if len(set(sizes.values())) > 1:
            name = min(sizes, key=lambda name: sizes[name])
            others = ", ".join(f"{other} {size}" for other, size in sizes.items())
            why = f"grids must be of one size, or who chooses among more wins by chance ({others})"
            raise PydanticCustomError(name, why)
        return self

    @property
    def augmentation(self) -> str:
        """Of the methods that name none."""
        return "none"


class TrialConfig(GridConfig):
    """What studies of trials on tiles have to set beyond that."""

    of_pixels: ClassVar[bool] = True

    shifts: tuple[str, ...] = Field(("all",), min_length=1, validate_default=True)
    """Shifts that the rules stress, regret and agreement look at, half as strong as they go; all: all of them."""
    consistencies: tuple[Positive, ...] = Field((0.01, 0.1, 1.0, 10.0, 100.0), min_length=1)
    """Weights of "consistency" to choose from: half of it times the squared distance between a tile's logits and those
    of a copy, shifted as the rules' copies are, is added to the loss."""
    stain_norm: Literal["macenko", "reinhard"] = "macenko"
    """How the method "stain_norm" makes the tiles' staining that of the typical training tile."""
    augment: str = "none"
    """Augmentation of the methods that name none; see training.augment."""
    backbone: str = "test_resnet"
    """timm name. The default is the smallest ResNet of timm, for hundreds of runs on two cores."""
    weights: str = "none"
    """What networks start from: none, packaged, or a file; see `specslide train`."""
    input_px: int | None = Field(None, ge=16, le=4096)
    """Side of the picture the backbone sees, pixels. None: the tile's own, so that nothing is resampled."""

    _shifts = field_validator("shifts")(known_shifts)

    @field_validator("consistencies")
    @classmethod
    def _each_once_weakest_first(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        cls._each_once(values)
        return cls._weakest_first(values)

    @field_validator("augment")
    @classmethod
    def _known_augmentation(cls, augment: str) -> str:
        _refuse_unknown([augment], AUGMENTATIONS)
        return augment

    @property
    def augmentation(self) -> str:
        """Of the methods that name none."""
        return self.augment


class BagTrialConfig(GridConfig):
    """What studies of trials on bags of tiles' features (multiple-instance learning) have to set beyond that."""

    head: HeadName = "gated"
    """How a bag's tiles become its logits; see training.mil.heads."""
    bag: Literal["slide", "case"] = "slide"
    """What a bag is: each slide, or a case's slides together."""
    bag_tiles: int = Field(1024, ge=1, le=1_000_000)
    """At most so many tiles of a bag are read, drawn once, for memory."""
    head_dim: int = Field(128, ge=4, le=4096, multiple_of=4)
    """Numbers that a tile's features are embedded in, inside the head."""
    dropout: float = Field(0.25, ge=0, lt=1)
    """Share of the embedded numbers that dropout leaves out, in training."""


AnyTrialConfig = TrialConfig | BagTrialConfig


@dataclass(frozen=True)
class Setting:
    """How a trial differs from plain training."""

    sd_lambda: float = 0.0
    sd_start: float = 0.0
    """Share of the steps before spectral decoupling sets in."""
    sd_gamma: tuple[float, ...] | None = None
    least_squares: bool = False
    """Whether the cross-entropy gives way to its second-order expansion; see training.trials.trainer."""
    weight_decay: float = 0.0
    """AdamW's."""
    l2: float = 0.0
    """In the loss."""
    shifted_sd: float = 0.0
    """Lambda of spectral decoupling on shifted copies alone."""
    consistency: float = 0.0
    """Twice the weight of the squared distance to a shifted copy's logits."""
    rate_share: float = 1.0
    """Of the study's learning rate."""
    epoch_share: float = 1.0
    """Of the study's epochs."""
    augment: str = "none"
    stain: str = "none"

    def words(self, learning_rate: float | None = None) -> str:
        """The setting for tables, `-` for none; with a learning rate, what AdamW's decay takes off a step at most."""
        said = [f"lambda {self.sd_lambda:g}"] * (self.sd_lambda > 0)
        said += [f"from {self.sd_start:.0%} of the steps"] * (self.sd_start > 0)
        said += [f"gamma {' and '.join(f'{offset:g}' for offset in self.sd_gamma or ())}"] * (self.sd_gamma is not None)
        said += ["least squares"] * self.least_squares
        said += [f"lambda {self.shifted_sd:g} on shifted copies"] * (self.shifted_sd > 0)
        said += [f"consistency {self.consistency:g}"] * (self.consistency > 0)
        if self.weight_decay:
            step = "" if learning_rate is None else f" (lr × wd {learning_rate * self.weight_decay:g})"
            said.append(f"weight decay {self.weight_decay:g}{step}")
        said += [f"L2 {self.l2:g}"] * (self.l2 > 0)
        said += [f"{self.rate_share:g} of the learning rate"] * (self.rate_share < 1)
        said += [f"{self.epoch_share:g} of the epochs"] * (self.epoch_share < 1)
        said += [name for name in (self.augment, self.stain) if name != "none"]
        return ", ".join(said) or "-"

    __str__ = words


@dataclass(frozen=True)
class Part:
    """A part of a method's name: what it changes."""

    grids: tuple[str, ...]
    """Grids of the configuration that it chooses from, place by place."""
    change: Callable[..., Mapping[str, Any]]
    """The configuration and a value of each grid -> fields of `Setting`."""
    of_pixels: bool = False
    """Whether it changes or shifts pixels."""


_LAMBDAS = ("sd_lambdas",)
PARTS: dict[str, Part] = {
    "erm": Part((), lambda config: {}),
    "undertrained": Part(
        ("rate_shares", "epoch_shares"), lambda config, rate, epochs: {"rate_share": rate, "epoch_share": epochs}
    ),
    "weight_decay": Part(("weight_decays",), lambda config, decay: {"weight_decay": decay}),
    "l2": Part(("l2s",), lambda config, l2: {"l2": l2}),
    "sd": Part(_LAMBDAS, lambda config, weight: {"sd_lambda": weight}),
    "late_sd": Part(_LAMBDAS, lambda config, weight: {"sd_lambda": weight, "sd_start": config.sd_start}),
    "gamma_sd": Part(_LAMBDAS, lambda config, weight: {"sd_lambda": weight, "sd_gamma": config.sd_gamma}),
    "least_squares": Part(_LAMBDAS, lambda config, weight: {"sd_lambda": weight, "least_squares": True}),
    "shifted_sd": Part(_LAMBDAS, lambda config, weight: {"shifted_sd": weight}, of_pixels=True),
    "consistency": Part(("consistencies",), lambda config, weight: {"consistency": weight}, of_pixels=True),
    "light": Part((), lambda config: {"augment": "light"}, of_pixels=True),
    "strong": Part((), lambda config: {"augment": "strong"}, of_pixels=True),
    "stain_norm": Part((), lambda config: {"stain": config.stain_norm}, of_pixels=True),
}
"""A new one is a row, and what the trainer makes of its field of `Setting`."""


@dataclass(frozen=True)
class Run:
    """One network to train."""

    seed: int
    setting: Setting


def grids_of(method: str) -> list[str]:
    """The grids that a method chooses from."""
    return [name for part in method.split("+") for name in PARTS[part].grids]


def views_of(method: str) -> set[str]:
    """The parts of a method that change how tiles look, and choose nothing."""
    return {part for part in method.split("+") if PARTS[part].of_pixels and not PARTS[part].grids}


def candidates(method: str, config: GridConfig) -> list[Setting]:
    """The settings a method chooses from, the weakest first; of several grids the first values go together, and so on.

    One setting for a method without a grid.
    """
    grids = grids_of(method)
    settings = []
    for place in range(len(getattr(config, grids[0])) if grids else 1):
        changes: dict[str, Any] = {"augment": config.augmentation}
        for name in method.split("+"):
            part = PARTS[name]
            changes |= part.change(config, *(getattr(config, grid)[place] for grid in part.grids))
        settings.append(Setting(**changes))
    return settings


def plain(config: GridConfig, seed: int) -> Run:
    """Plain training, whose errors the rule `errors` looks at."""
    return Run(seed, Setting(augment=config.augmentation))


def planned(config: GridConfig) -> list[Run]:
    """Every network a study needs, each once, seed by seed: stopped at any time, it has whole grids of seeds."""
    runs = [
        run
        for seed in range(config.seeds)
        for run in (
            plain(config, seed),
            *(Run(seed, setting) for method in config.methods for setting in candidates(method, config)),
        )
    ]
    return list(dict.fromkeys(runs))


def _refuse_unknown(names: Sequence[str], known: Mapping[str, object]) -> None:
    for name in names:
        if name not in known:
            raise PydanticCustomError("unknown", f"{name!r} is none of {', '.join(known)}")
