"""The operations of StrongAugment (Pohjonen et al., arXiv 2206.15274) on a batch, each sample by its own amount. Pure.

Pixels are float32 (n, 3, H, W) in [0, 1], amounts (n,). What kornia has per sample is taken from it; the rest is a
line of arithmetic. Definitions and ranges are those of the package strong_augment, whose "tone" is left out. JPEG is
kornia's simulation, which stays on the device and knows a quality a sample: a few grey levels from libjpeg.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from kornia import enhance
from kornia.color import rgb_to_grayscale
from kornia.filters import filter2d, gaussian_blur2d
from torch import Generator, Tensor

DENSEST = 1 / 255
"""Darker pixels count as this much light: black has no finite optical density."""
BLUR_PX = 19
"""Side of the Gaussian's window: three standard deviations to each side of the widest."""
_SHARPEN = ((-1, -1, -1), (-1, 9, -1), (-1, -1, -1))
_EMBOSS = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))

Apply = Callable[[Tensor, Tensor, Generator], Tensor]
"""Pixels, amounts, randomness -> pixels, which may leave [0, 1]."""


@dataclass(frozen=True)
class Operation:
    """An operation on samples, and the range of its amount."""

    apply: Apply
    low: float = 0
    high: float = 1
    whole: bool = False
    """Whether amounts are whole numbers, `high` among them."""


def scale_channel(pixels: Tensor, factor: Tensor, generator: Generator, *, channel: int) -> Tensor:
    """Multiply one colour channel of each sample by a factor of its own.

    Args:
        pixels: float32 (B, 3, H, W) in [0, 1].
        factor: (B,).
        generator: Not used: nothing here is drawn.
        channel: 0 red, 1 green, 2 blue.

    Returns:
        The pixels (B, 3, H, W), not clipped.
    """
    factors = torch.ones(len(pixels), 3, 1, 1, device=pixels.device)
    factors[:, channel, 0, 0] = factor
    return pixels * factors


def turn_hue(pixels: Tensor, turns: Tensor, generator: Generator) -> Tensor:
    """Turn the hue; 1 is once around the circle."""
    return enhance.adjust_hue(pixels, turns * 2 * math.pi)


def saturate(pixels: Tensor, factor: Tensor, generator: Generator) -> Tensor:
    """Multiply the distance from grey."""
    return enhance.adjust_saturation_with_gray_subtraction(pixels, factor)


def brighten(pixels: Tensor, factor: Tensor, generator: Generator) -> Tensor:
    """Multiply all channels."""
    return pixels * _each(factor)


def contrast(pixels: Tensor, factor: Tensor, generator: Generator) -> Tensor:
    """Multiply the distance from the sample's mean grey."""
    return enhance.adjust_contrast_with_mean_subtraction(pixels, factor)


def gamma(pixels: Tensor, exponent: Tensor, generator: Generator) -> Tensor:
    """Raise to a power."""
    return enhance.adjust_gamma(pixels, exponent)


def solarise(pixels: Tensor, threshold: Tensor, generator: Generator) -> Tensor:
    """Invert what is at or above a threshold, 8-bit grey level."""
    return enhance.solarize(pixels, threshold / 255)


def posterise(pixels: Tensor, bits: Tensor, generator: Generator) -> Tensor:
    """Keep the highest 1 to 8 bits of each 8-bit level."""
    kept = 256 - 2 ** (8 - bits.long())
    return (_levels(pixels) & _each(kept)) / 255


def sharpen(pixels: Tensor, weight: Tensor, generator: Generator) -> Tensor:
    """Blend with the sample minus its 8-neighbour Laplacian."""
    return _blended(pixels, _filtered(pixels, _SHARPEN), weight)


def emboss(pixels: Tensor, weight: Tensor, generator: Generator) -> Tensor:
    """Blend with the sample lit from one corner."""
    return _blended(pixels, _filtered(pixels, _EMBOSS), weight)


