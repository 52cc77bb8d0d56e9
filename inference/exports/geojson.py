"""Predictions as QuPath GeoJSON: a tile object a tile with its probabilities, and regions as annotations.

Features are written one after the other, so that a large slide needs no memory for them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import numpy as np
import shapely
from shapely.affinity import translate

from inference.colours import class_colour
from inference.maps.regions import Region
from inference.prediction import Prediction
from training.evaluation.metrics import decide

_TILES_AT_ONCE = 4096


def write_geojson(prediction: Prediction, path: Path) -> None:
    """Write the tiles as a FeatureCollection. Raises OSError, and ValueError for a probability that is no number."""
    write_features(tile_features(prediction), path)


def write_regions(prediction: Prediction, regions: Iterable[Region], path: Path) -> None:
    """Write the regions of the positive class as a FeatureCollection. Raises OSError."""
    write_features(region_features(prediction, regions), path)


def write_features(features: Iterable[dict[str, Any]], path: Path) -> None:
    """Write a FeatureCollection feature by feature. Raises OSError, and ValueError for a value JSON does not know."""
    with path.open("w", encoding="utf-8") as f:
        f.write('{"type": "FeatureCollection", "features": [')
        for number, feature in enumerate(features):
            f.write(",\n" if number else "\n")
            f.write(json.dumps(feature, ensure_ascii=False, allow_nan=False))  # json.dump would not use its C encoder
        f.write("\n]}\n")


def tile_features(prediction: Prediction) -> Iterator[dict[str, Any]]:
    """One GeoJSON feature a tile, level-0 pixels as QuPath counts them; ids depend on slide and place only."""
    side, (left, top) = prediction.grid.tile_px0, prediction.slide.frame().qupath0
    namespace = _namespace(prediction)
    called = decide(prediction.probabilities, prediction.threshold, prediction.positive)
    names = [*(f"prob_{name}" for name in prediction.classes), *prediction.columns]
    measured = np.column_stack([prediction.probabilities, *prediction.columns.values()])
    for x, y, values, c in _rows(prediction.tiles.x0, prediction.tiles.y0, measured, called):
        (x0, y0), (x1, y1) = (x - left, y - top), (x - left + side, y - top + side)
        corners = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
        geometry = {"type": "Polygon", "coordinates": [corners]}
        measurements = {name: round(value, 6) for name, value in zip(names, values, strict=True)}
        yield _feature(uuid5(namespace, f"{x},{y},{side}"), geometry, "tile", prediction.classes[c], c, measurements)


def region_features(prediction: Prediction, regions: Iterable[Region]) -> Iterator[dict[str, Any]]:
    """One GeoJSON annotation a region, level-0 pixels as QuPath counts them; ids depend on slide and outline only."""
    namespace, positive, (left, top) = _namespace(prediction), prediction.positive, prediction.slide.frame().qupath0
    name = prediction.classes[positive]
    for region in regions:
        what = f"prob_{name}" if prediction.bag is None else "relative_attention"
        known = {f"mean_{what}": region.mean, f"max_{what}": region.highest}
        measurements = {"area_um2": round(region.area_um2, 3), "tiles": region.tiles} | {
            key: round(value, 6) for key, value in known.items() if value is not None
        }
        geometry = shapely.geometry.mapping(translate(region.outline, -left, -top))
        yield _feature(uuid5(namespace, region.outline.wkt), geometry, "annotation", name, positive, measurements)


def _feature(
    number: UUID, geometry: Mapping[str, Any], kind: str, name: str, colour: int, measurements: Mapping[str, float]
) -> dict[str, Any]:
    """As QuPath reads it: an object of a kind, in the class `name`."""
    return {
        "type": "Feature",
        "id": str(number),
        "geometry": geometry,
        "properties": {
            "objectType": kind,
            "classification": {"name": name, "color": list(class_colour(colour))},
            "measurements": measurements,
            "isLocked": True,
        },
    }


def _namespace(prediction: Prediction) -> UUID:
    return uuid5(NAMESPACE_URL, f"specslide:{prediction.slide.sha256}")


def _rows(*columns: np.ndarray[Any, Any]) -> Iterator[tuple[Any, ...]]:
    """The rows of columns of equal length, as Python's own numbers."""
    for start in range(0, len(columns[0]), _TILES_AT_ONCE):
        yield from zip(*(column[start : start + _TILES_AT_ONCE].tolist() for column in columns), strict=True)
