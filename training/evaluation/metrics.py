"""Metrics of class probabilities, and calibration. Pure numpy; knows nothing of models.

Probabilities are float64 (N, C), labels int64 (N,) in [0, C). Every metric takes `weights` (..., N), one non-negative
number a sample and set of weights, and returns one value a set, shape (...): sample i counts as if it stood weights[i]
times in the data. That is how a thousand resamples are computed at once. A metric that is undefined, because a class it
needs has no weight, is NaN, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Metric = Callable[[Floats], Floats]
"""Weights (R, N) -> values (R,); for a band, (R, G)."""

ECE_BINS = 15
METRIC_NAMES = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
    "log_loss": "log loss (nats)",
    "brier": "Brier score",
    "ece": "ECE",
}
LOWER_IS_BETTER = frozenset({"log_loss", "brier", "ece"})
TEMPERATURES = (0.05, 20.0)
"""Bounds of a fitted temperature: separable logits would drive it to 0."""
_MIN_PROBABILITY = 1e-9  # what a probability is kept from 0 and 1, where log-odds end


class Reliability(NamedTuple):
    """Bins of confidence, as `ece` makes them; NaN in a bin of no weight. Shapes (..., B)."""

    share: Floats
    """Of the samples."""
    confidence: Floats
    """Mean probability of the predicted class."""
    accuracy: Floats
    """Share of right predictions."""


def softmax(logits: NDArray[np.floating[Any]], temperature: float = 1.0) -> Floats:
    """Probabilities (N, C) of logits (N, C) divided by a temperature > 0."""
    return np.asarray(special.softmax(logits.astype(np.float64) / temperature, axis=1))


def auroc(probabilities: Floats, labels: Ints, weights: Floats | None = None) -> Floats:
    """Area under the ROC curve: the second class's for two classes, else the mean of one-versus-rest over classes.

    Tied scores count half, as in scikit-learn's `roc_auc_score` (for more classes: multi_class="ovr", macro average).
    """
    weights = _weights(labels, weights)
    classes = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    areas = [_binary_auroc(probabilities[:, c], labels == c, weights) for c in classes]
    return np.asarray(np.mean(areas, axis=0))


def average_precision(probabilities: Floats, labels: Ints, weights: Floats | None = None, positive: int = 1) -> Floats:
    """Average precision, the sum over thresholds of the gain in recall times the precision there, in [0, 1].

    Of the class `positive` for two classes, else the mean of one-versus-rest over classes. As in scikit-learn's
    `average_precision_score`: no interpolation, tied scores share a threshold. Chance gives the share of positives.

    Args:
        probabilities: (N, C).
        labels: (N,).
        weights: (..., N); None: all 1.
        positive: Index of the positive class.

    Returns:
        A value a set of weights, (...).
    """
    weights = _weights(labels, weights)
    classes = [positive] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    averages = [_binary_average_precision(probabilities[:, c], labels == c, weights) for c in classes]
    return np.asarray(np.mean(averages, axis=0))


def balanced_accuracy(predicted: Ints, labels: Ints, classes: int, weights: Floats | None = None) -> Floats:
    """Balanced accuracy: mean over the classes of the recall, the share of a class's samples predicted as it.

    Args:
        predicted: Predicted classes, (N,).
        labels: (N,).
        classes: Number of classes.
        weights: (..., N); None: all 1.

    Returns:
        A value in [0, 1] a set of weights, (...).
    """
    weights = _weights(labels, weights)
    hits = weights * (predicted == labels)
    recalls = [_ratio(hits[..., labels == c].sum(-1), weights[..., labels == c].sum(-1)) for c in range(classes)]
    return np.asarray(np.mean(recalls, axis=0))


def log_loss(probabilities: Floats, labels: Ints, weights: Floats | None = None) -> Floats:
    """Mean of -ln(probability of the true class), in nats; probabilities are raised to 2.2e-16 first."""
    weights = _weights(labels, weights)
    true = probabilities[np.arange(len(labels)), labels]
    return _ratio(weights @ -np.log(np.maximum(true, np.finfo(np.float64).eps)), weights.sum(-1))


def brier(probabilities: Floats, labels: Ints, weights: Floats | None = None) -> Floats:
    """Brier score: mean square of the distance between the probabilities and the truth, which is 0 or 1.

    For two classes of the second one's probability, in [0, 1]; for more summed over the classes, in [0, 2]. As
    scikit-learn's `brier_score_loss`.
    """
    weights = _weights(labels, weights)
    squares = np.square(probabilities - np.eye(probabilities.shape[1])[labels]).sum(axis=1)
    return _ratio(weights @ (squares / 2 if probabilities.shape[1] == 2 else squares), weights.sum(-1))


def ece(probabilities: Floats, labels: Ints, weights: Floats | None = None, bins: int = ECE_BINS) -> Floats:
    """Expected calibration error (ECE) of the predicted class (Guo et al. 2017, arXiv 1706.04599), in [0, 1].

    Samples fall by their confidence, the largest probability, into equal bins (0, 1/15], (1/15, 2/15], ...; the error
    is the mean over samples of |share of right predictions - mean confidence| of their bin. Noise only adds to it, and
    a resample is noisier than the data: a bootstrap interval lies high, and may lie above a small value altogether.

    Args:
        probabilities: (N, C).
        labels: (N,).
        weights: (..., N); None: all 1.
        bins: Number of bins.

    Returns:
        A value a set of weights, (...).
    """
    weights = _weights(labels, weights)
    confidence = probabilities.max(axis=1)
    surplus = (probabilities.argmax(axis=1) == labels) - confidence
    gaps = np.abs(weights @ (surplus[:, None] * _confidence_bins(confidence, bins)))
    return _ratio(gaps.sum(-1), weights.sum(-1))


def reliability(
    probabilities: Floats, labels: Ints, weights: Floats | None = None, bins: int = ECE_BINS
) -> Reliability:
    """The bins of a reliability diagram; `ece` is the sum over bins of share * |accuracy - confidence|.

    Args:
        probabilities: (N, C).
        labels: (N,).
        weights: (..., N); None: all 1.
        bins: Number B of bins of confidence.

    Returns:
        Share, confidence and accuracy of each bin, (..., B).
    """
    weights = _weights(labels, weights)
    confidence = probabilities.max(axis=1)
    members = _confidence_bins(confidence, bins)
    right = probabilities.argmax(axis=1) == labels
    mass = weights @ members
    return Reliability(
        share=_ratio(mass, np.broadcast_to(weights.sum(-1)[..., None], mass.shape)),
        confidence=_ratio(weights @ (members * confidence[:, None]), mass),
        accuracy=_ratio(weights @ (members * right[:, None]), mass),
    )


def roc_curve(scores: Floats, positive: NDArray[np.bool_], weights: Floats | None = None) -> tuple[Floats, Floats]:
    """False and true positive rate, each (..., K + 1), calling nothing and then ever more: (0, 0) to (1, 1).

    K is the number of distinct scores (N,); the same points as scikit-learn's `roc_curve` with all thresholds.
    """
    positives, negatives = _counts_above(scores, positive, _weights(scores, weights))
    start = [(0, 0)] * (positives.ndim - 1) + [(1, 0)]
    true, false = (np.pad(counts, start) for counts in (positives, negatives))
    return _shares(false), _shares(true)


def precision_recall_curve(
    scores: Floats, positive: NDArray[np.bool_], weights: Floats | None = None
) -> tuple[Floats, Floats]:
    """Recall, rising to 1, and precision, each (..., K), for the K distinct scores (N,) as thresholds, falling.

    The same points as scikit-learn's `precision_recall_curve`, which runs the other way and adds (0, 1).
    """
    positives, negatives = _counts_above(scores, positive, _weights(scores, weights))
    return _shares(positives), _ratio(positives, positives + negatives)


def roc_at(scores: Floats, positive: NDArray[np.bool_], grid: Floats, weights: Floats) -> Floats:
    """True positive rate at given false positive rates, on straight lines between thresholds.

    Args:
        scores: (N,), the higher, the more positive.
        positive: Truth, bool (N,).
        grid: False positive rates, (G,), rising.
        weights: (R, N).

    Returns:
        (R, G); NaN where a class has no weight.
    """
    rates = zip(*roc_curve(scores, positive, weights), strict=True)
    return np.stack([np.interp(grid, false, true) for false, true in rates])


def precision_at(scores: Floats, positive: NDArray[np.bool_], grid: Floats, weights: Floats) -> Floats:
    """Precision at the highest threshold that reaches each of some recalls.

    Args:
        scores: (N,), the higher, the more positive.
        positive: Truth, bool (N,).
        grid: Recalls, (G,).
        weights: (R, N).

    Returns:
        (R, G); NaN where there are no positives.
    """
    curves = zip(*precision_recall_curve(scores, positive, weights), strict=True)
    nearly = grid - 1e-12  # a recall of 1 may be summed to a little less
    return np.stack(
        [
            precision[np.minimum(np.searchsorted(recall, nearly), len(recall) - 1)]
            if np.isfinite(recall[-1])
            else np.full(len(grid), np.nan)
            for recall, precision in curves
        ]
    )


def decide(probabilities: NDArray[np.floating[Any]], threshold: float, positive: int) -> Ints:
    """Predicted class (N,): `positive` where its probability reaches the threshold, else the likeliest other one."""
    others = probabilities.copy()
    others[:, positive] = -1.0
    return np.where(probabilities[:, positive] >= threshold, positive, others.argmax(axis=1))


def fit_temperature(logits: NDArray[np.floating[Any]], labels: Ints) -> float:
    """The temperature in [0.05, 20] that minimises the log loss of logits (N, C); Guo et al. 2017.

    The loss is convex in 1/temperature, so its minimum on a line is the minimum. 1, which changes nothing, where the
    samples cannot say how sure one may be: if a class is missing, if every label has the largest logit, so that the
    loss falls for ever with the temperature, or if it rises so, for logits that say nothing of the labels.
    """
    if len(np.unique(labels)) < logits.shape[1]:
        return 1.0
    from scipy.optimize import minimize_scalar  # slow to load, as the next is, and rarely used

    others = np.where(np.eye(logits.shape[1], dtype=bool)[labels], -np.inf, logits).max(axis=1)
    if (logits[np.arange(len(labels)), labels] > others).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(log_loss(softmax(logits, float(np.exp(log_temperature))), labels))

    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x)) if found.x < np.log(0.99 * TEMPERATURES[1]) else 1.0


def balanced_threshold(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """The threshold in (0, 1) on probabilities (N,) that is to give the largest balanced accuracy on other samples.

    It is where a logistic regression on the log-odds, with both classes weighing alike, is undecided: the share of
    positives for calibrated probabilities, the middle of the gap where the classes are apart. A search for the best
    threshold on these very samples follows their chance. 0.5 with one class only, or if positives do not score higher.
    """
    from sklearn.linear_model import LogisticRegression

    if positive.all() or not positive.any():
        return 0.5
    odds = special.logit(np.clip(scores, _MIN_PROBABILITY, 1 - _MIN_PROBABILITY))
    line = LogisticRegression(class_weight="balanced").fit(odds[:, None], positive)
    slope, offset = float(line.coef_[0, 0]), float(line.intercept_[0])
    middle = -offset / slope if slope > 0 else np.inf
    return float(special.expit(middle)) if odds.min() <= middle <= odds.max() else 0.5


def fit_decision(logits: NDArray[np.floating[Any]], labels: Ints, positive: int) -> tuple[float, float]:
    """The temperature of logits (N, C), and the threshold on the positive class's probability after it."""
    temperature = fit_temperature(logits, labels)
    return temperature, balanced_threshold(softmax(logits, temperature)[:, positive], labels == positive)


