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
from typer.testing import CliRunner

from pipeline import cli
from pipeline.demo.synthetic import write_pyramid
from tests.inference.conftest import write_model
from tests.pipeline.conftest import listing
from tiling.stores.features import verify_features

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 300
pytestmark = pytest.mark.nightly


def start(*arguments: object) -> subprocess.Popen[str]:
    variables = {"OMP_NUM_THREADS": "1", "COLUMNS": "300", "TERM": "dumb"}
    variables["PYTHONPATH"] = os.environ.get("PYTHONPATH", str(ROOT))
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


Job = Callable[[Path], list[object]]
"""The words of a command that makes a folder."""


@pytest.fixture
def training(tmp_path: Path) -> Job:
    """A training of some seconds."""
    random, lines = np.random.default_rng(0), ["path,case_id,label"]
    for number in range(48):
        cv2.imwrite(str(tmp_path / f"{number}.png"), random.integers(0, 255, (32, 32, 3)).astype(np.uint8))
        lines.append(f"{number}.png,case{number // 4},{'ab'[number % 2]}")
    (tmp_path / "index.csv").write_text("\n".join(lines))
    (tmp_path / "train.yaml").write_text(
        "{backbone: test_resnet, weights: none, input_px: 32, epochs: 25, batch_size: 8, threads: 1, device: cpu,"
        " bootstrap_resamples: 5, checkpoint_steps: 3}"
    )
    return lambda out: ["train", "--images", tmp_path / "index.csv", "--config", tmp_path / "train.yaml", "--out", out]


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """A folder of six slides."""
    (tmp_path / "slides").mkdir()
    for number in range(6):
        picture = np.full((1500, 1500, 3), 244, np.uint8)
        cv2.circle(picture, (750, 750), 700, (222, 140, 180), -1)
        for x, y in np.random.default_rng(number).integers(200, 1300, (3000, 2)).tolist():
            cv2.circle(picture, (x, y), 4, (120, 80, 160), -1)
        write_pyramid(tmp_path / "slides" / f"{number}.tif", picture, mpp=0.5, levels=2)
    return tmp_path / "slides"


@pytest.fixture
def tiling(slides: Path) -> Job:
    """Tiling with one worker."""
    return lambda out: ["tile", slides, "--tile-px", 64, "--codec", "lossless", "--workers", 1, "--out", out]


@pytest.fixture
def predicting(slides: Path, tmp_path: Path) -> Job:
    write_model(tmp_path / "model", mpp=1.0, tile_px=64)
    return lambda out: ["heatmap", *sorted(slides.iterdir())[:4], "--model", tmp_path / "model", "--out", out]


@pytest.fixture
def embedding(slides: Path, tmp_path: Path) -> Job:
    write_model(tmp_path / "model", mpp=1.0, tile_px=64)
    return lambda out: ["embed", *sorted(slides.iterdir())[:4], "--encoder", tmp_path / "model", "--out", out]


@pytest.fixture
def studying(slides: Path, tmp_path: Path) -> Job:
    """A study of six slides: tiles, training, evaluation and heatmaps."""
    lines = ["slide_path,slide_id,case_id,label,split"]
    for number, split in enumerate(("train", "train", "val", "val", "test", "test")):
        lines.append(f"{slides / f'{number}.tif'},s{number},c{number},{'ab'[number % 2]},{split}")
    (tmp_path / "slides.csv").write_text("\n".join(lines))

    def words(out: Path) -> list[object]:
        out.mkdir(exist_ok=True)
        (out / "study.yaml").write_text(
            "{manifest: ../slides.csv, out: results, tile: {mpp: 1.0, tile_px: 64}, evaluate: {resamples: 5},"
            " train: {backbone: test_resnet, weights: none, input_px: 32, epochs: 6, batch_size: 16, threads: 1,"
            " device: cpu, bootstrap_resamples: 5, checkpoint_steps: 2}, heatmap: {slides: test}}"
        )
        return ["run", out / "study.yaml", "--workers", 1]

    return words


@pytest.fixture(params=["training", "tiling", "predicting", "studying"])
def job(request: pytest.FixtureRequest) -> Job:
    found: Job = request.getfixturevalue(request.param)
    return found


