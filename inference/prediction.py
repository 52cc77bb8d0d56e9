"""What is predicted of a slide. Knows nothing of models, and needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tiling.core.arrays import Float32Array, Icc
from tiling.core.text import counted
from tiling.grid import Grid, Raster, Tiles
from tiling.stores.store import SlideFacts

RATIO, FLAG = "ood_ratio", "ood"
"""The out-of-distribution columns, see inference.ood."""
ATTENTION_THRESHOLD = 0.5
"""Of attention relative to the largest on the slide, from where on the map's regions are."""


@dataclass(frozen=True)
class BagPrediction:
    """What a model of bags says of a slide as a whole, and of how its tiles weigh in that."""

    probabilities: Float32Array
    """Of the slide, (C,), calibrated; their sum is 1."""
    attention: Float32Array
    """Of its tiles, (N,), at least 0; their sum is 1. No probability."""

    @property
    def relative(self) -> Float32Array:
        """Attention over the largest on the slide, float32 (N,), from 0 to 1: what the map shows."""
        largest = float(self.attention.max(initial=0.0))
        return (self.attention / (largest or 1.0)).astype(np.float32)


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
    bag: BagPrediction | None = None
    """What a model of bags says; then `probabilities` are those that each tile alone would have. None: of tiles."""
    ood_quantile: float | None = None
    """Of the validation tiles' distances to the training tiles, where `ood` begins; None: no model tells."""

    def __repr__(self) -> str:
        tiles = f"{counted(len(self.tiles), 'tile')} of {self.grid.tile_px} px at {self.grid.mpp:.4g} µm/px"
        return f"<Prediction {self.slide.slide_id}: {tiles}; {self.positive_class} by {self.model_name}>"

    @property
    def grid(self) -> Grid:
        """The grid of the tiles."""
        return self.tiles.grid

    @property
    def positive_class(self) -> str:
        """The class the heatmap shows."""
        return self.classes[self.positive]

    @property
    def positives(self) -> Float32Array:
        """Probability of the positive class, (N,)."""
        return self.probabilities[:, self.positive]

    @property
    def model_name(self) -> str:
        """What the model is called: by its name, if it has one, or its network's."""
        return str(self.provenance.get("model") or self.provenance["backbone"])

    @property
    def icc(self) -> Icc:
        """The colours of the pixels that were shown to the model: see `tiling.TilingConfig.icc`."""
        return "srgb" if self.provenance.get("icc") == "srgb" else "none"

    @property
    def heat(self) -> Float32Array:
        """What the map shows, (N,), from 0 to 1: probability of the positive class, or of a bag relative attention."""
        return self.positives if self.bag is None else self.bag.relative

    @property
    def heat_name(self) -> str:
        """What that is."""
        return f"probability of {self.positive_class}" if self.bag is None else "attention relative to the largest"

    @property
    def heat_threshold(self) -> float:
        """From where on the map's regions are: the decision threshold, or half of the largest attention."""
        return self.threshold if self.bag is None else ATTENTION_THRESHOLD
