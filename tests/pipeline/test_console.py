"""Texts are printed as they are: names may hold what rich takes for markup or an emoji's code."""

from __future__ import annotations

import json

import pytest

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
