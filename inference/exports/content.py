"""What the files of a heatmap are written from: the prediction, and what is computed of it only if a file needs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import shapely

from inference.config import OutputConfig
from inference.maps.regions import Region, find_regions, measured
from inference.maps.slide_map import ProbabilityMap, probability_map
from inference.prediction import Prediction


@dataclass(frozen=True)
class Content:
    """A prediction to be exported, and how; maps and regions are computed when a file needs them."""

    prediction: Prediction
    config: OutputConfig = OutputConfig()  # noqa: RUF009 - frozen
    truth: shapely.Geometry | None = None
    """What is known of the slide, level-0 pixels; outlined in pictures."""

    @classmethod
    def of(cls, config: OutputConfig, truth: shapely.Geometry | None = None) -> Callable[[Prediction], Content]:
        """What is to be exported of a prediction that is yet to come."""
        return lambda prediction: cls(prediction, config, truth)

    @cached_property
    def map(self) -> ProbabilityMap:
        """The positive class' probability over the slide."""
        return probability_map(self.prediction)

    @cached_property
    def regions(self) -> list[Region]:
        """The regions of the positive class."""
        prediction, config = self.prediction, self.config
        smoothing_um = config.region_smoothing_um
        outlines = find_regions(
            self.map, prediction.grid, prediction.slide.frame().scanned,
            threshold=prediction.heat_threshold if config.region_threshold is None else config.region_threshold,
            smoothing_um=prediction.grid.tile_px0 * prediction.slide.mpp / 4 if smoothing_um is None else smoothing_um,
            min_area_um2=config.min_region_um2,
        )  # fmt: skip
        return measured(outlines, prediction.tiles, prediction.heat)
