from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.evaluation.bootstrap import (
    Interval,
    Resampled,
    bootstrap_band,
    bootstrap_interval,
    difference,
    interval,
    resampled,
)
from training.evaluation.metrics import (
    METRIC_NAMES,
    Floats,
    Ints,
    auroc,
    average_precision,
    balanced_accuracy,
    balanced_threshold,
    brier,
    decide,
    ece,
    fit_temperature,
    log_loss,
    precision_at,
    precision_recall_curve,
    reliability,
    roc_at,
    roc_curve,
    softmax,
    standard_metrics,
)

EXACT = 1e-9


def figures(
    p: Floats, labels: Ints, cases: NDArray[np.str_], *, threshold: float, positive: int, resamples: int = 1000
) -> dict[str, Interval]:
    """Every standard metric with its interval."""
    metrics = standard_metrics(p, labels, threshold=threshold, positive=positive)
    drawn = resampled(metrics, cases, resamples=resamples)
    return {name: interval(*values) for name, values in drawn.items()}


def random_case(classes: int, seed: int, samples: int = 200, *, ties: bool = False) -> tuple[Floats, Ints]:
    random = np.random.default_rng(seed)
    labels = np.append(np.arange(classes), random.integers(0, classes, samples - classes))
    logits = random.normal(size=(samples, classes)) + 1.5 * np.eye(classes)[labels]
    return softmax(logits.round(0) if ties else logits), labels


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_metrics_equal_scikit_learn(classes: int, seed: int, ties: bool) -> None:
    p, labels = random_case(classes, seed, ties=ties)
    predicted = p.argmax(axis=1)
    scores = {"y_score": p[:, 1]} if classes == 2 else {"y_score": p, "multi_class": "ovr"}
    assert auroc(p, labels) == pytest.approx(sklearn.metrics.roc_auc_score(labels, **scores), abs=EXACT)
    assert log_loss(p, labels) == pytest.approx(sklearn.metrics.log_loss(labels, p), abs=EXACT)
    expected = sklearn.metrics.balanced_accuracy_score(labels, predicted)
    assert balanced_accuracy(predicted, labels, classes) == pytest.approx(expected, abs=EXACT)
    assert ece(p, labels) == pytest.approx(slow_ece(p, labels), abs=EXACT)


def slow_ece(p: Floats, labels: Ints) -> float:
    """The definition, sample by sample."""
    total = 0.0
    for low, high in [(b / 15, (b + 1) / 15) for b in range(15)]:
        inside = [i for i in range(len(p)) if low < p[i].max() <= high]
        if inside:
            accuracy = np.mean([p[i].argmax() == labels[i] for i in inside])
            total += len(inside) / len(p) * abs(accuracy - np.mean([p[i].max() for i in inside]))
    return float(total)


def test_ece_of_a_case_by_hand() -> None:
    # bin (0.6, 0.667]: two samples, one right, confidence 0.65; bin (0.867, 0.933]: two right, confidence 0.9
    p = np.array([[0.65, 0.35], [0.65, 0.35], [0.1, 0.9], [0.1, 0.9]])
    assert ece(p, np.array([0, 1, 1, 1])) == pytest.approx(0.5 * 0.15 + 0.5 * 0.1, abs=EXACT)


@pytest.mark.parametrize("classes", [2, 4])
def test_weights_are_repetitions(classes: int) -> None:
    p, labels = random_case(classes, seed=1, ties=True)
    weights = np.random.default_rng(2).integers(0, 4, (3, len(labels)))
    weights[:, :classes] = 1  # every class stays
    predicted = p.argmax(axis=1)
    for row, counts in enumerate(weights):
        q, repeated = np.repeat(p, counts, axis=0), np.repeat(labels, counts)
        w = weights.astype(np.float64)
        assert auroc(p, labels, w)[row] == pytest.approx(auroc(q, repeated), abs=EXACT)
        assert log_loss(p, labels, w)[row] == pytest.approx(log_loss(q, repeated), abs=EXACT)
        assert ece(p, labels, w)[row] == pytest.approx(ece(q, repeated), abs=EXACT)
        expected = balanced_accuracy(np.repeat(predicted, counts), repeated, classes)
        assert balanced_accuracy(predicted, labels, classes, w)[row] == pytest.approx(expected, abs=EXACT)


