"""Augmentations: batch -> batch on the device, each sample changed by itself. Pure, given a torch.Generator.

Pixels come as float (B, 3, H, W) in [0, 1] or as uint8, and leave as float32 in [0, 1]; H == W. All randomness comes
from the generator, which must be of the pixels' device. Knows nothing of data or models.
"""

from __future__ import annotations

from functools import wraps

import numpy as np
import torch
from torch import Generator, Tensor

from tiling.quality import HED
from training.augment_ops import DENSEST, STRONG, Operation
from training.augmentations import Augmentation

BRIGHTNESS = 0.10  # largest shift of all channels together
TINT = 0.05  # largest shift of one channel by itself: a mild change of stain
CONTRAST = 0.15  # largest relative change of the distance from the sample's mean
CROP = 1 / 16  # largest shift of the window, of the side
STAIN_SCALE = 0.2  # largest relative change of each stain's amount
STAIN_SHIFT = 0.03  # largest absolute one, natural optical density


def _on_floats(augmentation: Augmentation) -> Augmentation:
    """Let it take uint8 too, and compute in 32 bits even inside a step of mixed precision."""

    @wraps(augmentation)
    def augment(pixels: Tensor, generator: Generator) -> Tensor:
        with torch.autocast(pixels.device.type, enabled=False):
            whole = pixels.dtype == torch.uint8
            return augmentation(pixels.float() / 255 if whole else pixels.float(), generator)

    return augment


@_on_floats
def unchanged(pixels: Tensor, generator: Generator) -> Tensor:
    """No augmentation."""
    return pixels


@_on_floats
def light(pixels: Tensor, generator: Generator) -> Tensor:
    """One of the eight flips and right-angle turns, a small crop, and mild brightness, contrast and tint."""
    return jitter(crop(turn(pixels, generator), generator), generator)


@_on_floats
def stain(pixels: Tensor, generator: Generator) -> Tensor:
    """What `light` does, and stain jitter."""
    return stain_jitter(light(pixels, generator), generator)


@_on_floats
def strong(pixels: Tensor, generator: Generator) -> Tensor:
    """Flips, turns and small crops, then 2 to 4 operations of `training.augment_ops.STRONG`."""
    return several(crop(turn(pixels, generator), generator), generator)


def turn(pixels: Tensor, generator: Generator) -> Tensor:
    """Flip and turn each sample: each of the eight symmetries of the square equally often. Needs H == W."""
    pixels = _either(pixels, pixels.flip(-1), generator)
    pixels = _either(pixels, pixels.flip(-2), generator)
    return _either(pixels, pixels.mT, generator)


def crop(pixels: Tensor, generator: Generator) -> Tensor:
    """Move the window on each sample by up to 1/16 of the side, in whole pixels; what it lacks is mirrored.

    Nothing is resampled: a crop that is stretched again would blur, and sharpness is itself something to learn from.
    """
    height, width = pixels.shape[-2:]
    rows = _window(pixels, height, generator)[:, None, :, None]
    columns = _window(pixels, width, generator)[:, None, None, :]
    return pixels.gather(2, rows.expand_as(pixels)).gather(3, columns.expand_as(pixels))


def jitter(pixels: Tensor, generator: Generator) -> Tensor:
    """Shift brightness, contrast and each channel of each sample by a uniformly drawn, mild amount."""

    def draw(channels: int, limit: float) -> Tensor:
        return limit * (2 * _uniform(pixels, generator, channels) - 1)

    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    shift = draw(1, BRIGHTNESS) + draw(3, TINT)
    return ((pixels - mean) * (1 + draw(1, CONTRAST)) + mean + shift).clamp(0, 1)


def stain_jitter(pixels: Tensor, generator: Generator) -> Tensor:
    """Scale and shift the amounts of haematoxylin, eosin and residual of each sample (Tellez et al., IEEE TMI 2018).

    Amounts are optical densities unmixed by Ruifrok & Johnston's matrix. For density d and matrix M, with the stains as
    rows, the new density is M^T (scale * M^-T d + shift): one 3 x 3 matrix and one vector a sample.
    """
    scale, shift = (2 * _uniform(pixels, generator, 3).flatten(1) - 1 for _ in range(2))
    mixing = torch.from_numpy(HED.T.copy()).to(pixels)
    unmixing = torch.from_numpy(np.linalg.inv(HED.T)).to(pixels)
    matrix = (mixing * (1 + STAIN_SCALE * scale)[:, None, :]) @ unmixing  # (B, 3, 3)
    density = -pixels.clamp(min=DENSEST).log().flatten(2)  # (B, 3, H * W)
    changed = torch.baddbmm((STAIN_SHIFT * shift @ mixing.T)[:, :, None], matrix, density)
    return (-changed).exp().clamp(max=1).reshape(pixels.shape)


def several(pixels: Tensor, generator: Generator) -> Tensor:
    """2 to 4 different operations (with odds 5 : 3 : 2) for each sample, in random order and by random amounts.

    Samples that drew the same operation at the same place are changed together.
    """
    names = tuple(STRONG)
    draws = torch.rand(len(pixels), len(names) + 5, generator=generator, device=pixels.device)
    amounts = draws[:, :4]
    count = 2 + (draws[:, 4:5] >= 0.5).int() + (draws[:, 4:5] >= 0.8).int()
    order = draws[:, 5:].argsort(dim=1, stable=True)[:, :4]
    order = torch.where(torch.arange(4, device=pixels.device) < count, order, -1)
    pixels = pixels.clone()
    for place, chosen in enumerate(order.cpu().T.numpy()):  # the one time the device is waited for
        for number in sorted(set(chosen.tolist()) - {-1}):
            rows = torch.from_numpy(np.flatnonzero(chosen == number)).to(pixels.device)
            pixels[rows] = _applied(STRONG[names[number]], pixels[rows], amounts[rows, place], generator)
    return pixels


def _applied(operation: Operation, pixels: Tensor, uniform: Tensor, generator: Generator) -> Tensor:
    """The operation by an amount for each uniform number (n,) in [0, 1)."""
    low, high = operation.low, operation.high
    amount = (low + uniform * (high - low + 1)).floor() if operation.whole else low + uniform * (high - low)
    return operation.apply(pixels, amount, generator).clamp(0, 1)


def _either(pixels: Tensor, other: Tensor, generator: Generator) -> Tensor:
    """Each sample from the one or the other, equally often."""
    return torch.where(_uniform(pixels, generator, 1) < 0.5, other, pixels)


def _uniform(pixels: Tensor, generator: Generator, channels: int) -> Tensor:
    return torch.rand(len(pixels), channels, 1, 1, generator=generator, device=pixels.device)


def _window(pixels: Tensor, side: int, generator: Generator) -> Tensor:
    """Where each sample's window takes its pixels from along one axis, int64 (B, side)."""
    limit = int(side * CROP)
    shift = torch.randint(-limit, limit + 1, (len(pixels), 1), generator=generator, device=pixels.device)
    place = (torch.arange(side, device=pixels.device) + shift).abs()
    return (side - 1) - ((side - 1) - place).abs()
