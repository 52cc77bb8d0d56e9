"""Metrics of class probabilities, calibration, and bootstrap intervals over cases. Pure numpy; knows nothing of models.

Probabilities are float64 (N, C), labels int64 (N,) in [0, C). Every metric takes `weights` (..., N), one non-negative
number a sample and set of weights, and returns one value a set, shape (...): sample i counts as if it stood weights[i]
times in the data. That is how a thousand resamples are computed at once. A metric that is undefined, because a class it
needs has no weight, is NaN, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Metric = Callable[[Floats], Floats]
"""Weights (R, N) -> values (R,)."""

ECE_BINS = 15
TEMPERATURES = (0.05, 20.0)
"""Bounds of a fitted temperature: separable logits would drive it to 0."""
_WEIGHTS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Interval:
    """A metric with its bootstrap interval; None where it is undefined.

    `undefined` counts the resamples in which the metric was undefined (a class was missing); they are left out of the
    interval, which is therefore somewhat too narrow when there are many. With more than half, there is no interval.
    """

    value: float | None
    low: float | None
    high: float | None
    undefined: int = 0

    def __str__(self) -> str:
        if self.value is None:
            return "undefined"
        span = "no interval" if self.low is None or self.high is None else f"{self.low:.3f} to {self.high:.3f}"
        return f"{self.value:.3f} ({span})"


def softmax(logits: NDArray[np.floating[Any]], temperature: float = 1.0) -> Floats:
    """Probabilities (N, C) of logits (N, C) divided by a temperature > 0."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def auroc(probabilities: Floats, labels: Ints, weights: Floats | None = None) -> Floats:
    """Area under the ROC curve: the second class's for two classes, else the mean of one-versus-rest over classes.

    Tied scores count half, as in scikit-learn's `roc_auc_score` (for more classes: multi_class="ovr", macro average).
    """
    weights = _weights(labels, weights)
    classes = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    areas = [_binary_auroc(probabilities[:, c], labels == c, weights) for c in classes]
    return np.asarray(np.mean(areas, axis=0))


def balanced_accuracy(predicted: Ints, labels: Ints, classes: int, weights: Floats | None = None) -> Floats:
    """Mean over the classes of the recall, the share of a class's samples that were predicted as it."""
    weights = _weights(labels, weights)
    hits = weights * (predicted == labels)
    recalls = [_ratio(hits[..., labels == c].sum(-1), weights[..., labels == c].sum(-1)) for c in range(classes)]
    return np.asarray(np.mean(recalls, axis=0))


def log_loss(probabilities: Floats, labels: Ints, weights: Floats | None = None) -> Floats:
    """Mean of -ln(probability of the true class), in nats; probabilities are raised to 2.2e-16 first."""
    weights = _weights(labels, weights)
    true = probabilities[np.arange(len(labels)), labels]
    return _ratio(weights @ -np.log(np.maximum(true, np.finfo(np.float64).eps)), weights.sum(-1))


def ece(probabilities: Floats, labels: Ints, weights: Floats | None = None, bins: int = ECE_BINS) -> Floats:
    """Expected calibration error of the predicted class (Guo et al. 2017, arXiv 1706.04599), in [0, 1].

    Samples fall by their confidence, the largest probability, into equal bins (0, 1/15], (1/15, 2/15], ...; the error
    is the mean over samples of |share of right predictions - mean confidence| of their bin. Noise only adds to it, and
    a resample is noisier than the data: a bootstrap interval lies high, and may lie above a small value altogether.
    """
    weights = _weights(labels, weights)
    confidence = probabilities.max(axis=1)
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    surplus = weights * ((probabilities.argmax(axis=1) == labels) - confidence)
    gaps = [np.abs(surplus[..., bin_of == b].sum(-1)) for b in np.unique(bin_of)]
    return _ratio(np.sum(gaps, axis=0), weights.sum(-1))


def decide(probabilities: Floats, threshold: float, positive: int) -> Ints:
    """Predicted class (N,): `positive` where its probability reaches the threshold, else the likeliest other one."""
    others = probabilities.copy()
    others[:, positive] = -1.0
    return np.where(probabilities[:, positive] >= threshold, positive, others.argmax(axis=1))


