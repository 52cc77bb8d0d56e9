"""Tables of predictions, read back by pyarrow and by the csv module."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from inference.exports.tables import write_csv, write_parquet
from inference.prediction import Prediction
from tests.inference.conftest import MakePrediction

COLUMNS = ["slide_id", "minx", "miny", "width", "height", "prob_benign", "prob_tumour"]
TYPES = ["string", "int32", "int32", "int32", "int32", "float", "float"]


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "p.parquet", tmp_path / "p.csv"


def write_both(prediction: Prediction, parquet: Path, csv: Path) -> None:
    write_parquet(prediction, parquet)
    write_csv(prediction, csv)


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.reader(f))


def test_parquet_holds_names_types_and_values(make_prediction: MakePrediction, paths: tuple[Path, Path]) -> None:
    write_both(make_prediction([(0, 0), (64, 128)], [0.25, 0.875]), *paths)
    table = pyarrow.parquet.read_table(paths[0])
    assert table.column_names == COLUMNS
    assert [str(kind) for kind in table.schema.types] == TYPES
    assert table.to_pydict() == {
        "slide_id": ["s1", "s1"], "minx": [0, 64], "miny": [0, 128], "width": [64, 64], "height": [64, 64],
        "prob_benign": [0.75, 0.125], "prob_tumour": [0.25, 0.875],
    }  # fmt: skip


def test_csv_holds_the_same(make_prediction: MakePrediction, paths: tuple[Path, Path]) -> None:
    prediction = make_prediction([(0, 0), (64, 128)], [0.1, 0.875])
    write_both(prediction, *paths)
    names, *rows = rows_of(paths[1])
    assert names == COLUMNS
    assert [row[:5] for row in rows] == [["s1", "0", "0", "64", "64"], ["s1", "64", "128", "64", "64"]]
    found = np.array([row[5:] for row in rows], np.float32)
    np.testing.assert_array_equal(found, prediction.probabilities)


def test_a_slide_without_tiles_keeps_its_columns(make_prediction: MakePrediction, paths: tuple[Path, Path]) -> None:
    write_both(make_prediction([], []), *paths)
    table = pyarrow.parquet.read_table(paths[0])
    assert (table.num_rows, table.column_names, [str(kind) for kind in table.schema.types]) == (0, COLUMNS, TYPES)
    assert rows_of(paths[1]) == [COLUMNS]


@pytest.mark.parametrize("name", ["tumör, G3", 'a "b"', "癌"])
def test_names_survive_quoting(make_prediction: MakePrediction, paths: tuple[Path, Path], name: str) -> None:
    write_both(make_prediction([(0, 0)], [0.5], classes=("benign", name)), *paths)
    assert pyarrow.parquet.read_table(paths[0]).column_names[-1] == f"prob_{name}"
    assert rows_of(paths[1])[0][-1] == f"prob_{name}"


def test_equal_predictions_are_equal_bytes(make_prediction: MakePrediction, paths: tuple[Path, Path]) -> None:
    write_both(make_prediction([(0, 0)], [0.3]), *paths)
    first = [path.read_bytes() for path in paths]
    write_both(make_prediction([(0, 0)], [0.3]), *paths)
    assert [path.read_bytes() for path in paths] == first