def test_a_missing_class_is_undefined_not_guessed() -> None:
    p, labels = np.array([[0.4, 0.6], [0.7, 0.3]] * 3), np.ones(6, dtype=np.int64)
    assert np.isnan(auroc(p, labels))
    assert np.isnan(balanced_accuracy(p.argmax(axis=1), labels, 2))
    found = figures(p, labels, np.array(list("abcdef")), threshold=0.5, positive=1, resamples=20)
    assert found["auroc"].value is None
    assert found["auroc"].undefined == 20
    assert str(found["auroc"]) == "undefined"
    assert found["log_loss"].value is not None


def test_bootstrap_resamples_cases_with_replacement() -> None:
    cases = np.array(["a", "a", "b", "c", "c", "c", "d", "e"])
    drawn: list[Floats] = []

    def spy(weights: Floats) -> Floats:
        drawn.append(weights)
        return np.asarray(weights.sum(axis=1))

    bootstrap_interval(spy, cases, resamples=500, seed=3)
    weights = np.concatenate(drawn[1:])
    assert weights.shape == (500, 8)
    assert (weights[:, 0] == weights[:, 1]).all(), "a case is drawn whole"
    assert (weights[:, [0, 2, 3, 6, 7]].sum(axis=1) == 5).all(), "as many draws as cases"
    assert weights[:, [0, 2, 3, 6, 7]].mean() == pytest.approx(1, abs=1e-9)
    assert set(np.unique(weights)) >= {0.0, 1.0, 2.0, 3.0}


def test_bootstrap_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    cases = np.array([str(i) for i in range(400)])
    interval = bootstrap_interval(lambda w: w @ values / w.sum(axis=1), cases, resamples=4000, seed=1)
    spread = 1.96 * values.std() / 20
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - spread, abs=0.02)
    assert interval.high == pytest.approx(values.mean() + spread, abs=0.02)


def test_bootstrap_counts_undefined_resamples() -> None:
    p = np.array([[0.2, 0.8], [0.6, 0.4], [0.7, 0.3], [0.8, 0.2], [0.9, 0.1]])
    labels = np.array([1, 0, 0, 0, 0])
    some = bootstrap_interval(partial(auroc, p, labels), np.array(list("abcde")), resamples=1000, seed=0)
    expected = 1000 * ((4 / 5) ** 5 + (1 / 5) ** 5)  # never the one positive, or nothing else
    assert some.undefined == pytest.approx(expected, abs=50)
    assert (some.value, some.low, some.high) == (1.0, 1.0, 1.0)
    most = bootstrap_interval(partial(auroc, p[:2], labels[:2]), np.array(["a", "a"]), resamples=0)
    assert (most.value, most.low, most.high) == (1.0, None, None)
    assert str(most) == "1.000 (no interval)"


def test_evaluation_of_two_thousand_tiles_takes_seconds() -> None:
    p, labels = random_case(2, seed=0, samples=2000)
    cases = np.array([str(i % 40) for i in range(2000)])
    start = time.perf_counter()
    first = figures(p, labels, cases, threshold=0.4, positive=1)
    assert time.perf_counter() - start < 10
    assert figures(p, labels, cases, threshold=0.4, positive=1) == first
    for found in first.values():
        assert found.low is not None
        assert found.value is not None
        assert found.high is not None
        assert found.low <= found.value <= found.high or found == first["ece"]


@pytest.mark.parametrize("true_temperature", [0.4, 1.0, 3.0])
def test_temperature_is_recovered(true_temperature: float) -> None:
    random = np.random.default_rng(0)
    calibrated = random.normal(0, 2, (20_000, 2))
    labels = (random.random(20_000) < softmax(calibrated)[:, 1]).astype(np.int64)
    assert fit_temperature(calibrated * true_temperature, labels) == pytest.approx(true_temperature, rel=0.05)


def test_temperature_of_separable_logits_is_one() -> None:
    """Their loss falls for ever with the temperature: the bound would make the model certain of everything."""
    assert fit_temperature(np.array([[5.0, 0.0], [0.0, 5.0]]), np.array([0, 1])) == 1.0


