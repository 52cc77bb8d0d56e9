"""`specslide study shortcut` as a user meets it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.pipeline.conftest import RunCli


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """60 pictures of noise from 30 cases."""
    random = np.random.default_rng(0)
    lines = ["path,case_id,label"]
    for number in range(60):
        assert cv2.imwrite(str(tmp_path / f"{number}.png"), random.integers(0, 255, (32, 32, 3)).astype(np.uint8))
        lines.append(f"{number}.png,case{number // 2},{'cancer' if number % 2 else 'benign'}")
    path = tmp_path / "index.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_study_from_the_command_line(index: Path, tmp_path: Path, run_cli: RunCli) -> None:
    out = tmp_path / "out"
    command = ("study", "shortcut", "--images", index, "--out", out, "--confounder", "brightness", "--strength", "1",
               "--methods", "weight_decay,sd", "--lambdas", "1", "--weight-decays", "0.1", "--seeds", "1", "--epochs",
               "1", "--workers", "1")  # fmt: skip
    done = run_cli(*command)
    assert done.returncode == 0, done.stderr
    for word in ("unconfounded", "reversed", "weight_decay", "sd", "gain over weight decay"):
        assert word in done.stdout
    assert {path.name for path in out.iterdir() if not path.name.startswith(".")} == {
        "commit.json", "runs", "study.json", "study.csv", "study.md", "study.png", "examples.png",
    }  # fmt: skip
    assert len(list((out / "runs").iterdir())) == 3, "plain training's too, whose errors a rule looks at"


@pytest.mark.parametrize(
    ("options", "named"),
    [(("--lambdas", "1,x"), "sd_lambdas"), (("--stores", "."), "--manifest"), ((), "study.json")],
)
def test_bad_options_are_refused(
    options: tuple[str, ...], named: str, index: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    data = ("--images", index) if options else ()
    done = run_cli("study", "shortcut", *data, "--out", tmp_path / "out", *options)
    assert done.returncode == 1
    assert named in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
