"""Which further files a heatmap comes in, beside tables, overlay and tile objects."""

from __future__ import annotations

from pathlib import Path

from inference.config import OutputConfig
from inference.exports.asap import write_asap
from inference.exports.geojson import write_regions
from inference.exports.ome_tiff import write_ometiff
from inference.exports.ome_zarr import write_omezarr
from inference.exports.png import heatmap_png
from inference.maps.regions import Region, find_regions, measured
from inference.maps.slide_map import ProbabilityMap, probability_map
from inference.predict import Prediction
from tiling.core.files import sha256_json

HEATMAP_PNG, REGIONS, OME_TIFF, OME_ZARR, ASAP_XML = (
    "heatmap.png", "regions.geojson", "heatmap.ome.tif", "heatmap.ome.zarr", "regions.xml",
)  # fmt: skip


def write_outputs(prediction: Prediction, config: OutputConfig, folder: Path) -> None:
    """Write the formats asked for into a folder. Raises OSError."""
    if not config.formats:
        return
    found = probability_map(prediction)
    if "png" in config.formats:
        (folder / HEATMAP_PNG).write_bytes(heatmap_png(prediction))
    if {"geojson", "asap"} & set(config.formats):
        regions = regions_of(prediction, found, config)
        if "geojson" in config.formats:
            write_regions(prediction, regions, folder / REGIONS)
        if "asap" in config.formats:
            write_asap(prediction, regions, folder / ASAP_XML)
    if "ometiff" in config.formats:
        identity = [prediction.slide.model_dump(mode="json"), prediction.provenance]
        write_ometiff(found, folder / OME_TIFF, sha256_json(identity))
    if "omezarr" in config.formats:
        write_omezarr(found, folder / OME_ZARR)


def regions_of(prediction: Prediction, found: ProbabilityMap, config: OutputConfig) -> list[Region]:
    """The regions of the positive class in a prediction's map."""
    slide, grid = prediction.slide, prediction.grid
    smoothing_um = config.region_smoothing_um
    outlines = find_regions(
        found.values, found.px0, slide.mpp, (slide.width, slide.height),
        threshold=prediction.threshold if config.region_threshold is None else config.region_threshold,
        smoothing_um=grid.tile_px0 * slide.mpp / 4 if smoothing_um is None else smoothing_um,
        min_area_um2=config.min_region_um2,
    )  # fmt: skip
    p = prediction.probabilities[:, prediction.positive]
    return measured(outlines, prediction.x0, prediction.y0, grid.tile_px0, p, slide.mpp)
