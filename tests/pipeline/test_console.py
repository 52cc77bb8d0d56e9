"""Texts are printed as they are: names may hold what rich takes for markup or an emoji's code."""

from __future__ import annotations

import json

import pytest
from rich.cells import cell_len

from pipeline import console

HOSTILE = ["run:on:monday", "S:100:x", ":warning:", "[bold]x[/]", "[/]", "[red", r"\[b]", "a\\", "[link=x]y[/]", "µ–癌"]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_line_is_what_was_said(capsys: pytest.CaptureFixture[str], name: str) -> None:
    console.say(name)
    console.show_error(f"{name}: is gone")
    assert capsys.readouterr() == (f"{name}\n", f"error: {name}: is gone\n")


@pytest.mark.parametrize("name", HOSTILE)
def test_json_is_read_again_as_it_was(capsys: pytest.CaptureFixture[str], name: str) -> None:
    said = {"name": name, "of": [name * 100]}
    console.say(json.dumps(said, indent=1, ensure_ascii=False))
    assert json.loads(capsys.readouterr().out) == said


@pytest.mark.parametrize("name", HOSTILE)
def test_a_table_shows_names_as_they_are(capsys: pytest.CaptureFixture[str], name: str) -> None:
    console.show_table(f"stores in {name}", ("slide", name), [(name, 1)])
    title, _, head, _, row, *_ = capsys.readouterr().out.splitlines()
    assert title.strip() == f"stores in {name}"
    assert [cell.strip() for cell in head.strip("┃ ").split("┃")] == ["slide", name]
    assert [cell.strip() for cell in row.strip("│ ").split("│")] == [name, "1"]


@pytest.mark.parametrize("hidden", ["\x1b", "\r", "\x9b", "\u202e", "\x07"])
def test_what_a_terminal_would_obey_is_written_out(capfd: pytest.CaptureFixture[str], hidden: str) -> None:
    text = f"a{hidden}[31mb"
    console.say(text)
    console.note(text)
    console.show_error(text)
    console.show_table(text, (text,), [(text,)])
    for written in capfd.readouterr():
        assert ascii(text)[1:-1] in written
        assert all(c.isprintable() for c in written if c != "\n")


_LONG = "wsinfer:colorectal-tiatoolbox-resnet50.kather100k"


@pytest.mark.parametrize(
    ("rows", "whole"),
    [
        ([(_LONG, "colon and rectum, H&E: nine tissue classes", "see its page")], [_LONG, "rectum,"]),
        ([("slide 1 of 2", "0.942 (0.914 to 0.963) " * 4, "x " * 60)], ["slide 1 of 2", "0.942"]),
        ([("a", "/a/path/of/no/spaces/" * 8, "adenocarcinoma of the lung and more, and more")], ["a", "more,"]),
        ([("癌" * 20, "a word " * 20, "x")], ["癌" * 20]),
        ([("n" * 90, "a word", "x")], ["word"]),
        ([("n", "w" * 30, "v" * 12)], ["n", "w" * 30, "v" * 12]),
    ],
)
def test_in_80_columns_no_name_is_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, rows: list[tuple[str, ...]], whole: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    console.show_table("t", ("name", "what it is", "more"), rows)
    lines = capsys.readouterr().out.splitlines()
    assert all(cell_len(line) <= 80 for line in lines)
    shown = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in lines]
    for text in whole:
        assert any(text in cell for row in shown for cell in row), lines
    joined = "".join("".join(cell for row in shown[4:] for cell in row[i : i + 1]) for i in range(3))
    assert all(joined.count(c) >= sum(cell.count(c) for cell in rows[0]) for c in "nwv/"), "nothing is cut off"
