"""What other programs write of a slide's tiles becomes the heatmap that it is: places and probabilities are kept.

The oracle is a heatmap of specslide: its tiles are written as each program writes them, and read back.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from inference import make_heatmap
from inference.config import EvaluateSlidesConfig, OutputConfig
from inference.evaluation.evaluate_slides import evaluate_slides
from inference.exports import TABLE
from inference.foreign_results import foreign_results, result_files
from inference.import_results import import_results, imported_prediction, is_of_slide
from inference.prediction import Prediction
from inference.summary import read_summary
from inference.viewer.cohort import find_cohort
from pipeline.cli import app
from pipeline.demo.synthetic import write_pyramid
from tiling import Slide
from tiling.core.errors import InputError, OutputError, SpecslideError
from training import TileModel

MPP = 0.5  # of the slide
Table = NDArray[np.float64]


@pytest.fixture(scope="module")
def made(slide: Path, model: TileModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A heatmap of specslide."""
    return make_heatmap(slide, model, tmp_path_factory.mktemp("made")).folder


def tiles_of(folder: Path) -> Table:
    """x0, y0, side, probabilities of benign and tumour: (N, 5)."""
    table = pyarrow.parquet.read_table(folder / TABLE)
    columns = ("minx", "miny", "width", table.column_names[5], table.column_names[6])
    return np.stack([table[name].to_numpy().astype(np.float64) for name in columns], 1)


def write_rows(path: Path, names: list[str], rows: Any, separator: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(names)
        writer.writerows(rows)
    return path


def wsinfer(folder: Path, tiles: Table) -> Path:
    """The folder of results of a run of WSInfer; rows by column, as it writes them."""
    rows = [
        (int(x), int(y), int(side), int(side), b, t) for x, y, side, b, t in tiles[np.lexsort(tiles.T[:2])].tolist()
    ]
    names = ["minx", "miny", "width", "height", "prob_benign", "prob_tumour"]
    path = write_rows(folder / "results" / "model-outputs-csv" / "disc.csv", names, rows)
    config = {"architecture": "resnet34", "num_classes": 2, "patch_size_pixels": 32, "spacing_um_px": 0.5}
    run = {
        "model": {"config": config, "huggingface_location": {"repo_id": "o/m", "revision": "v1"}, "path": "/secret"},
        "runtime": {"version": "0.6.1", "working_dir": "/secret", "args": "wsinfer run /secret"},
    }  # fmt: skip
    (folder / "results" / "run_metadata_20260101T000000.json").write_text(json.dumps(run))
    return path


def tiatoolbox(units: str, resolution: float) -> Callable[[Path, Table], Path]:
    def write(folder: Path, tiles: Table) -> Path:
        scale = MPP / resolution if units == "mpp" else resolution
        corners = np.concatenate([tiles[:, :2], tiles[:, :2] + tiles[:, 2:3]], 1) * scale
        found = {
            "coordinates": corners.tolist(), "probabilities": tiles[:, 3:].tolist(), "units": units, "label": None,
            "predictions": tiles[:, 3:].argmax(1).tolist(), "resolution": resolution, "pretrained_model": "resnet18",
        }  # fmt: skip
        (path := folder / "0.raw.json").write_text(json.dumps(found))
        return path

    return write


def qupath_table(unit: str) -> Callable[[Path, Table], Path]:
    def write(folder: Path, tiles: Table) -> Path:
        scale = {"µm": MPP, "px": 1.0}[unit]
        names = ["Image", "Object ID", "Object type", f"Centroid X {unit}", f"Centroid Y {unit}", "benign", "tumour"]
        rows = [
            (image, number, "Tile", (x + side / 2) * scale, (y + side / 2) * scale, b, t)
            for image in ("disc.tif", "other.tif")
            for number, (x, y, side, b, t) in enumerate(tiles.tolist())
        ]
        return write_rows(folder / "measurements.tsv", names, rows, "\t")

    return write


def qupath_list(folder: Path, tiles: Table) -> Path:
    """GeoJSON with measurements as a list, as WSInfer's `togeojson` wrote it."""

    def feature(x: float, y: float, side: float, b: float, t: float) -> dict[str, Any]:
        ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
        measured = [{"name": "prob_benign", "value": b}, {"name": "prob_tumour", "value": t}]
        properties = {"objectType": "tile", "measurements": measured}
        return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}

    found = {"type": "FeatureCollection", "features": [feature(*tile) for tile in tiles.tolist()]}
    (path := folder / "disc.json").write_text(json.dumps(found))
    return path


