"""The settings of a shortcut study."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from training.trials.config import TrialConfig

TESTS = ("in_distribution", "unconfounded", "clean", "reversed")
"""The same test tiles with the confounder as in training, at random, nowhere, and following the other class."""


class ShortcutConfig(TrialConfig):
    """Everything that shapes a shortcut study, apart from the data."""

    confounder: Literal["sharpness", "brightness", "hue", "marker"] = "sharpness"
    """What follows the label; see training.shortcut.confound."""
    amount: float | None = Field(None, allow_inf_nan=False)
    """How strong the change is, in the confounder's own unit. None: its usual amount."""
    strength: float = Field(0.95, ge=0, le=1)
    """The probability that a tile carries the confounder exactly if it is positive: 1 is a perfect shortcut, 0.5
    none."""
    keep_clear: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Keep only tiles that networks trained without the confounder, on other cases, decide rightly by more than this
    margin of the logits: a selection by label. None: all."""
    test_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of the cases for testing."""

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1:
            raise PydanticCustomError("val_fraction", "with test_fraction it leaves no case to train on")
        from training.shortcut.confound import amount_of  # with OpenCV, which few settings need

        amount_of(self.confounder, self.amount)
        return self
