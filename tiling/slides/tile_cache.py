"""Recently decoded tiles in memory. Knows nothing of files."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from tiling.core.arrays import UInt8Array

Key = tuple[int, int, int, int]
"""Level, column, row, and the fraction of its size that a tile is decoded at: its denominator."""

_MAX_SPARE = 16  # tiles


class TileCache:
    """The most recently used tiles, up to a number of bytes. Thread-safe: no two threads make one tile at a time.

    Gives out the memory of dropped tiles again, since fresh memory costs a third of the time of decoding into it; but
    only when every thread that was reading when a tile was dropped has finished, for it might still look at it.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max, self._min, self._limit, self._bytes = max_bytes, 0, 0, 0
        self._tiles: OrderedDict[Key, UInt8Array] = OrderedDict()
        self._making: dict[Key, threading.Lock] = {}
        self._reads = 0
        self._reading: set[int] = set()
        self._dropped: deque[tuple[int, UInt8Array]] = deque(maxlen=_MAX_SPARE)
        """With the number of reads that had begun when the tile was dropped."""
        self._lock = threading.Lock()

    def keep(self, wanted_bytes: int) -> None:
        """From now on keep as many bytes as wanted, whatever is read."""
        with self._lock:
            self._min = max(self._min, min(self._max, wanted_bytes))
            self._limit = max(self._limit, self._min)

    @contextmanager
    def reading(self, wanted_bytes: int, each_more: int = 0) -> Iterator[None]:
        """Context around every use of tiles; from now on, until `clear`, as many bytes as wanted are kept.

        For each other read at the time it is `each_more`.
        """
        with self._lock:
            self._limit = max(self._limit, min(self._max, wanted_bytes + each_more * len(self._reading)))
            number, self._reads = self._reads, self._reads + 1
            self._reading.add(number)
        try:
            yield
        finally:
            with self._lock:
                self._reading.remove(number)

    def memory(self, shape: tuple[int, int, int]) -> UInt8Array:
        """Memory for a tile, its content undefined."""
        with self._lock:
            if self._dropped and self._dropped[0][0] <= min(self._reading, default=self._reads):
                spare = self._dropped.popleft()[1]
                if spare.shape == shape:
                    return spare
        return np.empty(shape, np.uint8)

    def tile(self, key: Key, make: Callable[[], UInt8Array]) -> UInt8Array:
        """The tile of that key: kept, or made now; where another thread is making it, its result is waited for.

        Raises what `make` raises.
        """
        while True:
            with self._lock:
                if key in self._tiles:
                    self._tiles.move_to_end(key)
                    return self._tiles[key]
                others = self._making.get(key)
                if others is None:
                    mine = self._making[key] = threading.Lock()
                    mine.acquire()
                    break
            with others:  # until it is made; if that failed, this thread will try, and raise its own error
                pass
        try:
            tile = make()
            with self._lock:
                self._put(key, tile)
            return tile
        finally:
            with self._lock:
                del self._making[key]
            mine.release()

    def _put(self, key: Key, tile: UInt8Array) -> None:
        """Keep a tile, and drop the oldest beyond the limit."""
        self._tiles[key] = tile
        self._bytes += tile.nbytes
        while self._bytes > self._limit and len(self._tiles) > 1:
            dropped = self._tiles.popitem(last=False)[1]
            self._bytes -= dropped.nbytes
            self._dropped.append((self._reads, dropped))

    def clear(self) -> None:
        """Drop all tiles; the limit is again what `keep` was given, until reads ask for more."""
        with self._lock:
            self._tiles.clear()
            self._dropped.clear()
            self._bytes, self._limit = 0, self._min
