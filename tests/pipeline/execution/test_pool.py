"""Every slide gets an outcome, whatever happens to the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from ctypes import c_int64
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from rich.progress import Progress

from pipeline.execution import pool
from pipeline.execution.pool import (
    Outcome,
    Watch,
    bytes_of,
    default_workers,
    run_slides,
    threads_for_slide,
)
from pipeline.meter import Meter
from tests.pipeline.execution.tasks import NAMING, act, buggy, die_in_a_worker, refuse, say
from tests.tiling.dicom_files import write_instance
from tiling.core.errors import SlideError, StoppedError
from tiling.core.pace import Pace
from tiling.core.signals import listening

DIED = "its worker process died"


def ran(jobs: list[str], workers: int = 2) -> list[Outcome[str, str]]:
    return run_slides(act, jobs, workers=workers, title="test")


def expect(jobs: list[str], bad: dict[str, str], outcomes: list[Outcome[str, str]]) -> None:
    """Outcomes in order: a bad job's reason holds its text, any other has its result."""
    assert [outcome.job for outcome in outcomes] == jobs
    for outcome in outcomes:
        if outcome.job in bad:
            assert outcome.result is None
            assert outcome.error is not None
            assert bad[outcome.job] in outcome.error
        else:
            assert (outcome.result, outcome.error) == (outcome.job.upper(), None)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_outcomes_come_in_the_order_of_the_jobs(workers: int) -> None:
    jobs = [f"slide {i}" for i in range(7)]
    expect(jobs, {}, ran(jobs, workers))


def test_no_jobs_no_outcomes() -> None:
    assert ran([]) == []


def test_a_task_that_raises_costs_its_slide_alone() -> None:
    jobs = ["a", "raise:s.svs", "b", "break", "c", "exit"]
    bad = {
        "raise:s.svs": "s.svs: is damaged; copy it again",
        "break": "unexpected ZeroDivisionError: no slide is this thin",
        "exit": "unexpected SystemExit",
    }
    outcomes = ran(jobs)
    expect(jobs, bad, outcomes)
    assert outcomes[1].error == bad["raise:s.svs"], "word for word: it is what the user reads"


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_what_is_done_first_speaks_once_or_ends_the_run_before_any_job(
    workers: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    jobs = [f"note:{tmp_path / 'notes'}:{number}" for number in "abc"]
    with pytest.raises(SlideError, match="model: does not fit"):
        run_slides(act, jobs, workers=workers, title="test", first=partial(refuse, "model"))
    assert not (tmp_path / "notes").exists()
    expect(jobs, {}, run_slides(act, jobs, workers=workers, title="test", first=partial(say, "at 0.5 mpp")))
    assert sorted((tmp_path / "notes").read_text()) == ["a", "b", "c"]
    assert capfd.readouterr().err.count("at 0.5 mpp") == 1


def test_a_worker_that_dies_of_what_is_done_first_costs_no_job() -> None:
    """The jobs are tried in fresh ones, which say for themselves what is the matter."""
    expect(["a", "b"], {}, run_slides(act, ["a", "b"], workers=1, title="test", first=die_in_a_worker))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_costs_its_slide_alone(workers: int) -> None:
    jobs = ["a", "b", "kill", "c", "d"]
    expect(jobs, {"kill": DIED}, ran(jobs, workers))


_RUN = """
import sys
from pathlib import Path
from pipeline.execution.pool import run_slides
from tests.pipeline.execution.tasks import act

if __name__ == "__main__":
    run_slides(act, [f"sleep:{sys.argv[1]}"], workers=1, title="test")
"""


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """One that is killed leaves nobody who would hold a slide against the next run."""
    script, marker = tmp_path / "run.py", tmp_path / "pid"
    script.write_text(_RUN)
    root = Path(__file__).resolve().parents[3]
    parent = subprocess.Popen([sys.executable, script, marker], env=os.environ | {"PYTHONPATH": str(root)})
    worker = int(awaited(marker.read_text) or 0)
    assert Path(f"/proc/{worker}").exists()
    parent.kill()
    parent.wait()
    assert awaited(lambda: "gone" if state_of(worker) in ("", "Z") else "")


def awaited(ask: Callable[[], str]) -> str:
    """The first answer that is not "" within a minute."""
    for _ in range(600):
        try:
            if answer := ask():
                return answer
        except FileNotFoundError:
            pass
        time.sleep(0.1)
    return ""


def state_of(pid: int) -> str:
    """The kernel's letter for a process, Z for one that has ended; "" for none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return ""


@pytest.mark.parametrize("jobs", [["kill:1", "a", "raise:s", "kill:2", "b"], ["kill:1", "kill:2"]], ids=["some", "all"])
def test_many_killers_cost_only_themselves(jobs: list[str]) -> None:
    bad = {job: DIED for job in jobs if job.startswith("kill")} | {"raise:s": "s: is damaged"}
    expect(jobs, bad, ran(jobs))


def test_a_worker_killed_by_chance_is_forgiven(tmp_path: Path) -> None:
    """Such as by someone else's memory: the task is run again, and succeeds."""
    jobs = ["a", f"once:{tmp_path / 'marker'}", "b"]
    expect(jobs, {}, ran(jobs))


def test_what_cannot_travel_costs_its_slide_alone() -> None:
    jobs = ["a", "strange", "b", "opaque", "c"]
    expect(jobs, {"strange": "", "opaque": "lambda"}, ran(jobs))


@pytest.mark.parametrize("cores", [{0}, {0, 3, 5}])
def test_one_worker_a_core_that_may_be_used(monkeypatch: pytest.MonkeyPatch, cores: set[int]) -> None:
    allowed: Callable[[int], set[int]] = lambda pid: cores  # noqa: E731
    monkeypatch.setattr(os, "sched_getaffinity", allowed, raising=False)
    assert default_workers() == len(cores)


@pytest.mark.parametrize(("cores", "at_work", "expected"), [(8, None, 8), (8, 1, 8), (8, 3, 2), (2, 5, 1), (1, 1, 1)])
def test_slides_that_are_worked_on_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, at_work: int | None, expected: int
) -> None:
    monkeypatch.setattr(pool, "usable_cores", lambda: cores)
    monkeypatch.setattr(pool, "_at_work", None if at_work is None else c_int64(at_work))
    assert threads_for_slide() == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_a_slide_alone_has_all_cores(workers: int) -> None:
    assert ran(["threads"], workers)[0].result == str(default_workers())


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_work_at_once(tmp_path: Path, workers: int, number: signal.Signals) -> None:
    """The slide under way would never end of itself."""
    before = signal.getsignal(number)
    jobs = ["a", f"signal:{int(number)}:{tmp_path / 'worker'}", "b"]
    with pytest.raises(StoppedError) as caught:
        ran(jobs, workers)
    said = f"test: stopped by {number.name} with 1 of 3 slides done; run the same command again to go on"
    assert str(caught.value) == said
    assert caught.value.exit_code == 75
    assert signal.getsignal(number) is before
    if workers:
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "worker").read_text()), 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_largest_come_first_and_outcomes_in_the_order_of_the_jobs(tmp_path: Path, workers: int) -> None:
    notes, sizes = tmp_path / "notes", [3, 1, 7, 1]
    jobs = [f"note:{notes}:{name}" for name in "abcd"]
    expect(jobs, {}, run_slides(act, jobs, workers=workers, title="test", sizes=sizes))
    assert notes.read_text() == "cabd", "equal ones as they come"