def fit_temperature(logits: NDArray[np.floating[Any]], labels: Ints) -> float:
    """The temperature in [0.05, 20] that minimises the log loss of logits (N, C); Guo et al. 2017.

    The loss is convex in 1/temperature, so its minimum on a line is the minimum. 1 if every label has the largest
    logit: the loss then falls for ever with the temperature, and says nothing of how sure one may be.
    """
    others = np.where(np.eye(logits.shape[1], dtype=bool)[labels], -np.inf, logits).max(axis=1)
    if (logits[np.arange(len(labels)), labels] > others).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(log_loss(softmax(logits, float(np.exp(log_temperature))), labels))

    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def choose_threshold(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """The threshold on scores (N,) in [0, 1] with the largest balanced accuracy when score >= threshold is positive.

    Candidates lie halfway between neighbouring scores; of equally good ones the nearest to 0.5 wins. 0.5 if there is
    only one class.
    """
    if positive.all() or not positive.any():
        return 0.5
    values = np.unique(scores)
    candidates = np.concatenate([[0.0, 0.5], (values[:-1] + values[1:]) / 2])
    missed = np.searchsorted(np.sort(scores[positive]), candidates) / positive.sum()
    rejected = np.searchsorted(np.sort(scores[~positive]), candidates) / (~positive).sum()
    quality = ((1 - missed + rejected) / 2).round(12)  # rounded, so that equally good is equal
    best = candidates[quality == quality.max()]
    return float(best[np.argmin(np.abs(best - 0.5))])


def bootstrap_interval(
    metric: Metric, case_ids: NDArray[np.str_], *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """The metric on all samples, and its percentile interval under resampling of cases with replacement.

    Whole cases are drawn, since a patient's tiles are not independent. `case_ids` is (N,); the same seed and cases give
    the same resamples, so that intervals of several metrics or models are paired.
    """
    value = metric(np.ones((1, len(case_ids))))[0]
    drawn = [metric(weights) for weights in _resampled_weights(case_ids, resamples, seed)]
    values = np.concatenate(drawn) if drawn else np.empty(0)
    defined = values[np.isfinite(values)]
    undefined = len(values) - len(defined)
    if not np.isfinite(value):
        return Interval(None, None, None, undefined)
    if not len(defined) or undefined > len(values) / 2:
        return Interval(float(value), None, None, undefined)
    tail = (1 - level) / 2
    low, high = np.quantile(defined, (tail, 1 - tail))
    return Interval(float(value), float(low), float(high), undefined)


def evaluate(
    probabilities: Floats,
    labels: Ints,
    case_ids: NDArray[np.str_],
    *,
    threshold: float,
    positive: int,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """AUROC, balanced accuracy (for two classes at the threshold, else at the likeliest class), log loss and ECE.

    Each with its interval over cases; see `bootstrap_interval`.
    """
    classes = probabilities.shape[1]
    predicted = decide(probabilities, threshold, positive) if classes == 2 else probabilities.argmax(axis=1)
    metrics: Mapping[str, Metric] = {
        "auroc": partial(auroc, probabilities, labels),
        "balanced_accuracy": partial(balanced_accuracy, predicted, labels, classes),
        "log_loss": partial(log_loss, probabilities, labels),
        "ece": partial(ece, probabilities, labels),
    }
    return {
        name: bootstrap_interval(metric, case_ids, resamples=resamples, seed=seed) for name, metric in metrics.items()
    }


def _weights(labels: Ints, weights: Floats | None) -> Floats:
    return np.ones(len(labels)) if weights is None else weights


def _ratio(part: Floats, whole: Floats) -> Floats:
    """part / whole, NaN where whole is 0."""
    nothing = np.full(np.shape(whole), np.nan)
    return np.asarray(np.divide(part, whole, out=nothing, where=np.asarray(whole) > 0))


def _binary_auroc(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """Probability that a positive scores above a negative, ties counting half; (...) for weights (..., N)."""
    order = np.argsort(scores, kind="stable")
    weights, positive, scores = weights[..., order], positive[order], scores[order]
    starts = np.flatnonzero(np.append(True, np.diff(scores) > 0))[: len(scores)]  # first sample of each distinct score
    positives = np.add.reduceat(weights * positive, starts, axis=-1)
    negatives = np.add.reduceat(weights * ~positive, starts, axis=-1)
    below = np.cumsum(negatives, axis=-1) - negatives / 2
    return _ratio((positives * below).sum(-1), positives.sum(-1) * negatives.sum(-1))


def _resampled_weights(case_ids: NDArray[np.str_], resamples: int, seed: int) -> Iterator[Floats]:
    """How often each sample is drawn, (R, N) a block: its case's count in a draw of as many cases as there are."""
    cases, case_of = np.unique(case_ids, return_inverse=True)
    random = np.random.default_rng(seed)
    block = max(1, _WEIGHTS_AT_ONCE // max(1, len(case_ids)))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        counts = random.multinomial(len(cases), np.full(len(cases), 1 / len(cases)), size=rows)
        yield counts[:, case_of].astype(np.float64)
