"""zarr v3 shards: packed whole from encoded chunks, and read straight from memory-mapped files.

A shard holds encoded chunks back to back, each followed by its crc32c, and ends with an index: (offset, length) of each
chunk as little-endian uint64, and a crc32c of the index (zarr v3 `sharding_indexed`). zarr-python is the oracle.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from tiling.core.arrays import UInt8Array
from tiling.core.errors import StoreError
from tiling.core.platforms import MappedFile

Decode = Callable[[UInt8Array, UInt8Array], object]
"""Decodes a chunk's bytes (n,) into a tile uint8 (...). Raises ValueError if they do not fit."""

CHECKSUM_BYTES = 4
_ABSENT = 2**64 - 1
_MAPPED_SHARDS = 16_384  # in all readers of a process: Linux allows 65,530 mappings


def crc32c(data: bytes | UInt8Array) -> int:
    """The checksum of zarr's crc32c codec. numpy arrays go in without a copy; memoryviews would be refused."""
    return cast(int, google_crc32c.value(data))


def pack_shard(chunks: Sequence[bytes], per_shard: int) -> tuple[bytes, list[int]]:
    """The file of a shard with room for `per_shard` chunks, from up to so many encoded ones, in their order.

    And their checksums.
    """
    checksums = [crc32c(chunk) for chunk in chunks]
    index = np.full((per_shard, 2), _ABSENT, "<u8")  # (offset, length)
    lengths = np.array([len(chunk) + CHECKSUM_BYTES for chunk in chunks], np.uint64)
    index[: len(chunks), 0] = np.cumsum(lengths) - lengths
    index[: len(chunks), 1] = lengths
    pairs = zip((*chunks, index.tobytes()), (*checksums, crc32c(index.tobytes())), strict=True)
    parts = [part for data, checksum in pairs for part in (data, checksum.to_bytes(CHECKSUM_BYTES, "little"))]
    return b"".join(parts), checksums


def shard_path(array: Path, number: int) -> Path:
    """The file of a shard of the 4-dimensional array in the folder `array`."""
    return array / "c" / str(number) / "0" / "0" / "0"


class ShardReader:
    """Random access to the chunks of one array `(N, ...)` with shards of `per_shard` rows and chunks of one row.

    Shards are mapped and their indexes checked when they are first needed. A mapped file needs no descriptor, and all
    readers of a process together keep a bounded number mapped. Safe to share between threads and to fork at any
    moment, for it has no lock: what two threads race for is only mapped twice. Pickles as its paths alone. A shard must
    not be cut short in place while it is mapped (SIGBUS): finished stores are replaced, never written to.
    """

    def __init__(self, folder: Path, per_shard: int, decode: Decode) -> None:
        self._folder, self._per_shard, self._decode = folder, per_shard, decode
        self._mapped: dict[int, _Shard] = {}

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_mapped": {}}

    def read_into(
        self, rows: Sequence[int], out: UInt8Array | Sequence[UInt8Array], checksums: Sequence[int] | None = None
    ) -> None:
        """Decode the chunks of `rows` (n,) into `out`, n contiguous uint8 arrays or one of them all.

        `checksums` (n,) are what the chunks must have beside the one each carries, so that a whole chunk of another
        row is found too.

        Raises StoreError naming a damaged file.
        """
        for position, row in enumerate(rows):
            number, slot = divmod(row, self._per_shard)
            shard = self._shard(number)
            chunk = self._chunk(shard, number, slot, None if checksums is None else checksums[position])
            try:
                self._decode(chunk, out[position])
            except ValueError as error:
                raise self._damaged(number, f"tile {row} cannot be decoded: {error}") from error

    def _chunk(self, shard: _Shard, number: int, slot: int, expected: int | None) -> UInt8Array:
        """The encoded chunk, its checksum verified and taken off."""
        offset, length = shard.index[slot].tolist()
        end = offset + length - CHECKSUM_BYTES
        if offset == _ABSENT or length <= CHECKSUM_BYTES or end + CHECKSUM_BYTES > len(shard.data):
            raise self._damaged(number, f"chunk {slot} is missing")
        chunk = shard.data[offset:end]
        checksum = crc32c(chunk)
        if checksum != int.from_bytes(shard.data[end : end + CHECKSUM_BYTES].tobytes(), "little"):
            raise self._damaged(number, f"the checksum of chunk {slot} does not fit")
        if expected is not None and checksum != expected:
            raise self._damaged(number, f"chunk {slot} is whole, but another tile than was written there")
        return chunk

    def _shard(self, number: int) -> _Shard:
        shard = self._mapped.get(number)
        if shard is None:
            shard = self._mapped[number] = self._map(number)
            _forget_oldest(self, number)
        return shard

    def _map(self, number: int) -> _Shard:
        try:
            data = np.asarray(MappedFile(shard_path(self._folder, number)))
        except OSError as error:
            raise self._damaged(number, error.strerror or "it cannot be read") from error
        tail = data[-(16 * self._per_shard + CHECKSUM_BYTES) :]
        index, stored = tail[:-CHECKSUM_BYTES], int.from_bytes(tail[-CHECKSUM_BYTES:].tobytes(), "little")
        if len(index) != 16 * self._per_shard or crc32c(index) != stored:
            raise self._damaged(number, "the checksum of its index does not fit")
        return _Shard(data, np.frombuffer(index.tobytes(), "<u8").reshape(-1, 2))

    def _damaged(self, number: int, what: str) -> StoreError:
        fix = "tile the slide again with --overwrite"
        return StoreError(shard_path(self._folder, number), f"is damaged: {what}", fix)


@dataclass(frozen=True, slots=True)
class _Shard:
    data: UInt8Array  # the whole file, mapped
    index: NDArray[np.uint64]  # (chunks, 2): offset, length


_recent: deque[tuple[weakref.ref[ShardReader], int]] = deque()  # whose shards were mapped, oldest first


def _forget_oldest(reader: ShardReader, number: int) -> None:
    """Note a newly mapped shard; unmap the oldest of the process if there are too many."""
    _recent.append((weakref.ref(reader), number))
    if len(_recent) > _MAPPED_SHARDS:
        owner, oldest = _recent.popleft()
        if (old := owner()) is not None:
            old._mapped.pop(oldest, None)  # unmapped when its last view is gone
