"""Annotations: exact areas; hostile GeoJSON is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from tiling.annotations import area_fractions, read_geojson
from tiling.errors import InputError

SQUARE = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]
HOLE = [[2, 2], [8, 2], [8, 8], [2, 8], [2, 2]]
FAR = [[20, 20], [30, 20], [30, 30], [20, 30], [20, 20]]
BOW_TIE = [[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]
POINT = {"type": "Point", "coordinates": [5, 5]}
SPIKE = [[0, 0], [10, 0], [10, 10], [20, 10], [10, 10], [0, 10], [0, 0]]


def polygon(*rings: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def feature(geometry: Any, name: str | None = "tumour") -> dict[str, Any]:
    properties = {"objectType": "annotation"} | ({"classification": {"name": name}} if name is not None else {})
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def written(folder: Path, *features: Any) -> Path:
    path = folder / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


# ------------------------------------------------------------------------------------------------------- fractions


@settings(deadline=None, max_examples=60)
@given(
    points=st.lists(st.tuples(st.floats(-20, 120), st.floats(-20, 120)), min_size=3, max_size=9),
    size0=st.integers(1, 60),
    x=st.integers(0, 90),
    y=st.integers(0, 90),
)
def test_fractions_equal_shapely_on_any_polygon(points: list[tuple[float, float]], size0: int, x: int, y: int) -> None:
    """Shapely's own area of intersection is the oracle; the code prepares, skips and cuts."""
    geometry = shapely.make_valid(shapely.Polygon(points))
    x0, y0 = np.array([x, 0, x], np.int32), np.array([y, y, 0], np.int32)
    expected = [
        geometry.intersection(shapely.box(a, b, a + size0, b + size0)).area / size0**2
        for a, b in zip(x0.tolist(), y0.tolist(), strict=True)
    ]
    np.testing.assert_allclose(area_fractions(geometry, x0, y0, size0), expected, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), size0=st.integers(3, 50))
def test_fractions_of_a_grid_add_up_to_the_area(seed: int, size0: int) -> None:
    angles = np.sort(np.random.default_rng(seed).uniform(0, 2 * np.pi, 12))
    geometry = shapely.make_valid(shapely.Polygon(np.stack([50 + 40 * np.cos(angles), 50 + 30 * np.sin(angles)], 1)))
    y0, x0 = (a.ravel().astype(np.int32) for a in np.mgrid[0:100:size0, 0:100:size0])
    total = float(area_fractions(geometry, x0, y0, size0).sum(dtype=np.float64)) * size0**2
    assert total == pytest.approx(geometry.area, rel=1e-4)


def test_fractions_near_the_largest_coordinate() -> None:
    """x0 + size0 is beyond int32."""
    corner = np.array([2**31 - 10], np.int32)
    square = shapely.box(2**31 - 10, 0, 2**31 + 10, 10)
    assert area_fractions(square, corner, np.array([0], np.int32), 20).tolist() == [0.5]


