"""Scores of slides against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.aggregate import SlideScores, slide_scores

RAMP = [i / 100 for i in range(100)]


@pytest.mark.parametrize(
    ("probabilities", "threshold", "mean", "top", "above"),
    [
        ([0.25], 0.5, 0.25, 0.25, 0.0),
        ([0.5], 0.5, 0.5, 0.5, 1.0),
        ([0.0, 1.0], 0.5, 0.5, 1.0, 0.5),
        ([1.0, 0.0, 0.0, 0.0], 0.25, 0.25, 1.0, 0.25),
        ([0.5] * 10, 0.75, 0.5, 0.5, 0.0),
        (RAMP, 0.895, 0.495, 0.97, 0.10),
        (RAMP[::-1], 0.895, 0.495, 0.97, 0.10),
        ([0.0] * 20 + [1.0], 0.5, 1 / 21, 0.5, 1 / 21),
    ],
)
def test_literal_slides(probabilities: list[float], threshold: float, mean: float, top: float, above: float) -> None:
    scores = slide_scores(np.array(probabilities, np.float32), threshold)
    found = (scores.mean, scores.top5_mean, scores.fraction_above_threshold)
    assert found == pytest.approx((mean, top, above), abs=1e-6)


def test_a_slide_without_tiles_has_no_scores() -> None:
    assert slide_scores(np.empty(0, np.float32), 0.5) == SlideScores(None, None, None)


@pytest.mark.parametrize(("tiles", "counted"), [(1, 1), (19, 1), (20, 1), (21, 2), (40, 2), (41, 3), (100, 5)])
def test_top_5_percent_are_rounded_up(tiles: int, counted: int) -> None:
    """With one tile of 1 and the rest 0, the mean of the top tells how many there were."""
    probabilities = np.zeros(tiles, np.float32)
    probabilities[tiles // 2] = 1
    assert slide_scores(probabilities, 0.5).top5_mean == pytest.approx(1 / counted)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60), st.floats(0, 1))
def test_order_does_not_matter_and_scores_are_ordered(values: list[float], threshold: float) -> None:
    scores = slide_scores(np.array(values, np.float32), threshold)
    assert scores == slide_scores(np.array(sorted(values), np.float32), threshold)
    assert scores.mean is not None
    assert scores.top5_mean is not None
    assert scores.mean <= scores.top5_mean + 1e-12
    assert scores.top5_mean <= max(values)
    assert scores.fraction_above_threshold == pytest.approx(sum(v >= threshold for v in values) / len(values))
