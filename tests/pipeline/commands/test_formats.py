"""`specslide heatmap --formats` and `specslide export-model`, run in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import cli
from tests.inference.conftest import write_model
from tiling.core.errors import ConfigError, ModelError, OutputError

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run's folder with its model in it."""
    folder = tmp_path_factory.mktemp("run")
    write_model(folder / "model", threshold=0.05)
    return folder


def test_the_formats_asked_for_are_there_and_another_choice_is_another_result(
    small_slide: Path, run_folder: Path, tmp_path: Path
) -> None:
    arguments = ["heatmap", str(small_slide), "--model", str(run_folder / "model"), "--out", str(tmp_path / "out")]
    wanted = ["--formats", "geojson, ometiff,asap", "--min-region-um2", "100", "--region-threshold", "0.02"]
    done = CliRunner().invoke(cli.app, [*arguments, *wanted])
    assert done.exit_code == 0, done.output
    written = {path.name for path in (tmp_path / "out" / "small").iterdir()}
    assert {"regions.geojson", "regions.xml", "heatmap.ome.tif"} <= written
    assert not {"heatmap.png", "heatmap.ome.zarr"} & written
    features = json.loads((tmp_path / "out" / "small" / "regions.geojson").read_text())["features"]
    assert all(feature["properties"]["measurements"]["area_um2"] >= 100 for feature in features)
    assert features
    assert "kept" in CliRunner().invoke(cli.app, [*arguments, *wanted]).output
    assert CliRunner().invoke(cli.app, [*arguments, "--formats", "png"]).exit_code == 1


def test_an_unknown_format_is_refused_before_anything_is_written(
    small_slide: Path, run_folder: Path, tmp_path: Path
) -> None:
    arguments = ["heatmap", str(small_slide), "--model", str(run_folder / "model"), "--out", str(tmp_path / "out")]
    with pytest.raises(ConfigError, match="formats"):
        CliRunner().invoke(cli.app, [*arguments, "--formats", "jpeg"], catch_exceptions=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("inner", ["", "model"])
def test_a_run_or_its_model_is_exported(run_folder: Path, tmp_path: Path, inner: str) -> None:
    out = tmp_path / "wsinfer"
    arguments = ["export-model", str(run_folder / inner), "--to", "wsinfer", "--out", str(out)]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    assert "torchscript_model.pt" in done.output
    assert json.loads((out / "config.json").read_text())["spec_version"] == "1.0"
    with pytest.raises(OutputError, match="--overwrite"):
        CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert CliRunner().invoke(cli.app, [*arguments, "--overwrite"]).exit_code == 0


def test_what_cannot_be_exported_is_refused(run_folder: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert CliRunner().invoke(cli.app, ["export-model", str(run_folder), "--to", "keras", *out]).exit_code == 2
    with pytest.raises(ModelError, match="model folder"):
        CliRunner().invoke(cli.app, ["export-model", str(tmp_path / "x"), "--to", "onnx", *out], catch_exceptions=False)
    assert not (tmp_path / "out").exists()
