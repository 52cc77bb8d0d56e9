"""The command line as a user runs it, and what its tests share."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.cluster_config import ClusterConfig
from pipeline.synthetic import make_slide

Finished = subprocess.CompletedProcess[str]
RunCli = Callable[..., Finished]
_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 24, 1, 2


def listing(folder: Path) -> dict[str, str]:
    """Every file and folder below one, hidden ones too: relative path -> hash of a file's content."""
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in sorted(folder.rglob("*"))
    }


def obey_permissions() -> None:
    """Let the program about to start be refused by file permissions, as a user is, even if the tests run as root."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


@pytest.fixture(scope="session")
def run_cli() -> RunCli:
    """Runs `specslide ARGUMENTS` in a process of its own, on a wide terminal, without root's rights."""

    def run(*arguments: object, cwd: Path | None = None) -> Finished:
        variables = {"COLUMNS": "500", "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "TERM": "dumb", "PYTHONWARNINGS": ""}
        root = Path(__file__).resolve().parents[2]
        return subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *map(str, arguments)],
            capture_output=True, text=True, timeout=300, cwd=cwd, preexec_fn=obey_permissions,
            env=os.environ | variables | {"PYTHONPATH": str(root)},
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def small_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic slide of 1024 x 1024 px at 0.5 mpp."""
    path = tmp_path_factory.mktemp("small") / "small.tif"
    make_slide(path, seed=1, tumour=True, size_px=(1024, 1024))
    return path


@pytest.fixture(scope="module")
def scheduler() -> Iterator[ClusterConfig]:
    """A Dask scheduler with one worker, a thread of this process."""
    from distributed import LocalCluster

    no_pages = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp://", scheduler_kwargs=no_pages
    ) as cluster:
        yield ClusterConfig(at=cluster.scheduler_address)
