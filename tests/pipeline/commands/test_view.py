"""`specslide view` as a user meets it: a process that prints its address, serves, and ends at once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import HTTPCookieProcessor, build_opener, urlopen

import pytest

from tests.pipeline.conftest import RunCli

ROOT = Path(__file__).resolve().parents[3]


@contextmanager
def viewing(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`specslide view` in a process of its own, and the address that it prints."""
    words = [sys.executable, "-c", "from pipeline.cli import main; main()", "view", *map(str, arguments)]
    kept = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "500", "NO_COLOR": "1"}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=kept, cwd=ROOT)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        yield process, said.strip()
    finally:
        process.kill()
        process.wait()


def test_the_printed_address_shows_the_slide_and_ctrl_c_ends_it(small_slide: Path) -> None:
    with viewing(small_slide, "--no-browser") as (process, address):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{40,}", address)
        with build_opener(HTTPCookieProcessor()).open(address) as page:
            assert b"<title>" in page.read()
        with pytest.raises(HTTPError, match="403"):
            urlopen(address.partition("?")[0])
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=30)[0]
        assert process.returncode == 0
        assert "Traceback" not in rest


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "--manifest"),
        (("absent.svs",), "absent.svs"),
        ((".",), "no heatmap"),
        (("SLIDE", "--host", "a b"), "a b"),
        (("SLIDE", "--model", "breast-idc"), "made none of these heatmaps"),
        (("SLIDE", "--model", "breast-idc", "--export", "out"), "--model"),
    ],
)
def test_what_cannot_be_shown_is_said(
    arguments: tuple[str, ...], named: str, small_slide: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    words = [small_slide if word == "SLIDE" else word for word in arguments]
    done = run_cli("view", *words, "--no-browser", cwd=tmp_path)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert named in line


def test_the_export_is_written_and_named(small_slide: Path, tmp_path: Path, run_cli: RunCli) -> None:
    done = run_cli("view", small_slide, "--export", tmp_path / "web")
    assert done.returncode == 0, done.stderr
    assert {"index.html", "slide.html", "data", "leaflet", "commit.json"} <= {
        p.name for p in (tmp_path / "web").iterdir()
    }
    assert "http.server" in done.stdout
    assert "0 damaged" in run_cli("verify", tmp_path / "web").stdout
