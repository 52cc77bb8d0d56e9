"""The settings of a study of other hospitals."""

from __future__ import annotations

from pydantic import Field

from training.trials.config import FewerThan1, Positive, TrialConfig


class ExternalConfig(TrialConfig):
    """Everything that shapes a study of other hospitals, apart from the data."""

    sd_lambdas: tuple[Positive, ...] = Field((0.01, 0.1, 1.0), min_length=1)
    """Lambdas of spectral decoupling to choose from, for the reduction "sum"; see training.losses."""
    weight_decays: tuple[Positive, ...] = Field((0.1, 1.0, 10.0), min_length=1)
    """Weight decays of AdamW to choose from; each step takes the learning rate times as much off."""
    l2s: tuple[Positive, ...] = Field((1e-4, 1e-3, 1e-2), min_length=1)
    """Weights of the classic penalty to choose from: l2/2 times the squared norm of the weights is added to the
    loss."""
    consistencies: tuple[Positive, ...] = Field((0.1, 1.0, 10.0), min_length=1)
    """Weights of "consistency" to choose from: half of it times the squared distance between a tile's logits and those
    of a copy, shifted as the rules' copies are, is added to the loss."""
    rate_shares: tuple[FewerThan1, ...] = Field((1.0, 0.3, 0.1), min_length=1)
    """Shares of the learning rate that "undertrained" chooses from, each with the epoch share of its place."""
    epoch_shares: tuple[FewerThan1, ...] = Field((0.5, 1.0, 1.0), min_length=1)
    """Shares of the epochs that "undertrained" chooses from."""
    augment: str = "light"
    """Augmentation of the methods that name none; see training.augment."""
    resamples: int = Field(1000, ge=0, le=100_000)
    """Resamples of cases behind each interval over cases."""
