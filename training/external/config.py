"""The settings of a study of other hospitals, on tiles or on bags of their features."""

from __future__ import annotations

from pydantic import Field

from training.selection.rules import RULES
from training.trials.config import BagTrialConfig, FewerThan1, GridConfig, Positive, TrialConfig


class _Grids(GridConfig):
    """Grids of three values, and what is said of external cases."""

    sd_lambdas: tuple[Positive, ...] = Field((0.01, 0.1, 1.0), min_length=1)
    """Lambdas of spectral decoupling to choose from, for the reduction "sum"; see training.losses."""
    weight_decays: tuple[Positive, ...] = Field((0.1, 1.0, 10.0), min_length=1)
    """Weight decays of AdamW to choose from; each step takes the learning rate times as much off."""
    l2s: tuple[Positive, ...] = Field((1e-4, 1e-3, 1e-2), min_length=1)
    """Weights of the classic penalty to choose from: l2/2 times the squared norm of the weights is added to the
    loss."""
    rate_shares: tuple[FewerThan1, ...] = Field((1.0, 0.3, 0.1), min_length=1)
    """Shares of the learning rate that "undertrained" chooses from, each with the epoch share of its place."""
    epoch_shares: tuple[FewerThan1, ...] = Field((0.5, 1.0, 1.0), min_length=1)
    """Shares of the epochs that "undertrained" chooses from."""
    resamples: int = Field(1000, ge=0, le=100_000)
    """Resamples of cases behind each interval over cases."""


class ExternalConfig(_Grids, TrialConfig):
    """Everything that shapes a study of other hospitals on tiles, apart from the data."""

    consistencies: tuple[Positive, ...] = Field((0.1, 1.0, 10.0), min_length=1)
    """Weights of "consistency" to choose from: half of it times the squared distance between a tile's logits and those
    of a copy, shifted as the rules' copies are, is added to the loss."""
    augment: str = "light"
    """Augmentation of the methods that name none; see training.augment."""


class ExternalBagConfig(_Grids, BagTrialConfig):
    """Everything that shapes a study of other hospitals on bags, apart from the data."""

    rules: tuple[str, ...] = Field(
        tuple(name for name, rule in RULES.items() if not rule.looks_at_copies), min_length=1
    )
    """How each seed chooses a method's setting by its validation: log_loss, tolerance, errors. Features cannot be
    shifted, so that the other rules have nothing to look at."""
    learning_rate: float = Field(3e-4, gt=0, le=10)
    """Peak of AdamW's learning rate, reached over a tenth of the steps and followed by a cosine down to 0."""
    epochs: int = Field(40, ge=1, le=10_000)
    """Epochs; each draws as many bags of every class as the rarer one has."""
    batch_size: int = Field(16, ge=2, le=65_536)
    """Bags per step."""


AnyExternalConfig = ExternalConfig | ExternalBagConfig
