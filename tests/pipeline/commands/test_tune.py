"""`specslide tune`: one process, several, parts and a cluster end with the same bytes; a dry run trains nothing."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from pipeline import cli, console
from pipeline.execution.dask_config import ClusterConfig
from tests.conftest import pictures_left_out
from tests.pipeline.conftest import listing
from tests.pipeline.test_imports import said
from tiling.core.errors import ConfigError, OutputError
from training.models.info import read_info

RUNS = ["plain_lr-0.003_light", "sd_lambda-20_lr-0.003_light"]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 48 pictures of 12 cases and `index.csv`, and a tuning by one process in `out`."""
    folder = tmp_path_factory.mktemp("here")
    random, lines = np.random.default_rng(0), ["path,case_id,label"]
    for number in range(48):
        picture = random.integers(0, 200, (32, 32, 3)) + 50 * (number % 2)
        assert cv2.imwrite(str(folder / f"{number}.png"), picture.astype(np.uint8))
        lines.append(f"{number}.png,case{number // 4},{'ab'[number % 2]}")
    (folder / "index.csv").write_text("\n".join(lines) + "\n")
    (folder / "train.yaml").write_text(
        "{backbone: test_resnet, weights: none, input_px: 32, epochs: 1, batch_size: 8, learning_rate: 0.003, "
        "bootstrap_resamples: 5, val_fraction: 0.25, test_fraction: 0.25, threads: 1, sd_lambda: 7}"
    )
    with pytest.MonkeyPatch.context() as patch:
        assert run(folder, patch, "--out", "out").exit_code == 0
    return folder


def run(folder: Path, patch: pytest.MonkeyPatch, *options: object) -> Result:
    patch.chdir(folder)
    patch.setattr(console, "results", Console(width=300))  # that of the module may have taken another test's width
    words = ["tune", "--images", "index.csv", "--config", "train.yaml", "--penalties", "none,sd", "--lambdas", 20]
    if "--augments" not in options:
        words += ["--augments", "light"]
    with pictures_left_out():
        return CliRunner().invoke(cli.app, [*map(str, (*words, "--seeds", 1, *options))], env={"COLUMNS": "300"})


def test_the_result_names_every_candidate_and_the_chosen_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(here, monkeypatch, "--out", "out", "--rule", "regret")
    assert done.exit_code == 0, done.output
    assert "2 runs, 2 candidates under 1 seed: 2 are finished" in done.output
    assert all(name in done.output for name in RUNS)
    info = read_info(here / "out" / "model")
    assert info.selection is not None
    assert f"chosen by regret: {info.selection.chosen}" in done.output
    assert info.training["sd_lambda"] in (0.0, 20.0), "the file's own is not tried"


def test_a_dry_run_trains_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(here, monkeypatch, "--out", "absent", "--dry-run", "--seeds", 3, "--augments", "light,strong")
    assert done.exit_code == 0, done.output
    assert "12 runs, 4 candidates under 3 seeds: 0 are finished" in done.output
    assert done.output.count("0 of 3") == 4
    assert not (here / "absent").exists()
    again = run(here, monkeypatch, "--out", "out", "--dry-run", "--seeds", 2)
    assert again.output.count("1 of 2") == 2


def test_a_dry_run_does_not_wait_for_torch(here: Path) -> None:
    words = ["specslide", "tune", "--images", str(here / "index.csv"), "--out", str(here / "absent"), "--dry-run"]
    code = f"import sys; sys.argv = {words!r}; from pipeline.cli import app; app(standalone_mode=False)"
    lines = said(code, "torch")
    assert any("plain_lr-0.001_light" in line for line in lines)
    assert lines[-1] == "False"


def test_the_last_of_several_parts_chooses(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(here, monkeypatch, "--out", "parts", "--part", "2/2")
    assert first.exit_code == 0, first.output
    assert "1 runs of other parts are not finished" in first.output
    assert [path.name for path in (here / "parts" / "runs").iterdir()] == RUNS[1:]
    assert not (here / "parts" / "model").exists()
    assert run(here, monkeypatch, "--out", "parts", "--part", "1/2").exit_code == 0
    assert listing(here / "parts") == listing(here / "out")


def test_a_cluster_makes_the_same(
    here: Path, scheduler: ClusterConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    done = run(here, monkeypatch, "--out", "cluster", "--cluster", scheduler.at)
    assert done.exit_code == 0, done.output
    assert "2/2 runs" in caplog.text, "they are not called slides"
    assert listing(here / "cluster") == listing(here / "out")


@pytest.mark.nightly  # two processes that load torch
def test_several_at_once_make_the_same(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(here, monkeypatch, "--out", "several", "--at-once", 2)
    assert done.exit_code == 0, done.output
    assert listing(here / "several") == listing(here / "out")


def test_runs_of_other_settings_are_refused_and_replaced_when_asked(
    here: Path, scheduler: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(here, monkeypatch, "--out", "other").exit_code == 0
    more = ("--out", "other", "--epochs", 2)
    refused = run(here, monkeypatch, *more)
    assert isinstance(refused.exception, OutputError)
    assert "epochs was 1, is 2" in str(refused.exception)
    elsewhere = run(here, monkeypatch, *more, "--cluster", scheduler.at)
    assert (elsewhere.exit_code, "epochs was 1, is 2" in elsewhere.output) == (1, True), elsewhere.output
    assert run(here, monkeypatch, *more, "--overwrite").exit_code == 0
    assert read_info(here / "other" / "model").training["epochs"] == 2


def test_what_is_tuned_is_no_option_of_its_own(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--sd-lambda " not in CliRunner().invoke(cli.app, ["tune", "--help"], env={"COLUMNS": "300"}).output
    wrong = run(here, monkeypatch, "--out", "out", "--l2s", "1,1")
    assert isinstance(wrong.exception, ConfigError)
    assert "l2s" in str(wrong.exception)
