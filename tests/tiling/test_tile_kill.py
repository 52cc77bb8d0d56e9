"""kill -9 at any moment, then the same command again: the bytes of an undisturbed run and no stray files."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tiling import TilingConfig, tile_slide
from tiling.stores.store import verify_store

FileHashes = Callable[[Path], dict[str, str]]

# Prints "go" when the imports are done and the work begins, and how long it took when it is done.
_TILE = """
import sys, time
from tiling import TilingConfig, tile_slide
from tiling.core.versions import code_commit
code_commit()
print("go", flush=True)
start = time.perf_counter()
tile_slide(sys.argv[1], sys.argv[2], TilingConfig(tile_px=24, min_tissue=0.1), overwrite=sys.argv[3] == "overwrite")
print(time.perf_counter() - start, flush=True)
"""

# Kills itself with signal 9 just before the n-th file-system call of the work, for each n that is asked for: in a
# forked child, so that the imports are paid once. Prints the number of calls of an undisturbed run first.
_AT_CALL = """
import os, signal, sys
from tiling import TilingConfig, tile_slide
from tiling.core.versions import code_commit
code_commit()
CALLS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree", "fcntl.flock", "open"}

def work(folder, last, mode):
    count = 0
    def hook(event, args):
        nonlocal count
        writes = event in CALLS and (event != "open" or folder in str(args[0]))
        if writes:
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    tile_slide(sys.argv[1], folder, TilingConfig(tile_px=128, min_tissue=0.1), overwrite=mode == "overwrite")
    return count

for line in sys.stdin:
    folder, last, mode = line.rstrip("\\n").split("\\t")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, str(work(folder, int(last), mode)).encode())
        os._exit(0)
    os.close(writing)
    status = os.waitpid(child, 0)[1]
    with os.fdopen(reading) as answers:
        print(answers.read() or f"killed by {os.WTERMSIG(status)}", flush=True)
"""


def started(slide: Path, out: Path, mode: str) -> subprocess.Popen[str]:
    """The job, just after its imports."""
    job = subprocess.Popen([sys.executable, "-c", _TILE, slide, out, mode], stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    assert job.stdout.readline() == "go\n"
    return job


def finish(slide: Path, out: Path, mode: str) -> float:
    """Run the job to its end and return its seconds."""
    job = started(slide, out, mode)
    answer = job.communicate(timeout=120)[0]
    assert job.returncode == 0
    return float(answer)


def killed(slide: Path, out: Path, mode: str, delay: float) -> bool:
    """Kill the job after `delay` seconds of work; whether that came before its end."""
    job = started(slide, out, mode)
    time.sleep(delay)
    job.kill()
    job.communicate()
    return job.returncode == -signal.SIGKILL


def prepare(slide: Path, out: Path, mode: str) -> None:
    """What the job finds: the leftovers of the one before, and for an overwrite a store made otherwise."""
    store = out / f"{slide.stem}.zarr"
    if mode == "overwrite":
        tile_slide(slide, out, TilingConfig(tile_px=256, codec="lossless"), overwrite=True)
    elif store.exists():
        shutil.rmtree(store)  # or there would be nothing to do


def half_written(out: Path) -> bool:
    return any(p.name.endswith((".partial", ".replaced")) for p in out.iterdir()) if out.exists() else False


@pytest.mark.parametrize(
    ("mode", "kills"),
    [
        ("fresh", 4),
        ("overwrite", 4),
        pytest.param("fresh", 60, marks=pytest.mark.nightly),
        pytest.param("overwrite", 40, marks=pytest.mark.nightly),
    ],
)
def test_killed_at_any_time(small_slide: Path, tmp_path: Path, file_hashes: FileHashes, mode: str, kills: int) -> None:
    out, mid_write, hits = tmp_path / "out", 0, 0
    seconds = finish(small_slide, tmp_path / "undisturbed", mode)
    expected = file_hashes(tmp_path / "undisturbed")
    for number in range(kills):
        prepare(small_slide, out, mode)
        hits += killed(small_slide, out, mode, seconds * (number + 0.5) / kills)
        mid_write += half_written(out)
        store = out / "small.zarr"
        assert not store.exists() or verify_store(store) == [], "under its final name a store is complete"
    assert hits >= kills / 2
    assert mid_write >= kills // 10, "of many; the calls of a few are chosen in the test below"
    finish(small_slide, out, mode)
    assert file_hashes(out) == expected


def spread(count: int, number: int) -> list[int]:
    """About that many of the calls 1 to count, evenly, and as many of the last."""
    return sorted({1 + i * (count - 1) // number for i in range(number)} | set(range(count - number + 1, count + 1)))


@pytest.mark.parametrize("number", [4, pytest.param(40, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("mode", ["fresh", "overwrite"])
def test_killed_at_file_system_calls(
    small_slide: Path, tmp_path: Path, file_hashes: FileHashes, mode: str, number: int
) -> None:
    """No luck needed: killed just before chosen calls, those of the final renames among them."""
    with subprocess.Popen(
        [sys.executable, "-c", _AT_CALL, small_slide], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        stdin, stdout = server.stdin, server.stdout

        def run(out: Path, last: int) -> str:
            stdin.write(f"{out}\t{last}\t{mode}\n")
            stdin.flush()
            return stdout.readline().strip()

        prepare(small_slide, tmp_path / "undisturbed", mode)
        calls = int(run(tmp_path / "undisturbed", 0))
        expected = file_hashes(tmp_path / "undisturbed")
        mid_write = 0
        for last in spread(calls, number):
            out = tmp_path / f"out-{last}"
            prepare(small_slide, out, mode)
            assert run(out, last) == "killed by 9"
            mid_write += half_written(out)
            assert run(out, 0).isdigit()
            assert file_hashes(out) == expected, f"killed at call {last} of {calls}"
            shutil.rmtree(out)
        assert mid_write >= number / 2
        stdin.close()
