"""Predictions as tables: `slide_id, minx, miny, width, height, prob_<class>...`, level-0 pixels, CSV and Parquet.

Places are OpenSlide's: from the corner of the whole picture, whatever was scanned of it. Then follows what else is
known of a tile: `entropy`, `spread`; see `inference.prediction.Prediction`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet

from inference.prediction import Prediction


def prediction_table(prediction: Prediction) -> pyarrow.Table:
    """One row a tile, in reading order."""
    count = len(prediction.tiles)
    side = np.full(count, prediction.grid.tile_px0, np.int32)
    columns = {
        "slide_id": pyarrow.array([prediction.slide.slide_id] * count, pyarrow.string()),
        "minx": prediction.tiles.x0,
        "miny": prediction.tiles.y0,
        "width": side,
        "height": side,
    }
    of_class = {f"prob_{name}": prediction.probabilities[:, i] for i, name in enumerate(prediction.classes)}
    return pyarrow.table(columns | of_class | dict(prediction.columns))


def write_parquet(prediction: Prediction, path: Path) -> None:
    """Write the table as Parquet. Raises OSError."""
    pyarrow.parquet.write_table(prediction_table(prediction), path)


def write_csv(prediction: Prediction, path: Path) -> None:
    """Write the table as CSV. Raises OSError."""
    pyarrow.csv.write_csv(prediction_table(prediction), path)
