"""Heatmaps by the workers of a Dask cluster are those of this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import cli
from pipeline.execution.dask_config import ClusterConfig
from pipeline.execution.jobs import load_models, predict_all
from tests.inference.conftest import write_model
from tests.pipeline.conftest import listing
from tiling.core.errors import ConfigError


@pytest.mark.usefixtures("one_process")
def test_heatmaps_are_those_of_this_process(
    scheduler: ClusterConfig, small_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte, the cohort's page too, with a bad slide among them; from the command line."""
    write_model(tmp_path / "model")
    (tmp_path / "small.tif").symlink_to(small_slide)
    (tmp_path / "bad.svs").write_text("no slide")
    monkeypatch.chdir(tmp_path)
    for out, cluster in (("here", []), ("there", ["--cluster", scheduler.at])):
        arguments = ["heatmap", "bad.svs", "small.tif", "--model", "model", "--out", out, "--device", "cpu", *cluster]
        done = CliRunner().invoke(cli.app, arguments)
        assert done.exit_code == 1, done.output
        assert "1 of 2 slides failed" in done.output
    assert listing(tmp_path / "here") == listing(tmp_path / "there")
    assert "small/report.html" in listing(tmp_path / "there")


def test_a_model_that_is_loaded_stays_here(scheduler: ClusterConfig, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"^cluster: .*model"):
        predict_all([], load_models([tmp_path / "model"]), cluster=scheduler)
