"""ASAP XML, read back by the package's own reader of ASAP's files and by ElementTree."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import shapely

from inference.exports.asap import write_asap
from inference.maps.regions import measured
from inference.prediction import Prediction
from tests.inference.conftest import MakePrediction
from tiling.annotations.rasterize import read_polygons

NESTED = shapely.box(0, 0, 100, 100) - shapely.box(20, 20, 80, 80)  # with an island in its hole


def write(prediction: Prediction, shapes: list[shapely.Polygon], path: Path) -> None:
    write_asap(prediction, measured(shapes, prediction.tiles, prediction.heat), path)


@pytest.mark.parametrize(
    "shapes",
    [
        [],
        [shapely.box(0, 0, 64, 64)],
        [shapely.box(0, 0, 64, 64), shapely.Polygon([(100, 100.125), (200, 100), (150, 180.5)])],
        [NESTED, shapely.box(40, 40, 60, 60)],
        [NESTED - shapely.box(85, 5, 95, 15)],
        [shapely.Point(50, 50).buffer(40) - shapely.Point(55, 50).buffer(20)],
    ],
)
def test_the_area_comes_back_with_its_holes(
    make_prediction: MakePrediction, tmp_path: Path, shapes: list[shapely.Polygon]
) -> None:
    write(make_prediction([], []), shapes, tmp_path / "regions.xml")
    read = read_polygons(tmp_path / "regions.xml", None)
    assert set(read) == ({"tumour"} if shapes else set())
    if shapes:
        wanted = shapely.union_all(shapes)
        assert shapely.symmetric_difference(read["tumour"], wanted).area < 1e-6 * wanted.area


@pytest.mark.parametrize("name", ["tumör", 'a "quoted" <&> name', "癌 G3"])
def test_any_class_name_survives(make_prediction: MakePrediction, tmp_path: Path, name: str) -> None:
    path = tmp_path / "regions.xml"
    write(make_prediction([], [], classes=("benign", name)), [shapely.box(0, 0, 9, 9)], path)
    assert set(read_polygons(path, None)) == {name}
    root = ElementTree.parse(path).getroot()
    assert root.tag == "ASAP_Annotations"
    assert [group.get("Name") for group in root.iterfind("AnnotationGroups/Group")] == [name]
    (annotation,) = root.iterfind("Annotations/Annotation")
    assert (annotation.get("PartOfGroup"), annotation.get("Type")) == (name, "Polygon")
    assert [c.get("Order") for c in annotation.iterfind("Coordinates/Coordinate")] == ["0", "1", "2", "3"]
