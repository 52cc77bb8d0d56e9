"""Heatmaps of a slide of which a part was scanned: every file has the frame of the program that reads it.

The part is painted over whole tiles, and the model says how much of a tile is painted.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import ome_types
import pyarrow.parquet
import pytest
import shapely
import tifffile
import zarr

from inference.config import OutputConfig, PredictConfig
from inference.exports import formats
from inference.heatmap import make_heatmap
from inference.predict import predict_slide
from pipeline.study.config import StudyConfig
from pipeline.study.stages.heatmap import truth_of
from pipeline.study.stages.stage import STORES, Study
from tests.inference.test_alignment import BARE, FULL, paint_model
from tests.scn import write_scn
from tiling import Slide, TilingConfig, tile_slide
from tiling.annotations.rasterize import read_polygons
from tiling.manifest import slide_row

SIDE, CORNER0, SIZE0, PART = 32, (203, 101), (1000, 700), (400, 300)
BLOCK = (320, 192, 448, 256)  # painted: left, top, right, bottom on the whole picture
IN_QUPATH = (117, 91, 245, 155)
EDGE = (96 + SIDE * 15, 101, 603, 128)  # painted too, and cut by the upper right corner of the part


@dataclass(frozen=True)
class Made:
    slide: Path
    folder: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("scanned")
    picture = np.full((PART[1], PART[0], 3), (BARE, 100, 190), np.uint8)
    for left, top, right, bottom in (BLOCK, EDGE):
        picture[top - CORNER0[1] : bottom - CORNER0[1], left - CORNER0[0] : right - CORNER0[0], 0] = FULL
    slide = write_scn(folder / "scan.scn", picture, corner0=CORNER0, size0=SIZE0)
    outputs = OutputConfig(formats=formats())
    report = make_heatmap(slide, paint_model(SIDE), folder / "out", PredictConfig(min_tissue=0), outputs=outputs)
    return Made(slide, report.folder)


def boxes(path: Path) -> list[tuple[float, ...]]:
    features = json.loads(path.read_text())["features"]
    return [shapely.geometry.shape(feature["geometry"]).bounds for feature in features]


def test_tables_count_from_the_whole_pictures_corner(made: Made) -> None:
    table = pyarrow.parquet.read_table(made.folder / "predictions.parquet").to_pydict()
    whole = {(x, y) for x in range(BLOCK[0], BLOCK[2], SIDE) for y in range(BLOCK[1], BLOCK[3], SIDE)}
    places = zip(table["minx"], table["miny"], table["prob_painted"], strict=True)
    assert {(x, y) for x, y, p in places if p > 0.97} == whole
    assert len(table["minx"]) == 13 * 10, "the tiles that reach into the part, and no other"


def test_qupath_counts_from_the_parts_corner(made: Made) -> None:
    features = json.loads((made.folder / "heatmap.geojson").read_text())["features"]
    painted = [f for f in features if f["properties"]["measurements"]["prob_painted"] > 0.97]
    union = shapely.union_all([shapely.geometry.shape(feature["geometry"]) for feature in painted])
    assert union.equals(shapely.box(*IN_QUPATH))
    regions = boxes(made.folder / "regions.geojson")
    assert IN_QUPATH in [tuple(map(round, region)) for region in regions]
    for left, top, right, bottom in regions:
        assert min(left, top) >= 0, "QuPath shows nothing before"
        assert (right <= PART[0], bottom <= PART[1]) == (True, True), "nor behind"


def test_asap_counts_from_the_whole_pictures_corner(made: Made) -> None:
    found = []
    for annotation in ElementTree.parse(made.folder / "regions.xml").getroot().iter("Annotation"):
        points = [(float(p.attrib["X"]), float(p.attrib["Y"])) for p in annotation.iter("Coordinate")]
        found.append(tuple(map(round, shapely.Polygon(points).bounds)))
    assert BLOCK in found


def test_ome_counts_from_the_first_pixel_that_was_scanned(made: Made) -> None:
    path = made.folder / "heatmap.ome.tif"
    pixels = ome_types.from_tiff(path).images[0].pixels
    x, y = pixels.planes[0].position_x, pixels.planes[0].position_y
    assert (x, y) == pytest.approx([(SIDE - 1) / 4 - corner / 2 for corner in CORNER0])
    values = tifffile.imread(path)
    group = zarr.open_group(made.folder / "heatmap.ome.zarr", mode="r")
    (scales,) = json.loads((group.store.root / "zarr.json").read_text())["attributes"]["ome"]["multiscales"]  # type: ignore[attr-defined]
    scale, translation = (step[step["type"]] for step in scales["datasets"][0]["coordinateTransformations"])
    assert (translation[1], translation[0]) == pytest.approx((x, y))
    rows, columns = np.nonzero(np.nan_to_num(values) > 0.97)
    first = (translation[1] + columns.min() * scale[1], translation[0] + rows.min() * scale[0])  # centre, micrometres
    assert [(at * 2 + 0.5) - SIDE / 2 for at in first] == pytest.approx(IN_QUPATH[:2])


def test_the_report_and_the_record_say_what_was_scanned(made: Made) -> None:
    page = (made.folder / "report.html").read_text()
    assert "as QuPath counts them" in page
    assert (int(IN_QUPATH[0]), int(IN_QUPATH[1])) in [
        (int(x), int(y)) for x, y in re.findall(r'alt="Tile at x (-?\d+), y (-?\d+)', page)
    ]
    record = json.loads((made.folder / "slide.json").read_text())
    assert record["slide"]["bounds"] == {"x0": 203, "y0": 101, "width0": 400, "height0": 300}
    area = (BLOCK[2] - BLOCK[0]) * (BLOCK[3] - BLOCK[1]) * (0.5 / 1000) ** 2
    assert record["scores"]["largest_region_mm2"] == pytest.approx(area)


def test_a_store_says_the_same_of_the_same_places(made: Made, tmp_path: Path) -> None:
    tiling = TilingConfig(mpp=0.5, tile_px=SIDE, min_tissue=0, codec="lossless")
    stored = predict_slide(
        tile_slide(made.slide, tmp_path, tiling).store, paint_model(SIDE), PredictConfig(min_tissue=0)
    )
    direct = predict_slide(made.slide, paint_model(SIDE), PredictConfig(min_tissue=0))
    assert stored.slide.frame() == direct.slide.frame()
    assert stored.tiles.places() == direct.tiles.places()
    np.testing.assert_array_equal(stored.probabilities, direct.probabilities)


@pytest.mark.parametrize("source", ["slide", "store"])
def test_a_region_of_interest_lies_where_its_program_has_it(made: Made, tmp_path: Path, source: str) -> None:
    left, top, right, bottom = IN_QUPATH
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    roi = tmp_path / "roi.geojson"
    roi.write_text(json.dumps({"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}))
    tiling = TilingConfig(mpp=0.5, tile_px=SIDE, min_tissue=0, codec="lossless")
    path = made.slide if source == "slide" else tile_slide(made.slide, tmp_path, tiling).store
    found = predict_slide(path, paint_model(SIDE), PredictConfig(min_tissue=0), roi=roi)
    whole = [(x, y) for y in range(BLOCK[1], BLOCK[3], SIDE) for x in range(BLOCK[0], BLOCK[2], SIDE)]
    assert found.tiles.places() == whole


def test_the_truth_of_a_study_lies_where_it_was_drawn(made: Made, tmp_path: Path) -> None:
    """The regions written for QuPath, taken for a pathologist's."""
    row = slide_row(made.slide).model_copy(update={"annotation": made.folder / "regions.geojson"})
    config = StudyConfig(manifest=tmp_path / "slides.csv", out=tmp_path)
    tile_slide(made.slide, tmp_path / STORES, TilingConfig(mpp=0.5, tile_px=SIDE, min_tissue=0))
    truth = truth_of(row, paint_model(SIDE).info, Study(config, [row]))
    assert truth is not None
    assert truth.contains(shapely.box(*BLOCK).buffer(-8))
    assert not truth.intersects(shapely.box(0, 0, *CORNER0))


def test_regions_of_a_heatmap_are_annotations_of_the_same_places(made: Made) -> None:
    with Slide(made.slide) as slide:
        ours, theirs = (read_polygons(made.folder / name, slide.frame) for name in ("regions.geojson", "regions.xml"))
    assert ours["painted"].symmetric_difference(theirs["painted"]).area < 1e-6
    assert ours["painted"].contains(shapely.box(*BLOCK).buffer(-8))
