"""CONTRIBUTING: its table of promises, and the files and targets it names, are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [README, *(path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/*.md")))]


def promises() -> dict[str, list[str]]:
    """The table: id of a promise -> the tests that hold it."""
    table = CONTRIBUTING.partition("## What README and docs promise")[2]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    return {name.strip("`"): re.findall(r"`([^`]+::[^`]+)`", tests) for name, _, tests in rows}


def promised() -> list[str]:
    """The ids that comments in README and docs name."""
    found = [names for page in PAGES for names in re.findall(r"<!-- promises: ([\w, -]+) -->", page)]
    return [name for names in found for name in names.split(", ")]


def functions_of(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("promise", promises())
def test_a_promise_is_held_by_tests_that_are_there(promise: str) -> None:
    named = promises()[promise]
    assert named
    for test in named:
        file, _, name = test.partition("::")
        assert name.startswith("test_")
        assert name in functions_of(ROOT / "tests" / file), test


def test_pages_and_table_have_the_same_promises() -> None:
    assert len(promised()) == len(set(promised()))
    assert set(promised()) == set(promises())
    assert len(promises()) > 40


def test_every_file_that_is_named_is_there() -> None:
    spans = re.findall(r"`([^`\s]+)`", CONTRIBUTING.partition("## What README and docs promise")[0])
    named = {span for span in spans if re.fullmatch(r"\.?[\w/]+\.(py|toml|txt)|\.ci/run", span)}
    assert {"pyproject.toml", "tiling/slides/slide.py", ".ci/run"} <= named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    folders = re.findall(r"^    (\w+/) ", CONTRIBUTING, re.MULTILINE)
    assert len(folders) == 6
    assert all((ROOT / name).is_dir() for name in folders)


def test_every_target_of_make_that_is_named_is_there() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        name for text in (CONTRIBUTING, README) for name in re.findall(r"(?:^    |`)make (\w+)", text, re.MULTILINE)
    }
    assert named >= {"check", "test", "nightly", "demo"}
    assert named <= targets
