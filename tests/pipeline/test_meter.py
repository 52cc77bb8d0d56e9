"""What a log without a terminal says of a job that is under way."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

from pipeline.meter import Meter
from tests.pipeline.conftest import RunCli
from tiling.core.pace import PROGRESS, Pace


def test_a_heartbeat_has_rate_and_time_left(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, PROGRESS)
    now = [0.0]
    shown = Meter("tiling", pace=Pace(clock=lambda: now[0]))
    for second in range(0, 200, 5):
        now[0] = float(second)
        shown.show(second, 1000, f"{second} of 1000")
    assert caplog.messages == [
        "tiling: 15 of 1000, about 16 min left", "tiling: 75 of 1000, about 15 min left",
        "tiling: 135 of 1000, about 14 min left", "tiling: 195 of 1000, about 13 min left",
    ]  # fmt: skip
    shown.ended("a", "done")
    assert caplog.messages[-1] == "tiling: a done; 195 of 1000, about 13 min left"
    assert caplog.records[-1].fields["left_s"] == pytest.approx(805)  # type: ignore[attr-defined]


def test_each_slide_leaves_a_line_as_it_ends(run_cli: RunCli, small_slide: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.tif"
    broken.write_bytes(small_slide.read_bytes()[:1000])
    arguments = ["tile", str(small_slide), str(broken), "--mpp", "1", "--tile-px", "32", "--workers", "1"]
    plain = run_cli(*arguments, "--out", str(tmp_path / "a"))
    pattern = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO tiling: (\w+) (\w+); (\d)/2 slides"
    ends = re.findall(pattern, plain.stderr, re.MULTILINE)
    assert sorted(end[:2] for end in ends) == [("broken", "FAILED"), ("small", "done")]
    assert [end[2] for end in ends] == ["1", "2"]
    assert plain.returncode == 1

    as_json = run_cli("--log-format", "json", *arguments, "--out", str(tmp_path / "b"))
    records = [json.loads(line) for line in as_json.stderr.splitlines()]
    ends_of = {record["name"]: record["result"] for record in records if record.get("event") == "end"}
    assert ends_of == {"broken": "FAILED", "small": "done"}
    assert records[-1]["level"] == "error"
    assert all({"time", "level", "message"} <= record.keys() for record in records)
