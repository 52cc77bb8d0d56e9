"""Augmentations: batch -> batch on the device, each sample changed by itself. Pure, given a torch.Generator.

Pixels are float32 (B, 3, H, W) in [0, 1] before and after. Knows nothing of data or models.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

Augmentation = Callable[[Tensor, Generator], Tensor]

BRIGHTNESS = 0.10  # largest shift of all channels together
TINT = 0.05  # largest shift of one channel by itself: a mild change of stain
CONTRAST = 0.15  # largest relative change of the distance from the sample's mean


def unchanged(pixels: Tensor, generator: Generator) -> Tensor:
    """No augmentation."""
    return pixels


def light(pixels: Tensor, generator: Generator) -> Tensor:
    """One of the eight flips and right-angle turns, then mild brightness, contrast and tint, for each sample."""
    return jitter(turn(pixels, generator), generator)


def turn(pixels: Tensor, generator: Generator) -> Tensor:
    """Flip and turn each sample: each of the eight symmetries of the square equally often. Needs H == W."""
    for turned in (_mirrored, _upside_down, _transposed):
        chosen = torch.rand(len(pixels), 1, 1, 1, generator=generator, device=pixels.device) < 0.5
        pixels = torch.where(chosen, turned(pixels), pixels)
    return pixels


def jitter(pixels: Tensor, generator: Generator) -> Tensor:
    """Shift brightness, contrast and each channel of each sample by a uniformly drawn, mild amount."""

    def draw(channels: int, limit: float) -> Tensor:
        uniform = torch.rand(len(pixels), channels, 1, 1, generator=generator, device=pixels.device)
        return limit * (2 * uniform - 1)

    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    shift = draw(1, BRIGHTNESS) + draw(3, TINT)
    return ((pixels - mean) * (1 + draw(1, CONTRAST)) + mean + shift).clamp(0, 1)


def _mirrored(pixels: Tensor) -> Tensor:
    return pixels.flip(-1)


def _upside_down(pixels: Tensor) -> Tensor:
    return pixels.flip(-2)


def _transposed(pixels: Tensor) -> Tensor:
    return pixels.transpose(-1, -2)


AUGMENTATIONS: dict[str, Augmentation] = {"none": unchanged, "light": light}
