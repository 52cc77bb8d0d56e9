"""Reading tiles straight from zarr v3 shards: memory-mapped, index cached, every chunk's checksum verified.

A shard holds encoded chunks back to back and ends with an index: (offset, length) of each as little-endian uint64 and
a crc32c of the index (zarr v3 `sharding_indexed`). Each chunk ends with its own crc32c. zarr-python is the oracle.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from tiling.errors import StoreError

CHECKSUM_BYTES = 4
_ABSENT = np.iinfo(np.uint64).max


@dataclass(frozen=True, slots=True)
class _Shard:
    data: memoryview
    index: NDArray[np.uint64]  # (chunks, 2): offset, length


class ShardReader:
    """Random access to the chunks of one array `(N, ...)` with shards of `per_shard` rows and chunks of one row.

    Safe to share between threads. Pickles and forks as its paths alone: each process maps for itself. Keeps at most
    `keep` shards mapped; a mapped file needs no descriptor.
    """

    def __init__(self, folder: Path, per_shard: int, decode: Callable[[memoryview], NDArray[np.uint8]], keep: int = 64):
        self._folder, self._per_shard, self._decode, self._keep = folder, per_shard, decode, keep
        self._mapped: OrderedDict[int, _Shard] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_mapped", "_lock")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _mapped=OrderedDict(), _lock=threading.Lock())

    def read_into(self, rows: NDArray[np.integer], out: NDArray[np.uint8]) -> None:
        """Decode the chunks of `rows` (n,) into `out` uint8 (n, ...). Raises StoreError naming a damaged file."""
        for position, row in enumerate(rows.tolist()):
            number, slot = divmod(row, self._per_shard)
            try:
                tile = self._decode(self._chunk(number, slot))
            except ValueError as error:
                raise self._damaged(number, f"tile {row} cannot be decoded") from error
            if tile.shape != out.shape[1:]:
                raise self._damaged(number, f"tile {row} has the shape {tile.shape} instead of {out.shape[1:]}")
            out[position] = tile

    def _chunk(self, number: int, slot: int) -> memoryview:
        """The encoded chunk, its checksum verified and taken off."""
        shard = self._shard(number)
        offset, length = (int(v) for v in shard.index[slot])
        if offset == _ABSENT or offset + length > len(shard.data) or length <= CHECKSUM_BYTES:
            raise self._damaged(number, f"chunk {slot} is missing")
        body = shard.data[offset : offset + length - CHECKSUM_BYTES]
        stored = int.from_bytes(shard.data[offset + length - CHECKSUM_BYTES : offset + length], "little")
        if google_crc32c.value(bytes(body)) != stored:
            raise self._damaged(number, f"the checksum of chunk {slot} does not fit")
        return body

    def _shard(self, number: int) -> _Shard:
        with self._lock:
            if number not in self._mapped:
                self._mapped[number] = self._map(number)
                if len(self._mapped) > self._keep:
                    self._mapped.popitem(last=False)  # unmapped when its last view is gone
            self._mapped.move_to_end(number)
            return self._mapped[number]

    def _map(self, number: int) -> _Shard:
        try:
            fd = os.open(self._path(number), os.O_RDONLY)
            try:
                data = memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))
            finally:
                os.close(fd)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise self._damaged(number, getattr(error, "strerror", None) or "it is empty") from error
        tail = data[-(16 * self._per_shard + CHECKSUM_BYTES) :]
        index, stored = tail[:-CHECKSUM_BYTES], int.from_bytes(tail[-CHECKSUM_BYTES:], "little")
        if len(index) != 16 * self._per_shard or google_crc32c.value(bytes(index)) != stored:
            raise self._damaged(number, "the checksum of its index does not fit")
        return _Shard(data, np.frombuffer(index, "<u8").reshape(-1, 2))

    def _path(self, number: int) -> Path:
        return self._folder / "c" / str(number) / "0" / "0" / "0"

    def _damaged(self, number: int, what: str) -> StoreError:
        return StoreError(self._path(number), f"is damaged: {what}", "tile the slide again with --overwrite")
