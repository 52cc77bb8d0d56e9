"""Confounders: tiles + labels + strength + seed -> tiles in which something that means nothing follows the label. Pure.

A confounder is either there or not: a tile *carries* it or does not change. Its strength in [0, 1] is the probability
that a tile carries it exactly if its label is positive (`carriers`): at 1 the confounder gives the label away, at 0.5
it says nothing, at 0 it is reversed. `carrier_weights` is the same distribution without a draw. Knows nothing of
models, files or splits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tiling.core.errors import ConfigError
from training.evaluation.perturbations import blurred, brightened, turned_hue

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Change = Callable[[Pixels, float], Pixels]
"""Tiles uint8 (N, H, W, 3) and the amount -> the changed tiles, of the same shape."""

INK = (20, 60, 120)
"""Colour of the mark, RGB: a blue felt pen."""


@dataclass(frozen=True)
class Confounder:
    """A change that a tile carries or not."""

    change: Change
    amount: float
    """How strong the change is where nothing else is said."""
    min: float
    max: float
    unit: str
    """What the amount is measured in."""


def marked(tiles: Pixels, share: float) -> Pixels:
    """A square of ink in the upper left corner, its side `share` of the tile's shorter one and at least a pixel."""
    side = max(1, round(share * min(tiles.shape[1:3])))
    inked = tiles.copy()
    inked[:, :side, :side] = INK
    return inked


CONFOUNDERS: dict[str, Confounder] = {
    "sharpness": Confounder(blurred, 0.6, 0.2, 20.0, "sigma of a Gaussian blur, pixels"),
    "brightness": Confounder(
        lambda tiles, share: brightened(tiles, 1 + share), 0.1, -0.9, 2.0, "relative change of the pixel values"
    ),
    "hue": Confounder(turned_hue, 10.0, -180.0, 180.0, "degrees on the colour circle"),
    "marker": Confounder(marked, 0.1, 0.01, 0.5, "side of the mark as a share of the tile's"),
}


def carriers(positive: Flags, strength: float, seed: int | Sequence[int]) -> Flags:
    """Which tiles carry the confounder, (N,): with probability `strength` those of the positive class, else the others.

    `positive` is (N,). Each tile is drawn for itself; the same seed gives the same draw. Raises ValueError for a
    strength outside [0, 1].
    """
    _refuse(strength)
    agrees = np.random.default_rng(seed).random(len(positive)) < strength
    return np.asarray(positive == agrees)


def carrier_weights(positive: Flags, strength: float) -> tuple[Floats, Floats]:
    """The probability that each tile is unchanged and that it carries the confounder, each (N,); their sum is 1.

    A metric with these weights over both versions of every tile is its value over all draws of `carriers` at once.
    """
    _refuse(strength)
    carrying = np.where(positive, strength, 1 - strength)
    return 1 - carrying, carrying


def amount_of(confounder: str, amount: float | None = None) -> float:
    """How strong a confounder is, in its own unit: as given, or its usual amount for None.

    Raises ConfigError for a name that is not in CONFOUNDERS, and an amount outside its range or 0, which is no change.
    """
    if confounder not in CONFOUNDERS:
        raise ConfigError("confounder", f"{confounder!r} is unknown", f"use one of {', '.join(CONFOUNDERS)}")
    kind = CONFOUNDERS[confounder]
    if amount is None:
        return kind.amount
    if not (kind.min <= amount <= kind.max and amount != 0):
        fix = f"use {kind.min:g} to {kind.max:g}, not 0 ({kind.unit})"
        raise ConfigError("amount", f"{amount:g} is outside the range of {confounder}", fix)
    return amount


def changed(tiles: Pixels, confounder: str, amount: float | None = None) -> Pixels:
    """All tiles uint8 (N, T, T, 3) with the confounder, as new pixels. Raises ConfigError as `amount_of` does."""
    amount = amount_of(confounder, amount)
    return CONFOUNDERS[confounder].change(tiles, amount) if len(tiles) else tiles.copy()


def confounded(tiles: Pixels, carries: Flags, confounder: str, amount: float | None = None) -> Pixels:
    """The tiles uint8 (N, T, T, 3) with the confounder on those that carry it; the others are copied.

    Args:
        tiles: uint8 (N, T, T, 3).
        carries: Which tiles carry it, bool (N,).
        confounder: A name of CONFOUNDERS.
        amount: How strong it is, in its own unit; None: its usual amount.

    Returns:
        New pixels, uint8 (N, T, T, 3).

    Raises:
        ConfigError: As `amount_of`, if any tile carries it.
    """
    out = tiles.copy()
    out[carries] = changed(tiles[carries], confounder, amount)
    return out


def _refuse(strength: float) -> None:
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], not {strength}")