def test_temperature_stays_in_bounds() -> None:
    nearly_separable = np.array([[5.0, 0.0], [0.0, 5.0], [0.001, 0.0]] * 9), np.array([0, 1, 1] * 9)
    assert 0.05 <= fit_temperature(*nearly_separable) <= 20


def test_softmax_bears_huge_logits() -> None:
    np.testing.assert_allclose(softmax(np.array([[1e4, 0.0]])), [[1.0, 0.0]])
    np.testing.assert_allclose(softmax(np.array([[2.0, 0.0]]), 2.0)[0, 0], 1 / (1 + math.exp(-1)))


@pytest.mark.parametrize(
    ("scores", "positive", "threshold"),
    [
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 0.5),
        ([0.01, 0.01, 0.02, 0.1, 0.1, 0.2], [0, 0, 0, 1, 1, 1], 0.045),
        ([0.3, 0.4], [1, 1], 0.5),
        ([0.3, 0.4], [0, 0], 0.5),
        ([0.3, 0.3], [0, 1], 0.5),
        ([0.1, 0.9], [1, 0], 0.5),
        ([0.0, 1.0], [0, 1], 0.5),
    ],
)
def test_threshold(scores: list[float], positive: list[int], threshold: float) -> None:
    assert balanced_threshold(np.array(scores), np.array(positive, dtype=bool)) == pytest.approx(threshold, abs=0.01)


@pytest.mark.parametrize("share", [0.1, 0.23, 0.5, 0.8])
@pytest.mark.parametrize("shift", [0.0, 2.0, -1.5])
def test_threshold_is_the_share_of_positives_wherever_probabilities_are_off(share: float, shift: float) -> None:
    """Scores are exact, log-odds of two normal distributions; `shift` is what balanced sampling adds."""
    random = np.random.default_rng(0)
    positive = np.arange(40_000) < 40_000 * share
    odds = random.normal(np.where(positive, 2.0, -2.0), 2.0) + math.log(share / (1 - share))
    found = balanced_threshold(1 / (1 + np.exp(-odds - shift)), positive)
    assert math.log(found / (1 - found)) - shift == pytest.approx(math.log(share / (1 - share)), abs=0.05)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=2, max_size=40))
def test_threshold_lies_within_the_scores(samples: list[tuple[int, bool]]) -> None:
    scores = np.array([score / 20 for score, _ in samples])
    found = balanced_threshold(scores, np.array([is_positive for _, is_positive in samples]))
    assert found == 0.5 or max(scores.min(), 1e-9) <= found <= min(scores.max(), 1 - 1e-9)


def test_decide_falls_back_to_the_likeliest_other_class() -> None:
    p = np.array([[0.5, 0.2, 0.3], [0.3, 0.1, 0.6], [0.2, 0.5, 0.3]])
    assert decide(p, 0.35, 2).tolist() == [0, 2, 1]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_all_metrics_equal_scikit_learn_with_weights(classes: int, ties: bool) -> None:
    p, labels = random_case(classes, seed=7, ties=ties)
    w = np.random.default_rng(8).integers(0, 4, len(labels)).astype(np.float64)
    w[:classes] = 1  # every class stays
    predicted = decide(p, 0.5, classes - 1)
    truth = np.eye(classes)[labels]  # one column a class: weights are taken for one-versus-rest in this form only
    columns = [1] if classes == 2 else range(classes)

    def mean(score: Callable[..., float]) -> float:
        return float(np.mean([score(truth[:, c], p[:, c], sample_weight=w) for c in columns]))

    expected = {
        "auroc": mean(sklearn.metrics.roc_auc_score),
        "average_precision": mean(sklearn.metrics.average_precision_score),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(labels, predicted, sample_weight=w),
        "log_loss": sklearn.metrics.log_loss(labels, p, sample_weight=w),
        "brier": sklearn.metrics.brier_score_loss(labels, p[:, 1] if classes == 2 else p, sample_weight=w),
        "ece": slow_ece(np.repeat(p, w.astype(int), axis=0), np.repeat(labels, w.astype(int))),
    }
    found = standard_metrics(p, labels, threshold=0.5, positive=classes - 1)
    assert set(found) == set(expected) == set(METRIC_NAMES)
    for name, metric in found.items():
        assert metric(np.stack([np.ones_like(w), w]))[1] == pytest.approx(expected[name], abs=EXACT), name


