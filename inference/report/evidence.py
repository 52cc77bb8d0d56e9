"""What a report shows beside the prediction itself: the most and the least suspicious tiles, and quality columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.prediction import Prediction
from inference.recipes import is_store
from tiling import Slide, TileStore
from tiling.core.arrays import Float32Array, UInt8Array
from tiling.tile import read_tiles

SHOWN = 8
"""Tiles shown of the most suspicious, and of the least."""


@dataclass(frozen=True)
class Evidence:
    """The tiles and quality columns that a report shows beside the prediction."""

    highest: tuple[tuple[int, UInt8Array], ...] = ()
    """The most suspicious tiles: their row in the prediction, and pixels uint8 (T, T, 3)."""
    lowest: tuple[tuple[int, UInt8Array], ...] = ()
    quality: Mapping[str, Float32Array] = field(default_factory=dict)
    """Quality columns of the predicted tiles, (N,), by name; of a store only."""


def gather_evidence(source: Path, prediction: Prediction, slide_mpp: float | None = None) -> Evidence:
    """Read the tiles to show from the slide or store the prediction was made of. Raises SlideError, StoreError."""
    highest, lowest = extremes(prediction.heat)
    rows = np.concatenate([highest, lowest])
    if is_store(source):
        store = TileStore(source)
        row_at = {place: row for row, place in enumerate(store.tiles.places())}
        stored = np.array([row_at[place] for place in prediction.tiles.places()], np.intp)
        pixels = dict(zip(rows.tolist(), store.read(stored[rows]), strict=True))
        quality = {name: values[stored] for name, values in store.quality.items()}
    else:
        with Slide(source, mpp=slide_mpp, icc=prediction.icc) as slide:
            found = read_tiles(slide, prediction.tiles.only(rows), 1.0)
            pixels = {int(rows[index]): tile for index, tile in found}
        quality = {}
    highest_shown, lowest_shown = (
        tuple((row, pixels[row]) for row in part.tolist() if row in pixels) for part in (highest, lowest)
    )
    return Evidence(highest_shown, lowest_shown, quality)


def extremes(probabilities: NDArray[np.floating[Any]], count: int = SHOWN) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of the tiles (N,) of highest and lowest probability, the extreme first; no tile is in both."""
    order = np.argsort(-probabilities, kind="stable")
    highest = order[:count]
    return highest, order[len(highest) :][::-1][:count]