def standard_metrics(probabilities: Floats, labels: Ints, *, threshold: float, positive: int) -> dict[str, Metric]:
    """The standard metrics of a model's probabilities, by name, each a function of weights.

    AUROC and average precision; balanced accuracy of what `decide` calls; log loss, Brier score and ECE.

    Args:
        probabilities: (N, C).
        labels: (N,).
        threshold: The decision threshold on the positive class's probability, in [0, 1].
        positive: Index of the positive class.

    Returns:
        By the names of METRIC_NAMES, weights (R, N) -> values (R,).
    """
    classes = probabilities.shape[1]
    predicted = decide(probabilities, threshold, positive)
    return {
        "auroc": partial(auroc, probabilities, labels),
        "average_precision": partial(average_precision, probabilities, labels, positive=positive),
        "balanced_accuracy": partial(balanced_accuracy, predicted, labels, classes),
        "log_loss": partial(log_loss, probabilities, labels),
        "brier": partial(brier, probabilities, labels),
        "ece": partial(ece, probabilities, labels),
    }


def _weights(labels: NDArray[Any], weights: Floats | None) -> Floats:
    return np.ones(len(labels)) if weights is None else weights


def _ratio(part: Floats, whole: Floats) -> Floats:
    """part / whole, NaN where whole is 0."""
    nothing = np.full(np.shape(whole), np.nan)
    return np.asarray(np.divide(part, whole, out=nothing, where=np.asarray(whole) > 0))