@pytest.mark.parametrize("classes", [2, 4])
def test_average_precision_and_brier_equal_scikit_learn(classes: int) -> None:
    for seed in range(4):
        p, labels = random_case(classes, seed, ties=seed % 2 == 1)
        scores = p[:, 1] if classes == 2 else p
        expected = sklearn.metrics.average_precision_score(labels, scores)
        assert average_precision(p, labels) == pytest.approx(expected, abs=EXACT)
        assert brier(p, labels) == pytest.approx(sklearn.metrics.brier_score_loss(labels, scores), abs=EXACT)


def test_average_precision_of_two_classes_is_of_the_positive_one() -> None:
    p, labels = random_case(2, seed=3)
    of_each = [sklearn.metrics.average_precision_score(labels == c, p[:, c]) for c in (0, 1)]
    assert [average_precision(p, labels, positive=c) for c in (0, 1)] == pytest.approx(of_each, abs=EXACT)
    assert of_each[0] != pytest.approx(of_each[1], abs=1e-6), "the test can tell them apart"


@pytest.mark.parametrize("ties", [False, True])
def test_curves_equal_scikit_learn(ties: bool) -> None:
    p, labels = random_case(2, seed=5, ties=ties)
    scores, positive = p[:, 1], labels == 1
    w = np.random.default_rng(1).integers(1, 4, len(labels)).astype(np.float64)
    false, true = roc_curve(scores, positive, w)
    expected = sklearn.metrics.roc_curve(labels, scores, sample_weight=w, drop_intermediate=False)
    np.testing.assert_allclose((false, true), expected[:2], atol=EXACT)
    recall, precision = precision_recall_curve(scores, positive, w)
    sk_precision, sk_recall, _ = sklearn.metrics.precision_recall_curve(labels, scores, sample_weight=w)
    np.testing.assert_allclose(recall, sk_recall[::-1][1:], atol=EXACT)
    np.testing.assert_allclose(precision, sk_precision[::-1][1:], atol=EXACT)
    grid = np.linspace(0, 1, 11)
    np.testing.assert_allclose(roc_at(scores, positive, grid, w[None])[0], np.interp(grid, false, true), atol=EXACT)
    at = precision_at(scores, positive, grid, w[None])[0]
    for level, found in zip(grid, at, strict=True):
        first = np.flatnonzero(recall >= level - EXACT)[0]
        assert found == pytest.approx(precision[first], abs=EXACT)


@pytest.mark.parametrize("positive", [np.zeros(3, dtype=bool), np.ones(3, dtype=bool)])
def test_curves_of_one_class_are_undefined(positive: NDArray[np.bool_]) -> None:
    scores, grid, ones = np.array([0.1, 0.2, 0.3]), np.array([0.0, 1.0]), np.ones((1, 3))
    assert np.isnan(roc_at(scores, positive, grid, ones)).all() or np.isnan(roc_curve(scores, positive)[0]).all()
    assert np.isnan(precision_at(scores, positive, grid, ones)).all() == (not positive.any())


@pytest.mark.parametrize("classes", [2, 4])
def test_reliability_adds_up_to_ece(classes: int) -> None:
    p, labels = random_case(classes, seed=2)
    w = np.random.default_rng(0).integers(0, 3, (2, len(labels))).astype(np.float64)
    bins = reliability(p, labels, w)
    assert bins.share.shape == (2, 15)
    np.testing.assert_allclose(bins.share.sum(axis=1), 1, atol=EXACT)
    gaps = np.nansum(bins.share * np.abs(bins.accuracy - bins.confidence), axis=1)
    np.testing.assert_allclose(gaps, ece(p, labels, w), atol=EXACT)


