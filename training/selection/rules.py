"""RULES: which trained candidate to take, by what each shows on the validation of its own hospital. Pure.

Validation that holds a shortcut prefers the networks that use it. `stress`, `regret` and `agreement` look at copies
of validation that are shifted as another scanner or laboratory might, with shifts that are set before any shortcut is
known; `errors` looks at the tiles that plain training gets wrong, which are those where a shortcut misleads.
None sees external data.

Candidates come in order of their regularisation, the weakest first; of equals the first is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Key = TypeVar("Key")

TOLERANCE = 0.02
"""AUROC that `tolerance` gives away for regularisation."""
MAY_LOSE = 1 / 3
"""Of what the best balanced accuracy has above chance, the part that `agreement` lets a candidate lose."""


class Shifted(BaseModel):
    """What a candidate shows on one shifted copy of validation."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    balanced_accuracy: Share
    """At the threshold that is fixed on the unshifted tiles."""
    agreement: Share
    """Share of the tiles that are decided as their unshifted selves."""


class Quantities(BaseModel):
    """What one trained candidate shows on validation; kept as JSON, so that any rule can be asked later."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    log_loss: float = Field(ge=0)
    """Nats, at the candidate's own best temperature: it knows nothing of the logits' size, which penalties set."""
    auroc: Share
    balanced_accuracy: Share
    """At the candidate's fixed threshold."""
    classes: int = Field(2, ge=2)
    shifted: dict[str, Shifted] = {}
    """By shift and strength, `sharpness -0.5`."""
    where_right: Share | None = None
    """Accuracy on the tiles that plain training gets right; None if there are none, or nobody looked."""
    where_wrong: Share | None = None
    """Accuracy on the tiles that plain training gets wrong."""


@dataclass(frozen=True)
class Rule:
    """A rule of choice: called with candidates and their quantities, it returns one of the candidates."""

    text: str
    """What it does, for tables, help and model cards."""
    value: Callable[[Quantities], float]
    """What the chosen candidate has most of. Raises ValueError for quantities that the rule cannot do without."""
    admits: Callable[[Quantities, Collection[Quantities]], bool] = lambda one, every: True
    """Whether a candidate may be chosen among all."""
    looks_at_copies: bool = False
    """Whether it needs shifted copies, which only pixels have."""
    strongest: bool = False
    """Whether the last that is admitted is chosen, that is the most regularised, rather than by value."""

    def __call__(self, seen: Mapping[Key, Quantities]) -> Key:
        """The chosen one of candidates in order, weakest first. Raises ValueError for none, and as `value`."""
        if not seen:
            raise ValueError("there is no candidate to choose from")
        admitted = [key for key, one in seen.items() if self.admits(one, seen.values())]
        return admitted[-1] if self.strongest else max(admitted, key=lambda key: self.value(seen[key]))


def stress(one: Quantities) -> float:
    """Mean balanced accuracy over the unshifted validation, which counts once, and each of its shifted copies."""
    return _mean(_accuracies(one))


def agreement(one: Quantities) -> float:
    """Mean over the shifted copies of the share of tiles decided as unshifted; needs no labels.

    The nearest in print is the neighborhood invariance of Ng et al. 2022, arXiv 2207.02093.
    """
    return _mean([copy.agreement for copy in _copies(one)])


def errors(one: Quantities) -> float:
    """Mean of the accuracies on the tiles that plain training gets right and wrong, or the one that there is.

    Those tiles stand for the groups where a shortcut holds and where it does not, as in Just Train Twice (Liu et al.
    2021, arXiv 2107.09044). Where plain training makes no error the value is the plain accuracy. Few errors make it
    noisy.
    """
    found = [share for share in (one.where_right, one.where_wrong) if share is not None]
    if not found:
        raise ValueError("the rule errors needs the accuracies where plain training is right and wrong")
    return _mean(found)


def within(tolerance: float) -> Callable[[Quantities, Collection[Quantities]], bool]:
    """Admits candidates whose AUROC is at most `tolerance` below the best."""
    return lambda one, every: one.auroc >= max(other.auroc for other in every) - tolerance


def not_far_below(one: Quantities, every: Collection[Quantities]) -> bool:
    """Whether balanced accuracy on validation keeps two thirds of what the best has above chance.

    A network that calls everything the same agrees with itself on any copy.
    """
    chance = 1 / one.classes
    best = max(other.balanced_accuracy for other in every)
    return one.balanced_accuracy >= best - MAY_LOSE * max(0.0, best - chance)


def shortfall(one: Quantities, every: Collection[Quantities]) -> float:
    """The most balanced accuracy that another candidate has more, over the unshifted validation and each shifted copy.

    Savage's regret: a shift that no candidate stands says nothing, and one shift cannot be outvoted by the others.
    """
    others = [_accuracies(other) for other in every]
    return max(max(other[copy] for other in others) - value for copy, value in enumerate(_accuracies(one)))


def least_regret(one: Quantities, every: Collection[Quantities]) -> bool:
    """Whether no candidate has a smaller `shortfall`."""
    return shortfall(one, every) <= min(shortfall(other, every) for other in every)


RULES: dict[str, Rule] = {
    "log_loss": Rule("the lowest log loss at the own best temperature", lambda one: -one.log_loss),
    "tolerance": Rule(
        f"the strongest regularisation whose AUROC is at most {TOLERANCE:g} below the best",
        lambda one: one.auroc,
        within(TOLERANCE),
        strongest=True,
    ),
    "stress": Rule(
        "the best mean balanced accuracy over validation and its shifted copies", stress, looks_at_copies=True
    ),
    "regret": Rule(
        "the smallest shortfall behind the best candidate under the shift where it is largest",
        stress,
        least_regret,
        looks_at_copies=True,
    ),
    "agreement": Rule(
        "decisions that change least on shifted copies, of candidates not far below the best",
        agreement,
        not_far_below,
        looks_at_copies=True,
    ),
    "errors": Rule("the best mean accuracy on the tiles that plain training gets right and wrong", errors),
}
"""A new one is a row."""


def _copies(one: Quantities) -> list[Shifted]:
    if not one.shifted:
        raise ValueError("the rule needs quantities of shifted copies")
    return list(one.shifted.values())


def _accuracies(one: Quantities) -> list[float]:
    return [one.balanced_accuracy, *(copy.balanced_accuracy for copy in _copies(one))]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
