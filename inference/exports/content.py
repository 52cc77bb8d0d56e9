"""What the files of a heatmap are written from: the prediction, and what is computed of it only if a file needs it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import shapely

from inference.config import OutputConfig
from inference.maps.regions import Region, find_regions, measured
from inference.maps.slide_map import ProbabilityMap, probability_map
from inference.predict import Prediction


@dataclass(frozen=True)
class Content:
    """A prediction and how it is to be written."""

    prediction: Prediction
    config: OutputConfig = OutputConfig()  # noqa: RUF009 - frozen
    truth: shapely.Geometry | None = None
    """What is known of the slide, level-0 pixels; outlined in pictures."""

    @cached_property
    def map(self) -> ProbabilityMap:
        """The positive class' probability over the slide."""
        return probability_map(self.prediction)

    @cached_property
    def regions(self) -> list[Region]:
        """The regions of the positive class."""
        prediction, config = self.prediction, self.config
        slide, side_px0 = prediction.slide, prediction.grid.tile_px0
        smoothing_um = config.region_smoothing_um
        outlines = find_regions(
            self.map.values, self.map.px0, slide.mpp, (slide.width, slide.height),
            threshold=prediction.threshold if config.region_threshold is None else config.region_threshold,
            smoothing_um=side_px0 * slide.mpp / 4 if smoothing_um is None else smoothing_um,
            min_area_um2=config.min_region_um2,
        )  # fmt: skip
        p = prediction.probabilities[:, prediction.positive]
        return measured(outlines, prediction.tiles.x0, prediction.tiles.y0, side_px0, p, slide.mpp)
