"""Annotations: exact areas; hostile GeoJSON is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiling.squares import squares
from tiling.annotations.rasterize import (
    annotation_fractions,
    annotation_mask,
    area_fractions,
    rasterised,
    read_polygons,
)
from tiling.core.errors import InputError
from tiling.grid import Frame, Raster

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


def blank(downsample: float, shape: tuple[int, int]) -> Raster:
    return Raster(np.zeros(shape, np.bool_), downsample)


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
    np.testing.assert_allclose(area_fractions(geometry, squares(x0, y0, size0)), expected, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), size0=st.integers(3, 50))
def test_fractions_of_a_grid_add_up_to_the_area(seed: int, size0: int) -> None:
    angles = np.sort(np.random.default_rng(seed).uniform(0, 2 * np.pi, 12))
    geometry = shapely.make_valid(shapely.Polygon(np.stack([50 + 40 * np.cos(angles), 50 + 30 * np.sin(angles)], 1)))
    y0, x0 = (a.ravel().astype(np.int32) for a in np.mgrid[0:100:size0, 0:100:size0])
    total = float(area_fractions(geometry, squares(x0, y0, size0)).sum(dtype=np.float64)) * size0**2
    assert total == pytest.approx(geometry.area, rel=1e-4)


def test_500_random_tiles_of_blobs_with_holes() -> None:
    """Shapely's intersection of each tile, one by one, is the oracle; the issue asks for 1%, they are equal."""
    random = np.random.default_rng(3)
    discs = [
        shapely.Point(*xy).buffer(r)
        for xy, r in zip(random.uniform(0, 5000, (40, 2)), random.uniform(50, 600, 40), strict=True)
    ]
    geometry = shapely.difference(shapely.union_all(discs[:25]), shapely.union_all(discs[25:]))
    x0, y0 = random.integers(-100, 5000, (2, 500)).astype(np.int32)
    found = area_fractions(geometry, squares(x0, y0, 224))
    expected = [
        geometry.intersection(shapely.box(x, y, x + 224, y + 224)).area / 224**2
        for x, y in zip(x0.tolist(), y0.tolist(), strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert ((found > 0) & (found < 1)).sum() > 50


@settings(deadline=None, max_examples=40)
@given(
    points=st.lists(st.tuples(st.floats(-20, 120), st.floats(-20, 120)), min_size=3, max_size=9),
    px0=st.sampled_from([1.0, 2.5, 7.0]),
)
def test_rasterised_pixels_are_those_whose_centre_is_inside(points: list[tuple[float, float]], px0: float) -> None:
    geometry = shapely.make_valid(shapely.Polygon(points)).difference(shapely.box(40.3, 30.1, 55.2, 61.7))
    mask = rasterised(geometry, blank(px0, (30, 40))).values
    yy, xx = (np.mgrid[:30, :40] + 0.5) * px0
    clear = shapely.distance(shapely.boundary(shapely.buffer(geometry, 0)), shapely.points(xx, yy)) > 1e-6
    np.testing.assert_array_equal(mask[clear], shapely.contains_xy(geometry, xx, yy)[clear])


def test_fractions_near_the_largest_coordinate() -> None:
    """x0 + size0 is beyond int32."""
    corner = np.array([2**31 - 10], np.int32)
    square = shapely.box(2**31 - 10, 0, 2**31 + 10, 10)
    assert area_fractions(square, squares(corner, [0], 20)).tolist() == [0.5]


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
        name: area_fractions(geometry, squares(corners, corners, 10))
        for name, geometry in read_polygons(written(tmp_path, *features), None).items()
    }
    assert list(found) == list(expected)
    for name, fractions in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], fractions, atol=1e-7)


def test_qupaths_derived_classes(tmp_path: Path) -> None:
    derived = feature(polygon(SQUARE))
    derived["properties"]["classification"] = {"names": ["Tumour", "Positive"], "color": [1, 2, 3]}
    assert list(read_polygons(written(tmp_path, derived), None)) == ["Tumour: Positive"]


@pytest.mark.parametrize("document", [[feature(polygon(SQUARE))], feature(polygon(SQUARE))], ids=["list", "bare"])
def test_other_containers(tmp_path: Path, document: Any) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(document))
    assert read_polygons(path, None)["tumour"].area == 100


# ---------------------------------------------------------------------------------------------------------- hostile


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b"not json", b"[" * 200_000, b'{"type": "FeatureCollection"}', b"5", b"null",
     b'{"type": "Topology"}', b'{"type": "FeatureCollection", "features": {}}'],
)  # fmt: skip
def test_what_is_no_geojson_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.geojson"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is no") as caught:
        read_polygons(path, None)
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
        read_polygons(path, None)


@pytest.mark.parametrize("odd", [[1], 5, "x", None, {}], ids=str)
def test_features_that_are_none_are_refused(tmp_path: Path, odd: Any) -> None:
    with pytest.raises(InputError, match=r"feature 1: .*geometry"):
        read_polygons(written(tmp_path, odd), None)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_polygons(tmp_path / "missing.geojson", None)


# ------------------------------------------------------------------------------------------------------------- ASAP

ASAP_SQUARE, ASAP_HOLE, ASAP_FAR = SQUARE[:4], HOLE[:4], FAR[:4]