def test_a_band_is_the_quantiles_of_the_resamples() -> None:
    values = np.random.default_rng(0).normal(size=(40, 3))
    cases = np.array([str(i // 2) for i in range(40)])
    drawn: list[Floats] = []

    def curve(weights: Floats) -> Floats:
        points = weights @ values / weights.sum(axis=1, keepdims=True)
        points[weights[:, 0] == 0, 1] = np.nan  # undefined in a third of the resamples
        points[:, 2] = np.nan
        drawn.append(points)
        return np.asarray(points)

    low, high = bootstrap_band(curve, cases, resamples=300, seed=4)
    expected = np.nanquantile(np.concatenate(drawn)[:, :2], (0.025, 0.975), axis=0)
    np.testing.assert_allclose((low[:2], high[:2]), expected, atol=EXACT)
    assert np.isnan([low[2], high[2]]).all()
    assert np.isnan(bootstrap_band(curve, cases, resamples=0)).all()


def test_paired_difference_equals_scikit_learn_on_the_same_resamples() -> None:
    p, labels = random_case(2, seed=0, samples=60)
    q, _ = random_case(2, seed=1, samples=60)
    cases = np.array([str(i % 12) for i in range(60)])
    a, b = (resampled({"auroc": partial(auroc, x, labels)}, cases, resamples=100, seed=3)["auroc"] for x in (p, q))
    found = difference(a, b)

    names, case_of = np.unique(cases, return_inverse=True)
    draws = np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), size=100)
    gains = []
    for counts in draws:
        rows = np.concatenate([np.repeat(np.flatnonzero(case_of == c), counts[c]) for c in range(len(names))])
        first, second = (sklearn.metrics.roc_auc_score(labels[rows], x[rows, 1]) for x in (p, q))
        gains.append(second - first)
    np.testing.assert_allclose(b.drawn - a.drawn, gains, atol=EXACT)
    assert found.value == pytest.approx(float(auroc(q, labels) - auroc(p, labels)), abs=EXACT)
    assert (found.low, found.high) == pytest.approx(np.quantile(gains, (0.025, 0.975)), abs=EXACT)
    assert found.above_zero == np.mean(np.array(gains) > 0)
    back = difference(b, a)
    assert [back.value, back.low, back.high] == pytest.approx(
        [-(value or 0.0) for value in (found.value, found.high, found.low)]
    )
    assert (back.above_zero or 0.0) + (found.above_zero or 0.0) == pytest.approx(1)


def test_a_model_does_not_differ_from_itself() -> None:
    same = Resampled(0.8, np.array([0.7, 0.8, np.nan, 0.9]))
    found = difference(same, same)
    assert (found.value, found.low, found.high, found.undefined, found.above_zero) == (0, 0, 0, 1, 0.5)
    assert str(found) == "+0.000 (+0.000 to +0.000)"
    undefined = difference(same, Resampled(float("nan"), same.drawn))
    assert (undefined.value, undefined.above_zero, str(undefined)) == (None, None, "undefined")


@pytest.mark.parametrize(("cases", "known"), [(1, False), (4, False), (5, True)])
def test_few_cases_have_no_interval_anywhere(cases: int, known: bool) -> None:
    p, labels = random_case(2, seed=0, samples=60)
    case_ids = np.array([f"case {i % cases}" for i in range(60)])
    found = figures(p, labels, case_ids, threshold=0.5, positive=1, resamples=50)["auroc"]
    alone = bootstrap_interval(partial(auroc, p, labels), case_ids, resamples=50)
    low, _ = bootstrap_band(lambda w: np.stack([auroc(p, labels, w)] * 2, axis=1), case_ids, resamples=50)
    assert {found.low is not None, alone.low is not None, bool(np.isfinite(low).all())} == {known}


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.random.default_rng(0).normal((-0.3, 0.3), 1, (200, 2)), np.zeros(200, dtype=np.int64)),
        (np.random.default_rng(0).normal(0, 1, (300, 3)), np.arange(300) % 2),
        (np.array([[1.0, -1.0], [-1.0, 1.0]] * 20), np.array([1, 0] * 20)),
    ],
    ids=["one class", "a class is missing", "always wrong"],
)
def test_what_cannot_calibrate_changes_no_probability(logits: Floats, labels: NDArray[np.int64]) -> None:
    assert fit_temperature(logits, labels) == 1.0
