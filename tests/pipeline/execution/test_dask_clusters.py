"""Slides on a Dask cluster: whatever happens to workers, slides and the scheduler, it is said and costs no other slide.

The tasks live here: workers import this module, which therefore does without torch.
"""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.execution import dask as module
from pipeline.execution import dask_clusters as clusters
from pipeline.execution.dask_clusters import job_of, job_script
from pipeline.execution.dask_config import ClusterConfig
from pipeline.execution.job import anywhere
from pipeline.execution.pool import Outcome, TileProgress, run_slides
from pipeline.execution.tile_jobs import TileJob, tile_all
from tests.pipeline.conftest import RunCli, listing
from tests.pipeline.execution.tasks import act
from tests.pipeline.test_imports import loads
from tiling import TilingConfig
from tiling.core.errors import ClusterError, ConfigError, StoppedError
from tiling.core.files import output_error
from tiling.manifest import slide_row

DIED = "its worker process died (killed, out of memory, or crashed by a damaged file)"
ROOT = Path(__file__).resolve().parents[3]
MEMORY = "600MB"


def work(job: str, progress: TileProgress) -> str:
    """A task that writes down that it was tried, and does what its job says."""
    what, folder = job.split(":", 1)
    with (Path(folder) / "tried").open("a") as tried:
        tried.write(f"{what}\n")
    match what:
        case "hog":
            held = []
            while True:
                held.append(b"x" * 10_000_000)  # pages that are really there
                time.sleep(0.02)
        case "stop":
            os.kill(os.getpid(), signal.SIGTERM)
            try:
                while True:
                    progress(1, 2)
                    time.sleep(0.05)
            except StoppedError:
                (Path(folder) / "left").touch()
                raise
        case "full":
            try:
                with Path("/dev/full").open("wb", buffering=0) as disk:
                    disk.write(b"x")
            except OSError as error:
                raise output_error(Path("out.zarr"), error) from error
        case "wait":
            time.sleep(0.5)
        case "kill":
            time.sleep(0.2)  # what is said of its beginning is on its way
            os.kill(os.getpid(), signal.SIGKILL)
        case _:
            return act(what.replace(" ", ":"), progress)
    return what.upper()


def ran(folder: Path, whats: list[str], config: ClusterConfig, **further: Any) -> list[Outcome[str, str]]:
    jobs = [f"{what}:{folder}" for what in whats]
    return run_slides(work, jobs, workers=2, title="test", cluster=config, **further)


def tried(folder: Path) -> list[str]:
    return (folder / "tried").read_text().splitlines()


def test_every_slide_gets_its_outcome(tmp_path: Path) -> None:
    """Good and bad slides, a worker killed once and one killed each time, and one that takes ever more memory."""
    bad = {
        "raise s.svs": "s.svs: is damaged; copy it again",
        "break": "unexpected ZeroDivisionError: no slide is this thin",
    }
    once = f"once {tmp_path / 'marker'}"
    whats = ["hog", "a", "kill", "raise s.svs", "b", once, "break", "exit", "c"]
    outcomes = ran(tmp_path, whats, ClusterConfig(at="local:2", memory=MEMORY, retries=1))
    found = {outcome.job.split(":")[0]: outcome for outcome in outcomes}
    assert list(found) == whats
    for what in ("a", "b", "c"):
        assert (found[what].result, found[what].error) == (what.upper(), None)
    for what, reason in bad.items():
        assert (found[what].result, found[what].error) == (None, reason)
    assert found[once].error is None, "another worker did it"
    assert found["kill"].error == f"{DIED}, 2 times"
    assert found["exit"].error == "unexpected SystemExit: 3"
    assert found["hog"].error is not None
    assert "more than the memory limit of 572.20 MiB" in found["hog"].error
    tries = tried(tmp_path)
    assert tries.count("hog") == 1, "a runaway costs one worker"
    assert tries.count("kill") == 2


def test_the_local_processes_give_the_same(scheduler: ClusterConfig, tmp_path: Path) -> None:
    jobs = ["a", "raise:s.svs", "b", "break", "c"]
    here, there = (run_slides(act, jobs, workers=1, title="test", cluster=at) for at in (None, scheduler))
    assert here == there