def _shares(counts: Floats) -> Floats:
    """Rising counts (..., K) as shares of the last."""
    return _ratio(counts, np.broadcast_to(counts[..., -1:], counts.shape))


def _binary_auroc(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """Probability that a positive scores above a negative, ties counting half; (...) for weights (..., N)."""
    positives, negatives = _counts_by_score(scores, positive, weights)
    below = np.cumsum(negatives, axis=-1) - negatives / 2
    return _ratio((positives * below).sum(-1), positives.sum(-1) * negatives.sum(-1))


def _binary_average_precision(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    found, wrong = _counts_above(scores, positive, weights)
    gained = np.diff(found, axis=-1, prepend=0)
    precision = np.divide(found, found + wrong, out=np.zeros_like(found), where=found > 0)
    return _ratio((gained * precision).sum(-1), found[..., -1])


def _counts_by_score(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> tuple[Floats, Floats]:
    """Weight of the positives and of the negatives at each of the K distinct scores, rising; (..., K) each."""
    order = np.argsort(scores, kind="stable")
    weights, positive, scores = weights[..., order], positive[order], scores[order]
    starts = np.flatnonzero(np.append(True, np.diff(scores) > 0))[: len(scores)]  # first sample of each distinct score
    positives = np.add.reduceat(weights * positive, starts, axis=-1)
    return positives, np.add.reduceat(weights * ~positive, starts, axis=-1)


def _counts_above(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> tuple[Floats, Floats]:
    """Weight of the positives and of the negatives at or above each distinct score, falling; (..., K) each."""
    positives, negatives = _counts_by_score(scores, positive, weights)
    return np.cumsum(positives[..., ::-1], axis=-1), np.cumsum(negatives[..., ::-1], axis=-1)


def _confidence_bins(confidence: Floats, bins: int) -> Floats:
    """Which of the equal bins (0, 1/bins], ... each confidence (N,) falls into: 1 there, else 0; (N, bins)."""
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return np.asarray(np.eye(bins)[bin_of])
