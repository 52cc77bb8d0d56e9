"""A heatmap's folder, open for reading: the numbers of its tiles, and what is known of the slide. Needs no torch."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from inference.exports import TABLE
from inference.maps.stitch import slide_map
from inference.prediction import ATTENTION_THRESHOLD
from inference.summary import SUMMARY, HeatmapSummary, read_summary
from tiling.core.arrays import Float32Array
from tiling.core.artefact import folder_faults
from tiling.core.errors import InputError
from tiling.grid import Grid, Raster, Tiles
from tiling.stores.store import SlideFacts
from tiling.stores.tabular import Tabular

_PLACES = ("slide_id", "minx", "miny", "width", "height")


class Heatmap(Tabular):
    """A finished heatmap, open for reading; its table is checked against its hash.

    Raises InputError for a folder that holds none, or a damaged one.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.summary: HeatmapSummary = read_summary(self.folder)
        if faults := folder_faults(self.folder, only=frozenset({SUMMARY, TABLE})):
            raise InputError(self.folder, f"is damaged: {faults[0]}", "make the heatmap again with --overwrite")

    def __len__(self) -> int:
        return len(self.tiles)

    @property
    def slide(self) -> SlideFacts:
        """The slide that was predicted."""
        return self.summary.slide

    @property
    def grid(self) -> Grid:
        """Where its tiles lie."""
        return self.summary.grid

    @cached_property
    def tiles(self) -> Tiles:
        """The tiles, and their columns: `prob_<class>`, `entropy` and so on, float32 (N,)."""
        try:
            table = pyarrow.parquet.read_table(self.folder / TABLE)
            x0, y0 = (np.asarray(table[name].to_numpy(), np.int32) for name in ("minx", "miny"))
            names = [name for name in table.column_names if name not in _PLACES]
            columns = {name: np.asarray(table[name].to_numpy(), np.float32) for name in names}
        except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
            raise InputError(
                self.folder / TABLE, "cannot be read", "make the heatmap again with --overwrite"
            ) from error
        if absent := [name for name in self._classes() if name not in columns]:
            raise InputError(
                self.folder / TABLE, f"has no column {absent[0]}", "make the heatmap again with --overwrite"
            )
        return Tiles(self.grid, x0, y0, columns)

    @property
    def probabilities(self) -> Float32Array:
        """Of each tile and class, float32 (N, C), in the order of `summary.classes`."""
        return self._matrix()[0]

    @property
    def threshold(self) -> float:
        """From where on the map's regions are."""
        return self.summary.threshold if self.summary.bag is None else ATTENTION_THRESHOLD

    def map(self) -> Raster:
        """What the heatmap shows over the slide, float32 (h, w); NaN where nothing was predicted."""
        return slide_map(self.tiles.columns[self._shown()], self.tiles)

    def _classes(self) -> list[str]:
        return [f"prob_{name}" for name in self.summary.classes]

    def _about(self) -> list[str]:
        by, known = f"{self.summary.positive_class} by {self.summary.model_name}", self.summary.suspicion
        return [by, *([] if known is None else [f"score {known:.3f}"])]

    def _facts(self) -> dict[str, Any]:
        return {"positive_class": self.summary.positive_class, "threshold": self.summary.threshold}

    def _shown(self) -> str:
        return f"prob_{self.summary.positive_class}" if self.summary.bag is None else "relative_attention"

    def _matrix(self) -> tuple[Float32Array, list[str]]:
        columns = self.tiles.columns
        return np.stack([columns[name] for name in self._classes()], 1), list(self.summary.classes)
