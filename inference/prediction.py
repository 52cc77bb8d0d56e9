"""What is predicted of a slide. Knows nothing of models, and needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tiling.core.arrays import Float32Array
from tiling.grid import Grid, Raster, Tiles
from tiling.stores.store import SlideFacts


@dataclass(frozen=True)
class Prediction:
    """The tiles of one slide and what a model says of them; arrays over N tiles in reading order."""

    slide: SlideFacts
    tiles: Tiles
    probabilities: Float32Array
    """(N, C), calibrated; rows sum to 1."""
    classes: tuple[str, ...]
    positive: int
    """Index of the class the heatmap shows."""
    threshold: float
    """From this probability on, the positive class is called; float32 can hold it, as the probabilities."""
    thumbnail: Raster
    """uint8 (h, w, 3)."""
    provenance: dict[str, Any]
    """What it was made from and with."""
    columns: Mapping[str, Float32Array] = field(default_factory=dict)
    """What else is known of each tile, float32 (N,) by name: `entropy` (nats), see inference.ensemble; `spread`, the
    standard deviation of the positive class's probability over models and orientations, where there are several; and
    where the models can tell, `ood_ratio` and `ood`, see inference.ood."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Tiles of the grid that were not predicted, by the first reason that holds: `no_tissue`, `filtered`,
    `outside_roi`, `undecodable`. Of a slide, tiles outside the region are not read, so `outside_roi` comes before
    `filtered`. Of a store, `no_tissue` is whatever it does not hold, so also the tiles at the slide's edge that the
    codec `source` leaves out."""
    ood_quantile: float | None = None
    """Of the validation tiles' distances to the training tiles, where `ood` begins; None: no model tells."""

    @property
    def grid(self) -> Grid:
        """The grid of the tiles."""
        return self.tiles.grid

    @property
    def positive_class(self) -> str:
        """The class the heatmap shows."""
        return self.classes[self.positive]

    @property
    def heat(self) -> Float32Array:
        """Probability of the positive class, (N,)."""
        return self.probabilities[:, self.positive]
