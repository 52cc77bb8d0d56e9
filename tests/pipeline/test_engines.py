"""Every slide gets an outcome, whatever happens to the others. The tasks live here: workers import this module."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.engines import Outcome, TileProgress, default_workers, run_slides
from tiling.errors import SlideError

DIED = "its worker process died"


class StrangeError(Exception):
    """An exception that cannot travel between processes: it wants two arguments when it is made again."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


def act(job: str, progress: TileProgress) -> str:
    """A task that does what its job says."""
    progress(1, 2)
    match job.split(":"):
        case ["raise", what]:
            raise SlideError(what, "is damaged", "copy it again")
        case ["break"]:
            raise ZeroDivisionError("no slide is this thin")
        case ["strange"]:
            raise StrangeError("a", "b")
        case ["exit"]:
            sys.exit(3)
        case ["kill", *_]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["once", marker]:
            if not Path(marker).exists():
                Path(marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        case ["opaque"]:
            return lambda: None  # type: ignore[return-value]  # a result that cannot be pickled
    progress(2, 2)
    return job.upper()


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


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_costs_its_slide_alone(workers: int) -> None:
    jobs = ["a", "b", "kill", "c", "d"]
    expect(jobs, {"kill": DIED}, ran(jobs, workers))


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
    expect(jobs, {"strange": "", "opaque": "pickle"}, ran(jobs))


@pytest.mark.parametrize("cores", [{0}, {0, 3, 5}])
def test_one_worker_a_core_that_may_be_used(monkeypatch: pytest.MonkeyPatch, cores: set[int]) -> None:
    allowed: Callable[[int], set[int]] = lambda pid: cores  # noqa: E731
    monkeypatch.setattr(os, "sched_getaffinity", allowed, raising=False)
    assert default_workers() == len(cores)
