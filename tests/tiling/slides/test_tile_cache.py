"""The cache of decoded tiles: what it keeps, and when memory may be used again."""

from __future__ import annotations

import numpy as np

from tiling.slides.tile_cache import TileCache

SHAPE = (4, 4, 3)
BYTES = 48


def put(cache: TileCache, column: int) -> int:
    """Keep a tile; where its memory lies."""
    tile = cache.memory(SHAPE)
    cache.put((0, column, 0, 1), tile)
    return int(tile.ctypes.data)


def test_the_oldest_are_dropped() -> None:
    cache = TileCache(2 * BYTES)
    with cache.reading(100 * BYTES):
        for column in (0, 1):
            put(cache, column)
        assert cache.get((0, 0, 0, 1)) is not None  # used again
        put(cache, 2)
    assert [cache.get((0, column, 0, 1)) is not None for column in (0, 1, 2)] == [True, False, True]


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
    assert np.sum([cache.get((0, column, 0, 1)) is not None for column in range(50)]) == 2


def test_what_reads_wanted_is_forgotten_and_what_is_to_be_kept_is_not() -> None:
    cache = TileCache(10 * BYTES)
    cache.keep(3 * BYTES)
    with cache.reading(8 * BYTES):
        for column in range(9):
            put(cache, column)
        assert [cache.get((0, column, 0, 1)) is not None for column in range(9)] == [False] + 8 * [True]
    cache.clear()
    with cache.reading(BYTES):
        for column in range(9):
            put(cache, column)
        assert [cache.get((0, column, 0, 1)) is not None for column in range(9)] == 6 * [False] + 3 * [True]
