"""Files of each program: right areas by arithmetic, hostile ones refused in one sentence and in bounded time."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import shapely

from tests.tiling.annotations.test_rasterize import SQUARE, asap, feature, polygon, written
from tiling.annotations.classes import ClassRules
from tiling.annotations.drawing import valid
from tiling.annotations.rasterize import annotation_hash, read_polygons
from tiling.annotations.readers import read_drawing
from tiling.core.errors import InputError
from tiling.core.files import sha256_file

BIG = [[0, 0], [100, 0], [100, 100], [0, 100]]
SMALL = [[20, 20], [60, 20], [60, 60], [20, 60]]


def areas(path: Path, rules: ClassRules = ClassRules()) -> dict[str, float]:  # noqa: B008 - frozen
    return {name: round(area.area, 6) for name, area in read_polygons(path, None, rules).items()}


# ------------------------------------------------------------------------------------------------- which cuts which


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, {"metastases": 100**2 - 40**2, "normal": 40**2}),
        ({"order": ("normal", "metastases")}, {"metastases": 100**2, "normal": 0}),
        ({"order": ("normal",)}, {"metastases": 100**2, "normal": 40**2}),
        ({"cut_out": ("normal",)}, {"metastases": 100**2 - 40**2}),
        ({"cut_out": ("normal", "absent"), "order": ("absent", "metastases")}, {"metastases": 100**2 - 40**2}),
    ],
)
def test_camelyon17_and_what_users_say_instead(tmp_path: Path, rules: Any, expected: dict[str, float]) -> None:
    path = asap(tmp_path, ("Polygon", "metastases", BIG), ("Polygon", "normal", SMALL))
    assert areas(path, ClassRules(**rules)) == expected


def test_normal_beside_other_groups_is_a_class_like_any(tmp_path: Path) -> None:
    path = asap(tmp_path, ("Polygon", "metastases", BIG), ("Polygon", "normal", SMALL), ("Polygon", "fat", SMALL))
    assert areas(path) == {"fat": 40**2, "metastases": 100**2, "normal": 40**2}


@pytest.mark.parametrize(
    ("name", "left"),
    [("Ignore*", 100**2 - 40**2), ("Artefact*", 100**2 - 40**2), ("Tumor: Ignore*", 100**2 - 40**2),
     ("Region*", 100**2), ("Ignore", 100**2)],
)  # fmt: skip
def test_qupaths_ignored_classes_are_cut_out(tmp_path: Path, name: str, left: float) -> None:
    path = written(tmp_path, feature(polygon([*BIG, BIG[0]])), feature(polygon([*SMALL, SMALL[0]]), name))
    ignored = left < 100**2
    assert areas(path) == {"tumour": left} | ({} if ignored else {name: 40**2})
    assert areas(path, ClassRules(cut_out=())) == {name: 40**2, "tumour": 100**2}


@pytest.mark.parametrize(
    ("properties", "name"),
    [
        ({"name": "Necrosis"}, "Necrosis"),
        ({"objectType": "annotation", "name": "Necrosis"}, "Necrosis"),
        ({"objectType": "annotation", "name": "mine", "classification": {"name": "Tumor"}}, "Tumor"),
        ({"objectType": "tma_core", "name": "A-1"}, "unclassified"),
        ({"classification": "Stroma"}, "Stroma"),
        ({"name": " "}, "unclassified"),
        ({"name": 5}, "unclassified"),
        (None, "unclassified"),
    ],
)
def test_a_feature_without_class_has_its_name(tmp_path: Path, properties: Any, name: str) -> None:
    shape = {"type": "Feature", "geometry": polygon(SQUARE), "properties": properties}
    assert areas(written(tmp_path, shape)) == {name: 100}


def test_points_follow_each_other_by_their_order(tmp_path: Path) -> None:
    path = asap(tmp_path, ("Polygon", "t", BIG))
    second, third = (f'<Coordinate Order="{n}" X="{BIG[n][0]}" Y="{BIG[n][1]}" />' for n in (1, 2))
    text = path.read_text()
    assert second + third in text
    path.write_text(text.replace(second + third, third + second))
    assert areas(path) == {"t": 100**2}
    assert annotation_hash(path) != sha256_file(path)
    path.write_text(path.read_text().replace("Order", "Number"))  # without one, they follow as they are written
    assert areas(path) == {"t": 5000}


def test_a_file_that_0_1_0_read_otherwise_has_another_hash(tmp_path: Path) -> None:
    plain = written(tmp_path, feature(polygon(SQUARE)), feature(polygon(SQUARE), None))
    assert annotation_hash(plain) == sha256_file(plain)
    named = written(tmp_path, {"type": "Feature", "geometry": polygon(SQUARE), "properties": {"name": "x"}})
    assert annotation_hash(named) != sha256_file(named)
    camelyon = asap(tmp_path, ("Polygon", "metastases", BIG), ("Polygon", "normal", SMALL))
    assert annotation_hash(camelyon) != sha256_file(camelyon)
    other = asap(tmp_path, ("Polygon", "metastases", BIG), ("Polygon", "fat", SMALL))
    assert annotation_hash(other) == sha256_file(other)


# --------------------------------------------------------------------------------------------- ImageScope and HALO


def imagescope(layers: str) -> str:
    return f'<Annotations MicronsPerPixel="0.25"><Annotation Id="1" {layers}</Annotation></Annotations>'


def region(kind: str, points: Sequence[Sequence[float]], vertex: str = "Vertex", negative: str = "0") -> str:
    vertices = "".join(f'<{vertex} X="{x}" Y="{y}" Z="0"/>' for x, y in points)
    return f'<Region Id="1" Type="{kind}" NegativeROA="{negative}"><Vertices>{vertices}</Vertices></Region>'


LAYERS: dict[str, tuple[str, dict[str, float]]] = {
    "freehand with a hole": (
        f'Name="Tumor"><Regions>{region("0", BIG)}{region("0", SMALL, negative="1")}</Regions>', {"Tumor": 8400}),
    "a hole before what it is in": (
        f'Name="Tumor"><Regions>{region("0", SMALL, negative="1")}{region("0", BIG)}</Regions>', {"Tumor": 8400}),
    "rectangle": (f'Name="Tumor"><Regions>{region("1", SMALL)}</Regions>', {"Tumor": 1600}),
    "a hole of another layer": (
        f'Name="a"><Regions>{region("0", BIG)}</Regions></Annotation><Annotation Name="b"><Regions>'
        f'{region("0", SMALL, negative="1")}{region("0", SMALL)}</Regions>', {"a": 10000, "b": 0}),
    "described": (
        'Name=""><Attributes><Attribute Name="Description" Id="0" Value="Stroma"/></Attributes>'
        f'<Regions><RegionAttributeHeaders/>{region("0", SMALL)}</Regions>', {"Stroma": 1600}),
    "nameless": (f'><Regions>{region("0", SMALL)}</Regions>', {"unclassified": 1600}),
    "arrow and ruler": (f'Name="x"><Regions>{region("3", SMALL)}{region("4", SMALL[:2])}</Regions>', {}),
    "HALO": (
        f'Name="Tumor" Visible="True"><Regions>{region("Polygon", BIG, "V")}'
        f'{region("Rectangle", [SMALL[0], SMALL[2]], "V", "1")}{region("Pin", [[5, 5]], "V")}'
        f'{region("Ruler", BIG[:2], "V")}</Regions>', {"Tumor": 8400}),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYERS)
def test_imagescope_and_halo(tmp_path: Path, case: str) -> None:
    text, expected = LAYERS[case]
    for name in ("a.xml", "a.annotations"):
        (tmp_path / name).write_text(imagescope(text))
        assert areas(tmp_path / name) == expected


@pytest.mark.parametrize(("kind", "vertex"), [("2", "Vertex"), ("Ellipse", "V")])
def test_an_ellipse_lies_in_the_rectangle_of_its_points(tmp_path: Path, kind: str, vertex: str) -> None:
    path = tmp_path / "a.xml"
    path.write_text(imagescope(f'Name="t"><Regions>{region(kind, [[10, 20], [50, 100]], vertex)}</Regions>'))
    (area,) = read_polygons(path, None).values()
    assert area.bounds == pytest.approx((10, 20, 50, 100))
    assert area.area == pytest.approx(math.pi * 20 * 40, rel=1e-3)


def test_bad_regions_are_refused_by_number(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(imagescope(f'Name="t"><Regions>{region("0", BIG)}{region("0", BIG).replace("100", "x")}</Regions>'))
    with pytest.raises(InputError, match=r"a\.xml, region 2: .*coordinates"):
        read_polygons(path, None)


# ---------------------------------------------------------------------------------------------------------- hostile


@pytest.mark.parametrize(("encoding", "name"), [
    ("gb18030", "肿瘤"), ("GBK", "肿瘤"), ("big5", "腫瘤"), ("shift_jis", "腫瘍"), ("EUC-KR", "종양"),
    ("iso-8859-1", "tumör"), ("windows-1251", "опухоль"), ("utf-16", "腫瘍"), ("utf-8", "腫瘍"),
])  # fmt: skip
def test_asap_in_the_encodings_of_the_world(tmp_path: Path, encoding: str, name: str) -> None:
    path = asap(tmp_path, ("Polygon", name, BIG), head=f'<?xml version="1.0" encoding="{encoding}"?>')
    path.write_bytes(path.read_text().encode(encoding))
    assert areas(path) == {name: 10_000}


@pytest.mark.parametrize("encoding", ["utf-7", "klingon", "utf-32", "punycode", "zlib"])
def test_other_encodings_are_refused(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?><ASAP_Annotations/>'.encode())
    with pytest.raises(InputError, match=r"a\.xml: is no annotation"):
        read_drawing(path, None)


def test_bytes_that_are_none_of_the_encoding_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(b'<?xml version="1.0" encoding="iso-8859-5"?><ASAP_Annotations>\x00</ASAP_Annotations>')
    with pytest.raises(InputError, match=r"a\.xml: is not XML"):
        read_drawing(path, None)


@pytest.mark.parametrize("value", ["1" + "0" * 400, "-1" + "0" * 5000, "1e400", '"x"', "{}"])
def test_numbers_beyond_all_measure_are_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps([feature(polygon(SQUARE))]).replace("10", value))
    with pytest.raises(InputError, match=r"a\.geojson(, feature 1)?: (has|is not JSON)"):
        read_polygons(path, None)


@pytest.mark.parametrize("read", [partial(read_drawing, frame=None), annotation_hash])
@pytest.mark.parametrize("name", ["nul\0.geojson", "nul\0.png"])
def test_a_path_that_is_none_is_refused(read: Any, name: str) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read(Path(name))


def scribble(points: int) -> shapely.Polygon:
    draw = random.Random(3)
    return shapely.Polygon([(draw.randrange(2000), draw.randrange(2000)) for _ in range(points)])


@pytest.mark.parametrize("points", [5, 12, 40])
def test_scribbles_are_what_make_valid_makes_of_them(points: int) -> None:
    shape = scribble(points)
    assert shapely.symmetric_difference(valid("", shape), shapely.make_valid(shape)).area < 1e-6


@pytest.mark.parametrize(("points", "refused"), [(300, False), (2000, True), (20_000, True)])
def test_scribbles_take_bounded_time(tmp_path: Path, points: int, refused: bool) -> None:
    """The first 400 points once took a minute, 2,000 more than eight."""
    path = written(tmp_path, feature(polygon(SQUARE)), feature(shapely.geometry.mapping(scribble(points))))
    start = time.process_time()
    if refused:
        with pytest.raises(InputError, match=r"feature 2: .*20,000"):
            read_polygons(path, None)
    else:
        assert 1e6 < read_polygons(path, None)["tumour"].area < 3e6
    assert time.process_time() - start < 5
