"""Predictions as QuPath GeoJSON: one tile object a tile, with its probabilities as measurements."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np

from inference.colours import class_colour
from inference.predict import Prediction


def write_geojson(prediction: Prediction, path: Path) -> None:
    """Write the FeatureCollection feature by feature, so that a large slide needs no memory for it. Raises OSError."""
    with path.open("w", encoding="utf-8") as f:
        f.write('{"type": "FeatureCollection", "features": [')
        for number, feature in enumerate(tile_features(prediction)):
            f.write(",\n" if number else "\n")
            json.dump(feature, f, ensure_ascii=False, allow_nan=False)
        f.write("\n]}\n")


def tile_features(prediction: Prediction) -> Iterator[dict[str, Any]]:
    """One GeoJSON feature a tile, level-0 pixels; ids depend on slide and place only."""
    side = prediction.grid.tile_px0
    namespace = uuid5(NAMESPACE_URL, f"specslide:{prediction.slide.sha256}")
    called = called_class(prediction)
    for x, y, p, c in zip(
        prediction.x0.tolist(), prediction.y0.tolist(), prediction.probabilities.tolist(), called.tolist(), strict=True
    ):
        corners = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
        yield {
            "type": "Feature",
            "id": str(uuid5(namespace, f"{x},{y},{side}")),
            "geometry": {"type": "Polygon", "coordinates": [corners]},
            "properties": {
                "objectType": "tile",
                "classification": {"name": prediction.classes[c], "color": list(class_colour(c))},
                "measurements": {f"prob_{name}": round(v, 6) for name, v in zip(prediction.classes, p, strict=True)},
                "isLocked": True,
            },
        }


def called_class(prediction: Prediction) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Index of the class each tile is called, (N,): the positive one from the threshold on, else the best other."""
    others = prediction.probabilities.copy()
    others[:, prediction.positive] = -1
    positive = prediction.probabilities[:, prediction.positive] >= prediction.threshold
    return np.where(positive, prediction.positive, others.argmax(1))
