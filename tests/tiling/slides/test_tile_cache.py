"""The cache of decoded tiles: what it keeps, and when memory may be used again."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tiling.core.arrays import UInt8Array
from tiling.slides.tile_cache import TileCache

SHAPE = (4, 4, 3)
BYTES = 48


def put(cache: TileCache, column: int) -> int:
    """Keep a tile; where its memory lies."""
    tile = cache.memory(SHAPE)
    cache.tile((0, column, 0, 1), lambda: tile)
    return int(tile.ctypes.data)


def kept(cache: TileCache, columns: Iterable[int]) -> list[bool]:
    return [(0, column, 0, 1) in cache._tiles for column in columns]


def test_the_oldest_are_dropped() -> None:
    cache = TileCache(2 * BYTES)
    with cache.reading(100 * BYTES):
        for column in (0, 1):
            put(cache, column)
        assert put(cache, 0)  # used again
        put(cache, 2)
    assert kept(cache, (0, 1, 2)) == [True, False, True]


def test_memory_is_used_again_once_every_read_of_that_time_has_ended() -> None:
    cache = TileCache(BYTES)
    with cache.reading(BYTES):
        first = put(cache, 0)
    slow = cache.reading(BYTES)
    slow.__enter__()  # another thread, which may have been given the first tile
    with cache.reading(BYTES):
        assert put(cache, 1) != first
    with cache.reading(BYTES):
        assert cache.memory(SHAPE).ctypes.data != first
    slow.__exit__(None, None, None)
    with cache.reading(BYTES):
        assert cache.memory(SHAPE).ctypes.data == first
        assert cache.memory((5, 4, 3)).shape == (5, 4, 3)


def test_reading_one_after_the_other_needs_little_memory() -> None:
    """In turn: a read that drops a tile may still have it, the next may use its memory."""
    cache, places = TileCache(2 * BYTES), set()
    for column in range(50):
        with cache.reading(2 * BYTES):
            places.add(put(cache, column))
    assert len(places) <= 4
    assert sum(kept(cache, range(50))) == 2


def test_what_reads_wanted_is_forgotten_and_what_is_to_be_kept_is_not() -> None:
    cache = TileCache(10 * BYTES)
    cache.keep(3 * BYTES)
    with cache.reading(8 * BYTES):
        for column in range(9):
            put(cache, column)
        assert kept(cache, range(9)) == [False] + 8 * [True]
    cache.clear()
    with cache.reading(BYTES):
        for column in range(9):
            put(cache, column)
        assert kept(cache, range(9)) == 6 * [False] + 3 * [True]


def test_each_other_read_at_the_time_keeps_more() -> None:
    cache = TileCache(10 * BYTES)
    with cache.reading(2 * BYTES, 3 * BYTES), cache.reading(2 * BYTES, 3 * BYTES):
        for column in range(9):
            put(cache, column)
    assert kept(cache, range(9)) == [False] * 4 + [True] * 5


def test_a_tile_that_another_thread_is_making_is_waited_for() -> None:
    cache, made, begun, go_on = TileCache(10 * BYTES), [], threading.Event(), threading.Event()

    def make() -> UInt8Array:
        made.append(threading.get_ident())
        begun.set()
        assert go_on.wait(20)
        return np.full(SHAPE, 7, np.uint8)

    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(cache.tile, (0, 0, 0, 1), make)]
        assert begun.wait(20)
        found += [pool.submit(cache.tile, (0, 0, 0, 1), make) for _ in range(3)]
        go_on.set()
    assert len(made) == 1
    assert len({id(one.result()) for one in found}) == 1


def test_a_tile_that_cannot_be_made_costs_each_thread_its_own_error() -> None:
    cache, together = TileCache(10 * BYTES), threading.Barrier(3)

    def fail() -> UInt8Array:
        raise ValueError(str(threading.get_ident()))

    def ask() -> str:
        together.wait(20)
        with pytest.raises(ValueError, match=str(threading.get_ident())):
            cache.tile((0, 0, 0, 1), fail)
        return "asked"

    with ThreadPoolExecutor(3) as pool:
        assert [one.result(20) for one in [pool.submit(ask) for _ in range(3)]] == ["asked"] * 3
    with cache.reading(BYTES):
        put(cache, 0)
    assert kept(cache, [0]) == [True]
