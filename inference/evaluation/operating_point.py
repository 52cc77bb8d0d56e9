"""Where to call a slide positive: thresholds and what they give. Pure; a slide is called from its threshold on."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from training.evaluation.metrics import Floats, roc_curve

_ROUNDING = 1e-9


def threshold_at_sensitivity(scores: Floats, positive: NDArray[np.bool_], sensitivity: float) -> float:
    """The highest threshold at which at least that share of the positives, in (0, 1], scores `>= threshold`.

    `scores` (N,) and truths (N,) are those of validation slides: on the slides it was chosen on, a threshold looks
    better than it is. Raises ValueError without a positive, or for a sensitivity out of range.
    """
    if not 0 < sensitivity <= 1:
        raise ValueError(f"sensitivity {sensitivity} is not in (0, 1]")
    found = np.sort(scores[positive])[::-1]
    if not len(found):
        raise ValueError("no positive to find")
    return float(found[math.ceil(sensitivity * len(found) - _ROUNDING) - 1])


def sensitivity_at_specificity(
    scores: Floats, positive: NDArray[np.bool_], specificity: float, weights: Floats | None = None
) -> Floats:
    """The highest sensitivity of a threshold with at least a given specificity.

    Only what a threshold really gives counts: nothing is interpolated.

    Args:
        scores: (N,), the higher, the more positive.
        positive: Truth, bool (N,).
        specificity: In [0, 1].
        weights: (R, N), as in `training.evaluation.metrics`; None: R = 1, all 1.

    Returns:
        (R,); NaN without both positives and negatives.
    """
    weights = np.ones((1, len(scores))) if weights is None else weights
    false, true = roc_curve(scores, positive, weights)
    allowed = false <= 1 - specificity + _ROUNDING
    best = np.where(allowed, true, 0).max(axis=-1)  # (0, 0) is always allowed
    return np.where(np.isfinite(false[..., -1]) & np.isfinite(true[..., -1]), best, np.nan)


def sensitivity_of(called: NDArray[np.bool_], positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """Sensitivity: share of the positives (N,) that are called (N,), (R,) for weights (R, N); NaN without positives.

    The specificity is that of what is not called among what is not positive.
    """
    hits, whole = weights @ (called & positive), weights @ positive
    return np.asarray(np.divide(hits, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0))