def blur(pixels: Tensor, sigma: Tensor, generator: Generator) -> Tensor:
    """Gaussian blur; sigma in pixels."""
    return gaussian_blur2d(pixels, BLUR_PX, sigma.clamp(min=1e-3)[:, None].expand(-1, 2))


def noise(pixels: Tensor, weight: Tensor, generator: Generator) -> Tensor:
    """Blend with grey noise, uniform in [0, 1]."""
    grey = torch.rand(len(pixels), 1, *pixels.shape[-2:], generator=generator, device=pixels.device)
    return _blended(pixels, grey, weight)


def jpeg(pixels: Tensor, quality: Tensor, generator: Generator) -> Tensor:
    """Compress and decompress, 4:2:0; quality 0 to 100 as libjpeg counts it."""
    return enhance.jpeg_codec_differentiable(pixels, quality)


def autocontrast(pixels: Tensor, amount: Tensor, generator: Generator) -> Tensor:
    """Stretch each channel to [0, 1]; a channel of one level stays."""
    low, high = pixels.amin(dim=(2, 3), keepdim=True), pixels.amax(dim=(2, 3), keepdim=True)
    return torch.where(high > low, (pixels - low) / (high - low).clamp(min=DENSEST / 2), pixels)


def equalise(pixels: Tensor, amount: Tensor, generator: Generator) -> Tensor:
    """Equalise the histogram of each channel's 8-bit levels, as OpenCV's equalizeHist; a channel of one level stays.

    kornia's own sums floats on the way, which CUDA refuses where algorithms must be deterministic; these are counts.
    """
    levels = _levels(pixels).flatten(2)  # (n, 3, H * W)
    counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.int64, device=pixels.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    first = counts.gather(2, levels.amin(dim=2, keepdim=True))
    rest = levels.shape[2] - first
    table = (counts.cumsum(2) - first) / rest.clamp(min=1)
    equalised = (table.gather(2, levels) * 255).round() / 255
    return torch.where(rest > 0, equalised, levels / 255).reshape(pixels.shape)


def grey(pixels: Tensor, amount: Tensor, generator: Generator) -> Tensor:
    """Luma in all channels."""
    return rgb_to_grayscale(pixels).expand_as(pixels)


def _each(amount: Tensor) -> Tensor:
    return amount[:, None, None, None]


def _blended(pixels: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    return torch.lerp(pixels, other.expand_as(pixels), _each(weight))


def _filtered(pixels: Tensor, kernel: tuple[tuple[float, ...], ...]) -> Tensor:
    return filter2d(pixels, torch.tensor(kernel, dtype=pixels.dtype, device=pixels.device)[None])


def _levels(pixels: Tensor) -> Tensor:
    """8-bit grey levels as int64."""
    return (pixels * 255).round().long()


STRONG: dict[str, Operation] = {
    "red": Operation(partial(scale_channel, channel=0), 0, 2),
    "green": Operation(partial(scale_channel, channel=1), 0, 2),
    "blue": Operation(partial(scale_channel, channel=2), 0, 2),
    "hue": Operation(turn_hue, -0.5, 0.5),
    "saturation": Operation(saturate, 0, 2),
    "brightness": Operation(brighten, 0.1, 2),
    "contrast": Operation(contrast, 0.1, 2),
    "gamma": Operation(gamma, 0.1, 2),
    "solarise": Operation(solarise, 0, 255, whole=True),
    "posterise": Operation(posterise, 1, 8, whole=True),
    "sharpen": Operation(sharpen, 0, 1),
    "emboss": Operation(emboss, 0, 1),
    "blur": Operation(blur, 0, 3),
    "noise": Operation(noise, 0, 0.2),
    "jpeg": Operation(jpeg, 0, 100, whole=True),
    "autocontrast": Operation(autocontrast),
    "equalise": Operation(equalise),
    "grey": Operation(grey),
}
