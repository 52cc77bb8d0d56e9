"""Reading ahead against a plain loop: order, bound, faults, and who is waited for at the end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.readahead import Batch, read_ahead, regrouped


@pytest.mark.parametrize(("threads", "ahead"), [(1, 1), (1, 4), (3, 3), (4, 9)])
def test_results_come_in_order(threads: int, ahead: int) -> None:
    tasks = [partial(pow, number, 2) for number in range(50)]
    assert list(read_ahead(tasks, threads, ahead)) == [number**2 for number in range(50)]


def test_no_tasks_no_results() -> None:
    assert list(read_ahead([], 2, 3)) == []


def test_no_more_is_begun_than_the_queue_holds() -> None:
    begun: list[int] = []

    def tasks() -> Iterator[Callable[[], int]]:
        for number in range(100):
            begun.append(number)
            yield partial(int, number)

    results = read_ahead(tasks(), 2, 5)
    assert begun == []
    for used in range(100):
        assert next(results) == used
        assert len(begun) <= used + 1 + 5


def test_work_goes_on_while_a_result_is_used() -> None:
    """The second task is done before the first result is given back: only a thread of its own can have done it."""
    second = threading.Event()
    results = read_ahead([lambda: None, second.set], 1, 2)
    next(results)
    assert second.wait(30)
    results.close()


def test_an_error_comes_in_its_place_and_ends_the_work() -> None:
    def fail() -> int:
        raise OSError("disk")

    begun: list[int] = []
    tasks: list[Callable[[], int]] = [lambda: 0, lambda: 1, fail, *(partial(_noted, begun, n) for n in range(40))]
    results = read_ahead(tasks, 1, 3)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(OSError, match="disk"):
        next(results)
    assert len(begun) <= 3
    assert list(results) == []


def _noted(where: list[int], number: int) -> int:
    where.append(number)
    return number


def test_closing_waits_for_what_is_at_work_and_begins_no_more() -> None:
    """So that a slide can be closed under nobody."""
    at_work, go, ended = threading.Event(), threading.Event(), threading.Event()
    begun: list[int] = []

    def slow() -> int:
        at_work.set()
        go.wait(30)
        ended.set()
        return 1

    tasks: list[Callable[[], int]] = [lambda: 0, slow, *(partial(_noted, begun, n) for n in range(9))]
    results = read_ahead(tasks, 1, 2)
    next(results)
    assert at_work.wait(30)
    threading.Timer(0.05, go.set).start()
    results.close()
    assert ended.is_set()
    assert begun == []


def batch(indices: list[int]) -> Batch:
    """Tiles of 2 px whose every value is their index."""
    found = np.array(indices, np.intp)
    return found, np.broadcast_to(found[:, None, None, None], (len(found), 2, 2, 3)).astype(np.uint8)


@given(st.lists(st.integers(0, 7), max_size=12), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_regrouping_keeps_every_tile_in_its_place(lengths: list[int], size: int) -> None:
    ends = np.cumsum([0, *lengths]).tolist()
    batches = [batch(list(range(a, b))) for a, b in pairwise(ends)]
    found = list(regrouped(batches, size))
    assert [index for indices, _ in found for index in indices.tolist()] == list(range(ends[-1]))
    assert all((pixels == indices[:, None, None, None]).all() for indices, pixels in found)
    assert [len(indices) for indices, _ in found] == [min(size, ends[-1] - at) for at in range(0, ends[-1], size)]


def test_whole_batches_are_not_copied() -> None:
    whole = batch([0, 1, 2])
    assert np.shares_memory(next(regrouped([whole], 3))[1], whole[1])