def test_in_this_process_a_bad_slide_costs_itself_alone() -> None:
    jobs = ["a", "raise:s.svs", "b"]
    expect(jobs, {"raise:s.svs": "s.svs: is damaged; copy it again"}, ran(jobs, 0))


def test_each_process_gets_a_gpu_of_its_own() -> None:
    """Also the processes after one has died; and no more processes than GPUs."""
    jobs = [f"device:{i}" for i in range(4)] + ["kill"] + [f"device:{i}" for i in range(4, 8)]
    outcomes = run_slides(act, jobs, workers=4, title="test", devices=["5", "GPU-2f"])
    found = {outcome.result for outcome in outcomes if outcome.job != "kill"}
    assert found <= {"5", "GPU-2f"}
    assert "5" in found


def test_the_time_left_goes_by_the_sizes_of_the_slides() -> None:
    """A quarter in a minute: two minutes for the second half. A slide that is under way counts by its tiles."""
    clock = [0.0]
    with Progress(get_time=lambda: clock[0], disable=True, speed_estimate_period=600) as bar, listening([]) as stop:
        shown = Meter("test", bar, Pace(clock=lambda: clock[0]))
        watch: Watch[str, int] = Watch(["a", "b", "c"], [50, 25, 25], shown, stop)
        watch.at(0, 10, 20)
        for clock[0] in (60.0, 120.0):
            watch.look()
            watch.at(0, 20, 20)
        assert bar.tasks[0].completed == 50
        assert bar.tasks[0].time_remaining == 120
        watch.finished(0, 1, None)
        watch.look()
        assert bar.tasks[0].fields["done"] == "1/3 slides, 20 tiles, 0.75 slides/min"


def test_sizes_of_slides(tmp_path: Path) -> None:
    given = {
        "a.svs": 5,
        "dicom/notes.txt": 7,
        "m.mrxs": 1,
        "m/Data1.dat": 9,
        "s.zarr/zarr.json": 2,
        "s.zarr/tiles/c": 4,
    }
    for name, size in given.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(bytes(size))
    instances = [write_instance(tmp_path / f"dicom/{name}", np.zeros((8, 8, 3), np.uint8)) for name in ("1.dcm", "2")]
    of_dicom = sum(path.stat().st_size for path in instances)
    sizes = {"a.svs": 5, "dicom": of_dicom, "dicom/1.dcm": of_dicom, "m.mrxs": 10, "s.zarr": 6}
    sizes |= {"missing.svs": 0, "a.svs/inner": 0, "m": 0}
    assert {name: bytes_of(tmp_path / name) for name in sizes} == sizes


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_costs_its_slide_and_the_log_keeps_its_text(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    """In this process and in others; the text may name a file, so the table alone has it, where ids replace names."""
    outcomes = run_slides(buggy, [0, 1, 2], workers=workers, title="test")
    assert [outcome.result for outcome in outcomes] == [0, None, 2]
    assert outcomes[1].error == f"unexpected ZeroDivisionError: {NAMING}"
    assert "an unexpected ZeroDivisionError, please report it" in caplog.text
    assert "Miller" not in caplog.text
