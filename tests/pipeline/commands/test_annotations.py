"""Annotations on the command line: what is drawn reaches the columns, or a word says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.demo.synthetic import write_pyramid
from tests.tiling.annotations.test_rasterize import asap
from tiling import TileStore
from tiling.stores.store import verify_store

pytestmark = pytest.mark.usefixtures("one_process")

BIG = [[60, 60], [340, 60], [340, 260], [60, 260]]  # within the disc's box; in pixels of the slide
SMALL = [[150, 110], [250, 110], [250, 210], [150, 210]]
OFF = [[9000, 9000], [9600, 9000], [9600, 9600], [9000, 9600]]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    picture = np.full((480, 560, 3), 244, np.uint8)
    cv2.ellipse(picture, (200, 160), (198, 158), 0, 0, 360, (222, 140, 180), -1)
    path = tmp_path_factory.mktemp("slide") / "s.tif"
    write_pyramid(path, picture, mpp=0.5, levels=1)
    return path


def qupath(folder: Path, name: str, *drawn: tuple[str, str, Any]) -> None:
    """A file of (class, type of geometry, coordinates)."""
    features = [
        {"type": "Feature", "geometry": {"type": kind, "coordinates": where},
         "properties": {"objectType": "annotation", "classification": {"name": of}}}
        for of, kind, where in drawn
    ]  # fmt: skip
    (folder / name).write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def polygon(name: str, points: Any) -> tuple[str, str, Any]:
    return name, "Polygon", [[*points, points[0]]]


def specslide(*words: object) -> Result:
    return CliRunner().invoke(app, [*map(str, words)], env={"COLUMNS": "300"})


def tile(slide: Path, out: Path, *words: object) -> Result:
    fixed = ("--tile-px", 32, "--min-tissue", 0.3, "--codec", "lossless", "--workers", 1)
    return specslide("tile", slide, "--out", out, *fixed, *words)


def covered(store: Path) -> dict[str, float]:
    """Area under each class, in pixels of the slide."""
    opened = TileStore(store)
    return {name: round(float(values.sum(dtype=np.float64)) * 32**2) for name, values in opened.annotations.items()}


def test_camelyon17_and_an_order_of_the_users(slide: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ann"
    folder.mkdir()
    asap(folder, ("Polygon", "metastases", BIG), ("Polygon", "normal", SMALL)).rename(folder / "s.xml")
    made = tile(slide, tmp_path, "--annotations", folder)
    assert made.exit_code == 0, made.output
    assert covered(tmp_path / "s.zarr") == {"metastases": 280 * 200 - 100**2, "normal": 100**2}
    order = ("--annotation-order", "normal,metastases,absent")
    refused = tile(slide, tmp_path, "--annotations", folder, *order)
    assert (refused.exit_code, "made otherwise" in refused.output) == (1, True)
    labelled = specslide("label", tmp_path / "s.zarr", "--annotations", folder, *order)
    assert (labelled.exit_code, verify_store(tmp_path / "s.zarr")) == (0, [])
    assert covered(tmp_path / "s.zarr") == {"metastases": 280 * 200, "normal": 0}
    kept = tile(slide, tmp_path, "--annotations", folder, *order)
    assert (kept.exit_code, "kept" in kept.output) == (0, True)
    assert "no annotation has a class absent" in kept.output
    cut = specslide("label", tmp_path / "s.zarr", "--annotations", folder, "--annotation-cut-out", "normal")
    assert cut.exit_code == 0
    assert covered(tmp_path / "s.zarr") == {"metastases": 280 * 200 - 100**2}


WORDS: dict[str, tuple[str, list[tuple[str, str, Any]], dict[str, float], list[str]]] = {
    # name: file, what is drawn, area under each class, words
    "as the slide's file": ("s.tif.geojson", [polygon("Tumor", BIG)], {"Tumor": 280 * 200}, ["of 1 of 1 slides"]),
    "a slash": ("s.geojson", [polygon("Tumor/G3", BIG)], {"Tumor%2FG3": 280 * 200}, ["of 1 of 1 slides"]),
    "off the slide": ("s.geojson", [polygon("Tumor", OFF)], {}, ["s: has an annotation without an area on the slide"]),
    "partly off": ("s.geojson", [polygon("Tumor", BIG), polygon("Fat", OFF)], {"Tumor": 280 * 200}, []),
    "points": ("s.geojson", [("Tumor", "MultiPoint", BIG)], {}, ["s: has an annotation without an area on the slide"]),
    "nothing": ("s.geojson", [], {}, ["s: has an annotation without an area on the slide"]),
    "on glass": ("s.geojson", [polygon("Tumor", [[500, 440], [520, 440], [520, 460]])], {"Tumor": 0},
                 ["s: has an annotation under which no tile lies"]),
    "another slide's": ("x.geojson", [polygon("Tumor", BIG)], {}, ["annotations: of 0 of 1 slides", "x.geojson"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WORDS)
def test_an_annotation_is_found_or_a_word_says_why_not(slide: Path, tmp_path: Path, case: str) -> None:
    name, drawn, expected, words = WORDS[case]
    folder = tmp_path / "ann"
    folder.mkdir()
    qupath(folder, name, *drawn)
    for again in range(2):  # kept, it is said once more
        made = tile(slide, tmp_path, "--annotations", folder)
        assert made.exit_code == 0, made.output
        assert covered(tmp_path / "s.zarr") == expected
        for word in words:
            assert word in made.output, again


@pytest.mark.parametrize(
    ("drawn", "words"),
    [([polygon("Tumor", OFF), polygon("Tumor", BIG)], ["1 of 2 outlines lie off the slide"]),
     ([("Tumor", "MultiPoint", BIG)], ["marks no area (1 points or lines)"])],
)  # fmt: skip
def test_the_log_says_how_much_of_a_file_is_no_area_of_the_slide(
    slide: Path, tmp_path: Path, drawn: list[tuple[str, str, Any]], words: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    made = tile(slide, tmp_path)
    assert made.exit_code == 0
    assert "annotations" not in made.output
    qupath(tmp_path, "s.geojson", *drawn)
    labelled = specslide("label", tmp_path / "s.zarr", "--annotations", tmp_path / "s.geojson")
    assert labelled.exit_code == 0
    for word in words:
        assert word in caplog.text + labelled.output


HOSTILE = {
    "a.xml": b'<?xml version="1.0" encoding="klingon"?><ASAP_Annotations/>',
    "a.geojson": b'{"type":"Feature","geometry":{"type":"Polygon","coordinates":[[[1%s,0],[1,0],[1,1],[0,0]]]}}'
    % (b"0" * 400),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_one_annotation_that_cannot_be_read_does_not_stop_the_other_stores(
    slide: Path, tmp_path: Path, name: str
) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"slide_path,slide_id\n{slide},b\n")
    assert specslide("tile", "--manifest", manifest, "--out", tmp_path, "--tile-px", 64, "--workers", 1).exit_code == 0
    (tmp_path / "a.zarr").symlink_to(tmp_path / "b.zarr")
    folder = tmp_path / "ann"
    folder.mkdir()
    (folder / name).write_bytes(HOSTILE[name])
    qupath(folder, "b.geojson", polygon("Tumor", BIG))
    done = specslide("label", tmp_path / "a.zarr", tmp_path / "b.zarr", "--annotations", folder)
    assert (done.exit_code, isinstance(done.exception, SystemExit)) == (1, True), done.exception
    assert name in done.output
    assert list(TileStore(tmp_path / "b.zarr").annotations) == ["Tumor"]


def test_a_nul_in_a_manifest_s_path_is_refused_by_its_row(slide: Path, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(b"slide_path,slide_id,annotation\n%s,s1,x\0y.geojson\n" % str(slide).encode())
    done = specslide("tile", "--manifest", tmp_path / "m.csv", "--out", tmp_path)
    assert "row 2" in str(done.exception)
    assert "NUL" in str(done.exception)
