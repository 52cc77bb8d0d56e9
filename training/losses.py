"""Cross-entropy with spectral decoupling: a penalty on the size of the logits. Pure; knows nothing of data or models.

    loss = cross-entropy + lambda/2 * ||logits||^2

Pezeshki et al., Gradient Starvation (arXiv 2011.09468); Pohjonen et al. (iScience 2022, arXiv 2103.17171).
The penalty acts on the unnormalised scores, before any temperature. Two reductions of the square are in use:

- "sum": lambda/2 times the square summed over the C classes and averaged over the batch, as in the papers;
- "mean": lambda' times the square averaged over batch and classes, as most public code writes it.

They are the same loss when lambda' = lambda * C/2 (`convert_lambda`); for two classes the numbers agree.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from torch import Tensor, nn
from torch.nn import functional

Reduction = Literal["sum", "mean"]


class LossTerms(NamedTuple):
    """The loss and its two terms, each a scalar tensor; `total` is `ce + sd`, and `sd` already carries its lambda."""

    total: Tensor
    ce: Tensor
    sd: Tensor


def convert_lambda(sd_lambda: float, classes: int, source: Reduction, target: Reduction) -> float:
    """The lambda that gives under the reduction `target` the loss that `sd_lambda` gives under `source`.

    `classes` is the number of logits a sample has: 1 for a single logit with binary cross-entropy.
    """
    weight = sd_lambda * _weight(source, classes)
    return weight / _weight(target, classes)


def spectral_decoupling(logits: Tensor, sd_lambda: float, reduction: Reduction = "sum") -> Tensor:
    """The penalty alone: a scalar tensor.

    `logits` is float (B, C), or (B,) for one logit a sample, which counts as C = 1: there "sum" is lambda/2 * z^2 and
    "mean" is lambda' * z^2, both averaged over the batch, so that lambda' = lambda/2.
    """
    squares = logits.reshape(len(logits), -1).float().square()  # (B, C); in bf16 the sum would lose its digits
    return sd_lambda * _weight(reduction, squares.shape[1]) * squares.sum(dim=1).mean()


def loss_terms(logits: Tensor, labels: Tensor, sd_lambda: float, reduction: Reduction = "sum") -> LossTerms:
    """Cross-entropy plus spectral decoupling, averaged over the batch.

    `logits` float (B, C) with `labels` int64 (B,) in [0, C) gives the softmax cross-entropy. One logit a sample, (B,)
    or (B, 1), gives the binary cross-entropy, with `labels` (B,) or (B, 1) in [0, 1]. Raises ValueError if B differs.
    """
    if len(logits) != len(labels):
        raise ValueError(f"{len(logits)} logits but {len(labels)} labels")
    if logits.ndim == 1 or logits.shape[1] == 1:
        scores = logits.reshape(-1).float()
        ce = functional.binary_cross_entropy_with_logits(scores, labels.reshape(-1).float())
    else:
        ce = functional.cross_entropy(logits.float(), labels)
    sd = spectral_decoupling(logits, sd_lambda, reduction)
    return LossTerms(ce + sd, ce, sd)


class SpectralDecouplingLoss(nn.Module):
    """`loss_terms` as a module: called with logits and labels it returns the total loss, a scalar tensor.

    `sd_lambda` >= 0 weighs the penalty (0 is plain cross-entropy); `reduction` is "sum" or "mean", as the module's
    docstring defines them. `terms` gives the parts. Raises ValueError for any other setting.
    """

    def __init__(self, sd_lambda: float = 0.01, reduction: Reduction = "sum") -> None:
        super().__init__()
        if not 0 <= sd_lambda < float("inf"):
            raise ValueError(f"sd_lambda must be a number >= 0, not {sd_lambda}")
        if reduction not in get_args(Reduction):
            raise ValueError(f"reduction must be 'sum' or 'mean', not {reduction!r}")
        self.sd_lambda = sd_lambda
        self.reduction: Reduction = reduction

    def terms(self, logits: Tensor, labels: Tensor) -> LossTerms:
        """The loss and its two terms; see `loss_terms`."""
        return loss_terms(logits, labels, self.sd_lambda, self.reduction)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The total loss; see `loss_terms`."""
        return self.terms(logits, labels).total

    def extra_repr(self) -> str:
        """The settings, for `repr`."""
        return f"sd_lambda={self.sd_lambda}, reduction={self.reduction!r}"


def _weight(reduction: Reduction, classes: int) -> float:
    """What lambda times the square, summed over classes and averaged over the batch, is multiplied by."""
    return 0.5 if reduction == "sum" else 1 / classes
