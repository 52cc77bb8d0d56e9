"""Threads: how many this process may use, and work that they do ahead, in order. Knows nothing of slides and stores."""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

_CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """How many cores this process may use: by its affinity, the limit of its container, and its Slurm task."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    slurm = int(given) if given.isdecimal() and int(given) else affinity
    return max(1, math.ceil(min(affinity, slurm, _container_cores(_CGROUP))))


def read_ahead(
    tasks: Iterable[Callable[[], Result]], threads: int, ahead: int | Callable[[], int]
) -> Generator[Result, None, None]:
    """The results of the tasks, in their order, worked out by threads while the caller uses earlier ones.

    An exception of a task is raised in its place. Then, and when the iterator is closed, no further task begins, and
    those at work are waited for: what they read from may be closed afterwards.

    Args:
        tasks: What is to be done.
        threads: Threads at most.
        ahead: How many tasks are at work or waiting to be used at most, so that memory is bounded however many there
            are. A function is asked before each. With 1 the caller's own thread does the work.

    Yields:
        Each task's result.
    """
    left, most = iter(tasks), ahead if callable(ahead) else lambda: ahead
    with ThreadPoolExecutor(threads, thread_name_prefix="read") as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            while True:
                limit = most()
                if limit > 1:
                    waiting.extend(pool.submit(task) for task in islice(left, max(0, limit - len(waiting))))
                if waiting:
                    yield waiting.popleft().result()
                elif task := next(left, None):
                    yield task()
                else:
                    return
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def beside(task: Callable[[threading.Event], Result]) -> Iterator[Future[Result]]:
    """A task that another thread does meanwhile; the event tells it that nobody waits for its result any more."""
    unwanted = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="beside") as pool:
        try:
            yield pool.submit(task, unwanted)
        finally:
            unwanted.set()


def _container_cores(cgroup: Path) -> float:
    """The CPU limit of a container, in cores (cgroups version 2, else version 1); infinite without one."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return math.inf
    try:
        limit = float(quota) / float(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return math.inf
    return limit if limit > 0 else math.inf  # -1: none
