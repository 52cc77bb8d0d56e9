"""`specslide stress` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline import cli
from pipeline.commands.stress import names_of
from pipeline.provenance import trace
from tests.pipeline.conftest import RunCli
from tiling.core.errors import SpecslideError
from training import TrainConfig, samples_from_images, train


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 48 pictures of 12 cases, `index.csv` and two models trained on them, `a/model` and `b/model`."""
    folder = tmp_path_factory.mktemp("cohort")
    random = np.random.default_rng(0)
    lines = ["path,case_id,label"]
    for number in range(48):
        picture = random.integers(0, 120, (32, 32, 3)) + 120 * (number % 2)
        assert cv2.imwrite(str(folder / f"{number}.png"), picture.astype(np.uint8))
        lines.append(f"{number}.png,case{number // 4},{'pale' if number % 2 else 'dark'}")
    (folder / "index.csv").write_text("\n".join(lines) + "\n")
    for name, augment in (("a", "none"), ("b", "strong")):
        config = TrainConfig.model_validate(
            {"backbone": "test_resnet", "weights": "none", "input_px": 32, "epochs": 1, "batch_size": 8,
             "augment": augment, "val_fraction": 0.25, "test_fraction": 0.25, "bootstrap_resamples": 10}
        )  # fmt: skip
        train(samples_from_images(folder / "index.csv", config), folder / name, config)
    return folder


def test_models_are_stressed_on_the_split_their_training_kept_for_the_test(cohort: Path, run_cli: RunCli) -> None:
    arguments = ["stress", "a/model", "b/model", "--images", "index.csv", "--out", "out", "--strengths", 1]
    done = run_cli(*arguments, "--shifts", "sharpness, jpeg", "--resamples", 20, cwd=cohort)
    assert done.returncode == 0, done.stderr
    record = json.loads((cohort / "out" / "stress.json").read_text())
    assert list(record["models"]) == ["a", "b"]
    assert (record["tiles"], record["cases"], record["split"], record["notes"]) == (12, 3, "test", [])
    assert set(record["curves"]) == {"sharpness", "jpeg"}
    chain = trace(cohort / "out" / "stress.png", [cohort])
    assert [(link.kind, link.name, link.missing) for link in chain.made_from] == [
        ("model", "a", ""),
        ("model", "b", ""),
    ]
    assert "12 tiles, in out" in " ".join(done.stdout.split())
    for row in ("none", "sharpness", "jpeg"):
        assert row in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a/model", "--shifts", "blur"], "shifts"),
        (["a/model", "--metric", "ece"], "metric"),
        (["a/model", "a/model"], "models"),
        (["a"], "a: "),
    ],
)
def test_refusals_say_what_to_pass_and_nothing_is_written(
    arguments: list[str], message: str, cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cohort)
    error = CliRunner().invoke(cli.app, ["stress", *arguments, "--images", "index.csv", "--out", "refused"]).exception
    assert isinstance(error, SpecslideError)
    assert message in str(error)
    assert not (cohort / "refused" / "stress.json").exists()


def test_models_are_called_by_their_runs_or_by_their_paths() -> None:
    assert names_of([Path("x/erm/model"), Path("sd")]) == {"erm": Path("x/erm/model"), "sd": Path("sd")}
    twins = [Path("x/run/model"), Path("y/run/model")]
    assert names_of(twins) == {"x/run/model": twins[0], "y/run/model": twins[1]}
