"""Out-of-distribution (OOD) detection: how far a tile is from those a model was trained on. Pure.

The distance is that of Lee et al., "A simple unified framework for detecting out-of-distribution samples and
adversarial attacks", NeurIPS 2018 (arXiv 1807.03888), section 2.1, without their input perturbation: of a tile's
penultimate features to the nearest class mean, by Mahalanobis, under one covariance of all classes. It is shrunk after
Ledoit & Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", J Multivar Anal 88 (2004)
365-411, so that fewer tiles than features, and features that never vary, do.

A network that learned to tell classes may have unlearned all else: noise and plain green can lie in the middle of what
its last layer sees. Lee et al. ask its earlier layers too; here the pixels are asked, by nine plain statistics, in the
same way. A tile is as unlike as the more unlike of the two.
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
MAX_TILES = 20_000
"""As many tiles of a split, at most, are looked at."""
APPEARANCE = 9
"""Numbers that `appearance` gives."""
_MIN_SHRINKAGE = 1e-6
_FAINTEST = 1 / 255

Floats = NDArray[np.float32]
Float64s = NDArray[np.float64]


def appearance(pixels: Tensor) -> Tensor:
    """What tiles look like: float32 (B, 9) of pixels (B, 3, S, S) in [0, 1].

    Of each channel the mean, and the logarithms of the standard deviation and of the mean absolute difference between
    neighbours: colour, contrast, and how fine the texture is.
    """
    mean = pixels.mean(dim=(2, 3), keepdim=True)
    deviation = (pixels - mean).square().mean(dim=(2, 3)).sqrt()
    across = (pixels[..., 1:] - pixels[..., :-1]).abs().mean(dim=(2, 3))
    down = (pixels[..., 1:, :] - pixels[..., :-1, :]).abs().mean(dim=(2, 3))
    logs = (torch.log(part + _FAINTEST) for part in (deviation, (across + down) / 2))
    return torch.cat([mean.flatten(1), *logs], dim=1).float()


@dataclass(frozen=True, eq=False)
class Gaussians:
    """One normal distribution a class, of one covariance, float32, and the distance at which they end."""

    means: Tensor
    """(C, D): of each class that has tiles."""
    whitening: Tensor
    """(D, D): vectors times this have unit covariance about their class means."""
    threshold: float = 1.0
    """Distance beyond which a tile is out of distribution."""

    def distances(self, vectors: Tensor) -> Tensor:
        """Mahalanobis distances float32 (B,) of vectors (B, D) to the nearest class mean."""
        with torch.autocast(vectors.device.type, enabled=False):  # bf16 would not tell near from far
            whitened = (vectors.float() - self._centre) @ self.whitening
            far = torch.cdist(whitened, self._whitened_means, compute_mode="donot_use_mm_for_euclid_dist")
        return far.amin(dim=1)

    def to(self, device: torch.device) -> Gaussians:
        """The same on a device."""
        return replace(self, means=self.means.to(device), whitening=self.whitening.to(device))

    @cached_property
    def _centre(self) -> Tensor:  # taken off first, so that float32 loses nothing to vectors far from zero
        return self.means.mean(dim=0)

    @cached_property
    def _whitened_means(self) -> Tensor:
        return (self.means - self._centre) @ self.whitening


@dataclass(frozen=True, eq=False)
class Novelty:
    """OOD detection of a model: distances of features and of appearance to its training tiles."""

    features: Gaussians
    """Of the D features that the last layer sees."""
    appearance: Gaussians
    """Of the pixels' nine statistics."""

    def ratios(self, rows: Tensor) -> Tensor:
        """Distance to the training tiles over its threshold, float32 (B,), of (B, D + 9): above 1 out of distribution.

        The larger of the two distances, each in units of its threshold.
        """
        features, looks = rows[:, :-APPEARANCE], rows[:, -APPEARANCE:]
        of_features = self.features.distances(features) / self.features.threshold
        return torch.maximum(of_features, self.appearance.distances(looks) / self.appearance.threshold)

    def to(self, device: torch.device) -> Novelty:
        """The same on a device."""
        return Novelty(self.features.to(device), self.appearance.to(device))


def fit_novelty(
    rows: Floats, labels: NDArray[np.integer], validation: Floats, quantile: float = QUANTILE
) -> Novelty | None:
    """Fit out-of-distribution detection on training tiles, and its thresholds on validation tiles.

    Args:
        rows: Features and appearance of N training tiles, (N, D + 9).
        labels: Their class indices, (N,).
        validation: Features and appearance of validation tiles, (M, D + 9).
        quantile: Share of the validation tiles that lies within both thresholds, in (0, 1).

    Returns:
        What was fitted; None where no distance can be measured, because values are the same for all tiles of a class,
        or not finite.
    """
    if not len(validation) or not np.isfinite(validation).all():
        return None
    parts = []
    for columns in (slice(None, -APPEARANCE), slice(-APPEARANCE, None)):
        part = fit_gaussians(rows[:, columns], labels)
        if part is None:
            return None
        alone = _quantile(part.distances(torch.from_numpy(validation[:, columns])), quantile)
        if not 0 < alone < np.inf:
            return None
        parts.append(replace(part, threshold=alone))
    # Each alone leaves out its own tiles: together they are widened until no more than stated are left out.
    wider = _quantile(Novelty(*parts).ratios(torch.from_numpy(validation)), quantile) * (1 + 1e-6)
    return Novelty(*(replace(part, threshold=part.threshold * wider) for part in parts))


def fit_gaussians(vectors: Floats, labels: NDArray[np.integer]) -> Gaussians | None:
    """Fit on vectors (N, D) with class indices (N,); None for vectors that do not vary within classes."""
    if not len(vectors) or not np.isfinite(vectors).all():
        return None
    exact = vectors.astype(np.float64)
    classes, index = np.unique(labels, return_inverse=True)
    means = np.stack([exact[index == c].mean(0) for c in range(len(classes))])
    residuals = exact - means[index]
    if not residuals.any():
        return None
    # With the covariance L L', |inv(L) (x - m)| is the Mahalanobis distance.
    lower = np.linalg.cholesky(shrunk_covariance(residuals))
    whitening = scipy.linalg.solve_triangular(lower, np.eye(len(lower)), lower=True).T
    return Gaussians(_tensor(means), _tensor(whitening))


def shrunk_covariance(residuals: Float64s) -> Float64s:
    """The covariance (D, D) of residuals (N, D) of mean zero, shrunk to a multiple of the identity; see above."""
    count, side = residuals.shape
    plain = residuals.T @ residuals / count
    mean = np.trace(plain) / side
    square = float((plain**2).sum())
    apart = square - side * mean**2  # the squared distance of the two that are mixed, times D
    noise = (float(((residuals**2).sum(1) ** 2).mean()) - square) / count  # the variance of `plain`, times D
    share = min(max(noise / apart if apart > 0 else 1.0, _MIN_SHRINKAGE), 1.0)
    shrunk = (1 - share) * plain
    shrunk.flat[:: side + 1] += share * mean
    return np.asarray(shrunk)


def _quantile(distances: Tensor, quantile: float) -> float:
    """As few as stated lie beyond, or fewer."""
    return float(np.quantile(distances.numpy(), quantile, method="higher"))


def _tensor(values: Float64s) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)  # in memory that torch aligns: products round alike each time
