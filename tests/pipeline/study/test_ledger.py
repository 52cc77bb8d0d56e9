"""The ledger: one line an event, whoever writes and whenever it is killed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.study.ledger import LEDGER, Step, append, last_of, read_ledger, timed
from tiling.core.errors import OutputError, SlideError


@dataclass(frozen=True)
class Report:
    reused: bool


def said(folder: Path) -> list[tuple[str, str, str]]:
    return [(event.event, event.stage, event.name) for event in read_ledger(folder)]


def test_events_come_back_in_their_order(tmp_path: Path) -> None:
    steps = (Step("tile", "stores/a.zarr", "done"), Step("train", "training", "changed", "mpp was 1"))
    append(tmp_path, "start")
    append(tmp_path, "plan", steps=steps)
    append(tmp_path, "failed", "tile", "stores/ä.zarr", seconds=1.23456, reason="cannot be\nread")
    start, plan, failed = read_ledger(tmp_path)
    assert (start.event, plan.steps) == ("start", steps)
    assert (failed.name, failed.seconds, failed.reason) == ("stores/ä.zarr", 1.235, "cannot be\nread")
    assert abs(datetime.fromisoformat(failed.time) - datetime.now(UTC)) < timedelta(minutes=5)
    assert len((tmp_path / LEDGER).read_text().splitlines()) == 3


def test_without_a_ledger_nothing_has_happened(tmp_path: Path) -> None:
    assert read_ledger(tmp_path) == []


@given(st.integers(min_value=1))
def test_of_a_torn_line_only_that_line_is_lost(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """Cut at any byte of the second of two lines, then written on."""
    folder = tmp_path_factory.mktemp("torn")
    append(folder, "begun", "tile", "a")
    first = (folder / LEDGER).stat().st_size
    append(folder, "made", "tile", "b")
    data = (folder / LEDGER).read_bytes()
    (folder / LEDGER).write_bytes(data[: first + cut % (len(data) - 1 - first)])  # its last byte ends the line
    append(folder, "made", "tile", "c")
    assert [name for _, _, name in said(folder) if name != "b"] == ["a", "c"]


def test_lines_of_others_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_bytes(b'{"event": "made"}\nnull\n\xff\xfe\n[]\n{"time": "", "event": "party"}\n\n')
    append(tmp_path, "end")
    assert said(tmp_path) == [("end", "", "")]


_WRITE = """
import sys
from pathlib import Path
from pipeline.study.ledger import append
for number in range(200):
    append(Path(sys.argv[1]), "made", "tile", sys.argv[2] + "x" * 500 + str(number))
"""


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    jobs = [subprocess.Popen([sys.executable, "-c", _WRITE, tmp_path, name]) for name in "ab"]
    assert [job.wait(60) for job in jobs] == [0, 0]
    names = [event.name for event in read_ledger(tmp_path)]
    for name in "ab":
        assert [n for n in names if n[0] == name] == [f"{name}{'x' * 500}{i}" for i in range(200)]
    assert len(names) == 400


@pytest.mark.parametrize(("reused", "event"), [(False, "made"), (True, "kept")])
def test_what_is_made_is_timed(tmp_path: Path, reused: bool, event: str) -> None:
    report = Report(reused)
    assert timed(tmp_path, "tile", "a", lambda: report) is report
    assert said(tmp_path) == [("begun", "tile", "a"), (event, "tile", "a")]
    assert read_ledger(tmp_path)[1].seconds is not None


def test_what_fails_was_begun(tmp_path: Path) -> None:
    def fail() -> Report:
        raise SlideError("a", "is damaged")

    with pytest.raises(SlideError):
        timed(tmp_path, "tile", "a", fail)
    assert said(tmp_path) == [("begun", "tile", "a")]
    assert timed(None, "tile", "a", lambda: Report(False)).reused is False
    assert len(said(tmp_path)) == 1


def test_the_last_that_happened(tmp_path: Path) -> None:
    for event, name in (("begun", "a"), ("begun", "b"), ("failed", "a"), ("start", "")):
        append(tmp_path, event, "tile", name)  # type: ignore[arg-type]
    assert {name: e.event for name, e in last_of(read_ledger(tmp_path)).items()} == {"a": "failed", "b": "begun"}


def test_a_ledger_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / LEDGER).mkdir()
    with pytest.raises(OutputError, match=r"ledger\.jsonl: "):
        append(tmp_path, "start")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="lacks /dev/full")
def test_a_full_disk_is_told(tmp_path: Path) -> None:
    (tmp_path / LEDGER).symlink_to("/dev/full")
    with pytest.raises(OutputError, match="space"):
        append(tmp_path, "start")
