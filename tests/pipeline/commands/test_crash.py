"""A slide that crashes the library that reads it, alone and among others: the command lives, and says which it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from pipeline import cli, console
from tests.inference.conftest import write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    write_model(folder)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ["info"],
        ["doctor"],
        ["tile", "--tile-px", "64"],
        ["heatmap", "--model", "MODEL"],
        pytest.param(["embed", "--encoder", "MODEL"], marks=pytest.mark.nightly),
    ],
    ids=lambda command: command[0],
)
def test_a_slide_that_crashes_the_library_is_a_sentence_and_not_the_commands_end(
    model: Path, crashing: Path, tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "results", Console(width=300))  # that of the module may have another test's width
    name, *options = command
    out = [] if name in ("info", "doctor") else ["--out", str(tmp_path / "out")]
    models = [str(model) if option == "MODEL" else option for option in options]
    done = CliRunner().invoke(cli.app, [name, str(crashing), *models, *out], env={"COLUMNS": "300"})
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    assert ("bad" in done.output) == (name != "doctor"), "which tells no name"
    said = "it ends the process that reads it" if name == "doctor" else "crashed by a damaged file"
    assert said in done.output
    assert name != "heatmap" or (tmp_path / "out" / "not_analysed.json").exists()


@pytest.mark.nightly
def test_a_slide_that_crashes_the_library_costs_itself_alone(
    model: Path, crashing: Path, small_slide: Path, tmp_path: Path
) -> None:
    arguments = [crashing, small_slide, "--model", model, "--out", tmp_path / "out"]
    done = CliRunner().invoke(cli.app, ["heatmap", *map(str, arguments)])
    assert done.exit_code == 1
    assert (tmp_path / "out" / "small" / "slide.json").exists()
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Not analysed" in page
    assert "bad" in page
