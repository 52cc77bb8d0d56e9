"""Running one task a slide in parallel processes: every slide gets an outcome, whatever happens to the others.

A task that raises costs its slide. A worker that dies (killed, out of memory, a crash in a decoder) costs the slide it
was working on, found by running the suspects again one by one; the rest go on in fresh workers.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from ctypes import Array, c_int64
from dataclasses import dataclass
from typing import Generic, TypeVar

from pipeline.console import progress_bar
from tiling.errors import SpecslideError

log = logging.getLogger(__name__)

Job = TypeVar("Job")
Result = TypeVar("Result")
TileProgress = Callable[[int, int], None]
"""Called by a task with (tiles done, tiles in all)."""

_POLL_S = 0.2


@dataclass(frozen=True)
class Outcome(Generic[Job, Result]):
    """What became of one slide: a result, or the reason why there is none."""

    job: Job
    result: Result | None
    error: str | None


def run_slides(
    task: Callable[[Job, TileProgress], Result], jobs: Sequence[Job], *, workers: int, title: str
) -> list[Outcome[Job, Result]]:
    """Run `task` on every job in up to `workers` processes, showing progress; outcomes in the order of the jobs.

    A task is a picklable function that leaves one complete artefact, so that running it again is harmless.
    """
    outcomes: dict[int, Outcome[Job, Result]] = {}
    with progress_bar() as bar:
        shown = bar.add_task(title, total=len(jobs), tiles="")
        round_ = _Round(task, jobs, lambda: bar.update(shown, completed=len(outcomes), tiles=round_.tiles()))
        suspects = round_.run(range(len(jobs)), workers, outcomes)
        while len(outcomes) < len(jobs):
            for number in suspects:
                if round_.run([number], 1, outcomes):
                    reason = "its worker process died (killed, or out of memory)"
                    outcomes[number] = Outcome(jobs[number], None, reason)
            left = [number for number in range(len(jobs)) if number not in outcomes]
            suspects = round_.run(left, workers, outcomes) if left else []
        round_.refresh()
    return [outcomes[number] for number in range(len(jobs))]


def default_workers() -> int:
    """One worker a core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Round(Generic[Job, Result]):
    """One process pool at a time; its workers share counters without locks, so that a killed one blocks none."""

    def __init__(
        self, task: Callable[[Job, TileProgress], Result], jobs: Sequence[Job], refresh: Callable[[], None]
    ) -> None:
        self._task, self._jobs, self.refresh = task, jobs, refresh
        self._context = multiprocessing.get_context("spawn")  # forked children would inherit torch's and zarr's threads
        self._counters: Array[c_int64] = self._context.RawArray(c_int64, 2 * max(1, len(jobs)))

    def run(self, numbers: Iterable[int], workers: int, outcomes: dict[int, Outcome[Job, Result]]) -> list[int]:
        """Fill in the outcomes of those jobs. If a worker dies, return the jobs that were begun and not finished."""
        numbers = list(numbers)
        for number in numbers:
            self._counters[2 * number] = self._counters[2 * number + 1] = 0
        pool = ProcessPoolExecutor(
            min(workers, len(numbers)) or 1, self._context, initializer=_start_worker, initargs=(self._counters,)
        )
        try:
            futures = {pool.submit(_work, self._task, self._jobs[n], n): n for n in numbers}
            self._collect(futures, outcomes)
        except BrokenProcessPool:
            begun = [n for n in numbers if n not in outcomes and self._counters[2 * n + 1]]
            return begun or [n for n in numbers if n not in outcomes][:1]
        finally:
            pool.shutdown(cancel_futures=True)
        return []

    def tiles(self) -> str:
        """How many tiles the slides begun have given so far."""
        done = sum(self._counters[::2])
        return f"{done:,} tiles" if done else ""

    def _collect(self, futures: dict[Future[Result], int], outcomes: dict[int, Outcome[Job, Result]]) -> None:
        pending = set(futures)
        while pending:
            finished, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            for future in finished:
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    raise error
                job = self._jobs[futures[future]]
                if error is None:
                    outcomes[futures[future]] = Outcome(job, future.result(), None)
                else:
                    outcomes[futures[future]] = Outcome(job, None, _reason(error))
            self.refresh()


def _reason(error: BaseException) -> str:
    if isinstance(error, SpecslideError):
        return str(error)
    log.error("an unexpected error, please report it", exc_info=error)
    return f"unexpected {type(error).__name__}: {error}"


_counters: Array[c_int64] | None = None  # of this worker process


def _start_worker(counters: Array[c_int64]) -> None:
    global _counters
    _counters = counters
    import cv2

    cv2.setNumThreads(1)  # the workers are the parallelism; threads in each would only fight


def _work(task: Callable[[Job, TileProgress], Result], job: Job, number: int) -> Result:
    def progress(done: int, total: int) -> None:
        assert _counters is not None
        _counters[2 * number], _counters[2 * number + 1] = done, max(1, total)

    progress(0, 1)  # begun
    return task(job, progress)
