"""QuPath objects, read back by json and shapely."""

from __future__ import annotations

import dataclasses
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shapely.geometry import box, shape

from inference.colours import class_colour
from inference.exports.geojson import write_geojson, write_regions
from inference.maps.regions import measured
from inference.prediction import Prediction
from tests.inference.conftest import MakePrediction

PLACES = [(0, 0), (64, 0), (128, 64)]


def features_of(prediction: Prediction, folder: Path) -> list[dict[str, Any]]:
    path = folder / "objects.geojson"
    write_geojson(prediction, path)
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["type"] == "FeatureCollection"
    assert set(document) == {"type", "features"}
    features: list[dict[str, Any]] = document["features"]
    return features


def test_each_tile_is_its_box_on_the_grid(make_prediction: MakePrediction, tmp_path: Path) -> None:
    features = features_of(make_prediction(PLACES, [0.1, 0.5, 0.9]), tmp_path)
    assert len(features) == 3
    for (x, y), feature in zip(PLACES, features, strict=True):
        tile = shape(feature["geometry"])
        assert tile.is_valid
        assert tile.equals(box(x, y, x + 64, y + 64))
        assert tile.area == 64 * 64


def test_properties_are_qupaths(make_prediction: MakePrediction, tmp_path: Path) -> None:
    features = features_of(make_prediction(PLACES[:2], [0.125, 0.75]), tmp_path)
    assert [feature["properties"] for feature in features] == [
        {
            "objectType": "tile",
            "classification": {"name": name, "color": list(class_colour(index))},
            "measurements": {"prob_benign": 1 - p, "prob_tumour": p},
            "isLocked": True,
        }
        for name, index, p in (("benign", 0, 0.125), ("tumour", 1, 0.75))
    ]


def test_ids_are_uuids_all_different_and_stable(make_prediction: MakePrediction, tmp_path: Path) -> None:
    first = [f["id"] for f in features_of(make_prediction(PLACES, [0.1, 0.2, 0.3]), tmp_path)]
    assert [str(UUID(one)) for one in first] == first
    assert len(set(first)) == 3
    assert [f["id"] for f in features_of(make_prediction(PLACES, [0.9, 0.8, 0.7]), tmp_path)] == first
    base = make_prediction(PLACES, [0.1, 0.2, 0.3])
    other = dataclasses.replace(base, slide=base.slide.model_copy(update={"sha256": "ef" * 32}))
    assert not {f["id"] for f in features_of(other, tmp_path)} & set(first)


def test_a_slide_without_tiles_is_an_empty_collection(make_prediction: MakePrediction, tmp_path: Path) -> None:
    assert features_of(make_prediction([], []), tmp_path) == []


@pytest.mark.parametrize("name", ["tumör", "癌 G3", 'a "quoted" \\ name', "line\nbreak"])
def test_any_class_name_survives(make_prediction: MakePrediction, tmp_path: Path, name: str) -> None:
    (feature,) = features_of(make_prediction([(0, 0)], [1.0], classes=("benign", name)), tmp_path)
    assert feature["properties"]["classification"]["name"] == name
    assert feature["properties"]["measurements"][f"prob_{name}"] == 1.0


@pytest.mark.parametrize(
    ("probabilities", "threshold", "called"),
    [
        ([0.2, 0.5, 0.3], 0.5, 1),  # at the threshold
        ([0.2, 0.499, 0.301], 0.5, 2),  # below it the best other is called, although the positive one is likelier
        ([0.6, 0.3, 0.1], 0.25, 1),  # a low threshold calls the positive one, although another is likelier
        ([0.5, 0.0, 0.5], 0.1, 0),
        ([0.0, 1.0, 0.0], 1.0, 1),
        ([1.0, 0.0, 0.0], 0.0, 1),
    ],
)
def test_the_threshold_decides_the_class(
    make_prediction: MakePrediction, tmp_path: Path, probabilities: list[float], threshold: float, called: int
) -> None:
    prediction = make_prediction(
        [(0, 0)], [0.0], probabilities=np.array([probabilities], np.float32), classes=("a", "b", "c"),
        threshold=threshold,
    )  # fmt: skip
    (feature,) = features_of(prediction, tmp_path)
    assert feature["properties"]["classification"]["name"] == "abc"[called]


