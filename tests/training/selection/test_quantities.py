from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics

from training.selection.quantities import decided_right, quantities_of
from training.selection.rules import RULES, Quantities

LABEL = np.array([0, 0, 0, 1, 1])


def logits(*margins: float) -> NDArray[np.float64]:
    """Two logits a tile, whose difference is the margin."""
    return np.array([[-m / 2, m / 2] for m in margins])


def test_every_quantity_of_five_tiles() -> None:
    unshifted = logits(-2, -1, 1, 2, -0.5)  # right, right, wrong, right, wrong
    blurred = logits(-2, 1, 1, 2, 2)  # right, wrong, wrong, right, right: of the five, two are decided otherwise
    found = quantities_of(unshifted, LABEL, {"sharpness -0.5": blurred}, plain_right=np.array([1, 0, 0, 1, 1], bool))
    assert found.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found.shifted["sharpness -0.5"].balanced_accuracy == pytest.approx((1 / 3 + 1) / 2)
    assert found.shifted["sharpness -0.5"].agreement == pytest.approx(3 / 5)
    assert [found.where_right, found.where_wrong] == pytest.approx([2 / 3, 1 / 2])
    assert found.auroc == pytest.approx(metrics.roc_auc_score(LABEL, unshifted[:, 1]))
    assert RULES["stress"].value(found) == pytest.approx(((2 / 3 + 1 / 2) / 2 + (1 / 3 + 1) / 2) / 2)


def test_log_loss_knows_nothing_of_the_size_of_logits() -> None:
    unshifted = logits(-2, -1, 1, 2, -0.5)
    losses = [quantities_of(unshifted * size, LABEL, {}).log_loss for size in (1, 1 / 3, 3)]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-6)
    grid = [
        metrics.log_loss(LABEL, 1 / (1 + np.exp(-np.diff(unshifted)[:, 0] / t))) for t in np.geomspace(0.1, 15, 999)
    ]
    assert losses[0] == pytest.approx(min(grid), abs=1e-5)


@pytest.mark.parametrize(
    ("threshold", "positive", "accuracy"),
    [
        (0.5, 1, (2 / 3 + 1 / 2) / 2),
        (0.9, 1, (1 + 0) / 2),  # no tile reaches 0.9 of class 1: sigmoid(2) is 0.88
        (0.3, 1, (2 / 3 + 1) / 2),  # sigmoid(-0.5) is 0.38
        (0.7, 0, (2 / 3 + 1) / 2),  # of class 0: sigmoid(1) is 0.73, sigmoid(0.5) is 0.62
    ],
)
def test_the_threshold_is_that_of_the_candidate(threshold: float, positive: int, accuracy: float) -> None:
    unshifted = logits(-2, -1, 1, 2, -0.5)
    found = quantities_of(unshifted, LABEL, {"copy": unshifted}, threshold=threshold, positive=positive)
    assert found.balanced_accuracy == pytest.approx(accuracy)
    assert found.shifted["copy"].balanced_accuracy == found.balanced_accuracy
    assert found.shifted["copy"].agreement == 1
    cooled = quantities_of(unshifted * 4, LABEL, {}, temperature=4, threshold=threshold, positive=positive)
    assert cooled.balanced_accuracy == found.balanced_accuracy
    right = decided_right(unshifted, LABEL, threshold=threshold, positive=positive)
    per_class = [right[c == LABEL].mean() for c in (0, 1)]
    assert np.mean(per_class) == pytest.approx(accuracy)


def test_groups_that_are_not_there_are_none() -> None:
    unshifted = logits(-2, -1, 1, 2, -0.5)
    nobody_looked = quantities_of(unshifted, LABEL, {})
    assert (nobody_looked.where_right, nobody_looked.where_wrong) == (None, None)
    all_right = quantities_of(unshifted, LABEL, {}, plain_right=np.ones(5, bool))
    assert (all_right.where_right, all_right.where_wrong) == (3 / 5, None)
    assert Quantities.model_validate_json(all_right.model_dump_json()) == all_right


def test_four_classes() -> None:
    label = np.array([0, 1, 2, 3])
    found = quantities_of(np.eye(4) * 3, label, {"turned": np.roll(np.eye(4), 1, axis=1) * 3})
    assert (found.classes, found.balanced_accuracy, found.auroc) == (4, 1.0, 1.0)
    turned = found.shifted["turned"]
    assert (turned.balanced_accuracy, turned.agreement) == (0.0, 0.0)


def test_what_says_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        quantities_of(logits(1, 2, 3, 4, 5), LABEL, {"copy": logits(1, 2, np.nan, 4, 5)})
    with pytest.raises(ValueError, match="class"):
        quantities_of(logits(1, 2), np.array([1, 1]), {})
