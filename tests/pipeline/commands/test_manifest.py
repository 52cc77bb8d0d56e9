"""`specslide manifest`: the table is written once, and every guess is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from tiling.core.errors import InputError, OutputError
from tiling.manifest import read_manifest


def test_every_guess_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "wsis" / "below").mkdir(parents=True)
    for name in ("a.svs", "below/b.svs", "-c.svs", "a.png"):
        (tmp_path / "wsis" / name).touch()
    (tmp_path / "clini.csv").write_text("PATIENT,MSI,AGE\nP1,yes,3\nP2,no,4\n")
    (tmp_path / "slide.csv").write_text("PATIENT,FILENAME\nP1,a.h5\nP1,b.h5\n")
    out = tmp_path / "m.csv"
    words = ["manifest", tmp_path / "wsis", "--table", tmp_path / "clini.csv", "--table", tmp_path / "slide.csv"]
    done = CliRunner().invoke(app, [*map(str, words), "--label", "MSI", "--out", str(out)], catch_exceptions=False)
    lines = [" ".join(line.replace("│", " ").split()) for line in done.output.splitlines()]
    for line in (
        f"{tmp_path / 'wsis'}: 3 slides; left out: 1 .png", "slide.csv FILENAME slide_path", "clini.csv MSI label",
        "clini.csv: not used are AGE", "slide.csv name without ending 2", "clini.csv case_id 1",
        "clini.csv: 1 rows fit no slide: P2 (row 3)", "clini.csv: 1 slides have no row: slide_c",
        f"{tmp_path / 'wsis/-c.svs'}: is called slide_c", "labels: none 1, yes 2", f"{out}: 3 slides of 2 cases",
    ):  # fmt: skip
        assert line in lines, done.output
    assert "--label" not in done.output
    found = {row.slide_id: (row.case_id, row.label) for row in read_manifest(out)}
    assert found == {"slide_c": ("slide_c", None), "a": ("P1", "yes"), "b": ("P1", "yes")}
    before = out.read_bytes()
    with pytest.raises(OutputError, match="--overwrite"):
        CliRunner().invoke(app, [*map(str, words[:2]), "--out", str(out)], catch_exceptions=False)
    assert out.read_bytes() == before
    again = ["manifest", str(tmp_path / "wsis"), str(tmp_path / "wsis" / "a.png"), "-o", str(out), "--overwrite"]
    CliRunner().invoke(app, again, catch_exceptions=False)
    assert [row.label for row in read_manifest(out)] == [None] * 4, "a picture that is named is a slide"
    no_label = CliRunner().invoke(app, [*map(str, words), "--out", str(tmp_path / "n.csv")], catch_exceptions=False)
    assert "--label" in no_label.output


def test_nothing_is_written_of_no_slides(tmp_path: Path) -> None:
    (tmp_path / "wsis").mkdir()
    (tmp_path / "wsis" / "t.txt").touch()
    for named in ("wsis", "missing.svs"):
        words = ["manifest", str(tmp_path / named), "-o", str(tmp_path / "m.csv")]
        with pytest.raises(InputError, match=named):
            CliRunner().invoke(app, words, catch_exceptions=False)
    assert [path.name for path in tmp_path.iterdir()] == ["wsis"]