def asap(folder: Path, *annotations: tuple[str, str, list[list[int]]], head: str = '<?xml version="1.0"?>') -> Path:
    """An ASAP file of (type, group, points)."""
    shapes = "".join(
        f'<Annotation Name="{n}" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58"><Coordinates>'
        + "".join(f'<Coordinate Order="{k}" X="{x}" Y="{y}" />' for k, (x, y) in enumerate(points))
        + "</Coordinates></Annotation>"
        for n, (kind, group, points) in enumerate(annotations)
    )
    groups = (
        '<AnnotationGroups><Group Name="a" PartOfGroup="None" Color="#00ff00"><Attributes /></Group></AnnotationGroups>'
    )
    path = folder / "a.xml"
    path.write_text(f"{head}<ASAP_Annotations><Annotations>{shapes}</Annotations>{groups}</ASAP_Annotations>")
    return path


@pytest.mark.parametrize(
    ("annotations", "areas"),
    [
        ([("Polygon", "tumour", ASAP_SQUARE)], {"tumour": 100}),
        ([("Rectangle", "tumour", ASAP_SQUARE), ("Spline", "stroma", ASAP_FAR)], {"stroma": 100, "tumour": 100}),
        ([("Polygon", "tumour", ASAP_SQUARE), ("Polygon", "tumour", ASAP_FAR)], {"tumour": 200}),
        ([("Polygon", "tumour", ASAP_SQUARE), ("Polygon", "other", ASAP_HOLE)], {"other": 36, "tumour": 100}),
        ([("Polygon", "None", ASAP_SQUARE)], {"unclassified": 100}),
        ([("Dot", "tumour", [[1, 1]]), ("PointSet", "tumour", ASAP_SQUARE), ("Polygon", "t", ASAP_HOLE[:2])], {}),
        ([("Polygon", "tumour", ASAP_SQUARE), ("Polygon", "Exclude", ASAP_HOLE)], {"tumour": 64}),
        ([("Polygon", "_0", ASAP_SQUARE), ("Polygon", "_1", ASAP_FAR), ("Polygon", "_2", ASAP_HOLE)],
         {"_0": 64, "_1": 100}),
        ([("Polygon", "a", ASAP_SQUARE), ("Polygon", "_2", ASAP_HOLE)], {"_2": 36, "a": 100}),
        ([("Polygon", "tumour", BOW_TIE[:4])], {"tumour": 50}),
        ([], {}),
    ],
)  # fmt: skip
def test_asap(tmp_path: Path, annotations: list[tuple[str, str, list[list[int]]]], areas: dict[str, float]) -> None:
    found = read_polygons(asap(tmp_path, *annotations), None)
    assert {name: pytest.approx(shape.area) for name, shape in found.items()} == areas
    assert list(found) == sorted(found)


BOMB = '<?xml version="1.0"?><!DOCTYPE ASAP_Annotations [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is no annotation"), (b"<ASAP_Annotations>", "is not XML"), (b"\xff\xff", "is no annotation"),
        (b"<svg/>", "is no annotation"), (b"<svg><Annotation/></svg>", "is no annotation"),
        (f"{BOMB}<ASAP_Annotations>&b;</ASAP_Annotations>".encode(), "has a document type"),
        (f"{BOMB}<ASAP_Annotations/>".replace('"1.0"', '"1.0" encoding="utf-16"').encode("utf-16"), "has a document"),
        (b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><ASAP_Annotations/>', "is no annotation"),
        (b"<ASAP_Annotations><a>" + b"<a>" * 100_000, "is not XML"),
    ],
)  # fmt: skip
def test_what_is_no_asap_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        read_polygons(path, None)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("group", "points", "reason"),
    [("t", [["1", "x"]] * 3, "point without coordinates"), ("t", [["1", "1" * 400]] * 3, "lie on no slide"),
     ("t", [["nan", "1"]] * 3, "lie on no slide"), ("t", [["1e300", "1"]] * 3, "lie on no slide")],
)  # fmt: skip
def test_bad_asap_annotations_are_refused_by_number(tmp_path: Path, group: str, points: Any, reason: str) -> None:
    path = asap(tmp_path, ("Polygon", "t", ASAP_SQUARE), ("Polygon", group, points))
    with pytest.raises(InputError, match=rf"a\.xml, annotation 2: .*{reason}"):
        read_polygons(path, None)


# ------------------------------------------------------------------------------------------------------ three kinds


def test_the_same_annotation_in_three_files_gives_the_same(tmp_path: Path) -> None:
    """A square with a hole on a slide of 40 x 30; the label image is twice as coarse as the slide."""
    labels = np.zeros((15, 20), np.uint8)
    labels[:5, :5], labels[1:4, 1:4] = 1, 0
    assert cv2.imwrite(str(tmp_path / "a.png"), labels)
    (tmp_path / "a.classes.json").write_text('{"1": "tumour"}')
    xml = asap(tmp_path, ("Polygon", "tumour", ASAP_SQUARE), ("Polygon", "hole", ASAP_HOLE))
    files = [written(tmp_path, feature(polygon(SQUARE, HOLE))), xml, tmp_path / "a.png"]
    corners = np.array([0, 5, 7, 30], np.int32)
    for path in files:
        found = annotation_fractions(path, squares(corners, corners, 6, (40, 30)), Frame((40, 30)))
        assert list(found) == ["tumour"]
        np.testing.assert_allclose(found["tumour"], np.array([20, 16, 8, 0]) / 36, atol=1e-6)
        mask = annotation_mask(path, Frame((40, 30)), blank(2.0, (15, 20)))
        np.testing.assert_array_equal(mask.values, labels == 1)
        assert annotation_mask(path, Frame((40, 30)), blank(0.5, (60, 80))).values.sum() == 64 * 4


def test_a_missing_asap_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_polygons(tmp_path / "missing.xml", None)
