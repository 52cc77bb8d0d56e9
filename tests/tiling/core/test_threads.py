"""How many cores may be used; and reading ahead against a plain loop: order, bound, faults, who is waited for."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tiling.core import threads
from tiling.core.threads import beside, read_ahead, usable_cores


@pytest.mark.parametrize(
    ("files", "slurm", "expected"),
    [
        ({}, None, 8),
        ({"cpu.max": "max 100000"}, None, 8),
        ({"cpu.max": "400000 100000"}, None, 4),
        ({"cpu.max": "250000 100000"}, None, 3),  # a part of a core is still to be used
        ({"cpu.max": "1000 100000"}, None, 1),
        ({"cpu.max": "6400000 100000"}, None, 8),
        ({"cpu.max": "nonsense"}, None, 8),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, None, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None, 8),
        ({}, "3", 3),
        ({}, "16", 8),
        ({"cpu.max": "200000 100000"}, "3", 2),
        ({}, "", 8),
        ({}, "0", 8),
        ({}, "many", 8),
    ],
)
def test_what_affinity_container_and_slurm_allow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], slurm: str | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(threads, "_CGROUP", tmp_path)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    if slurm is not None:
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", slurm)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert usable_cores() == expected


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


def test_with_one_the_callers_own_thread_works() -> None:
    tasks = [threading.get_ident, threading.get_ident]
    assert set(read_ahead(tasks, 4, 1)) == {threading.get_ident()}
    assert threading.get_ident() not in set(read_ahead(tasks, 4, 2))


def test_how_many_are_at_work_may_change() -> None:
    """With those that wait, as many as the function said last."""
    limits = iter([1, 3, 1, 1, 1, 1])
    begun: list[int] = []
    results = read_ahead((partial(_noted, begun, n) for n in range(6)), 2, lambda: next(limits, 1))
    assert next(results) == 0
    assert begun == [0]
    assert [*results] == [1, 2, 3, 4, 5]


def test_what_is_done_beside_is_waited_for_and_told_when_nobody_wants_it() -> None:
    with beside(lambda unwanted: (threading.current_thread() is threading.main_thread(), unwanted.is_set())) as done:
        assert done.result() == (False, False)
    with pytest.raises(ZeroDivisionError), beside(lambda unwanted: unwanted.wait(60)) as waiting:
        raise ZeroDivisionError
    assert waiting.result()  # at once
    with beside(lambda unwanted: 1 // 0) as failed, pytest.raises(ZeroDivisionError):
        failed.result()