def test_a_bad_slide_is_not_tried_again(scheduler: ClusterConfig, tmp_path: Path) -> None:
    bad = ["raise s", "break", "exit"]
    outcomes = ran(tmp_path, bad, scheduler)
    assert all(outcome.error is not None for outcome in outcomes)
    assert sorted(tried(tmp_path)) == sorted(bad)


def test_the_largest_come_first(scheduler: ClusterConfig, tmp_path: Path) -> None:
    whats = [f"wait{size}" for size in (3, 1, 7, 5, 2)]
    outcomes = ran(tmp_path, whats, scheduler, sizes=[3, 1, 7, 5, 2])
    assert [outcome.result for outcome in outcomes] == [what.upper() for what in whats], "in the order of the jobs"
    assert tried(tmp_path) == ["wait7", "wait5", "wait3", "wait2", "wait1"]


def test_no_slides_need_no_cluster() -> None:
    assert run_slides(act, [], workers=1, title="test", cluster=ClusterConfig(at="tcp://127.0.0.1:1")) == []


def test_a_full_disk_is_named_and_costs_its_slide(scheduler: ClusterConfig, tmp_path: Path) -> None:
    outcomes = ran(tmp_path, ["full", "a"], scheduler)
    assert outcomes[0].error is not None
    assert "out.zarr: cannot be written (No space left on device); free some space" in outcomes[0].error
    assert outcomes[1].result == "A"


def test_what_cannot_travel_back_costs_its_slide_alone(scheduler: ClusterConfig) -> None:
    outcomes = run_slides(give_lock, ["a", "lock"], workers=1, title="test", cluster=scheduler)
    assert outcomes[0].result == "A"
    assert outcomes[1].result is None
    assert outcomes[1].error is not None


def give_lock(job: str, progress: TileProgress) -> Any:
    import threading

    return threading.Lock() if job == "lock" else job.upper()


def test_a_signal_stops_it_and_the_worker_leaves_its_slide(scheduler: ClusterConfig, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError) as caught:
        ran(tmp_path, ["a", "stop", "wait", "wait"], scheduler, sizes=[4, 3, 2, 1])
    assert re.search("test: stopped by SIGTERM with [01] of 4 slides done; run the same command", str(caught.value))
    assert caught.value.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) is before
    deadline = time.monotonic() + 20
    while not (tmp_path / "left").exists():
        assert time.monotonic() < deadline, "the worker goes on with what nobody wants any more"
        time.sleep(0.05)
    assert ran(tmp_path, ["a"], scheduler)[0].result == "A", "the worker is free again"


