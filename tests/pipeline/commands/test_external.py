"""`specslide study external` as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.conftest import RunCli
from tests.training.external.test_external import hospital


def test_a_study_from_the_command_line_and_its_tables_again(tmp_path: Path, run_cli: RunCli) -> None:
    home, away = hospital(tmp_path, "home", 0, True), hospital(tmp_path, "away", 1, False)
    out = tmp_path / "out"
    done = run_cli("study", "external", "--train", home, "--external", away, "--out", out, "--methods", "sd",
                   "--lambdas", "1", "--seeds", "1", "--epochs", "1", "--augment", "none", "--shifts",
                   "hue")  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = (out / "study.md").read_bytes()
    (out / "study.md").unlink()
    again = run_cli("study", "external", "--out", out)
    assert again.returncode == 0, again.stderr
    assert (out / "study.md").read_bytes() == page


def test_a_study_of_bags_wants_features(tmp_path: Path, run_cli: RunCli) -> None:
    home, away = hospital(tmp_path, "home", 0, True), hospital(tmp_path, "away", 1, False)
    done = run_cli("study", "bags", "--train", home, "--external", away, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "--features" in done.stderr


@pytest.mark.parametrize(
    ("study", "options", "named"),
    [("external", (), "study.json"), ("external", ("--train", "a.csv"), "--external"),
     ("external", ("--methods", "sgd"), "methods"), ("bags", (), "study.json"),
     ("bags", ("--rules", "stress"), "stress"), ("bags", ("--train", "a.csv"), "--external")],
)  # fmt: skip
def test_what_is_refused(study: str, options: tuple[str, ...], named: str, tmp_path: Path, run_cli: RunCli) -> None:
    done = run_cli("study", study, "--out", tmp_path / "out", *options)
    assert done.returncode == 1
    assert named in done.stderr
    assert not (tmp_path / "out").exists()
