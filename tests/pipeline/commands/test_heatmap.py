"""`specslide heatmap` with the options that decide how tiles are chosen and asked about, and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import shapely
import torch
from typer.testing import CliRunner, Result

from inference import PredictConfig, load_model, make_ensemble, predict_slide
from pipeline import cli
from pipeline.demo.synthetic import write_pyramid
from tests.inference.conftest import picture, write_model
from tiling.core.errors import SpecslideError

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `disc.tif`, the models `a`, `b` and `other` (of other classes), and `roi.geojson`."""
    folder = tmp_path_factory.mktemp("place")
    write_pyramid(folder / "disc.tif", picture(512), mpp=0.5)
    write_model(folder / "a")
    write_model(folder / "b", seed=1)
    write_model(folder / "other", seed=2, classes=("benign", "ink"), positive_class="ink")
    geometry = shapely.geometry.mapping(shapely.box(200, 200, 290, 280))
    (folder / "roi.geojson").write_text(json.dumps({"type": "Feature", "geometry": geometry}))
    return folder


def heatmap(place: Path, *arguments: object) -> Result:
    """The command, its relative paths in `place`."""
    names = {p.name: str(p) for p in place.iterdir()}
    return CliRunner().invoke(cli.app, ["heatmap", *(names.get(str(a), str(a)) for a in arguments)])


def test_all_ways_at_once_give_what_the_verb_gives(place: Path, tmp_path: Path) -> None:
    ways = ["--overlap", 0.5, "--tta", "--roi", "roi.geojson", "--batch-size", 5, "--readers", 2, "--min-tissue", 0.3]
    done = heatmap(place, "disc.tif", "--model", "a", "--model", "b", "--out", tmp_path, *ways)
    assert done.exit_code == 0, done.output
    table = pyarrow.parquet.read_table(tmp_path / "disc" / "predictions.parquet").to_pydict()
    config = PredictConfig(overlap=0.5, tta=True, batch_size=5, min_tissue=0.3)
    both = make_ensemble([load_model(place / "a"), load_model(place / "b")])
    expected = predict_slide(place / "disc.tif", both, config, roi=place / "roi.geojson")
    assert len(expected.tiles.x0) > 20
    assert table["minx"] == expected.tiles.x0.tolist()
    np.testing.assert_array_equal(table["prob_tumour"], expected.probabilities[:, 1].astype(float))
    for name in ("entropy", "spread"):
        np.testing.assert_array_equal(table[name], expected.columns[name].astype(float))
    scores = json.loads((tmp_path / "disc" / "slide.json").read_text())["scores"]
    assert 0 <= scores["largest_region_mm2"] <= scores["area_above_mm2"] <= (512 * 0.0005) ** 2
    assert scores["percentile95"] <= scores["top5_mean"] <= scores["noisy_or"]


def test_a_folder_holds_each_slides_region(place: Path, tmp_path: Path) -> None:
    (tmp_path / "rois").mkdir()
    arguments = ["disc.tif", "--model", "a", "--out", tmp_path / "out", "--roi", tmp_path / "rois"]
    done = heatmap(place, *arguments)
    assert done.exit_code == 1
    assert "holds no region of disc" in " ".join(done.output.replace("│", " ").split())  # the table's cells wrap
    (tmp_path / "rois" / "disc.geojson").write_text((place / "roi.geojson").read_text())
    assert heatmap(place, *arguments).exit_code == 0
    assert pyarrow.parquet.read_table(tmp_path / "out" / "disc" / "predictions.parquet").num_rows == 12


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "a", "--batch-size", "0"], "batch_size: '0' is refused"),
        (["--model", "a", "--batch-size", "many"], "batch_size: 'many' is refused"),
        (["--model", "a", "--backend", "tensorrt"], "backend: 'tensorrt' is refused, input should be 'torch', 'onnx'"),
        (["--model", "a", "--model", "other"], "has the classes benign, ink, and the first one benign, tumour"),
        (["--model", "a", "--model", "a"], "the ensemble: holds one model twice"),
        (["--model", "a", "--device", "tpu"], "device: 'tpu' is refused"),
    ],
)
def test_refusals(place: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    error = heatmap(place, "disc.tif", "--out", tmp_path / "out", *arguments).exception
    assert isinstance(error, SpecslideError)
    assert said in str(error)
    assert not (tmp_path / "out").exists()


def test_one_region_is_not_for_two_slides(place: Path, tmp_path: Path) -> None:
    arguments = ["disc.tif", tmp_path / "b.tif", "--model", "a", "--out", tmp_path, "--roi", "roi.geojson"]
    error = heatmap(place, *arguments).exception
    assert isinstance(error, SpecslideError)
    assert "is one region for 2 slides; pass a folder" in str(error)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has what is refused")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--device", "cuda"], "there is no GPU"), (["--precision", "bf16"], "bf16 needs a GPU that computes in it")],
)
def test_what_needs_a_gpu_says_so(place: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    done = heatmap(place, "disc.tif", "--model", "a", "--out", tmp_path, *arguments)
    assert isinstance(done.exception, SpecslideError)
    assert said in str(done.exception)
    assert list(tmp_path.iterdir()) == []
