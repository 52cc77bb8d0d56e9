"""The command line as a user runs it, and what its tests share."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest

from pipeline import cli, run
from pipeline.demo.synthetic import make_cohort
from pipeline.execution.dask_config import ClusterConfig
from pipeline.study.run import StudyReport
from tests.conftest import in_this_process, pictures_left_out

Finished = subprocess.CompletedProcess[str]
RunCli = Callable[..., Finished]
_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH, _CAPABILITY_VERSION = 24, 1, 2, 0x20080522


def listing(folder: Path) -> dict[str, str]:
    """Every file and folder below one, hidden ones too: relative path -> hash of a file's content."""
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in sorted(folder.rglob("*"))
    }


def obey_permissions() -> None:
    """Let this process and what it executes be refused by file permissions, as a user is, even if it is root's."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, the lower bits first
    libc.capget(version, sets)
    for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # of what is executed
        for place in range(3):
            sets[place] &= ~(1 << capability)
    libc.capset(version, sets)


@pytest.fixture(scope="session")
def run_cli(tmp_path_factory: pytest.TempPathFactory) -> RunCli:
    """Runs `specslide ARGUMENTS` in a process of its own, on a wide terminal, without root's rights.

    It is forked from one that has imported what commands import, which takes them seconds each.
    """
    forked = multiprocessing.get_context("forkserver")
    heavy = (
        "inference.heatmap",
        "inference.evaluation.evaluate_slides",
        "training.train",
        "training.evaluation.robustness",
    )
    forked.set_forkserver_preload(
        [__name__, *heavy, "pipeline.study.stages", "pipeline.execution.jobs", "pipeline.execution.tile_jobs"]
    )
    terminal = {"COLUMNS": "500", "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "TERM": "dumb", "PYTHONWARNINGS": ""}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (terminal | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}).items():
            patch.setenv(name, value)
        vars(forkserver._forkserver)["_forkserver_pid"] = None  # a viewer's test may have begun one, of another kind
        forkserver.ensure_running()
    folder = tmp_path_factory.mktemp("said")

    def run(*arguments: object, cwd: Path | None = None) -> Finished:
        words = [str(Path(sys.executable).with_name("specslide")), *map(str, arguments)]  # which Lightning starts, too
        process = forked.Process(target=_command, args=(words, cwd or Path.cwd(), folder))
        process.start()
        process.join(300)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(words, 300)
        said = [(folder / name).read_text() for name in ("stdout", "stderr")]
        return Finished(words, process.exitcode or 0, *said)

    return run


def _command(words: list[str], cwd: Path, folder: Path) -> None:
    for stream in (sys.stdout, sys.stderr):
        name = stream.name.strip("<>")
        with (folder / name).open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    os.chdir(cwd)
    obey_permissions()
    spawning = multiprocessing.get_context
    # Its workers are forked, too: only test_crash.py, test_disturbed.py and the like need them as users have them.
    vars(multiprocessing)["get_context"] = lambda method: spawning("fork" if method == "spawn" else method)
    sys.argv = words
    cli.main()


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first of the tests' processes makes, and all may read."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            make(folder)
    return folder


def make_study(folder: Path) -> None:
    make_cohort(folder / "cohort", n_slides=6, seed=5, size_px=(1024, 1024))
    (folder / "study.yaml").write_text("""
manifest: cohort/manifest.csv
out: results
tile: {mpp: 1.0, tile_px: 64}
train: {backbone: test_resnet, weights: none, input_px: 32, epochs: 1, batch_size: 16, augment: stain, threads: 1,
        bootstrap_resamples: 5}
repeats: {seeds: [0, 1]}
evaluate: {resamples: 5}
stress: {shifts: [hue], strengths: 1, resamples: 5}
workers: 1
""")
    with in_this_process(), pictures_left_out():
        run(folder / "study.yaml")


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyReport:
    """A finished study of two seeds in `.../here/results`, beside its cohort and study.yaml; read only."""
    made = once(tmp_path_factory, "study-of-all", make_study)
    folder = Path(shutil.copytree(made, tmp_path_factory.mktemp("study") / "here"))
    return run(folder / "study.yaml")  # which keeps all there is


@pytest.fixture(scope="module")
def scheduler() -> Iterator[ClusterConfig]:
    """A Dask scheduler with one worker, a thread of this process."""
    from distributed import LocalCluster

    no_pages = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp://", scheduler_kwargs=no_pages
    ) as cluster:
        yield ClusterConfig(at=cluster.scheduler_address)
