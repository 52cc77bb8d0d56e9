"""The trials' training loop: tiles or bags in memory -> a trained network -> logits. One thread, and deterministic.

Its own, since hundreds of short runs would pay many times over for the loaders, logs, checkpoints and model folders of
`train`. Network, loss, optimiser, sampler, augmentations and metrics are the trainer's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tiling.core.errors import ConfigError, ModelError
from training.augmentations import AUGMENTATIONS
from training.data.bags import PADDING
from training.data.samplers import epoch_order, global_batches
from training.evaluation.perturbations import shifted_copies
from training.losses import SpectralDecouplingLoss, consistency_penalty, l2_penalty, spectral_decoupling
from training.mil.heads import HeadShape
from training.mil.model import BagClassifier
from training.models.backbones import load_weights
from training.models.classifier import TileClassifier, make_classifier
from training.models.stain import missing_package, normalise, stain_target
from training.models.stain_targets import StainTarget
from training.optim import decayed_weights, parameter_groups, rate_at
from training.trials.config import AnyTrialConfig, Run, Setting, TrialConfig
from training.trials.tiles import Content

Pixels = NDArray[np.uint8]
Network = TileClassifier | BagClassifier
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

WARMUP = 0.1
AT_ONCE = 256
BAGS_AT_ONCE = 16


class Trained:
    """A trained network and how its tiles are prepared."""

    def __init__(self, run: Run, network: Network, target: StainTarget | None) -> None:
        self.run, self._network, self._target = run, network.eval(), target

    def logits(self, content: Content) -> Floats:
        """float64 (n, 2) of n tiles or bags. Raises ModelError if one is not finite."""
        size = AT_ONCE if isinstance(self._network, TileClassifier) else BAGS_AT_ONCE
        with torch.inference_mode():
            parts = [
                self._network(_normalised(part, self._target)) for part in torch.split(torch.from_numpy(content), size)
            ]
        logits: Floats = torch.cat(parts).double().numpy()
        if not np.isfinite(logits).all():
            raise ModelError(f"the study's {self.run}", "its logits are no longer finite", "use a lower learning_rate")
        return logits


def trained(run: Run, content: Content, label: Ints, config: AnyTrialConfig) -> Trained:
    """The network of a run.

    Args:
        run: Its setting and seed.
        content: Tiles or bags, as in `TileSet`.
        label: 0 or 1, (n,).
        config: The study's settings.

    Returns:
        The network.

    Raises:
        ConfigError: For a backbone, weights or input size that cannot be.
    """
    network = untrained(config, content)
    setting, data = run.setting, torch.from_numpy(content)
    target = None if setting.stain == "none" else stain_target(setting.stain, data)  # type: ignore[arg-type]
    _fit(network, _normalised(data, target), torch.from_numpy(label), run, config)
    return Trained(run, network, target)


def untrained(config: AnyTrialConfig, content: Content) -> Network:
    """The network before its first step, from torch's random state or the weights of the study.

    Args:
        config: The study's settings.
        content: What it is to be trained on; bags are standardised by it.

    Returns:
        The network.

    Raises:
        ConfigError: For a backbone, weights or input size that cannot be.
    """
    if isinstance(config, TrialConfig):
        side = content.shape[1]
        network = make_classifier(config.backbone, 2, config.input_px or side, side)
        load_weights(network, config.backbone, config.weights)
        return network
    bags = BagClassifier(config.head, HeadShape(content.shape[2] - 1, 2, config.head_dim, config.dropout))
    bags.standardise(content[content[..., 0] != PADDING][:, 1:])
    return bags


def require_trainable(config: AnyTrialConfig, content: Content) -> None:
    """Raise ConfigError for a backbone, weights or input size that cannot be, and for a package that a method lacks."""
    if any("stain_norm" in method.split("+") for method in config.methods) and (fix := missing_package()) is not None:
        raise ConfigError("methods", "stain_norm needs the package torchstain", fix)
    with settled(0):
        untrained(config, content)


def copies_of(content: Content, config: AnyTrialConfig) -> dict[str, Content]:
    """Shifted copies of tiles uint8 (n, T, T, 3), by shift and strength; none of bags."""
    return {name: shift(content) for name, shift in shifts_of(config).items()}


def shifts_of(config: AnyTrialConfig) -> dict[str, Callable[[Pixels], Pixels]]:
    """What shifts tiles, by shift and strength."""
    return shifted_copies(config.shifts) if isinstance(config, TrialConfig) else {}


@contextmanager
def settled(seed: int) -> Iterator[None]:
    """Seed torch, make it deterministic and single-threaded; all is put back afterwards."""
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic)


def quadratic_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy's second-order expansion at logits of 0, a mean over the batch.

    ln C - (z_y - mean z) + var(z) / 2. For two classes and the margin m of the true one it is ln 2 - m/2 + m^2/8, and
    with spectral decoupling (lambda/4 m^2) it is least squares to margins of 1/(lambda + 1/2): what SD does without
    anything that a cross-entropy knows of.
    """
    centred = logits - logits.mean(dim=1, keepdim=True)
    of_true = centred.gather(1, labels[:, None])[:, 0]
    return math.log(logits.shape[1]) + (centred.square().mean(dim=1) / 2 - of_true).mean()


