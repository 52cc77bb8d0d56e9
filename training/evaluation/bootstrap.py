"""Uncertainty of metrics: bootstrap intervals over cases, paired differences, and bands of curves. Pure numpy.

Whole cases are drawn with replacement, since a patient's tiles are not independent; the same seed and cases give
the same resamples, so that intervals of several metrics or models are paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.evaluation.metrics import Floats, Metric

MIN_CASES = 5
"""Of fewer cases there is no interval: nothing says how the next one would differ."""
FEW_CASES = f"no interval of fewer than {MIN_CASES} cases"
_WEIGHTS_AT_ONCE = 2**16  # half a megabyte: what is still in the cache is computed on ten times as fast


@dataclass(frozen=True)
class Interval:
    """A metric with its bootstrap interval; None where it is undefined.

    `undefined` counts the resamples in which the metric was undefined (a class was missing); they are left out of the
    interval, which is therefore somewhat too narrow when there are many. With more than half, there is no interval, nor
    of fewer than MIN_CASES cases.
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


@dataclass(frozen=True)
class Difference(Interval):
    """A metric of a second model minus that of the first on the same samples, with its paired bootstrap interval."""

    above_zero: float | None = None
    """Share of the resamples, in [0, 1], in which the difference is above 0; ties count half."""

    def __str__(self) -> str:
        if self.value is None or self.low is None or self.high is None:
            return super().__str__()
        return f"{self.value:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


class Resampled(NamedTuple):
    """A metric on all samples and on each resample (R,); NaN where it is undefined."""

    value: float
    drawn: Floats


def bootstrap_interval(
    metric: Metric, case_ids: NDArray[np.str_], *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """A metric on all samples, with its percentile interval over bootstrap resamples of the cases.

    Args:
        metric: Weights (R, N) -> values (R,).
        case_ids: The case of each sample, (N,).
        resamples: Number of resamples.
        level: Coverage of the interval, in (0, 1).
        seed: Decides, with the cases, what is drawn.

    Returns:
        The value and its interval; no interval for fewer than MIN_CASES cases.
    """
    return interval(*resampled({"": metric}, case_ids, resamples=resamples, seed=seed)[""], level=level)


def resampled(
    metrics: Mapping[str, Metric], case_ids: NDArray[np.str_], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Resampled]:
    """Several metrics on all samples and on the same bootstrap resamples of the cases.

    Args:
        metrics: By name, weights (R, N) -> values (R,).
        case_ids: The case of each sample, (N,).
        resamples: Number R of resamples.
        seed: Decides, with the cases, what is drawn.

    Returns:
        By name, the value and those of the resamples; of none for fewer than MIN_CASES cases.
    """
    values = {name: float(metric(np.ones((1, len(case_ids))))[0]) for name, metric in metrics.items()}
    drawn: dict[str, list[Floats]] = {name: [np.empty(0)] for name in metrics}
    for weights in _resampled_weights(case_ids, resamples, seed):
        for name, metric in metrics.items():
            drawn[name].append(metric(weights))
    return {name: Resampled(values[name], np.concatenate(drawn[name])) for name in metrics}


def interval(value: float, drawn: Floats, *, level: float = 0.95) -> Interval:
    """A value with the percentile interval of its resamples (R,)."""
    defined = drawn[np.isfinite(drawn)]
    undefined = len(drawn) - len(defined)
    if not np.isfinite(value):
        return Interval(None, None, None, undefined)
    if not len(defined) or undefined > len(drawn) / 2:
        return Interval(float(value), None, None, undefined)
    tail = (1 - level) / 2
    low, high = np.quantile(defined, (tail, 1 - tail))
    return Interval(float(value), float(low), float(high), undefined)


def difference(first: Resampled, second: Resampled, *, level: float = 0.95) -> Difference:
    """The second model's metric minus the first's, both of the same resamples: a paired bootstrap."""
    gains = second.drawn - first.drawn
    found = interval(second.value - first.value, gains, level=level)
    gains = gains[np.isfinite(gains)]
    above = None if found.low is None else float(((gains > 0) + 0.5 * (gains == 0)).mean())
    return Difference(found.value, found.low, found.high, found.undefined, above)


def bootstrap_band(
    curve: Metric, case_ids: NDArray[np.str_], *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[Floats, Floats]:
    """The pointwise percentile band of a curve over bootstrap resamples of the cases.

    Args:
        curve: Weights (R, N) -> the curve at G points (R, G).
        case_ids: The case of each sample, (N,).
        resamples: Number of resamples.
        level: Coverage of the band, in (0, 1).
        seed: Decides, with the cases, what is drawn.

    Returns:
        Lower and upper end, each (G,); NaN where the curve is undefined in more than half of the resamples, or if there
        are none.
    """
    drawn = [curve(weights) for weights in _resampled_weights(case_ids, resamples, seed)]
    if not drawn:
        nothing = np.full(curve(np.ones((1, len(case_ids)))).shape[-1], np.nan)
        return nothing, nothing
    points = np.sort(np.concatenate(drawn), axis=0)  # NaN last
    defined = np.isfinite(points).sum(axis=0)
    tail = (1 - level) / 2
    place = np.array([[tail], [1 - tail]]) * np.maximum(defined - 1, 0)
    below, above = np.floor(place).astype(int), np.ceil(place).astype(int)
    columns = np.arange(points.shape[1])
    ends = points[below, columns] + (place - below) * (points[above, columns] - points[below, columns])
    low, high = np.where(defined >= len(points) / 2, ends, np.nan)
    return low, high


def _resampled_weights(case_ids: NDArray[np.str_], resamples: int, seed: int) -> Iterator[Floats]:
    """How often each sample is drawn, (R, N) a block: its case's count in a draw of as many cases as there are.

    Never, where there are fewer than MIN_CASES cases.
    """
    cases, case_of = np.unique(case_ids, return_inverse=True)
    resamples = resamples if len(cases) >= MIN_CASES else 0
    random = np.random.default_rng(seed)
    block = max(1, _WEIGHTS_AT_ONCE // max(1, len(case_ids)))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        counts = random.multinomial(len(cases), np.full(len(cases), 1 / len(cases)), size=rows)
        yield counts[:, case_of].astype(np.float64)
