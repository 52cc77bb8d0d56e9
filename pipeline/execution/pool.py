"""Running one task a slide: every slide gets an outcome, whatever happens to the others.

The slides are worked on by processes of this machine, by this process itself, or by a Dask cluster, the
largest first, so that none is left alone at the end. A task that raises costs its slide. A worker that dies (killed,
out of memory, a crash in a decoder) costs the slide it was working on, found by running the suspects again one by one;
the rest go on in fresh workers. A signal that asks to stop ends all of them; what is complete stays.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from ctypes import Array, c_int64
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from pipeline.console import LogFormat, log_settings, note, start_logging
from pipeline.meter import Meter, meter
from tiling.core.errors import SlideError, SpecslideError, StoppedError
from tiling.core.signals import SENT_TO_ALL, STOPPING, Stop, end_with_parent, listening
from tiling.core.text import counted
from tiling.core.threads import usable_cores
from tiling.slides.files import slide_files

if TYPE_CHECKING:  # imported when needed: its settings take a while to make
    from pipeline.execution.dask_config import ClusterConfig

log = logging.getLogger(__name__)

Job = TypeVar("Job")
Result = TypeVar("Result")
TileProgress = Callable[[int, int], None]
"""Called by a task with (tiles done, tiles in all)."""
Task = Callable[[Job, TileProgress], Result]
"""A picklable function that leaves one complete artefact, so that running it again is harmless."""
Preparation = Callable[[], str | None]
"""Picklable; what it returns is told to the user, what it raises ends the run before any job."""

DIED = "its worker process died (killed, out of memory, or crashed by a damaged file)"
_POLL_S = 0.2


@dataclass(frozen=True)
class Outcome(Generic[Job, Result]):
    """The outcome of one slide: a result, or the reason why there is none."""

    job: Job
    result: Result | None
    error: str | None


def run_slides(
    task: Task[Job, Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    title: str,
    sizes: Sequence[int] | None = None,
    cluster: ClusterConfig | None = None,
    devices: Sequence[str] = (),
    unit: str = "slides",
    first: Preparation | None = None,
) -> list[Outcome[Job, Result]]:
    """Run `task` on every job, the largest first, showing progress.

    Args:
        task: What is done for a job.
        jobs: The slides.
        workers: Processes of this machine at most; 0: this process itself does it.
        title: What the progress is called.
        sizes: The jobs' in bytes; without them the jobs are taken as they come.
        cluster: Where it is done, in place of processes of this machine.
        devices: GPUs, as CUDA_VISIBLE_DEVICES names them: each process gets its own one.
        unit: What the jobs are called.
        first: What is done before the jobs in each process that will do them; on behalf of a cluster in this one.

    Returns:
        What became of each job, in their order.

    Raises:
        StoppedError: When SIGINT, SIGTERM or SIGUSR1 asks to stop: what is complete stays, and the same call goes on.
        ClusterError: For a cluster that is not there or is lost.
        ConfigError: For settings that the cluster does not take.
        SpecslideError: What `first` raises.
    """
    weights = [max(1, size) for size in sizes] if sizes is not None else [1] * len(jobs)
    order = sorted(range(len(jobs)), key=lambda number: -weights[number])  # stable
    with listening((signal.SIGINT, *STOPPING)) as stop, meter(title) as shown:
        watch: Watch[Job, Result] = Watch(jobs, weights, shown, stop, unit)
        if first is not None and (cluster is not None or workers == 0):
            _tell(first())
        if cluster is not None:
            from pipeline.execution.dask import run_on_cluster  # Dask is an extra, and takes a second to load

            run_on_cluster(task, order, cluster, watch, devices)
        elif workers == 0:
            _run_here(task, order, watch)
        else:
            _run_pool(task, order, workers, watch, devices, first)
        watch.look()
    return [watch.outcomes[number] for number in range(len(jobs))]


def default_workers() -> int:
    """One worker a core that this process may use."""
    return usable_cores()


def threads_for_slide() -> int:
    """How many threads a task may use now: the cores, shared among the slides that are worked on, but at least one.

    The last slides of a job have the cores of the others that are done.
    """
    return max(1, usable_cores() // max(1, _at_work.value if _at_work else 1))


def bytes_of(path: Path) -> int:
    """Size of a slide, of all its files, or of a store; 0 if it cannot be known."""
    try:
        files = path.rglob("*") if path.suffix == ".zarr" else slide_files(path)
        return sum(file.stat().st_size for file in files if file.is_file())
    except (OSError, SlideError):
        return 0


class Watch(Generic[Job, Result]):
    """The progress of a run, as its engine reports it: outcomes, tiles done, and whether to stop."""

    def __init__(
        self, jobs: Sequence[Job], weights: Sequence[int], shown: Meter, stop: Stop, unit: str = "slides"
    ) -> None:
        self.jobs, self._unit = jobs, unit
        self.outcomes: dict[int, Outcome[Job, Result]] = {}
        """By the number of the job."""
        self.title = shown.title
        self._weights, self._shown, self._stop = weights, shown, stop
        self._tiles: dict[int, tuple[int, int]] = {}

    def finished(self, number: int, result: Result | None, error: str | None) -> None:
        """Note the outcome of a job."""
        self.outcomes[number] = Outcome(self.jobs[number], result, error)
        self._show()
        name = getattr(self.jobs[number], "slide_id", None) or f"{self._unit.removesuffix('s')} {number + 1}"
        self._shown.ended(str(name), "done" if error is None else "FAILED")  # why may name a file: the table says it

    def at(self, number: int, done: int, total: int) -> None:
        """Note the progress of a job, in tiles."""
        self._tiles[number] = done, max(1, total)

    def look(self) -> None:
        """Show the progress. Raises StoppedError if a signal has asked to stop."""
        self._show()
        if self._stop.signal is not None and len(self.outcomes) < len(self.jobs):
            done = f"with {len(self.outcomes)} of {len(self.jobs)} {self._unit} done"
            raise StoppedError(
                self.title, f"stopped by {self._stop.signal.name} {done}", "run the same command again to go on"
            )

    def _show(self) -> None:
        self._shown.show(self._work(), sum(self._weights), self._text())

    def _text(self) -> str:
        parts = [f"{len(self.outcomes)}/{len(self.jobs)} {self._unit}"]
        if tiles := sum(done for done, _ in self._tiles.values()):
            parts.append(counted(tiles, "tile"))
        if speed := self._shown.pace.rate():  # in the unit of the weights
            parts.append(f"{60 * speed * len(self.jobs) / sum(self._weights):.3g} {self._unit}/min")
        return ", ".join(parts)

    def _work(self) -> float:
        begun = ((n, done / total) for n, (done, total) in self._tiles.items() if n not in self.outcomes)
        whole = sum(self._weights[number] for number in self.outcomes)
        return whole + sum(self._weights[number] * min(1.0, share) for number, share in begun)


def reason_of(error: BaseException) -> str:
    """The reason, for a person, of an error that a task raised."""
    if isinstance(error, SpecslideError):
        return str(error)
    where = "".join(traceback.format_tb(error.__traceback__))  # without its text, which may name a file
    log.error("an unexpected %s, please report it:\n%s", type(error).__name__, where)
    return f"unexpected {type(error).__name__}: {error}"


def use_one_thread() -> None:
    """Keep OpenCV from starting threads: the workers are the parallelism, and threads in each would only fight."""
    import cv2

    cv2.setNumThreads(1)


def _run_here(task: Task[Job, Result], order: Iterable[int], watch: Watch[Job, Result]) -> None:
    """Run the tasks in this process, one after the other."""

    def progress(number: int) -> TileProgress:
        def report(done: int, total: int) -> None:
            watch.at(number, done, total)
            watch.look()

        return report

    for number in order:
        watch.look()
        try:
            watch.finished(number, task(watch.jobs[number], progress(number)), None)
        except StoppedError:
            raise
        except Exception as error:  # noqa: BLE001 - a bug that one slide meets costs that slide, as in other processes
            watch.finished(number, None, reason_of(error))


def _run_pool(
    task: Task[Job, Result],
    order: Sequence[int],
    workers: int,
    watch: Watch[Job, Result],
    devices: Sequence[str],
    first: Preparation | None,
) -> None:
    """Run the tasks in processes of this machine, and those of processes that died again, one by one."""
    _start_tracker()
    round_ = _Round(task, watch, devices)
    suspects = round_.run(order, workers, first)
    while len(watch.outcomes) < len(order):
        for number in suspects:
            if round_.run([number], 1):
                watch.finished(number, None, DIED)
        left = [number for number in order if number not in watch.outcomes]
        suspects = round_.run(left, workers) if left else []


class _Round(Generic[Job, Result]):
    """One process pool at a time; its workers share counters without locks, so that a killed one blocks none."""

    def __init__(self, task: Task[Job, Result], watch: Watch[Job, Result], devices: Sequence[str]) -> None:
        self._task, self._watch, self._devices = task, watch, devices
        self._context = multiprocessing.get_context("spawn")  # forked children would inherit torch's and zarr's threads
        self._counters: Array[c_int64] = self._context.RawArray(c_int64, 2 * max(1, len(watch.jobs)))
        self._at_work: c_int64 = self._context.RawValue(c_int64, 1)

    def run(self, numbers: Sequence[int], workers: int, first: Preparation | None = None) -> list[int]:
        """Give those jobs their outcomes. If a worker dies, return the jobs that were begun and not finished."""
        for number in numbers:
            self._counters[2 * number] = self._counters[2 * number + 1] = 0
        free: SimpleQueue[str] = self._context.SimpleQueue()
        for device in self._devices:
            free.put(device)
        count = min(workers, len(numbers), len(self._devices) or workers) or 1
        told = self._counters, (free if self._devices else None), log_settings()
        pool = ProcessPoolExecutor(count, self._context, initializer=_start_worker, initargs=told)
        try:
            with _ended_when_stopped():
                if first is not None:
                    self._prepare([pool.submit(first) for _ in range(count)])
                futures = {pool.submit(_work, self._task, self._watch.jobs[n], n): n for n in numbers}
                self._collect(futures)
        except BrokenProcessPool:
            time.sleep(_POLL_S)  # a signal that ended all processes of this job has reached this one by now
            self._look()
            left = [n for n in numbers if n not in self._watch.outcomes]
            return [n for n in left if self._counters[2 * n + 1]] or left[:1]
        finally:
            pool.shutdown(cancel_futures=True)
        return []

    def _look(self) -> None:
        for number in range(len(self._watch.jobs)):
            if self._counters[2 * number + 1]:
                self._watch.at(number, self._counters[2 * number], self._counters[2 * number + 1])
        self._watch.look()

    def _prepare(self, futures: Sequence[Future[str | None]]) -> None:
        """Wait for what each worker does first, and tell what it says."""
        for future in futures:
            while not wait([future], timeout=_POLL_S).done:
                self._watch.look()
            future.result()
        _tell(futures[0].result())

    def _collect(self, futures: dict[Future[Result], int]) -> None:
        pending = set(futures)
        while pending:
            finished, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            for future in finished:
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    raise error
                if error is None:
                    self._watch.finished(futures[future], future.result(), None)
                else:
                    self._watch.finished(futures[future], None, reason_of(error))
            self._at_work.value = min(self._at_work.value, max(1, len(pending)))
            self._look()


def _tell(said: str | None) -> None:
    if said is not None:
        note(said)


@contextmanager
def _ended_when_stopped() -> Iterator[None]:
    """End the processes started within it when a StoppedError leaves it: a slide may have minutes to go."""
    before = set(multiprocessing.active_children())
    try:
        yield
    except StoppedError:
        for process in set(multiprocessing.active_children()) - before:
            process.kill()
        raise


_counters: Array[c_int64] | None = None  # of this worker process
_at_work: c_int64 | None = None  # slides that it and the others are at


def _start_tracker() -> None:
    """Start the tracker of multiprocessing's semaphores deaf to SIGUSR1: srun sends it to every process, the tracker
    would die of it, and its successor would print a traceback for each semaphore.
    """
    if sys.platform == "win32":
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])  # inherited by what is started now
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(
    counters: Array[c_int64], free_devices: SimpleQueue[str] | None, logged: tuple[bool, LogFormat]
) -> None:
    global _counters
    _counters = counters
    start_logging(*logged)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # see specslide.main
    end_with_parent()  # or it would hold its slide's lock against the run that comes next
    for number in SENT_TO_ALL:
        signal.signal(number, signal.SIG_IGN)
    if free_devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = free_devices.get()
    use_one_thread()


def _work(task: Task[Job, Result], job: Job, number: int) -> Result:
    def progress(done: int, total: int) -> None:
        assert _counters is not None
        _counters[2 * number], _counters[2 * number + 1] = done, max(1, total)

    progress(0, 1)  # begun
    return task(job, progress)