NAMED: dict[str, Any] = {"probabilities": ("benign", "tumour")}
CASES: dict[str, tuple[Callable[[Path, Table], Path], dict[str, Any]]] = {
    "wsinfer": (wsinfer, {}),
    "tiatoolbox, baseline": (tiatoolbox("baseline", 1.0), NAMED),
    "tiatoolbox, half of baseline": (tiatoolbox("baseline", 0.5), NAMED),
    "tiatoolbox, mpp": (tiatoolbox("mpp", 1.0), NAMED),
    "qupath, µm": (qupath_table("µm"), NAMED | {"tile_px0": 32}),
    "qupath, px": (qupath_table("px"), NAMED | {"tile_px0": 32}),
    "qupath, list": (qupath_list, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_places_and_probabilities_are_kept(case: str, made: Path, slide: Path, tmp_path: Path) -> None:
    write, given = CASES[case]
    expected = tiles_of(made)
    found = prediction_of(write(tmp_path, expected), slide, **given)
    assert len(found.tiles) == len(expected) > 10
    np.testing.assert_allclose(columns_of(found), expected, atol=1e-6)
    assert (found.classes, found.positive_class) == (("benign", "tumour"), "tumour")
    assert found.grid == read_summary(made).grid


def test_our_own_geojson_and_table_come_back(made: Path, slide: Path, tmp_path: Path) -> None:
    for name in ("heatmap.geojson", "predictions.csv"):
        (path := tmp_path / f"disc{Path(name).suffix}").write_bytes((made / name).read_bytes())
        np.testing.assert_allclose(columns_of(prediction_of(path, slide)), tiles_of(made), atol=1e-6)


def prediction_of(path: Path, slide: Path, **given: Any) -> Prediction:
    """What the file says, without the pictures and pages that are made of it."""
    results = [one for one in foreign_results(path, given.get("probabilities", ())) if is_of_slide(one, slide)]
    settings = {"positive_class": None, "threshold": 0.5, "tile_px0": None} | given
    with Slide(slide) as opened:
        return imported_prediction(results[0], path, opened, "disc", "0" * 64, settings)


def columns_of(found: Prediction) -> Table:
    """As `tiles_of` a heatmap."""
    side = np.full(len(found.tiles), found.grid.tile_px0)
    return np.column_stack([found.tiles.x0, found.tiles.y0, side, found.probabilities])


def test_the_report_says_what_is_unknown_and_nothing_private(made: Path, slide: Path, tmp_path: Path) -> None:
    folder = import_results(wsinfer(tmp_path, tiles_of(made)), slide, tmp_path / "out", threshold=0.25).folder
    page = (folder / "report.html").read_text()
    assert "does not say whether its probabilities are calibrated" in page
    assert "o/m" in page
    found = read_summary(folder)
    assert found.threshold == 0.25
    known = read_summary(made)
    assert (found.slide, found.grid) == (known.slide, known.grid)
    assert found.scores.mean == pytest.approx(known.scores.mean, abs=1e-6)
    np.testing.assert_allclose(tiles_of(folder), tiles_of(made), atol=1e-6)
    assert (found.out_of_distribution, found.device) == (None, "")
    assert "torch" not in found.software
    assert found.made_from["settings"]["wsinfer"] == "0.6.1"
    assert not any("secret" in path.read_text(errors="replace") for path in folder.iterdir() if path.is_file())


def test_again_is_kept_and_otherwise_is_refused(made: Path, slide: Path, tmp_path: Path) -> None:
    path = wsinfer(tmp_path, tiles_of(made))
    assert not import_results(path, slide, tmp_path / "out").reused
    assert import_results(path, slide, tmp_path / "out").reused
    with pytest.raises(OutputError, match="threshold"):
        import_results(path, slide, tmp_path / "out", threshold=0.4)
    outputs = OutputConfig(formats=("geojson",))
    folder = import_results(path, slide, tmp_path / "out", outputs=outputs, overwrite=True).folder
    assert (folder / "regions.geojson").exists()


def test_classes_that_do_not_exclude_each_other(slide: Path, tmp_path: Path) -> None:
    names = ["minx", "miny", "width", "height", "prob_til", "prob_tumour"]
    path = write_rows(tmp_path / "disc.csv", names, [(0, 0, 32, 32, 0.9, 0.8), (32, 0, 32, 32, 0.1, 0.3)])
    with pytest.raises(InputError, match="--positive-class"):
        import_results(path, slide, tmp_path / "out")
    found = prediction_of(path, slide, positive_class="til")
    assert (found.classes, found.positive_class) == (("not til", "til"), "til")
    np.testing.assert_allclose(found.probabilities, [[0.1, 0.9], [0.9, 0.1]], atol=1e-6)


def test_tiles_of_another_size_are_left_out_and_said(
    slide: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [(0, 0, 32, 32, 0.5), (32, 0, 32, 32, 0.25), (64, 0, 20, 32, 1.0)]
    path = write_rows(tmp_path / "disc.csv", ["minx", "miny", "width", "height", "prob_tumour"], rows)
    with caplog.at_level(logging.WARNING):
        folder = import_results(path, slide, tmp_path / "out").folder
    assert "left out 1 tiles" in caplog.text
    np.testing.assert_allclose(tiles_of(folder)[:, 4], [0.5, 0.25])
    assert "are of another size" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("names", "rows", "given", "named"),
    [
        ("minx,miny,width,height,prob_a", ["0,0,32,32,1.5"], {}, "1.5"),
        ("minx,miny,width,height,prob_a", ["0,0,32,32,x"], {}, "row 2"),
        ("minx,miny,width,height,prob_a", ["0,0,32,32,nan"], {}, "row 2"),
        ("minx,miny,width,height,prob_a", ["600,0,32,32,0.5"], {}, "off the slide"),
        ("minx,miny,width,height,prob_a", ["0,0,32,32,0.5", "0,0,32,32,0.6"], {}, "two tiles"),
        ("minx,miny,width,height,prob_a", ["0,0,32,64,0.5"], {}, "no squares"),
        ("minx,miny,width,height,tumour", ["0,0,32,32,0.5"], {}, "--probability"),
        ("minx,miny,width,height,prob_a", ["0,0,32,32,0.5"], {"probabilities": ("b",)}, "--probability"),
        ("minx,miny,width,height,prob_a", ["0,0,32,32,0.5"], {"positive_class": "b"}, "--positive-class"),
        ("Image,Centroid X px,Centroid Y px,prob_a", ["disc.tif,16,16,0.5"], {}, "--tile-px0"),
        ("Image,Centroid X px,Centroid Y px,prob_a", ["x.tif,16,16,0.5"], {"tile_px0": 32}, "x.tif"),
        ("a,b", ["1,2"], {}, "a, b"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    names: str, rows: list[str], given: dict[str, Any], named: str, slide: Path, tmp_path: Path
) -> None:
    (path := tmp_path / "disc.csv").write_text("\n".join([names, *rows]) + "\n")
    with pytest.raises(SpecslideError) as caught:
        import_results(path, slide, tmp_path / "out", **given)
    assert named in str(caught.value)
    assert not (tmp_path / "out" / "disc").exists()


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"features": [1]}', '{"features": [{"properties": {}}]}', "[[[[[1]]]]]"]
)
def test_json_of_no_layout_is_refused(text: str, slide: Path, tmp_path: Path) -> None:
    (path := tmp_path / "disc.json").write_text(text)
    with pytest.raises(InputError):
        import_results(path, slide, tmp_path / "out")


@pytest.mark.parametrize(("name", "said"), [("disc.zarr", "scale"), ("disc.db", "scale"), ("disc", "without tables")])
def test_a_folder_that_cannot_be_read_says_what_can(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=said):
        result_files([tmp_path / name])


def test_a_store_is_not_taken_for_another_programs(tmp_path: Path) -> None:
    (tmp_path / "disc.zarr").mkdir()
    (tmp_path / "disc.zarr" / "commit.json").write_text("{}")
    with pytest.raises(InputError, match="made by specslide"):
        result_files([tmp_path / "disc.zarr"])


def test_the_command_finds_slides_and_its_results_are_tested_and_shown(made: Path, slide: Path, tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    for name in ("disc", "other"):
        write_pyramid(tmp_path / "slides" / f"{name}.tif", _spotted(name), mpp=MPP)
    path = qupath_table("px")(tmp_path, tiles_of(made))
    words = [
        "import", "results", path, "--slides", tmp_path / "slides", "--out", tmp_path / "out", "--tile-px0", 32,
        "--probability", "benign", "--probability", "tumour",
    ]  # fmt: skip
    done = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    lines = ["slide_path,slide_id,case_id,label", "slides/disc.tif,disc,a,tumour", "slides/other.tif,other,b,benign"]
    (manifest := tmp_path / "slides.csv").write_text("\n".join(lines) + "\n")
    tested = evaluate_slides(tmp_path / "out", manifest, tmp_path / "test", EvaluateSlidesConfig(resamples=0))
    assert tested.scores["top5_mean"].auroc.value == 0.5  # both slides have the same tiles
    shown = find_cohort([tmp_path / "out", tmp_path / "slides"])
    assert {one.slide_id: len(one.results) for one in shown.slides} == {"disc": 1, "other": 1}
    assert not shown.refused
    run = wsinfer(tmp_path, tiles_of(made)).parent.parent
    words = ["import", "results", run, "--slides", slide, "--out", tmp_path / "wsinfer"]
    assert CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False).exit_code == 0
    words = ["import", "results", path, "--slides", slide, "--out", tmp_path / "none"]
    done = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 1


def _spotted(name: str) -> NDArray[np.uint8]:
    picture = np.full((512, 512, 3), 230, np.uint8)
    picture[100:400, 100:400] = (180, 120, 160) if name == "disc" else (160, 110, 170)
    return picture
