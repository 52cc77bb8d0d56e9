"""Occlusion: by how much the model's probability of a tile changes where a part of the tile is blurred.

That says on which parts the number depends, and nothing of what they show. A window slides over the tile (Zeiler and
Fergus 2014), and what it covers is blurred, which takes its detail and leaves its colour (Fong and Vedaldi 2017).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import cv2
import numpy as np

from tiling.core.arrays import Float32Array, UInt8Array
from tiling.core.errors import ConfigError

Positives = Callable[[UInt8Array], Float32Array]
"""Tiles uint8 (B, T, T, 3) -> probabilities of the positive class, float32 (B,)."""

_WINDOWS, _STEPS = 4, 8
"""A side of the tile is so many windows, and so many steps of the window, long."""
_BATCH = 64


def require_occlusion() -> None:
    """Raise ConfigError where the package that slides the window is missing."""
    if find_spec("captum") is None:
        raise ConfigError("occlusion", "needs captum, which is missing", "pip install 'specslide[occlusion]'")


def occlusion_map(tile: UInt8Array, positives: Positives) -> Float32Array:
    """By how much blurring each place of a tile (T, T, 3) lowers its probability, float32 (T, T).

    Mean over the windows that cover a place: above 0 it speaks for the positive class, below 0 against it. Raises
    ConfigError as `require_occlusion`.
    """
    require_occlusion()
    import torch  # here, for it takes seconds, and a report or viewer that asks no model needs none
    from captum.attr import Occlusion

    side = len(tile)
    window, step = max(1, side // _WINDOWS), max(1, side // _STEPS)
    blurred = cv2.GaussianBlur(tile, (0, 0), side / (2 * _WINDOWS))  # wide enough to leave nothing of a window's detail

    def forward(tiles: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(positives(tiles.numpy().astype(np.uint8)))

    seen, hidden = (torch.from_numpy(np.asarray(picture, np.float32)[None]) for picture in (tile, blurred))
    change = Occlusion(forward).attribute(
        seen, (window, window, 3), (step, step, 3), hidden, perturbations_per_eval=_BATCH
    )  # fmt: skip
    return np.asarray(change[0, :, :, 0].numpy(), np.float32)
