"""What moves the weights: groups of parameters, learning rates, gradient clipping, an exponential moving average."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]  # timm exports it all the same
from torch import Tensor, nn

from training.models.classifier import TileClassifier


def parameter_groups(network: nn.Module, weight_decay: float, layer_decay: float | None = None) -> list[dict[str, Any]]:
    """The optimiser's groups of all parameters that are trained: weight decay is kept off biases and norms.

    Layer-wise learning rate decay: with `layer_decay` in (0, 1] each group has an `lr_scale`, layer_decay^(layers to
    the head), by timm's own division of the backbone into layers (BEiT, arXiv 2106.08254).
    """
    if layer_decay is not None and isinstance(network, TileClassifier):
        groups: list[dict[str, Any]] = param_groups_layer_decay(
            network.backbone, weight_decay=weight_decay, layer_decay=layer_decay
        )
        return groups
    return [
        {"params": decayed_weights(network), "weight_decay": weight_decay},
        {"params": [p for p in network.parameters() if p.requires_grad and p.ndim <= 1], "weight_decay": 0.0},
    ]


def decayed_weights(network: nn.Module) -> list[nn.Parameter]:
    """The weights that penalties on weights act on: all that are trained but biases and norms."""
    return [p for p in network.parameters() if p.requires_grad and p.ndim > 1]


def rate_at(step: int, steps: int, warmup: int) -> float:
    """Share of the peak learning rate at a step from 0: linear up over the warm-up, then half a cosine down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def update_ema(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move an exponential moving average (EMA) of the weights one step on: average <- d * average + (1 - d) * weights.

    d is min(decay, (1 + step) / (10 + step)), so that a short run does not remember its first weights (as in
    TensorFlow's ExponentialMovingAverage). Buffers of norms are averaged too, counters copied.

    Args:
        average: The network that holds the average; changed in place.
        network: The network that is trained.
        decay: In [0, 1).
        step: From 0.

    Raises:
        ValueError: If the two networks are not alike.
    """
    d = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for mean, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(new, 1 - d)
            else:
                mean.copy_(new)


def clip_gradients(parameters: Iterable[Tensor], clip: float | None) -> Tensor:
    """Gradient clipping to the Euclidean norm `clip` of all gradients together; returns what the norm was."""
    trained = [p for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    if clip is not None:
        torch.nn.utils.clip_grads_with_norm_(trained, clip, norm)
    return norm