def loss_of(setting: Setting, late: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """Logits (B, 2) and labels (B,) -> the loss, less L2; `late`: whether SD has set in."""
    strength = setting.sd_lambda if late else 0.0
    if setting.least_squares:
        return lambda logits, labels: quadratic_cross_entropy(logits, labels) + spectral_decoupling(logits, strength)
    return SpectralDecouplingLoss(strength, gamma=setting.sd_gamma)


def _fit(network: Network, content: Tensor, labels: Tensor, run: Run, config: AnyTrialConfig) -> None:
    """Train the network in place on n tiles or bags; `labels` (n,)."""
    setting = run.setting
    draws = 2 * int(torch.bincount(labels, minlength=2).min())
    orders = [
        epoch_order(len(labels), seed=run.seed, epoch=epoch, draws=draws, levels=[labels.numpy()])
        for epoch in range(config.epochs)
    ]
    batches = [batch for order in orders for batch in global_batches(order, config.batch_size)]
    batches = batches[: max(1, round(setting.epoch_share * len(batches)))]
    warmup, late = round(WARMUP * len(batches)), round(setting.sd_start * len(batches))
    before, after = loss_of(setting, late=False), loss_of(setting, late=True)
    optimiser = torch.optim.AdamW(
        parameter_groups(network, setting.weight_decay),
        lr=config.learning_rate * setting.rate_share,
        weight_decay=0.0,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_at(step, len(batches), warmup))
    randomness = torch.Generator().manual_seed(run.seed)
    augment, weights = AUGMENTATIONS[setting.augment], decayed_weights(network)
    shifts = list(shifts_of(config).values()) if setting.shifted_sd or setting.consistency else []
    draws_of_shifts = np.random.default_rng([run.seed, len(shifts)])
    network.train()
    for step, batch in enumerate(batches):
        chosen = torch.from_numpy(batch)
        pixels = augment(network.pixels(content[chosen]), randomness)
        if shifts:  # one forward of both, so that norms see in training the mixture that they keep
            shift = shifts[draws_of_shifts.integers(len(shifts))]
            copies = network.pixels(torch.from_numpy(shift(content[chosen].numpy())))
            logits, of_copies = torch.split(network.logits(torch.cat([pixels, copies])), len(batch))
        else:
            logits = network.logits(pixels)
        loss = (after if step >= late else before)(logits, labels[chosen])
        if shifts:
            loss = loss + spectral_decoupling(of_copies, setting.shifted_sd)
            loss = loss + consistency_penalty(logits, of_copies, setting.consistency)
        if setting.l2:
            loss = loss + l2_penalty(weights, setting.l2)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()


def _normalised(tiles: Tensor, target: StainTarget | None) -> Tensor:
    """The tiles with the target's staining, each once rather than in every epoch; None changes nothing."""
    return tiles if target is None else torch.cat([normalise(part, target) for part in torch.split(tiles, AT_ONCE)])
