"""What a report shows beside the prediction itself: the most and the least suspicious tiles, and quality columns."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.occlusion import Positives, occlusion_map
from inference.prediction import Prediction
from inference.recipes import is_store
from inference.store_pixels import store_region
from tiling import Slide, TileStore
from tiling.core.arrays import Float32Array, UInt8Array
from tiling.core.errors import SpecslideError
from tiling.tile import read_tiles

log = logging.getLogger(__name__)

SHOWN = 8
"""Tiles shown of the most suspicious, and of the least."""
AROUND = 2
"""A tile is shown in the middle of a square of so many times its side."""
AROUND_PX = 384
"""Side of that square in the report, pixels."""

_Around = Callable[[int, int, int], UInt8Array]
"""Left and upper edge and side of a square, level-0 pixels -> its pixels, (AROUND_PX, AROUND_PX, 3)."""


@dataclass(frozen=True)
class ShownTile:
    """A tile that a report shows."""

    row: int
    """In the prediction."""
    pixels: UInt8Array
    """As the model saw it, (T, T, 3)."""
    around: UInt8Array | None = None
    """With its surroundings, (AROUND_PX, AROUND_PX, 3); None where these cannot be read."""
    occlusion: Float32Array | None = None
    """As `occlusion_map`, (T, T); None: it was not asked for."""


@dataclass(frozen=True)
class Evidence:
    """The tiles and quality columns that a report shows beside the prediction."""

    highest: tuple[ShownTile, ...] = ()
    """The most suspicious tiles."""
    lowest: tuple[ShownTile, ...] = ()
    quality: Mapping[str, Float32Array] = field(default_factory=dict)
    """Quality columns of the predicted tiles, (N,), by name; of a store only."""


def gather_evidence(
    source: Path, prediction: Prediction, slide_mpp: float | None = None, positives: Positives | None = None
) -> Evidence:
    """Read the tiles to show from the slide or store that a prediction was made of.

    Args:
        source: The slide or tile store.
        prediction: What was predicted of it.
        slide_mpp: Micrometres per level-0 pixel, where the slide's file does not say.
        positives: What the model says of tiles, to show on which parts of a tile it depends; None: that is not shown.

    Returns:
        The tiles and columns.

    Raises:
        SlideError, StoreError: If the source cannot be read.
        ConfigError: As `occlusion_map`.
    """
    extreme = extremes(prediction.heat)
    rows = np.concatenate(extreme)
    if is_store(source):
        store = TileStore(source)
        row_at = {place: row for row, place in enumerate(store.tiles.places())}
        stored = np.array([row_at[place] for place in prediction.tiles.places()], np.intp)
        pixels = dict(zip(rows.tolist(), store.read(stored[rows]), strict=True))
        around = _surroundings(prediction, pixels, lambda x0, y0, side0: store_region(store, x0, y0, side0, AROUND_PX))
        quality = {name: values[stored] for name, values in store.quality.items()}
    else:
        with Slide(source, mpp=slide_mpp, icc=prediction.icc) as slide:
            found = read_tiles(slide, prediction.tiles.only(rows), 1.0)
            pixels = {int(rows[index]): tile for index, tile in found}
            size = (AROUND_PX, AROUND_PX)
            around = _surroundings(
                prediction, pixels, lambda x0, y0, side0: slide.read_scaled(x0, y0, (side0, side0), size)
            )
        quality = {}
    changes = {} if positives is None else {row: occlusion_map(tile, positives) for row, tile in pixels.items()}
    shown = {row: ShownTile(row, tile, around.get(row), changes.get(row)) for row, tile in pixels.items()}
    highest, lowest = (tuple(shown[row] for row in part.tolist() if row in shown) for part in extreme)
    return Evidence(highest, lowest, quality)


def _surroundings(prediction: Prediction, pixels: Mapping[int, UInt8Array], read: _Around) -> dict[int, UInt8Array]:
    """The tiles of these rows in the middle of what lies around them; without those where that cannot be read."""
    tiles, side0, found = prediction.tiles, prediction.grid.tile_px0, {}
    margin0 = side0 * (AROUND - 1) // 2
    for row in pixels:
        try:
            found[row] = read(int(tiles.x0[row]) - margin0, int(tiles.y0[row]) - margin0, side0 + 2 * margin0)
        except SpecslideError as error:
            log.warning("%s: %s; a tile is shown without its surroundings", prediction.slide.slide_id, error.what)
    return found


def extremes(probabilities: NDArray[np.floating[Any]], count: int = SHOWN) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of the tiles (N,) of highest and lowest probability, the extreme first; no tile is in both."""
    order = np.argsort(-probabilities, kind="stable")
    highest = order[:count]
    return highest, order[len(highest) :][::-1][:count]
