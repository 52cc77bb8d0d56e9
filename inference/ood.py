"""Out-of-distribution (OOD) tiles: how much of a slide lies outside what the models have seen, in words. Pure.

`ood_ratio` is a tile's distance to the training tiles (training.models.ood) in units of the model's own thresholds: 1
is the border for any model. Over several models or orientations it is the mean. `ood` is 1 where it is above 1, else 0.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from inference.prediction import FLAG, RATIO
from tiling.core.arrays import Float32Array
from training import TileModel

log = logging.getLogger(__name__)

LARGE_SHARE = 0.2
"""From this share of tiles out of distribution on, a slide's result comes with a warning."""


@dataclass(frozen=True)
class Outside:
    """The tiles of a slide that are out of distribution."""

    tiles: int
    total: int
    """Tiles analysed."""
    quantile: float
    """Of the validation tiles' distances, where it begins."""

    @property
    def share(self) -> float | None:
        """Share of the tiles that are out of distribution, from 0 to 1; None without tiles."""
        return self.tiles / self.total if self.total else None

    @property
    def finding(self) -> str:
        """How many tiles are out of distribution, in a sentence."""
        if not self.total:
            return "No tile was analysed, so none can be unlike what the model has seen."
        return (
            f"{self.tiles / self.total:.1%} of the analysed tiles ({self.tiles:,} of {self.total:,}) lie outside what "
            f"the model has seen: they are farther from its training tiles than {100 * self.quantile:.6g}% of its "
            "validation tiles are."
        )

    @property
    def warning(self) -> str | None:
        """The warning for a slide of which much is out of distribution; None where little is."""
        if not self.total or self.tiles < LARGE_SHARE * self.total:
            return None
        if self.tiles == self.total:
            return (
                "This whole slide lies outside what the model has seen: every analysed tile is unlike those it was "
                "trained on. Its heatmap and scores mean nothing."
            )
        return (
            f"{self.tiles / self.total:.0%} of the analysed tiles lie outside what the model has seen. Its heatmap and "
            "scores mean little there, and may not be comparable with those of other slides."
        )


def outside(columns: Mapping[str, Float32Array], quantile: float | None) -> Outside | None:
    """The out-of-distribution tiles by the columns of a prediction, (N,); None where the models cannot tell."""
    if quantile is None or FLAG not in columns:
        return None
    return Outside(int(columns[FLAG].sum()), len(columns[FLAG]), quantile)


def ood_columns(ratios: Float32Array) -> dict[str, Float32Array]:
    """The out-of-distribution columns of tiles: the ratio (N,) as given, and a flag, 1 where it is above 1."""
    return {RATIO: ratios, FLAG: (ratios > 1).astype(np.float32)}


def comparable(models: Sequence[TileModel]) -> tuple[TileModel, ...]:
    """The models, without their out-of-distribution detection unless all of them have it."""
    able = [model.novelty is not None for model in models]
    if any(able) and not all(able):
        log.info("%d of %d models cannot tell unlike tiles, so none is asked to", able.count(False), len(able))
        return tuple(replace(model, novelty=None) for model in models)
    return tuple(models)
