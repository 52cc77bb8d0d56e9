"""How far a tile is from the tiles a model was trained on. Pure.

The distance is that of Lee et al., "A simple unified framework for detecting out-of-distribution samples and
adversarial attacks", NeurIPS 2018 (arXiv 1807.03888), section 2.1, without their input perturbation: of a tile's
penultimate features to the nearest class mean, by Mahalanobis, under one covariance of all classes. It is shrunk after
Ledoit & Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", J Multivar Anal 88 (2004)
365-411, so that fewer tiles than features, and features that never vary, do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

QUANTILE = 0.99
"""Of the validation tiles' distances: the threshold. Training tiles lie too near for it."""
MOST_TILES = 20_000
"""As many tiles of a split, at most, are looked at."""
_LEAST_SHRINKAGE = 1e-6

Floats = NDArray[np.float32]
Float64s = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Novelty:
    """What a model remembers of its training tiles' features, float32, and where they end."""

    means: Tensor
    """(C, D): of each class that has tiles."""
    whitening: Tensor
    """(D, D): features times this have unit covariance about their class means."""
    threshold: float
    """Distance beyond which a tile is out of distribution."""

    def distances(self, features: Tensor) -> Tensor:
        """Mahalanobis distances float32 (B,) of features (B, D) to the nearest class mean."""
        with torch.autocast(features.device.type, enabled=False):  # bf16 would not tell near from far
            whitened = (features.float() - self._centre) @ self.whitening
            far = torch.cdist(whitened, self._whitened_means, compute_mode="donot_use_mm_for_euclid_dist")
        return far.amin(dim=1)

    def ratios(self, features: Tensor) -> Tensor:
        """The same distances in units of the threshold: above 1 is out of distribution."""
        return self.distances(features) / self.threshold

    def to(self, device: torch.device) -> Novelty:
        """The same on a device."""
        return replace(self, means=self.means.to(device), whitening=self.whitening.to(device))

    @cached_property
    def _centre(self) -> Tensor:  # taken off first, so that float32 loses nothing to features far from zero
        return self.means.mean(dim=0)

    @cached_property
    def _whitened_means(self) -> Tensor:
        return (self.means - self._centre) @ self.whitening


def fit_novelty(
    features: Floats, labels: NDArray[np.integer], validation: Floats, quantile: float = QUANTILE
) -> Novelty | None:
    """Fit on training features (N, D) with class indices (N,); the threshold is a quantile of the validation's (M, D).

    None where no distance can be told: features that are the same for all tiles of a class, or not finite.
    """
    if not (len(features) and len(validation) and np.isfinite(features).all() and np.isfinite(validation).all()):
        return None
    exact = features.astype(np.float64)
    classes, index = np.unique(labels, return_inverse=True)
    means = np.stack([exact[index == c].mean(0) for c in range(len(classes))])
    residuals = exact - means[index]
    if not residuals.any():
        return None
    # With the covariance L L', |inv(L) (x - m)| is the Mahalanobis distance.
    lower = np.linalg.cholesky(shrunk_covariance(residuals))
    whitening = scipy.linalg.solve_triangular(lower, np.eye(len(lower)), lower=True).T
    fitted = Novelty(_tensor(means), _tensor(whitening), threshold=1.0)
    distances = fitted.distances(torch.from_numpy(validation)).numpy()
    threshold = float(np.quantile(distances, quantile, method="higher"))  # as few as stated lie beyond, or fewer
    return replace(fitted, threshold=threshold) if 0 < threshold < np.inf else None


def _tensor(values: Float64s) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def shrunk_covariance(residuals: Float64s) -> Float64s:
    """The covariance (D, D) of residuals (N, D) of mean zero, shrunk to a multiple of the identity; see above."""
    count, side = residuals.shape
    plain = residuals.T @ residuals / count
    mean = np.trace(plain) / side
    square = float((plain**2).sum())
    apart = square - side * mean**2  # the squared distance of the two that are mixed, times D
    noise = (float(((residuals**2).sum(1) ** 2).mean()) - square) / count  # the variance of `plain`, times D
    share = min(max(noise / apart if apart > 0 else 1.0, _LEAST_SHRINKAGE), 1.0)
    shrunk = (1 - share) * plain
    shrunk.flat[:: side + 1] += share * mean
    return np.asarray(shrunk)
