"""Cross-entropy with spectral decoupling: a penalty on the size of the logits. Pure; knows nothing of data or models.

    loss = cross-entropy + lambda/2 * ||logits - gamma||^2

Pezeshki et al., Gradient Starvation (arXiv 2011.09468); Pohjonen et al. (iScience 2022, arXiv 2103.17171).
The penalty acts on the unnormalised scores, before any temperature. gamma, one offset a class, is 0 in the first form
and a setting in the second. Two reductions of the square are in use:

- "sum": lambda/2 times the square summed over the C classes and averaged over the batch, as in the papers;
- "mean": lambda' times the square averaged over batch and classes, as most public code writes it.

They are the same loss when lambda' = lambda * C/2 (`convert_lambda`); for two classes the numbers agree.

Every term is a mean over the samples of the batch, weighted ones too (torch divides by the sum of the weights instead):
so the loss of a batch is the mean of those of its parts, however it is split over processes.

Consistency regularisation (`consistency_penalty`) is of the distance between a sample's logits and those of a copy that
was changed as another scanner or laboratory might: weight/2 * ||logits - logits of the copy||^2, added to the loss. Of
this kind are the Pi-model (Laine & Aila, ICLR 2017, arXiv 1610.02242) and stability training (Zheng et al., CVPR 2016,
arXiv 1604.04326).

Classic L2 regularisation (`l2_penalty`) is of the weights, not of the logits: l2/2 * ||w||^2, added to the loss. An
adaptive optimiser scales its gradient l2 * w like any other, so that it is not AdamW's decoupled weight decay, which is
taken off the weights beside the scaling (Loshchilov & Hutter, ICLR 2019, arXiv 1711.05101).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

Reduction = Literal["sum", "mean"]


class LossTerms(NamedTuple):
    """The loss and its two terms on logits, each a scalar tensor; `sd` already carries its lambda.

    `total` is `ce + sd`, and in a training with `consistency` or `l2` those penalties too.
    """

    total: Tensor
    ce: Tensor
    sd: Tensor


def convert_lambda(sd_lambda: float, classes: int, source: Reduction, target: Reduction) -> float:
    """The lambda that gives under one reduction the loss that another lambda gives under another.

    Args:
        sd_lambda: Lambda under `source`.
        classes: Logits a sample; 1 for a single logit with binary cross-entropy.
        source: The reduction `sd_lambda` is for.
        target: The reduction wanted.

    Returns:
        Lambda under `target`.
    """
    weight = sd_lambda * _weight(source, classes)
    return weight / _weight(target, classes)


def balanced_weights(counts: Sequence[int]) -> tuple[float, ...]:
    """N / (C * N_c) for each class: all weigh alike, and the mean weight of a sample is 1. `counts` are the N_c > 0."""
    return tuple(sum(counts) / (len(counts) * count) for count in counts)


def spectral_decoupling(
    logits: Tensor, sd_lambda: float, reduction: Reduction = "sum", gamma: Sequence[float] | None = None
) -> Tensor:
    """The spectral decoupling penalty alone, a scalar tensor.

    Args:
        logits: Float (B, C), or (B,) for one logit a sample, which counts as C = 1: there "sum" is lambda/2 * z^2 and
            "mean" is lambda' * z^2, both averaged over the batch, so that lambda' = lambda/2.
        sd_lambda: Weight of the penalty, at least 0.
        reduction: How the squares are reduced over the classes; see above.
        gamma: C offsets; None: 0.

    Returns:
        The penalty, with its lambda.

    Raises:
        ValueError: If there are not C offsets.
    """
    scores = logits.reshape(len(logits), -1).float()  # (B, C); in bf16 the sum of squares would lose its digits
    if gamma is not None:
        if len(gamma) != scores.shape[1]:
            raise ValueError(f"{len(gamma)} offsets gamma for {scores.shape[1]} logits")
        scores = scores - scores.new_tensor(gamma)
    return sd_lambda * _weight(reduction, scores.shape[1]) * scores.square().sum(dim=1).mean()


def cross_entropy(
    logits: Tensor, labels: Tensor, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """The cross-entropy alone, a scalar tensor: the mean over the batch of weight[label] * cross-entropy of the sample.

    Args:
        logits: Float (B, C) for the softmax cross-entropy, or (B,) or (B, 1) for the binary one.
        labels: int64 (B,) in [0, C), or for one logit a sample (B,) or (B, 1) in [0, 1].
        class_weights: C weights; None: all 1.
        label_smoothing: Share of each label, in [0, 1), that is spread evenly over the C classes (Szegedy et al. 2016,
            arXiv 1512.00567).

    Returns:
        The loss.

    Raises:
        ValueError: For weights or smoothing with one logit a sample.
    """
    if logits.ndim == 1 or logits.shape[1] == 1:
        if class_weights is not None or label_smoothing:
            raise ValueError("class_weights and label_smoothing need a logit for each class")
        return functional.binary_cross_entropy_with_logits(logits.reshape(-1).float(), labels.reshape(-1).float())
    if class_weights is None:
        return functional.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
    of_sample = functional.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing, reduction="none")
    return (of_sample.new_tensor(class_weights)[labels] * of_sample).mean()


def consistency_penalty(logits: Tensor, of_copies: Tensor, weight: float) -> Tensor:
    """Consistency regularisation alone, a scalar tensor: weight/2 times the squared distance, a mean over the batch.

    Both are float (B, C), a row a sample; of a copy its logits are in the same row.
    """
    return weight / 2 * (logits.float() - of_copies.float()).square().sum(dim=1).mean()


def l2_penalty(weights: Iterable[Tensor], l2: float) -> Tensor:
    """Classic L2 regularisation alone, a scalar tensor: l2/2 times the sum of the squares of all weights (at least one
    tensor).
    """
    return l2 / 2 * torch.stack([w.float().square().sum() for w in weights]).sum()


class SpectralDecouplingLoss(nn.Module):
    """Cross-entropy plus spectral decoupling: called with logits and labels it returns the total loss, a scalar tensor.

    Args:
        sd_lambda: Weight of the penalty, >= 0; 0 is plain cross-entropy.
        reduction: "sum" or "mean", as above.
        gamma: As for `spectral_decoupling`.
        class_weights: As for `cross_entropy`.
        label_smoothing: As for `cross_entropy`.

    Raises:
        ValueError: For any other setting.
    """

    def __init__(
        self,
        sd_lambda: float = 0.01,
        reduction: Reduction = "sum",
        *,
        gamma: Sequence[float] | None = None,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= sd_lambda < float("inf"):
            raise ValueError(f"sd_lambda must be a number >= 0, not {sd_lambda}")
        if reduction not in get_args(Reduction):
            raise ValueError(f"reduction must be 'sum' or 'mean', not {reduction!r}")
        if not all(math.isfinite(offset) for offset in gamma or ()):
            raise ValueError(f"gamma must be finite numbers, not {gamma}")
        if not all(0 <= weight < float("inf") for weight in class_weights or ()):
            raise ValueError(f"class_weights must be numbers >= 0, not {class_weights}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), not {label_smoothing}")
        self.sd_lambda = sd_lambda
        self.reduction: Reduction = reduction
        self.gamma, self.class_weights, self.label_smoothing = gamma, class_weights, label_smoothing

    def terms(self, logits: Tensor, labels: Tensor) -> LossTerms:
        """The loss and its two terms, averaged over the batch. Raises ValueError if B differs."""
        if len(logits) != len(labels):
            raise ValueError(f"{len(logits)} logits but {len(labels)} labels")
        ce = cross_entropy(logits, labels, self.class_weights, self.label_smoothing)
        sd = spectral_decoupling(logits, self.sd_lambda, self.reduction, self.gamma)
        return LossTerms(ce + sd, ce, sd)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The total loss."""
        return self.terms(logits, labels).total

    def extra_repr(self) -> str:
        """The settings, for `repr`."""
        return f"sd_lambda={self.sd_lambda}, reduction={self.reduction!r}"


def _weight(reduction: Reduction, classes: int) -> float:
    """What lambda times the square, summed over classes and averaged over the batch, is multiplied by."""
    return 0.5 if reduction == "sum" else 1 / classes