def begun(out: Path) -> bool:
    """Whether the first results are there, or the state of a training."""
    first = ("checkpoints/last.ckpt", "*.zarr", "*/slide.json", "results/*/checkpoints/last.ckpt")
    return any(path for name in first for path in out.glob(name))


def test_ctrl_c_twice(job: Job, tmp_path: Path) -> None:
    assert end_of(start(*job(tmp_path / "whole")))
    process = start(*job(tmp_path / "out"))
    wait_for(lambda: begun(tmp_path / "out"), process)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        time.sleep(0.05)
    said = end_of(process)
    assert process.returncode in (os.EX_TEMPFAIL, 130, -signal.SIGINT), said
    process = start(*job(tmp_path / "out"))
    assert end_of(process)
    assert process.returncode == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_stopped_and_continued(job: Job, tmp_path: Path) -> None:
    assert end_of(start(*job(tmp_path / "whole")))
    process = start(*job(tmp_path / "out"))
    wait_for(lambda: begun(tmp_path / "out"), process)
    for _ in range(3):
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(1)
        os.killpg(process.pid, signal.SIGCONT)
        time.sleep(0.1)
    said = end_of(process)
    assert process.returncode == 0, said
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_two_at_once_in_one_folder(job: Job, tmp_path: Path) -> None:
    """Each ends by itself: what one makes the other is refused, naming it, or finds complete."""
    assert end_of(start(*job(tmp_path / "whole")))
    processes = [start(*job(tmp_path / "out")) for _ in range(2)]
    said = [end_of(process) for process in processes]
    for process, text in zip(processes, said, strict=True):
        assert process.returncode == 0 or "another job" in text or "another process" in text
    again = start(*job(tmp_path / "out"))
    end_of(again)
    assert again.returncode == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_killed_while_slides_are_embedded(embedding: Job, tmp_path: Path) -> None:
    """Three times without a word, workers and all: what is under its final name is whole, and the next goes on."""
    assert end_of(start(*embedding(tmp_path / "whole")))
    out = tmp_path / "out"
    for kept in range(3):
        process = start(*embedding(out))
        wait_for(lambda kept=kept: len([*out.glob("*.zarr")]) > kept, process)  # type: ignore[misc]
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        for store in out.glob("*.features.zarr"):
            assert verify_features(store) == []
    assert "kept" in end_of(start(*embedding(out)))
    assert files_of(out) == files_of(tmp_path / "whole")


def test_what_is_being_made_is_never_called_damaged(predicting: Job, tmp_path: Path) -> None:
    """`verify`, again and again beside `heatmap`: what it finds is whole, and the results are as without it."""
    assert end_of(start(*predicting(tmp_path / "whole")))
    out = tmp_path / "out"
    process = start(*predicting(out))
    wait_for(lambda: begun(out), process)
    looked = 0
    while process.poll() is None:
        verified = CliRunner().invoke(cli.app, ["verify", str(out)])
        assert verified.exit_code == 0, verified.output
        looked += "0 damaged" in verified.output
    assert looked > 1
    assert end_of(process)
    assert process.returncode == 0
    assert files_of(out) == files_of(tmp_path / "whole")


CLOCK = """
import time

_real, _calls = time.time, 0

def _back():
    global _calls
    _calls += 1
    return _real() - 3600.0 * _calls  # an hour earlier at each look

time.time, time.time_ns = _back, lambda: int(_back() * 1e9)
"""


def test_a_clock_that_goes_backwards(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is made, and between two commands: the same files, and what is there is known again."""
    assert end_of(start(*job(tmp_path / "whole")))
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(CLOCK)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'clock'}{os.pathsep}{ROOT}")
    for made_at in (None, 0, 4_000_000_000):  # as it was, in 1970, in 2096
        for path in (tmp_path / "out").rglob("*"):
            if made_at is not None and path.is_file():
                os.utime(path, (made_at, made_at))
        process = start(*job(tmp_path / "out"))
        said = end_of(process)
        assert process.returncode == 0, said
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
