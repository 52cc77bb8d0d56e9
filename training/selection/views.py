"""A network on tiles and on their shifted copies: the logits that `training.selection.quantities` looks at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.evaluation.metrics import fit_decision
from training.evaluation.perturbations import shifted_copies
from training.selection.quantities import Flags, Ints, quantities_of
from training.selection.rules import Quantities


class Views(nn.Module):
    """A network on unshifted tiles and on each shifted copy: uint8 (B, T, T, 3) -> logits (B, 1 + V, C).

    Tiles are shifted at their own side, before the network resizes them or normalises their staining.
    """

    def __init__(self, network: nn.Module, shifts: Iterable[str]) -> None:
        super().__init__()
        self.network = network
        self.copies = shifted_copies(shifts)

    def forward(self, tiles: Tensor) -> Tensor:
        """See the class."""
        unshifted = tiles.cpu().numpy()
        shifted = (torch.from_numpy(copy(unshifted)).to(tiles.device) for copy in self.copies.values())
        return torch.stack([self.network(view) for view in (tiles, *shifted)], dim=1)

    def quantities(
        self, logits: NDArray[np.floating[Any]], label: Ints, positive: int, *, plain_right: Flags | None = None
    ) -> Quantities:
        """What the network shows on validation, decided by the temperature and threshold of the unshifted tiles.

        Args:
            logits: What this module gives for all N tiles, (N, 1 + V, C).
            label: (N,) in [0, C).
            positive: Index of the class that the threshold is for.
            plain_right: As for `quantities_of`.

        Returns:
            The quantities.

        Raises:
            ValueError: As `quantities_of`.
        """
        unshifted, *shifted = logits.astype(np.float64).transpose(1, 0, 2)
        temperature, threshold = fit_decision(unshifted, label, positive)
        return quantities_of(
            unshifted, label, dict(zip(self.copies, shifted, strict=True)), temperature=temperature,
            threshold=threshold, positive=positive, plain_right=plain_right,
        )  # fmt: skip
