"""What is known of a slide's tiles, as the arrays that the browser draws. Reads tables and stores, writes nothing.

Probabilities, what else a heatmap's table holds of a tile, and what a store knows of the tiles: each is a layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import pyarrow
import pyarrow.parquet

from inference.exports import TABLE
from inference.maps.stitch import slide_map
from inference.prediction import ATTENTION_THRESHOLD, FLAG, RATIO
from inference.viewer.cohort import Result
from tiling.core.arrays import Float32Array
from tiling.core.errors import InputError
from tiling.core.text import printable
from tiling.grid import Raster, Tiles
from tiling.stores.features import FeatureStore
from tiling.stores.store import TileStore

_PLACES = ("slide_id", "minx", "miny", "width", "height")
_PROBABILITY = "prob_"


@dataclass(frozen=True)
class Layer:
    """A number that every tile has, and that can be laid over the slide."""

    name: str
    values: Float32Array
    """(N,); NaN where it is unknown."""
    threshold: float | None = None
    """From where on a tile is called, or stands out; None: no one says."""

    @property
    def span(self) -> tuple[float, float]:
        """What the colours span: 0 to 1 of a fraction, else from the smallest value to the largest."""
        known = self.values[np.isfinite(self.values)]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        if self.name.startswith((_PROBABILITY, "annotation/")) or self.name in ("relative_attention", "tissue", FLAG):
            return 0.0, 1.0
        return (low, high) if high > low else (low, low + 1)


@dataclass(frozen=True)
class Numbers:
    """The layers of a slide's tiles, in the order of the tiles."""

    tiles: Tiles
    layers: tuple[Layer, ...]

    @classmethod
    def of_store(cls, store: TileStore | FeatureStore) -> Self:
        """The columns of a store: tissue, quality, annotations."""
        columns = store.tiles.columns.items()
        return cls(store.tiles, tuple(Layer(name, values) for name, values in columns if np.isfinite(values).any()))

    @classmethod
    def of_heatmap(cls, result: Result, store: TileStore | FeatureStore | None = None) -> Self:
        """A heatmap's, with what a store knows of its tiles. Raises InputError for a damaged table."""
        path, summary = result.folder / TABLE, result.summary
        try:
            table = pyarrow.parquet.read_table(path)
            x0, y0 = (np.asarray(table.column(name).to_numpy(), np.int32) for name in ("minx", "miny"))
            names = [name for name in table.column_names if name not in _PLACES]
            columns = {name: np.asarray(table.column(name).to_numpy(), np.float32) for name in names}
        except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
            raise InputError(path, "cannot be read", "make the heatmap again with --overwrite") from error
        tiles = Tiles(summary.grid, x0, y0)
        shown = f"{_PROBABILITY}{summary.positive_class}" if summary.bag is None else "relative_attention"
        if shown not in columns:
            raise InputError(path, f"has no column {shown}", "make the heatmap again with --overwrite")
        of_store = {} if store is None else _columns_of(store, tiles)
        thresholds = {f"{_PROBABILITY}{summary.positive_class}": summary.threshold, RATIO: 1.0}
        thresholds |= {"relative_attention": ATTENTION_THRESHOLD}
        ordered = {shown: columns[shown]} | columns | {name: of_store[name] for name in of_store if name not in columns}
        known = {name: values for name, values in ordered.items() if np.isfinite(values).any()}
        return cls(tiles, tuple(Layer(name, values, thresholds.get(name)) for name, values in known.items()))

    @cached_property
    def tiles_bytes(self) -> bytes:
        """Little-endian: the number of tiles N, their x0 and y0, int32; then each layer's values, float32 (N,)."""
        count = np.array([len(self.tiles)], "<i4")
        places = [np.asarray(array, "<i4") for array in (self.tiles.x0, self.tiles.y0)]
        values = [np.asarray(layer.values, "<f4") for layer in self.layers]
        return b"".join(array.tobytes() for array in (count, *places, *values))

    def map_of(self, layer: Layer) -> Raster:
        """The map of a layer over the slide, as all exports have it, float32 (h, w), NaN where no tile lies."""
        return slide_map(layer.values, self.tiles)


def words_for(name: str) -> str:
    """What a column of tiles is, in words."""
    if name.startswith(_PROBABILITY):
        return f"probability of {printable(name.removeprefix(_PROBABILITY))}"
    if name.startswith("annotation/"):
        return f"share under the annotation {printable(name.removeprefix('annotation/'))}"
    return printable(_WORDS.get(name, re.sub("_", " ", name)))


_WORDS: Mapping[str, str] = {
    "entropy": "entropy of the probabilities (0: sure)",
    "spread": "spread over models and orientations",
    "attention": "attention (their sum is 1)",
    "relative_attention": "attention relative to the largest",
    RATIO: "distance to the training tiles (above 1: unlike)",
    FLAG: "unlike what the model has seen",
}


def _columns_of(store: TileStore | FeatureStore, tiles: Tiles) -> Mapping[str, Float32Array]:
    """The columns of a store for the tiles at the same places, NaN for others; none where its grid is another."""
    if store.grid != tiles.grid:
        return {}
    row_at = {place: row for row, place in enumerate(store.tiles.places())}
    rows = np.array([row_at.get(place, -1) for place in tiles.places()], np.intp)
    columns = {}
    for name, values in store.tiles.columns.items():
        columns[name] = np.where(rows >= 0, values[rows], np.nan).astype(np.float32) if len(values) else values[:0]
    return columns
