from __future__ import annotations

import math
import time
from functools import partial

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from training.metrics import (
    Floats,
    Ints,
    auroc,
    balanced_accuracy,
    bootstrap_interval,
    choose_threshold,
    decide,
    ece,
    evaluate,
    fit_temperature,
    log_loss,
    softmax,
)

EXACT = 1e-9


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
    p, labels = np.array([[0.4, 0.6], [0.7, 0.3]]), np.array([1, 1])
    assert np.isnan(auroc(p, labels))
    assert np.isnan(balanced_accuracy(p.argmax(axis=1), labels, 2))
    found = evaluate(p, labels, np.array(["a", "b"]), threshold=0.5, positive=1, resamples=20)
    assert found["auroc"].value is None
    assert found["auroc"].undefined == 20
    assert str(found["auroc"]) == "undefined"
    assert found["log_loss"].value is not None


def test_bootstrap_resamples_cases_with_replacement() -> None:
    cases = np.array(["a", "a", "b", "c", "c", "c"])
    drawn: list[Floats] = []

    def spy(weights: Floats) -> Floats:
        drawn.append(weights)
        return np.asarray(weights.sum(axis=1))

    bootstrap_interval(spy, cases, resamples=500, seed=3)
    weights = np.concatenate(drawn[1:])
    assert weights.shape == (500, 6)
    assert (weights[:, 0] == weights[:, 1]).all(), "a case is drawn whole"
    assert (weights[:, [0, 2, 3]].sum(axis=1) == 3).all(), "as many draws as cases"
    assert weights[:, [0, 2, 3]].mean() == pytest.approx(1, abs=1e-9)
    assert {0.0, 1.0, 2.0, 3.0} == set(np.unique(weights))


def test_bootstrap_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    cases = np.array([str(i) for i in range(400)])
    interval = bootstrap_interval(lambda w: w @ values / w.sum(axis=1), cases, resamples=4000, seed=1)
    spread = 1.96 * values.std() / 20
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - spread, abs=0.02)
    assert interval.high == pytest.approx(values.mean() + spread, abs=0.02)


def test_bootstrap_counts_undefined_resamples() -> None:
    p, labels = np.array([[0.2, 0.8], [0.6, 0.4], [0.7, 0.3]]), np.array([1, 0, 0])
    some = bootstrap_interval(partial(auroc, p, labels), np.array(["a", "b", "c"]), resamples=1000, seed=0)
    expected = 1000 * ((2 / 3) ** 3 + (1 / 3) ** 3)  # never the one positive, or nothing else
    assert some.undefined == pytest.approx(expected, abs=50)
    assert (some.value, some.low, some.high) == (1.0, 1.0, 1.0)
    most = bootstrap_interval(partial(auroc, p[:2], labels[:2]), np.array(["a", "a"]), resamples=0)
    assert (most.value, most.low, most.high) == (1.0, None, None)
    assert str(most) == "1.000 (no interval)"


def test_evaluation_of_two_thousand_tiles_takes_seconds() -> None:
    p, labels = random_case(2, seed=0, samples=2000)
    cases = np.array([str(i % 40) for i in range(2000)])
    start = time.perf_counter()
    first = evaluate(p, labels, cases, threshold=0.4, positive=1)
    assert time.perf_counter() - start < 10
    assert evaluate(p, labels, cases, threshold=0.4, positive=1) == first
    for interval in first.values():
        assert interval.low is not None
        assert interval.value is not None
        assert interval.high is not None
        assert interval.low <= interval.value <= interval.high or interval == first["ece"]


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
        ([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], 0.25),
        ([0.1, 0.9], [0, 1], 0.5),
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 0.5),
        ([0.6, 0.7, 0.8], [0, 1, 0], 0.65),
        ([0.3, 0.4], [1, 1], 0.5),
        ([0.3, 0.3], [0, 1], 0.5),
        ([0.1, 0.9], [1, 0], 0.0),
    ],
)
def test_threshold(scores: list[float], positive: list[int], threshold: float) -> None:
    assert choose_threshold(np.array(scores), np.array(positive, dtype=bool)) == pytest.approx(threshold)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=2, max_size=40))
def test_no_threshold_is_better_than_the_chosen_one(samples: list[tuple[int, bool]]) -> None:
    scores = np.array([score / 20 for score, _ in samples])
    positive = np.array([is_positive for _, is_positive in samples])
    if positive.all() or not positive.any():
        return
    p = np.stack([1 - scores, scores], axis=1)

    def quality(threshold: float) -> float:
        return float(balanced_accuracy(decide(p, threshold, 1), positive.astype(np.int64), 2))

    best = max(quality(t) for t in [*(i / 40 for i in range(42)), 0.5])
    assert quality(choose_threshold(scores, positive)) == pytest.approx(best)


def test_decide_falls_back_to_the_likeliest_other_class() -> None:
    p = np.array([[0.5, 0.2, 0.3], [0.3, 0.1, 0.6], [0.2, 0.5, 0.3]])
    assert decide(p, 0.35, 2).tolist() == [0, 2, 1]
