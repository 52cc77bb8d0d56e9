"""Recently decoded tiles in memory. Knows nothing of files."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from tiling.core.arrays import UInt8Array


class TileCache:
    """The most recently used tiles, up to a number of bytes. Thread-safe.

    Gives out the memory of dropped tiles again, since fresh memory costs a third of the time of decoding into it; but
    only while a single thread reads, or another might still be looking at the tile.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max, self._limit, self._bytes, self._readers = max_bytes, 0, 0, 0
        self._tiles: OrderedDict[tuple[int, int, int, int], UInt8Array] = OrderedDict()
        self._spare: UInt8Array | None = None
        self._lock = threading.Lock()

    @contextmanager
    def reading(self, wanted_bytes: int) -> Iterator[None]:
        """Context around every use of tiles; from now on as many bytes as wanted are kept."""
        with self._lock:
            self._limit = max(self._limit, min(self._max, wanted_bytes))
            self._readers += 1
        try:
            yield
        finally:
            with self._lock:
                self._readers -= 1

    def memory(self, shape: tuple[int, int, int]) -> UInt8Array:
        """Memory for a tile, its content undefined."""
        with self._lock:
            spare, self._spare = self._spare, None
        return spare if spare is not None and spare.shape == shape else np.empty(shape, np.uint8)

    def get(self, key: tuple[int, int, int, int]) -> UInt8Array | None:
        """The tile of (level, column, row, scale denominator), if it is kept."""
        with self._lock:
            if key in self._tiles:
                self._tiles.move_to_end(key)
            return self._tiles.get(key)

    def put(self, key: tuple[int, int, int, int], tile: UInt8Array) -> None:
        """Keep a tile, and drop the oldest beyond the limit."""
        with self._lock:
            if key in self._tiles:  # another thread was faster
                return
            self._tiles[key] = tile
            self._bytes += tile.nbytes
            while self._bytes > self._limit and len(self._tiles) > 1:
                dropped = self._tiles.popitem(last=False)[1]
                self._bytes -= dropped.nbytes
                self._spare = dropped if self._readers == 1 else None

    def clear(self) -> None:
        """Drop all."""
        with self._lock:
            self._tiles.clear()
            self._spare, self._bytes = None, 0