CASES: dict[str, tuple[list[Any], dict[str, tuple[float, float, float]]]] = {
    # name: features, then by class the fractions of the squares of side 10 at 0, 5 and 10 on the diagonal
    "square": ([feature(polygon(SQUARE))], {"tumour": (1, 0.25, 0)}),
    "hole": ([feature(polygon(SQUARE, HOLE))], {"tumour": (0.64, 0.16, 0)}),
    "multipolygon": (
        [feature({"type": "MultiPolygon", "coordinates": [[SQUARE], [FAR]]})],
        {"tumour": (1, 0.25, 0)},
    ),
    "twice the same": ([feature(polygon(SQUARE))] * 2, {"tumour": (1, 0.25, 0)}),
    "self-intersecting": ([feature(polygon(BOW_TIE))], {"tumour": (0.5, 0.125, 0)}),
    "a spike": ([feature(polygon(SPIKE))], {"tumour": (1, 0.25, 0)}),
    "a collection": (
        [feature({"type": "GeometryCollection", "geometries": [polygon(SQUARE), POINT]})],
        {"tumour": (1, 0.25, 0)},
    ),
    "third coordinate": ([feature(polygon([[*p, 7] for p in SQUARE]))], {"tumour": (1, 0.25, 0)}),
    "unclassified": ([feature(polygon(SQUARE), None)], {"unclassified": (1, 0.25, 0)}),
    "blank class": ([feature(polygon(SQUARE), " ")], {"unclassified": (1, 0.25, 0)}),
    "two classes": (
        [feature(polygon(SQUARE)), feature(polygon(FAR), "Stroma: µ")],
        {"Stroma: µ": (0, 0, 0), "tumour": (1, 0.25, 0)},
    ),
    "a line": ([feature({"type": "LineString", "coordinates": [[0, 0], [9, 9]]})], {}),
    "an empty polygon": ([feature({"type": "Polygon", "coordinates": []})], {"tumour": (0, 0, 0)}),
    "none": ([], {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_features(tmp_path: Path, case: str) -> None:
    features, expected = CASES[case]
    corners = np.array([0, 5, 10], np.int32)
    found = {
        name: area_fractions(geometry, corners, corners, 10)
        for name, geometry in read_geojson(written(tmp_path, *features)).items()
    }
    assert list(found) == list(expected)
    for name, fractions in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], fractions, atol=1e-7)


def test_qupaths_derived_classes(tmp_path: Path) -> None:
    derived = feature(polygon(SQUARE))
    derived["properties"]["classification"] = {"names": ["Tumour", "Positive"], "color": [1, 2, 3]}
    assert list(read_geojson(written(tmp_path, derived))) == ["Tumour: Positive"]


@pytest.mark.parametrize("document", [[feature(polygon(SQUARE))], feature(polygon(SQUARE))], ids=["list", "bare"])
def test_other_containers(tmp_path: Path, document: Any) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(document))
    assert read_geojson(path)["tumour"].area == 100


# ---------------------------------------------------------------------------------------------------------- hostile


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b"not json", b"[" * 200_000, b'{"type": "FeatureCollection"}', b"5", b"null",
     b'{"type": "Topology"}', b'{"type": "FeatureCollection", "features": {}}'],
)  # fmt: skip
def test_what_is_no_geojson_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.geojson"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not") as caught:
        read_geojson(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < len(str(path)) + 200


BAD_GEOMETRIES: dict[str, Any] = {
    "null": None,
    "no type": {"coordinates": [SQUARE]},
    "unknown type": {"type": "Circle", "coordinates": [0, 0]},
    "two points": polygon([[0, 0], [1, 1]]),
    "one number a point": polygon([[0], [1], [2], [0]]),
    "text": polygon([["a", "b"], ["c", "d"], ["e", "f"], ["a", "b"]]),
    "NaN": polygon([[0, 0], [float("nan"), 0], [1, 1], [0, 0]]),
    "infinite": polygon([[0, 0], [float("inf"), 0], [1, 1], [0, 0]]),
    "huge": polygon([[0, 0], [1e300, 0], [1e300, 1e300], [0, 0]]),
    "mixed dimensions": polygon([[0, 0], [1, 0, 5], [1, 1], [0, 0]]),
    "a number": 5,
    "text itself": "Polygon",
}


@pytest.mark.parametrize("case", BAD_GEOMETRIES)
def test_bad_geometries_are_refused_by_number(tmp_path: Path, case: str) -> None:
    path = written(tmp_path, feature(polygon(SQUARE)), feature(BAD_GEOMETRIES[case]))
    with pytest.raises(InputError, match=r"a\.geojson, feature 2: has "):
        read_geojson(path)


@pytest.mark.parametrize("odd", [[1], 5, "x", None, {}], ids=str)
def test_features_that_are_none_are_refused(tmp_path: Path, odd: Any) -> None:
    with pytest.raises(InputError, match="feature 1: has no valid geometry"):
        read_geojson(written(tmp_path, odd))


@pytest.mark.parametrize(
    "name",
    ["a/b", "..", ".", "...", "__a", "zarr.json", "nul\0", "line\nbreak", "\x1b[2J", "\ud800", "x" * 201, "µ" * 101],
)  # fmt: skip
def test_classes_that_cannot_name_a_column_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"feature 1: has the class .*, which cannot name a column"):
        read_geojson(written(tmp_path, feature(polygon(SQUARE), name)))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_geojson(tmp_path / "missing.geojson")