@given(st.lists(st.floats(0, 1, width=32), max_size=20))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_measurements_are_the_probabilities(
    make_prediction: MakePrediction, tmp_path: Path, positive: list[float]
) -> None:
    places = [(64 * i, 0) for i in range(len(positive))]
    features = features_of(make_prediction(places, positive), tmp_path)
    found = [f["properties"]["measurements"]["prob_tumour"] for f in features]
    assert found == pytest.approx(positive, abs=1e-6)


def test_the_text_is_jsons_own(make_prediction: MakePrediction, tmp_path: Path) -> None:
    """A feature a line, as json.dump streams it."""
    features = features_of(make_prediction(PLACES, [0.1, 0.5, 1e-7], classes=("benign", "tumör")), tmp_path)
    lines = (tmp_path / "objects.geojson").read_text(encoding="utf-8").splitlines()[1:-1]
    for feature, line in zip(features, lines, strict=True):
        text = io.StringIO()
        json.dump(feature, text, ensure_ascii=False, allow_nan=False)
        assert line.removesuffix(",") == text.getvalue()


def test_a_probability_that_is_no_number_is_never_written(make_prediction: MakePrediction, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_geojson(make_prediction([(0, 0)], [float("nan")]), tmp_path / "objects.geojson")


# ------------------------------------------------------------------------------------------------------- regions


def regions_in(prediction: Prediction, outlines: list[Any], path: Path) -> list[dict[str, Any]]:
    write_regions(prediction, measured(outlines, prediction.tiles, prediction.heat), path)
    features: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["features"]
    return features


def test_regions_are_annotations_with_their_holes(make_prediction: MakePrediction, tmp_path: Path) -> None:
    ring = box(0, 0, 192, 192) - box(64, 64, 128, 128)
    prediction = make_prediction([(0, 0), (64, 64), (128, 0)], [0.75, 0.1, 0.25])
    (feature,) = regions_in(prediction, [ring], tmp_path / "regions.geojson")
    assert shape(feature["geometry"]).equals(ring)
    assert feature["properties"] == {
        "objectType": "annotation",
        "classification": {"name": "tumour", "color": list(class_colour(1))},
        "measurements": {"area_um2": 8 * 1024, "tiles": 2, "mean_prob_tumour": 0.5, "max_prob_tumour": 0.75},
        "isLocked": True,
    }
    assert str(UUID(feature["id"])) == feature["id"]


def test_a_region_without_tiles_has_no_probability(make_prediction: MakePrediction, tmp_path: Path) -> None:
    (feature,) = regions_in(make_prediction([], []), [box(0, 0, 8, 8)], tmp_path / "regions.geojson")
    assert feature["properties"]["measurements"] == {"area_um2": 16, "tiles": 0}


def test_regions_ids_differ_by_place_and_are_stable(make_prediction: MakePrediction, tmp_path: Path) -> None:
    outlines = [box(0, 0, 8, 8), box(16, 0, 24, 8)]
    first, again = (
        [feature["id"] for feature in regions_in(make_prediction([], []), outlines, tmp_path / name)] for name in "ab"
    )
    assert first == again
    assert len(set(first)) == 2


def test_what_else_is_known_of_a_tile_is_measured(make_prediction: MakePrediction, tmp_path: Path) -> None:
    columns = {"entropy": np.array([0.5], np.float32)}
    (feature,) = features_of(make_prediction([(0, 0)], [0.25], columns=columns), tmp_path)
    assert feature["properties"]["measurements"] == {"prob_benign": 0.75, "prob_tumour": 0.25, "entropy": 0.5}


def test_memory_does_not_grow_with_the_slide(make_prediction: MakePrediction, tmp_path: Path) -> None:
    """Python's own numbers of 40,000 tiles would take 5 MB; what is held are two arrays of theirs and 4,096 rows."""
    count = 40_000
    places = np.stack([np.arange(count) * 64, np.zeros(count, int)], 1)
    prediction = make_prediction(places, np.full(count, 0.25))
    tracemalloc.start()
    write_geojson(prediction, tmp_path / "objects.geojson")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "objects.geojson").stat().st_size > 12e6
    assert peak < 4e6
