"""Logits on validation and on its shifted copies -> `Quantities`, which the rules choose by. Pure numpy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from training.evaluation.metrics import auroc, balanced_accuracy, decide, fit_temperature, log_loss, softmax
from training.selection.rules import Quantities, Shifted

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


def quantities_of(
    logits: Floats,
    label: Ints,
    shifted: Mapping[str, Floats],
    *,
    temperature: float = 1.0,
    threshold: float = 0.5,
    positive: int = 1,
    plain_right: Flags | None = None,
) -> Quantities:
    """What a candidate shows on validation.

    Args:
        logits: Of the unshifted tiles, (N, C).
        label: (N,) in [0, C).
        shifted: By shift and strength (`training.evaluation.perturbations.shifted_copies`), the logits (N, C) of the
            same tiles, shifted.
        temperature: What logits are divided by before the threshold.
        threshold: On the positive class's probability; fixed on the unshifted tiles, and the same for every copy. At
            0.5 two classes are decided by the larger logit.
        positive: Index of the class that the threshold is for.
        plain_right: Which tiles a network from plain training decides rightly, (N,); see `decided_right`. None: not
            known, and the rule `errors` cannot be asked.

    Returns:
        The quantities.

    Raises:
        ValueError: If a class has no tile, or a logit is not finite.
    """
    if not all(np.isfinite(some).all() for some in (logits, *shifted.values())):
        raise ValueError("logits must be finite")
    classes = logits.shape[1]
    if len(np.unique(label)) < classes:
        raise ValueError("every class needs a tile on validation")

    def decided(some: Floats) -> Ints:
        return decide(softmax(some, temperature), threshold, positive)

    def balanced(calls: Ints) -> float:
        return float(balanced_accuracy(calls, label, classes))

    unshifted = decided(logits)
    copies = {name: decided(some) for name, some in shifted.items()}
    seen = Quantities(
        log_loss=float(log_loss(softmax(logits, fit_temperature(logits, label)), label)),
        auroc=float(auroc(softmax(logits), label)),
        balanced_accuracy=balanced(unshifted),
        classes=classes,
        shifted={
            name: Shifted(balanced_accuracy=balanced(calls), agreement=float((calls == unshifted).mean()))
            for name, calls in copies.items()
        },
    )
    return seen if plain_right is None else with_errors(seen, unshifted == label, plain_right)


def with_errors(seen: Quantities, right: Flags, plain_right: Flags) -> Quantities:
    """The quantities with the accuracies where plain training decides rightly and wrongly.

    Args:
        seen: The quantities.
        right: Which validation tiles the candidate decides rightly, (N,).
        plain_right: Which of them plain training does, (N,).

    Returns:
        The quantities with both shares; None for the one that has no tile.
    """
    groups = {"where_right": right[plain_right], "where_wrong": right[~plain_right]}
    return seen.model_copy(update={name: float(of.mean()) if len(of) else None for name, of in groups.items()})


def decided_right(
    logits: Floats, label: Ints, *, temperature: float = 1.0, threshold: float = 0.5, positive: int = 1
) -> Flags:
    """Which tiles are decided rightly, (N,); arguments as for `quantities_of`."""
    return np.asarray(decide(softmax(logits, temperature), threshold, positive) == label)
