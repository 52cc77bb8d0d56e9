"""Operating points against scikit-learn and counting."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.evaluation.operating_point import sensitivity_at_specificity, sensitivity_of, threshold_at_sensitivity


@pytest.mark.parametrize(
    ("sensitivity", "threshold"), [(1.0, 0.2), (0.75, 0.4), (0.76, 0.2), (0.5, 0.6), (0.51, 0.4), (0.01, 0.9)]
)
def test_the_threshold_of_four_positives(sensitivity: float, threshold: float) -> None:
    scores = np.array([0.2, 0.4, 0.6, 0.9, 0.95, 0.1])
    positive = np.array([True, True, True, True, False, False])
    assert threshold_at_sensitivity(scores, positive, sensitivity) == threshold


tables = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 2.0]), st.booleans()), min_size=1, max_size=20)


@given(tables, st.sampled_from([0.05, 0.1, 0.3, 1 / 3, 0.5, 0.7, 0.9, 0.95, 1.0]))
@settings(deadline=None)
def test_no_higher_threshold_reaches_the_sensitivity(table: list[tuple[float, bool]], sensitivity: float) -> None:
    scores, positive = np.array([s for s, _ in table]), np.array([p for _, p in table])
    if not positive.any():
        with pytest.raises(ValueError, match="positive"):
            threshold_at_sensitivity(scores, positive, sensitivity)
        return
    reaching = [t for t in np.unique(scores) if (scores[positive] >= t).mean() >= sensitivity - 1e-12]
    assert threshold_at_sensitivity(scores, positive, sensitivity) == max(reaching)


@pytest.mark.parametrize("sensitivity", [0.0, -1.0, 1.01])
def test_a_sensitivity_that_is_none_is_refused(sensitivity: float) -> None:
    with pytest.raises(ValueError, match="sensitivity"):
        threshold_at_sensitivity(np.array([0.5]), np.array([True]), sensitivity)


@given(tables, st.sampled_from([0.0, 0.5, 0.8, 0.9, 1.0]))
@settings(deadline=None)
def test_sensitivity_at_specificity_against_scikit_learn(table: list[tuple[float, bool]], specificity: float) -> None:
    scores, positive = np.array([s for s, _ in table]), np.array([p for _, p in table])
    (found,) = sensitivity_at_specificity(scores, positive, specificity)
    if positive.all() or not positive.any():
        assert np.isnan(found)
        return
    false, true, _ = sklearn.metrics.roc_curve(positive, scores, drop_intermediate=False)
    assert found == pytest.approx(true[false <= 1 - specificity + 1e-12].max())


def test_weights_are_repetitions() -> None:
    scores, positive = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([True, False, True, False, True])
    weights = np.array([2, 1, 0, 3, 1])
    again = np.repeat(np.arange(5), weights)
    (weighted,) = sensitivity_at_specificity(scores, positive, 0.75, weights[None].astype(float))
    (repeated,) = sensitivity_at_specificity(scores[again], positive[again], 0.75)
    assert weighted == repeated == pytest.approx(2 / 3)
    called = scores >= 0.7
    assert sensitivity_of(called, positive, weights[None].astype(float)) == pytest.approx([2 / 3])
    assert sensitivity_of(~called, ~positive, weights[None].astype(float)) == pytest.approx([3 / 4])
    assert np.isnan(sensitivity_of(called, positive, np.zeros((1, 5)))).all()
