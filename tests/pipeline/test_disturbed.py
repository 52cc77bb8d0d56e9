"""Nightly: commands that are disturbed as users disturb them: Ctrl-C twice, stopped and continued, started twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.demo.synthetic import write_pyramid
from tests.pipeline.conftest import listing

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 300
pytestmark = pytest.mark.nightly


def start(*arguments: object) -> subprocess.Popen[str]:
    variables = {"OMP_NUM_THREADS": "1", "COLUMNS": "300", "PYTHONPATH": str(ROOT), "TERM": "dumb"}
    return subprocess.Popen(
        [sys.executable, "-m", "specslide", *map(str, arguments)], env=os.environ | variables, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def end_of(process: subprocess.Popen[str]) -> str:
    said = process.communicate(timeout=LIMIT_S)[0]
    assert "Traceback" not in said
    return said


def wait_for(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    began = time.monotonic()
    while not there():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() - began < LIMIT_S
        time.sleep(0.01)


def files_of(folder: Path) -> dict[str, str]:
    """What users keep: no locks, no ledger of times."""
    return {name: of for name, of in listing(folder).items() if not name.endswith((".lock", "ledger.jsonl"))}


@pytest.fixture
def training(tmp_path: Path) -> list[object]:
    """The words of a training of some seconds, but for --out."""
    random, lines = np.random.default_rng(0), ["path,case_id,label"]
    for number in range(48):
        cv2.imwrite(str(tmp_path / f"{number}.png"), random.integers(0, 255, (32, 32, 3)).astype(np.uint8))
        lines.append(f"{number}.png,case{number // 4},{'ab'[number % 2]}")
    (tmp_path / "index.csv").write_text("\n".join(lines))
    (tmp_path / "train.yaml").write_text(
        "{backbone: test_resnet, weights: none, input_px: 32, epochs: 25, batch_size: 8, threads: 1, device: cpu,"
        " bootstrap_resamples: 5, checkpoint_steps: 3}"
    )
    return ["train", "--images", tmp_path / "index.csv", "--config", tmp_path / "train.yaml"]


@pytest.fixture
def tiling(tmp_path: Path) -> list[object]:
    """The words of tiling six slides with one worker, but for --out."""
    picture = np.full((1500, 1500, 3), 244, np.uint8)
    cv2.circle(picture, (750, 750), 700, (222, 140, 180), -1)
    for x, y in np.random.default_rng(0).integers(200, 1300, (3000, 2)).tolist():
        cv2.circle(picture, (x, y), 4, (120, 80, 160), -1)
    (tmp_path / "slides").mkdir()
    for number in range(6):
        write_pyramid(tmp_path / "slides" / f"{number}.tif", picture, mpp=0.5, levels=2)
    return ["tile", tmp_path / "slides", "--tile-px", 64, "--codec", "lossless", "--workers", 1]


@pytest.fixture(params=["training", "tiling"])
def job(request: pytest.FixtureRequest) -> list[object]:
    words: list[object] = request.getfixturevalue(request.param)
    return words


def begun(out: Path) -> bool:
    """Whether the first results are there, or the state of a training."""
    return (out / "checkpoints" / "last.ckpt").exists() or any(out.glob("*.zarr"))


def test_ctrl_c_twice(job: list[object], tmp_path: Path) -> None:
    assert end_of(start(*job, "--out", tmp_path / "whole"))
    process = start(*job, "--out", tmp_path / "out")
    wait_for(lambda: begun(tmp_path / "out"), process)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        time.sleep(0.05)
    said = end_of(process)
    assert process.returncode in (os.EX_TEMPFAIL, 130, -signal.SIGINT), said
    process = start(*job, "--out", tmp_path / "out")
    assert end_of(process)
    assert process.returncode == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_stopped_and_continued(job: list[object], tmp_path: Path) -> None:
    assert end_of(start(*job, "--out", tmp_path / "whole"))
    process = start(*job, "--out", tmp_path / "out")
    wait_for(lambda: begun(tmp_path / "out"), process)
    for _ in range(3):
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(1)
        os.killpg(process.pid, signal.SIGCONT)
        time.sleep(0.1)
    said = end_of(process)
    assert process.returncode == 0, said
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_two_at_once_in_one_folder(job: list[object], tmp_path: Path) -> None:
    """Each ends by itself: what one makes the other is refused, naming it, or finds complete."""
    assert end_of(start(*job, "--out", tmp_path / "whole"))
    processes = [start(*job, "--out", tmp_path / "out") for _ in range(2)]
    said = [end_of(process) for process in processes]
    for process, text in zip(processes, said, strict=True):
        assert process.returncode == 0 or "another job" in text
    again = start(*job, "--out", tmp_path / "out")
    end_of(again)
    assert again.returncode == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_five_thousand_slides_in_one_manifest(tmp_path: Path) -> None:
    """Planned and refused in seconds: all are checked before the first is worked on."""
    lines = ["slide_path,slide_id,case_id,label,split"]
    lines += [f"s{n}.svs,s{n},c{n // 2},{'ab'[n % 2]},{('train', 'val', 'test')[n // 2 % 3]}" for n in range(5000)]
    (tmp_path / "slides.csv").write_text("\n".join(lines))
    (tmp_path / "study.yaml").write_text("{manifest: slides.csv, out: results}")
    began = time.monotonic()
    planned = start("run", tmp_path / "study.yaml", "--dry-run")
    assert "s4999" in end_of(planned)
    assert planned.returncode == 0
    tiled = start("tile", "--manifest", tmp_path / "slides.csv", "--out", tmp_path / "out", "--workers", 1)
    said = end_of(tiled)
    assert "5000 of 5000 slides failed" in said.replace(",", "")
    assert tiled.returncode == 1
    assert time.monotonic() - began < LIMIT_S
