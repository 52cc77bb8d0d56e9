"""Runs -> the candidate that each rule takes, on tables whose answer is seen."""

from __future__ import annotations

import pytest

from training.selection.candidates import Candidate
from training.selection.choice import Seen, best_seed, choices, complete, judged, mean_quantities
from training.selection.rules import RULES, Quantities, Shifted

PLAIN, WEAK, STRONG = (Candidate(p, 1e-3, "light", sd_lambda=s) for p, s in (("none", 0), ("sd", 1), ("sd", 20)))


def run(log_loss: float, balanced: float, shifted: dict[str, tuple[float, float]], right: str, auroc: float) -> Seen:
    copies = {name: Shifted(balanced_accuracy=b, agreement=a) for name, (b, a) in shifted.items()}
    seen = Quantities(log_loss=log_loss, auroc=auroc, balanced_accuracy=balanced, shifted=copies)
    return Seen(recipe="r", model="m", quantities=seen, right=right)


def blur_and_hue(blur: float, hue: float, agreement: float = 0.5) -> dict[str, tuple[float, float]]:
    return {"sharpness -0.5": (blur, agreement), "hue +0.5": (hue, agreement)}


RUNS = {
    PLAIN: [run(0.1, 0.9, blur_and_hue(0.5, 0.9), "1110", 0.95), run(0.3, 0.9, blur_and_hue(0.5, 0.9), "1100", 0.95)],
    WEAK: [
        run(0.2, 0.8, blur_and_hue(0.8, 0.6, 0.6), "1101", 0.94),
        run(0.3, 0.8, blur_and_hue(0.7, 0.6), "1011", 0.94),
    ],
    STRONG: [
        run(0.5, 0.7, blur_and_hue(0.7, 0.7, 0.9), "1110", 0.93),
        run(0.5, 0.7, blur_and_hue(0.7, 0.7, 0.9), "1110", 0.90),
    ],
}


def test_each_rule_takes_the_best_mean_over_the_seeds() -> None:
    seen = judged(RUNS, ("sharpness", "hue"), PLAIN)
    assert choices(seen) == {
        "log_loss": PLAIN,  # 0.2 of 0.2, 0.25, 0.5
        "tolerance": WEAK,  # AUROC 0.94 is within 0.02 of 0.95, 0.915 is not
        "stress": PLAIN,  # (0.9 + 0.5 + 0.9) / 3 of that, (0.8 + 0.75 + 0.6) / 3 and 0.7
        "regret": STRONG,  # at worst behind by 0.2 unshifted, plain by 0.25 when blurred, weak by 0.3 in another hue
        "agreement": WEAK,  # strong agrees more, and is too far below: 0.7 of 0.9
        "errors": WEAK,  # right (2/3 + 1/2) / 2, wrong 1 and 1; plain 1 and 0; strong (1 + 1) / 2 and (0 + 1/2) / 2
    }


def test_another_family_of_shifts_is_another_choice() -> None:
    assert choices(judged(RUNS, ("sharpness",), PLAIN))["stress"] == WEAK
    assert choices(judged(RUNS, ("hue",), PLAIN))["stress"] == PLAIN


def test_the_shares_of_the_rule_errors_are_counts() -> None:
    of_weak = judged(RUNS, ("hue",), PLAIN)[WEAK]
    assert [(one.where_right, one.where_wrong) for one in of_weak] == [(2 / 3, 1.0), (0.5, 1.0)]
    assert mean_quantities(of_weak).where_right == pytest.approx(7 / 12)
    perfect = {PLAIN: [run(0.1, 1, blur_and_hue(1, 1), "1111", 1), RUNS[PLAIN][1]]}
    assert mean_quantities(judged(perfect, ("hue",), PLAIN)[PLAIN]).where_wrong == 0, "of the seed that has errors"
    assert "errors" not in choices(judged(RUNS, ("hue",), None))


def test_a_candidate_that_failed_under_a_seed_is_not_chosen() -> None:
    failed = Seen(recipe="r", model="", quantities=None, right="", failure="epoch 1: no longer finite")
    runs = {**RUNS, PLAIN: [RUNS[PLAIN][0], failed]}
    assert list(complete(runs)) == [WEAK, STRONG]
    found = choices(judged(complete(runs), ("hue",), PLAIN))
    assert "errors" not in found, "nobody knows what plain training errs in"
    assert PLAIN not in found.values()


def test_the_seed_whose_model_is_taken_is_the_best_by_the_rule() -> None:
    seen = judged(RUNS, ("sharpness", "hue"), PLAIN)
    assert best_seed(seen[WEAK], RULES["stress"]) == 0
    assert best_seed(seen[PLAIN], RULES["log_loss"]) == 0
    assert best_seed(seen[STRONG], RULES["stress"]) == 0, "the first of equals"
    assert best_seed(seen[WEAK][::-1], RULES["stress"]) == 1
