"""The shard reader against zarr-python; no damaged byte ever becomes a wrong pixel."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from tiling.errors import StoreError
from tiling.store import TileStore, shard_tiles, verify_store


def plain(path: Path) -> NDArray[Any]:
    """All tiles as zarr-python reads them."""
    array = zarr.open_group(path, mode="r")["tiles"]
    assert isinstance(array, zarr.Array)
    return np.asarray(array[...])


def shard_files(store: Path) -> list[Path]:
    return sorted((store / "tiles" / "c").glob("*/0/0/0"), key=lambda p: int(p.parts[-4]))


def test_tiles_equal_zarr_python(finished: Path) -> None:
    store = TileStore(finished)
    assert len(store) > 2 * shard_tiles(16)
    assert len(shard_files(finished)) == -(-len(store) // shard_tiles(16))
    np.testing.assert_array_equal(store.read(slice(None)), plain(finished))


@pytest.mark.parametrize(
    "rows", [[], [0], [-1], [700, 3, 3, 256, 255], slice(250, 260), slice(None, None, -97), slice(5, 5)], ids=str
)
def test_rows_are_those_of_numpy(finished: Path, rows: Any) -> None:
    wanted = np.array(rows, dtype=np.int64) if isinstance(rows, list) else rows
    np.testing.assert_array_equal(TileStore(finished).read(wanted), plain(finished)[wanted])


@pytest.mark.parametrize("row", [100_000, -100_000])
def test_rows_that_do_not_exist_are_refused(finished: Path, row: int) -> None:
    with pytest.raises(IndexError):
        TileStore(finished).read(np.array([row]))


# ------------------------------------------------------------------------------------------------------------ damage


def read_fault(store: Path, expected: NDArray[np.uint8]) -> str | None:
    """What reading all tiles complains of; if of nothing, they are as expected."""
    try:
        got = TileStore(store).read(slice(None))
    except StoreError as error:
        return str(error)
    np.testing.assert_array_equal(got, expected)
    return None


def test_every_flipped_byte_is_detected(copied: Path) -> None:
    """200 places over all shards, their ends among them: an error naming the file, or the very same pixels."""
    expected, random = TileStore(copied).read(slice(None)), np.random.default_rng(0)
    files = shard_files(copied)
    for number in range(200):
        file = files[number % len(files)]
        intact = file.read_bytes()
        near_an_end = number < 30
        place = int(random.integers(-30, 30)) if near_an_end else int(random.integers(0, len(intact)))
        damaged = bytearray(intact)
        damaged[place] ^= int(random.integers(1, 256))
        file.write_bytes(damaged)
        if (fault := read_fault(copied, expected)) is not None:
            assert fault.startswith(f"{file}: is damaged: ")
        assert any(str(file) in fault for fault in verify_store(copied))
        file.write_bytes(intact)
    assert verify_store(copied) == []


def truncate(file: Path, other: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def halve(file: Path, other: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path, other: Path) -> None:
    file.write_bytes(b"")


def delete(file: Path, other: Path) -> None:
    file.unlink()


def a_folder(file: Path, other: Path) -> None:
    file.unlink()
    file.mkdir()


def zeros(file: Path, other: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


@pytest.mark.parametrize("damage", [truncate, halve, empty, delete, a_folder, zeros])
def test_a_damaged_shard_is_an_error_that_names_it(copied: Path, damage: Callable[[Path, Path], None]) -> None:
    first, second = shard_files(copied)[:2]
    untouched = TileStore(copied).read(slice(0, 256))
    damage(second, first)
    store = TileStore(copied)
    np.testing.assert_array_equal(store.read(slice(0, 256)), untouched)
    with pytest.raises(StoreError, match="is damaged") as caught:
        store.read(np.array([256]))
    assert str(caught.value).startswith(f"{second}: ")
    assert verify_store(copied)


def test_swapped_shards_are_found_by_verification(copied: Path) -> None:
    """Each is whole in itself, so only the hashes of commit.json tell."""
    first, second = shard_files(copied)[:2]
    spare = copied.parent / "spare"
    shutil.move(first, spare)
    shutil.move(second, first)
    shutil.move(spare, second)
    faults = verify_store(copied)
    assert len(faults) == 2
    assert {fault.split(": ")[0] for fault in faults} == {str(first), str(second)}


# ------------------------------------------------------------------------------------------- threads and processes


def test_it_pickles_before_and_after_reading(finished: Path) -> None:
    store = TileStore(finished)
    fresh = pickle.dumps(store)
    expected = store.read(slice(None))
    used = pickle.dumps(store)
    assert len(used) < 200_000, "mapped shards must stay behind"
    for data in (fresh, used):
        np.testing.assert_array_equal(pickle.loads(data).read(slice(None)), expected)  # noqa: S301 - our own


def test_threads_share_it(finished: Path) -> None:
    store = TileStore(finished)
    expected = plain(finished)
    orders = [np.random.default_rng(seed).permutation(len(expected)) for seed in range(16)]
    with ThreadPoolExecutor(8) as pool:
        for order, got in zip(orders, pool.map(store.read, orders), strict=True):
            np.testing.assert_array_equal(got, expected[order])


def checksum(store: TileStore) -> int:
    return int(store.read(slice(None)).sum())


def answer(store: TileStore, queue: Any) -> None:
    queue.put(checksum(store))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # fork is what is tested
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_it(finished: Path, method: str) -> None:
    store = TileStore(finished)
    expected = checksum(store)  # shards are mapped now
    context: Any = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    child = context.Process(target=answer, args=(store, queue))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert queue.get() == expected
    queue.close()


def test_only_so_many_shards_stay_mapped(finished: Path) -> None:
    store = TileStore(finished)
    store._shards._keep = 1
    expected = plain(finished)
    for row in (0, 300, 0, 600):
        np.testing.assert_array_equal(store.read(np.array([row]))[0], expected[row])
        assert len(store._shards._mapped) == 1
