"""kill -9 at any moment, then the same study again: the artefacts of an undisturbed run, byte for byte."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.demo.synthetic import make_cohort
from pipeline.study.ledger import read_ledger
from pipeline.study.status import read_status
from tests.pipeline.conftest import listing

ROOT = Path(__file__).resolve().parents[3]

# Runs the study in forked children, so that the imports are paid once; a child kills itself with signal 9 just before
# its n-th call that writes in the study's folder. Answers with the number of calls, or with how the child ended.
# Figures are not drawn: it is the writing that is cut short.
_SERVER = """
import os, signal, sys
from pathlib import Path
import inference.evaluation.evaluate_slides, inference.exports.png, inference.heatmap, pipeline.execution.jobs
import pipeline.execution.pool, pipeline.study.run, pipeline.study.stages
import training.evaluation.figures, training.evaluation.robustness, training.train
from pipeline.study.config import EvaluateConfig, RepeatsConfig, StressConfig, StudyConfig
from tiling import TilingConfig
from tiling.core.versions import code_commit
from training import TrainConfig

code_commit()
training.evaluation.figures.drawn = inference.exports.png.drawn = lambda _: b"drawn" * 1000
pipeline.execution.pool.default_workers = lambda: 0
CALLS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "fcntl.flock", "open"}

def work(out, last):
    count = 0
    def hook(event, args):
        nonlocal count
        if event in CALLS and (event != "open" or (out in str(args[0]) and args[2] & os.O_ACCMODE)):
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    train = TrainConfig(
        backbone="test_resnet", weights="none", input_px=32, epochs=2, batch_size=16, bootstrap_resamples=5, threads=1,
        checkpoint_steps=2,
    )
    config = StudyConfig(
        manifest=Path(sys.argv[1]), out=Path(out), tile=TilingConfig(mpp=1.0, tile_px=64), train=train,
        repeats=RepeatsConfig(seeds=(0, 1)), evaluate=EvaluateConfig(resamples=5),
        stress=StressConfig(shifts=("hue",), strengths=1, resamples=5),
    )
    report = pipeline.study.run.run(config)
    assert report.failed == {}, report.failed
    return count

for line in sys.stdin:
    out, last = line.rstrip("\\n").split("\\t")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, str(work(out, int(last))).encode())
        os._exit(0)
    os.close(writing)
    status = os.waitpid(child, 0)[1]
    with os.fdopen(reading) as answers:
        print(answers.read() or f"ended with {os.waitstatus_to_exitcode(status)}", flush=True)
"""


class Server:
    """Runs the study to its end, or to a call that it does not survive."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def run(self, out: Path, last: int = 0) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{out}\t{last}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@contextmanager
def server(manifest: Path) -> Iterator[Server]:
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER, manifest], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env=variables,
    ) as process:  # fmt: skip
        yield Server(process)
        assert process.stdin is not None
        process.stdin.close()


def artefacts(out: Path) -> dict[str, str]:
    return {name: value for name, value in listing(out).items() if name != "ledger.jsonl"}


@pytest.mark.parametrize(
    ("kills", "seed"), [(1, 0), *(pytest.param(10, seed, marks=pytest.mark.nightly) for seed in (1, 2, 3))]
)
def test_a_study_killed_again_and_again_ends_as_an_undisturbed_one(tmp_path: Path, kills: int, seed: int) -> None:
    """Killed at so many random calls, each time a little further on; one that comes to its end is begun anew."""
    manifest = make_cohort(tmp_path / "cohort", n_slides=6, seed=5, size_px=(1024, 1024))
    draw = random.Random(seed)
    with server(manifest) as study:
        calls = int(study.run(tmp_path / "undisturbed" / "results"))
        expected = artefacts(tmp_path / "undisturbed" / "results")
        out, hits = tmp_path / "killed" / "results", 0
        places: set[str] = set()
        while hits < kills:
            if study.run(out, draw.randint(calls // 10, calls // 2)) != "ended with -9":
                assert artefacts(out) == expected
                shutil.rmtree(out)
                continue
            hits += 1
            status = read_status(out)
            assert not status.running
            assert not status.complete
            places.add(read_ledger(out)[-1].name)
        assert int(study.run(out)) > 0
        assert artefacts(out) == expected
        assert read_status(out).complete
        assert [event.event for event in read_ledger(out)].count("end") == 1
        assert len(places) > kills // 3, "killed at different places"
        before = listing(out)
        study.run(out)
        assert {name for name, value in listing(out).items() if before[name] != value} == {"ledger.jsonl"}
