"""`AUGMENTATIONS`: what the setting `augment` chooses from. Torch is loaded only when one is applied."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Generator, Tensor

Augmentation: TypeAlias = "Callable[[Tensor, Generator], Tensor]"
"""Pixels (B, 3, H, W), float in [0, 1] or uint8, and a random state -> float32 in [0, 1]; see training.augment."""


def _packaged(name: str) -> Augmentation:
    """The function of that name in training.augment."""

    def augment(pixels: Tensor, generator: Generator) -> Tensor:
        function: Augmentation = getattr(import_module("training.augment"), name)
        return function(pixels, generator)

    return augment


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": _packaged("unchanged"),
    "light": _packaged("light"),
    "stain": _packaged("stain"),
    "strong": _packaged("strong"),
}
"""A new one is a function and a row."""
