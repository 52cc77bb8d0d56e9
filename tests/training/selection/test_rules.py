from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from training.selection.candidates import TuneConfig
from training.selection.rules import RULES, Quantities, Shifted, agreement, errors, shortfall, stress


def seen(
    log_loss: float,
    auroc: float,
    accuracy: float,
    copies: tuple[tuple[float, float], ...] = ((0.5, 1.0),),
    groups: tuple[float | None, float | None] = (1.0, 0.0),
    classes: int = 2,
) -> Quantities:
    """Copies are (balanced accuracy, agreement); groups the accuracies where plain training is right and wrong."""
    shifted = {f"shift {i}": Shifted(balanced_accuracy=b, agreement=a) for i, (b, a) in enumerate(copies)}
    return Quantities(
        log_loss=log_loss, auroc=auroc, balanced_accuracy=accuracy, classes=classes, shifted=shifted,
        where_right=groups[0], where_wrong=groups[1],
    )  # fmt: skip


GRID = {  # the weakest regularisation first; it uses the shortcut, and only the middle one does well when shifted
    "plain": seen(0.10, 0.990, 0.95, ((0.55, 0.60), (0.60, 0.62)), (1.00, 0.00)),
    "decay": seen(0.20, 0.975, 0.90, ((0.85, 0.92), (0.82, 0.90)), (0.93, 0.60)),
    "lambda": seen(0.30, 0.970, 0.83, ((0.80, 0.96), (0.79, 0.94)), (0.86, 0.70)),
    "collapsed": seen(0.69, 0.800, 0.50, ((0.50, 1.00), (0.50, 1.00)), (0.50, 0.50)),
}


@pytest.mark.parametrize(
    ("rule", "chosen"),
    [("log_loss", "plain"), ("tolerance", "lambda"), ("stress", "decay"), ("regret", "decay"), ("agreement", "lambda"),
     ("errors", "lambda")],
)  # fmt: skip
def test_each_rule_chooses_by_its_own_quantity(rule: str, chosen: str) -> None:
    assert RULES[rule](GRID) == chosen
    assert RULES[rule](dict(reversed(GRID.items()))) == {"tolerance": "plain"}.get(rule, chosen)


def test_regret_is_not_outvoted_by_the_shifts_that_all_candidates_stand() -> None:
    copies = {
        "shortcut": ((0.55, 1.0), *[(0.95, 1.0)] * 9),  # fails under one shift alone
        "tissue": ((0.85, 1.0), *[(0.90, 1.0)] * 9),
        "flat": ((0.84, 1.0), *[(0.70, 1.0)] * 9),
    }
    candidates = {name: seen(0.1, 0.9, 0.95, of) for name, of in copies.items()}
    assert RULES["stress"](candidates) == "shortcut"
    assert RULES["regret"](candidates) == "tissue"
    assert [shortfall(one, candidates.values()) for one in candidates.values()] == pytest.approx([0.30, 0.05, 0.25])


def test_regret_ignores_a_shift_that_no_candidate_stands() -> None:
    dark = (0.5, 1.0)
    candidates = {"weak": seen(0.1, 0.9, 0.9, ((0.7, 1.0), dark)), "better": seen(0.1, 0.9, 0.9, ((0.8, 1.0), dark))}
    assert RULES["regret"](candidates) == "better"


def test_values_are_the_means_they_say() -> None:
    decay = GRID["decay"]
    assert stress(decay) == pytest.approx((0.90 + 0.85 + 0.82) / 3)
    assert agreement(decay) == pytest.approx(0.91)
    assert errors(decay) == pytest.approx((0.93 + 0.60) / 2)
    assert errors(seen(0.1, 1, 1, groups=(0.97, None))) == 0.97
    assert RULES["log_loss"].value(decay) == -0.20


@pytest.mark.parametrize("rule", RULES)
def test_of_equals_the_first_is_chosen_and_the_strongest_by_tolerance(rule: str) -> None:
    one = GRID["decay"]
    assert RULES[rule]({"a": one, "b": one, "c": one}) == ("c" if rule == "tolerance" else "a")
    assert RULES[rule]({"only": GRID["collapsed"]}) == "only"
    with pytest.raises(ValueError, match="candidate"):
        RULES[rule]({})


@pytest.mark.parametrize(
    ("accuracy", "best", "classes", "admitted"),
    [
        # of what the best has above chance two thirds must be kept
        (0.84, 1.00, 2, True), (0.83, 1.00, 2, False), (0.80, 0.94, 2, True), (0.78, 0.94, 2, False),
        (0.70, 0.85, 4, True), (0.64, 0.85, 4, False), (0.45, 0.48, 2, False), (0.48, 0.48, 2, True),
    ],
)  # fmt: skip
def test_agreement_refuses_what_is_far_below_the_best(
    accuracy: float, best: float, classes: int, admitted: bool
) -> None:
    steady, good = ((0.5, 1.0),), ((0.5, 0.9),)
    candidates = {
        "best": seen(0.1, 0.9, best, good, classes=classes),
        "steady": seen(0.5, 0.9, accuracy, steady, classes=classes),
    }
    assert RULES["agreement"](candidates) == ("steady" if admitted else "best")


@pytest.mark.parametrize(("auroc", "chosen"), [(0.97, "strong"), (0.9701, "strong"), (0.969, "weak")])
def test_tolerance_gives_away_two_points_of_auroc(auroc: float, chosen: str) -> None:
    assert RULES["tolerance"]({"weak": seen(0.1, 0.99, 0.9), "strong": seen(0.9, auroc, 0.6)}) == chosen


@pytest.mark.parametrize("rule", ["stress", "agreement"])
def test_rules_of_shifted_copies_need_them(rule: str) -> None:
    with pytest.raises(ValueError, match="shifted"):
        RULES[rule]({"a": seen(0.1, 0.9, 0.9, copies=())})
    with pytest.raises(ValueError, match="errors"):
        RULES["errors"]({"a": seen(0.1, 0.9, 0.9, groups=(None, None))})


@pytest.mark.parametrize(("key", "value"), [("log_loss", math.nan), ("auroc", 1.1), ("classes", 1), ("more", 1)])
def test_quantities_are_numbers_in_their_range(key: str, value: float) -> None:
    whole = GRID["decay"].model_dump()
    assert Quantities.model_validate(whole) == GRID["decay"]
    assert Quantities.model_validate_json(GRID["decay"].model_dump_json()) == GRID["decay"]
    with pytest.raises(ValidationError, match=key):
        Quantities.model_validate(whole | {key: value})


def test_the_rule_that_lost_least_in_the_studies_is_the_default() -> None:
    """docs/spectral-decoupling.md: on chest, on prostate and against shortcuts put in by hand."""
    assert TuneConfig().rule == "regret"
