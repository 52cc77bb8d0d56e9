"""The plan of a tuning: its settings, and the candidates it tries, weakest regularisation first. Pure."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from training.augmentations import AUGMENTATIONS
from training.config import TrainConfig, known_shifts

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

PENALTIES: dict[str, tuple[str, ...]] = {
    "none": (),
    "sd": ("sd_lambda",),
    "weight_decay": ("weight_decay",),
    "l2": ("l2",),
    "sd+l2": ("sd_lambda", "l2"),
    "consistency": ("consistency",),
}
"""The settings of a training that each penalty sets; it leaves the others at 0."""
STRENGTHS = ("sd_lambda", "weight_decay", "l2", "consistency")
"""The settings of a training that penalties set."""
TUNED = (*STRENGTHS, "learning_rate", "augment", "seed", "split_seed")
"""The settings of a training that differ among candidates."""


class TuneConfig(BaseModel):
    """What a tuning tries, and how it chooses."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rule: Literal["log_loss", "tolerance", "stress", "regret", "agreement", "errors"] = "regret"
    """How one is chosen by its validation: "regret": the smallest shortfall behind the best candidate under the shift
    where it is largest; "stress": mean balanced accuracy over validation and its shifted copies; "agreement": decisions
    that the shifts change least; "errors": accuracy where plain training errs and where it does not; "tolerance": the
    strongest penalty that costs little AUROC; "log_loss"."""
    shifts: tuple[str, ...] = Field(("all",), validate_default=True)
    """What copies of validation are shifted in, each by half its strength: some of sharpness, brightness, contrast,
    saturation, hue, gamma, stain, jpeg, noise, resolution; or all."""

    penalties: tuple[Literal["none", "sd", "weight_decay", "l2", "sd+l2", "consistency"], ...] = Field(
        ("none", "sd", "weight_decay", "l2", "sd+l2"), min_length=1
    )
    """What is tried: none, sd (spectral decoupling), weight_decay (AdamW's), l2 (in the loss), sd+l2; if named,
    consistency too (consistency regularisation: a penalty on how logits change under shifts)."""
    sd_lambdas: tuple[Positive, ...] = Field((0.01, 0.1, 1.0), min_length=1)
    """Lambdas of spectral decoupling."""
    weight_decays: tuple[Positive, ...] = Field((0.1, 1.0, 10.0), min_length=1)
    """Weight decays of AdamW."""
    l2s: tuple[Positive, ...] = Field((1e-4, 1e-3, 1e-2), min_length=1)
    """Weights of the classic L2 penalty; "sd+l2" takes the first with the first lambda, and so on."""
    consistencies: tuple[Positive, ...] = Field((0.1, 1.0, 10.0), min_length=1)
    """Weights of consistency regularisation."""
    learning_rates: tuple[Annotated[float, Field(gt=0, le=10)], ...] = ()
    """Learning rates. None named: that of the training."""
    augments: tuple[str, ...] = ("light", "strong")
    """Augmentations; empty: that of the training alone."""
    seeds: int = Field(3, ge=1, le=1000)
    """Seeds of each candidate, the same for all, on one split; candidates are judged by their mean over the seeds."""

    search: Literal["grid", "random"] = "grid"
    """"grid": every combination; "random": `draws` of them, strengths and learning rates anywhere between the smallest
    and largest value, evenly on a logarithmic scale."""
    draws: int = Field(20, ge=1, le=10_000)
    """Candidates of a random search. More of them keep those there were."""

    @property
    def strengths(self) -> dict[str, tuple[float, ...]]:
        """The strengths to try of each setting that penalties set, the weakest first."""
        values = (self.sd_lambdas, self.weight_decays, self.l2s, self.consistencies)
        return dict(zip(STRENGTHS, values, strict=True))

    @field_validator("penalties", "learning_rates", "augments")
    @classmethod
    def _each_once(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(values)) < len(values):
            raise ValueError("something is named twice")
        return values

    @field_validator("sd_lambdas", "weight_decays", "l2s", "consistencies")
    @classmethod
    def _weakest_first(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len({f"{value:g}" for value in values}) < len(values):
            raise ValueError("something is named twice")
        return tuple(sorted(values))

    @field_validator("augments")
    @classmethod
    def _known_augmentations(cls, augments: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in augments if name not in AUGMENTATIONS]:
            raise ValueError(f"{unknown[0]} is none of {', '.join(AUGMENTATIONS)}")
        return augments

    @field_validator("shifts")
    @classmethod
    def _known_shifts(cls, shifts: tuple[str, ...]) -> tuple[str, ...]:
        return known_shifts(shifts)

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Self:
        if self.search == "grid" and "sd+l2" in self.penalties and len(self.sd_lambdas) != len(self.l2s):
            raise PydanticCustomError("l2s", "for sd+l2 in a grid there must be as many as sd_lambdas")
        if self.rule == "errors" and "none" not in self.penalties:
            raise PydanticCustomError("penalties", "the rule errors needs none among them: what plain training errs in")
        return self


@dataclass(frozen=True)
class Candidate:
    """The settings that a tuning tries."""

    penalty: str
    learning_rate: float
    augment: str
    sd_lambda: float = 0.0
    weight_decay: float = 0.0
    l2: float = 0.0
    consistency: float = 0.0

    @property
    def strengths(self) -> dict[str, float]:
        """The strengths of its penalties, by setting."""
        return {name: getattr(self, name) for name in PENALTIES[self.penalty]}

    @property
    def name(self) -> str:
        """What its folder is called, `sd_lambda-5_lr-0.001_light`."""
        penalty = [f"{name}-{value:g}" for name, value in self.strengths.items()] or ["plain"]
        return "_".join([*penalty, f"lr-{self.learning_rate:g}", self.augment])

    def training(self, base: TrainConfig, seed: int) -> TrainConfig:
        """The settings of its training under one of the seeds 0, 1, ..., which share the split."""
        changed = {name: getattr(self, name) for name in (*STRENGTHS, "learning_rate", "augment")}
        return base.model_copy(update=changed | {"seed": base.seed + seed, "split_seed": base.data_seed})


def candidates(config: TuneConfig, base: TrainConfig) -> list[Candidate]:
    """All that is tried, the weakest regularisation first.

    That is by how many of its penalty's values are not above its own, as a share; then by penalty and augmentation in
    the order in which they are named, the highest learning rate first. So rules that take the strongest can compare
    penalties whose strengths have no common unit.
    """
    rates, augments = config.learning_rates or (base.learning_rate,), config.augments or (base.augment,)
    found = _grid(config, rates, augments) if config.search == "grid" else _drawn(config, rates, augments, base.seed)
    values = config.strengths

    def order(one: Candidate) -> tuple[float, int, int, float]:
        levels = [bisect_right(values[name], value) / len(values[name]) for name, value in one.strengths.items()]
        level = sum(levels) / len(levels) if levels else -1.0  # nothing is weaker than none
        return level, config.penalties.index(one.penalty), augments.index(one.augment), -one.learning_rate

    return sorted(dict.fromkeys(found), key=order)


def plain_one(config: TuneConfig, base: TrainConfig) -> Candidate | None:
    """The plain training that the rule `errors` looks at: without a penalty, at the first rate and augmentation."""
    rate, augment = (*config.learning_rates, base.learning_rate)[0], (*config.augments, base.augment)[0]
    return Candidate("none", rate, augment) if "none" in config.penalties else None


def _grid(config: TuneConfig, rates: tuple[float, ...], augments: tuple[str, ...]) -> Iterator[Candidate]:
    values = config.strengths
    for penalty, rate, augment in itertools.product(config.penalties, rates, augments):
        names = PENALTIES[penalty]
        for strengths in zip(*(values[name] for name in names), strict=True) if names else [()]:
            yield Candidate(penalty, rate, augment, **dict(zip(names, strengths, strict=True)))


def _drawn(config: TuneConfig, rates: tuple[float, ...], augments: tuple[str, ...], seed: int) -> list[Candidate]:
    """The plain training where none is among the penalties, and random ones; each draw is of a generator of its own."""
    values = config.strengths
    found = [Candidate("none", rates[0], augments[0])] if "none" in config.penalties else []
    vary = len(rates) + len(augments) > 2  # else plain training is one, and there already
    penalties = [penalty for penalty in config.penalties if vary or penalty != "none"]
    while penalties and len(found) < config.draws:
        random = np.random.default_rng([seed, len(found)])
        penalty = penalties[random.integers(len(penalties))]
        strengths = {name: _between(values[name], random) for name in PENALTIES[penalty]}
        augment = augments[random.integers(len(augments))]
        found.append(Candidate(penalty, _between(rates, random), augment, **strengths))
    return found


def _between(values: tuple[float, ...], random: np.random.Generator) -> float:
    """A number between the smallest and the largest, evenly on a logarithmic scale, of three digits."""
    low, high = np.log([min(values), max(values)])
    return float(f"{np.exp(random.uniform(low, high)):.3g}")