def test_another_version_on_the_workers_is_refused(
    scheduler: ClusterConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = iter(["1.0", "2.0", "2.0"])
    monkeypatch.setattr(module, "code_version", lambda: next(versions))
    (outcome,) = ran(tmp_path, ["a"], scheduler)
    assert outcome.error == "a worker: has specslide 2.0 instead of 1.0; install the same version everywhere"


def test_stores_are_those_of_the_local_processes(
    scheduler: ClusterConfig, small_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte; paths are relative to where the command runs, and a worker is elsewhere."""
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "small.tif").symlink_to(small_slide)
    monkeypatch.chdir(tmp_path)
    rows, config = [slide_row(Path("slides/small.tif"))], TilingConfig(mpp=1, tile_px=128)
    here = tile_all(rows, Path("here"), config, workers=1)
    jobs = [anywhere(TileJob(row, Path("there"), config)) for row in rows]
    assert jobs[0].out == tmp_path / "there"
    there = tile_all(rows, Path("there"), config, workers=1, cluster=scheduler)
    assert here[0].result is not None
    assert there[0].result is not None
    assert there[0].result.tiles == here[0].result.tiles > 0
    assert listing(tmp_path / "here") == listing(tmp_path / "there")


# --- schedulers and their workers -----------------------------------------------------------------------------------


@pytest.fixture
def lone_scheduler(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], ClusterConfig]]:
    """A scheduler of its own, and no worker."""
    file = tmp_path / "scheduler.json"
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    environment = os.environ | {"PYTHONWARNINGS": ""}
    with subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", *options], stderr=subprocess.DEVNULL, env=environment
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while not file.exists() or not file.read_text().endswith("}"):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            import json

            yield process, ClusterConfig(at=json.loads(file.read_text())["address"], wait_s=600)
        finally:
            process.kill()


def test_a_scheduler_without_workers_that_dies_and_is_gone(
    lone_scheduler: tuple[subprocess.Popen[bytes], ClusterConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, config = lone_scheduler
    with pytest.raises(ClusterError) as none:
        ran(tmp_path, ["a", "b"], config.model_copy(update={"wait_s": 0.5}))
    assert f"{config.at}: has had no worker for 0.5 s; start some with `dask worker" in str(none.value)
    monkeypatch.setattr(module.ClusterRun, "look_for_workers", lambda slides: process.kill())
    with pytest.raises(ClusterError) as dead:
        ran(tmp_path, ["a", "b"], config)
    assert f"{config.at}: the connection to the scheduler is lost; check that it runs" in str(dead.value)
    monkeypatch.setattr(clusters, "CONNECT_S", 1.0)
    with pytest.raises(ClusterError) as gone:
        ran(tmp_path, ["a", "b"], config)
    assert f"{config.at}: no scheduler can be reached" in str(gone.value)
    assert "dask scheduler" in str(gone.value)


def test_a_tls_scheduler_without_keys_is_refused() -> None:
    with pytest.raises(ClusterError, match=r"^tls://127\.0\.0\.1:1: "):
        run_slides(act, ["a"], workers=1, title="test", cluster=ClusterConfig(at="tls://127.0.0.1:1"))


# --- queues ---------------------------------------------------------------------------------------------------------

QUEUE = {"cores": 8, "memory": "32GB", "queue": "normal", "walltime": "04:00:00"}


@pytest.mark.parametrize(
    ("at", "lines"),
    [
        ("slurm", ["#SBATCH -p normal", "#SBATCH --cpus-per-task=8", "#SBATCH --mem=30G", "#SBATCH -t 04:00:00"]),
        ("pbs", ["#PBS -q normal", "#PBS -l select=1:ncpus=8:mem=30GB", "#PBS -l walltime=04:00:00"]),
        ("lsf", ["#BSUB -q normal", "#BSUB -n 8", "#BSUB -W 04:00:00"]),
    ],
)
def test_job_scripts(at: str, lines: list[str]) -> None:
    script = job_script(ClusterConfig(at=at, workers=40, queue=QUEUE)).splitlines()
    assert [line for line in lines if line not in script] == []
    worker = script[-1].split()
    assert worker[worker.index("--nworkers") + 1] == "8", "one process a core"
    assert worker[len(worker) - worker[::-1].index("--nthreads")] == "1", "each at one slide: the last one counts"
    assert worker[worker.index("--memory-limit") + 1] == "3.73GiB", "each with its share"
    assert "export DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=False" in script


def test_predictions_may_have_another_queue() -> None:
    gpus = {"queue": "gpu", "processes": 1, "job_extra_directives": ["--gres=gpu:1"]}
    config = ClusterConfig(at="slurm", workers=4, queue=QUEUE, gpu_queue=gpus)
    script = job_script(config, gpu=True)
    assert "#SBATCH -p gpu" in script
    assert "#SBATCH --gres=gpu:1" in script
    assert "--nworkers" not in script
    assert "gpu" not in job_script(config)


@pytest.mark.parametrize(
    ("queue", "said"),
    [
        ({"partition": "long"}, "cluster.queue.partition: is not a setting; the settings are account, cores,"),
        ({"security": True}, "cluster.queue.security: is not a setting"),
        ({"extra": []}, "cluster.queue.extra: is not a setting"),
        ({"cores": None}, "cluster.queue.cores: is missing; say what one job is to have"),
        ({"walltime": 43_200}, "cluster.queue.walltime: 43200 is refused; write it in quotes"),
        ({"memory": "much"}, "cluster slurm: is refused"),
    ],
)
def test_queue_settings_that_are_refused(queue: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        job_script(ClusterConfig(at="slurm", workers=1, queue=QUEUE | queue))
    assert said in str(caught.value)


def test_a_queue_that_is_not_here_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match=r"^pbs: qsub"):
        run_slides(act, ["a"], workers=1, title="test", cluster=ClusterConfig(at="pbs", workers=1, queue=QUEUE))


def put(command: Path, script: str) -> None:
    command.write_text(f"#!/bin/bash\n{script}\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)


def test_a_queue_that_refuses_jobs_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put(tmp_path / "sbatch", "echo 'sbatch: error: invalid partition specified: normal' >&2; exit 1")
    put(tmp_path / "scancel", "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(module, "LOOK_FOR_WORKERS_S", 0.1)
    with pytest.raises(ClusterError) as caught:
        run_slides(
            act, ["a"], workers=1, title="test", cluster=ClusterConfig(at="slurm", workers=1, queue=QUEUE, tls=False)
        )
    assert "slurm: sbatch refused the job (sbatch: error: invalid partition specified: normal)" in str(caught.value)


def test_slides_through_a_queue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With an sbatch that starts the job's script at once, on this machine: scripts, keys and settings all fit."""
    put(
        tmp_path / "sbatch",
        f"cp $1 {tmp_path}/job; setsid bash {tmp_path}/job >{tmp_path}/log 2>&1 & echo Submitted batch job $!",
    )
    put(tmp_path / "scancel", "kill -- -$1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONWARNINGS", "")
    monkeypatch.chdir(tmp_path)
    queue = QUEUE | {"cores": 1, "memory": "2GB", "scheduler_options": {"host": "127.0.0.1"}}
    outcomes = ran(tmp_path, ["a", "raise s", "b"], ClusterConfig(at="slurm", workers=1, queue=queue))
    assert [outcome.result for outcome in outcomes] == ["A", None, "B"]
    assert "tls://" in (tmp_path / "log").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["job", "log", "sbatch", "scancel", "tried"], (
        "no key is left behind"
    )


@pytest.mark.parametrize(
    ("name", "job"), [("SLURMCluster-3", "SLURMCluster-3"), ("SLURMCluster-3-1", "SLURMCluster-3"), (0, "0")]
)
def test_workers_of_one_job_come_and_go_together(name: object, job: str) -> None:
    assert job_of(SimpleNamespace(name=name)) == job


@pytest.mark.parametrize(
    ("visible", "name", "own"),
    [
        ("0,1,2,3", "SLURMCluster-7-2", "2"),
        ("4,5", "SLURMCluster-7-2", "4"),
        ("GPU-a,GPU-b", "x-1", "GPU-b"),
        ("3", "SLURMCluster-7", "3"),
        ("0,1", "tcp://10.0.0.1:4001", "0,1"),
    ],
)
def test_each_worker_of_a_job_takes_its_gpu(monkeypatch: pytest.MonkeyPatch, visible: str, name: str, own: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    module.take_device(name)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own
    module.take_device(name)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own, "also at its second slide"


# --- the command line -----------------------------------------------------------------------------------------------


def test_dask_is_not_loaded_for_processes_of_this_machine() -> None:
    assert not loads("import pipeline.execution.jobs, pipeline.commands.tile", "dask")


def test_a_missing_dask_is_named() -> None:
    code = "import sys; sys.modules['distributed'] = None; import pipeline.execution.dask"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "ConfigError: cluster: Dask is not installed (" in done.stderr
    assert "; pip install 'specslide[dask]'" in done.stderr


def test_ctrl_c_stops_the_command_and_the_same_one_goes_on(run_cli: RunCli, small_slide: Path, tmp_path: Path) -> None:
    slides = [tmp_path / f"s{number}.tif" for number in range(6)]
    for slide in slides:
        slide.symlink_to(small_slide)
    arguments = ["tile", *map(str, slides), "--out", str(tmp_path / "stores"), "--mpp", "0.5", "--tile-px", "64"]
    arguments += ["--cluster", "local:1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *arguments], start_new_session=True, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 100
        while not (tmp_path / "stores" / "s0.zarr").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 75, said
    assert "stopped by SIGINT" in said
    assert "Traceback" not in said
    assert len(list((tmp_path / "stores").glob("s*.zarr"))) < 6
    again = run_cli(*arguments)
    assert again.returncode == 0, again.stderr
    assert "kept" in again.stdout
    stores = [listing(tmp_path / "stores" / f"{slide.stem}.zarr") for slide in slides]
    columns = [{name: value for name, value in store.items() if name.startswith("tiles/")} for store in stores]
    assert columns[0]
    assert all(column == columns[0] for column in columns), "one slide, one store, whenever it was made"
