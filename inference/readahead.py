"""Prefetch: work done ahead by threads behind a bounded queue. Knows nothing of slides, stores and models."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Result = TypeVar("Result")
Batch = tuple[NDArray[np.intp], NDArray[np.uint8]]
"""Indices of tiles (n,), and their pixels (n, T, T, 3)."""
Batches = Generator[Batch, None, None]


def read_ahead(tasks: Iterable[Callable[[], Result]], threads: int, ahead: int) -> Generator[Result, None, None]:
    """The results of the tasks, in their order, worked out by threads while the caller uses earlier ones.

    At most `ahead` of them are at work or waiting to be used, so that memory is bounded however many there are. An
    exception of a task is raised in its place. Then, and when the iterator is closed, no further task begins, and those
    at work are waited for: what they read from may be closed afterwards.
    """
    left = iter(tasks)
    with ThreadPoolExecutor(threads, thread_name_prefix="read") as pool:
        waiting: deque[Future[Result]] = deque(pool.submit(task) for task in islice(left, ahead))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(task) for task in islice(left, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()


def regrouped(batches: Iterable[Batch], size: int) -> Batches:
    """Tiles regrouped into batches of exactly `size`, but for the last; batches of that size pass untouched.

    A batch must not depend on which tiles were left out on the way: in other batches a network rounds otherwise.
    """
    indices, pixels = np.empty(0, np.intp), np.empty((0, 0, 0, 3), np.uint8)
    for more, tiles in batches:
        if len(more):
            indices = np.concatenate([indices, more]) if len(indices) else more
            pixels = np.concatenate([pixels, tiles]) if len(pixels) else tiles
        while len(indices) >= size:
            yield indices[:size], pixels[:size]
            indices, pixels = indices[size:], pixels[size:]
    if len(indices):
        yield indices, pixels
