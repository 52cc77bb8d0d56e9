"""The shard reader against zarr-python; no damaged byte ever becomes a wrong pixel."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

import tiling.stores.shards
from tiling import TilingConfig, tile_slide
from tiling.core.errors import StoreError
from tiling.stores.shards import ShardReader, pack_shard, shard_path
from tiling.stores.store import TileStore, verify_store
from tiling.stores.write import shard_tiles


def plain(path: Path) -> NDArray[Any]:
    """All tiles as zarr-python reads them."""
    return np.asarray(zarr.open_array(path / "tiles", mode="r")[...])


def shard_files(store: Path) -> list[Path]:
    return sorted((store / "tiles" / "c").glob("*/0/0/0"), key=lambda p: int(p.parts[-4]))


def test_tiles_equal_zarr_python(finished: Path) -> None:
    store = TileStore(finished)
    assert len(store) > 2 * shard_tiles(16)
    assert len(shard_files(finished)) == -(-len(store) // shard_tiles(16))
    np.testing.assert_array_equal(store.read(slice(None)), plain(finished))


@pytest.mark.parametrize(
    "rows",
    [[], [0], [-1], [700, 3, 3, 256, 255], (), (5, 1), range(0), range(250, 260), slice(250, 260), slice(5, 5),
     slice(None, None, -97), np.array([], np.int64), np.array([7, 600], np.uint16), np.array([-1, -700], np.int32)],
    ids=str,
)  # fmt: skip
def test_rows_are_those_of_numpy(finished: Path, rows: Any) -> None:
    wanted = rows if isinstance(rows, slice) else np.array(rows, dtype=np.int64)
    np.testing.assert_array_equal(TileStore(finished).read(rows), plain(finished)[wanted])


def test_a_mask_and_fractions_are_no_rows_by_accident(finished: Path) -> None:
    with pytest.raises(IndexError):
        TileStore(finished).read(np.array([True, False]))
    with pytest.raises(IndexError):
        TileStore(finished).read([0.5])  # type: ignore[list-item]


def test_tiles_are_read_into_memory_that_is_given(finished: Path) -> None:
    store, memory = TileStore(finished), np.zeros((5, 16, 16, 3), np.uint8)
    assert store.read([700, 3, 3], memory[1:4]).base is memory
    np.testing.assert_array_equal(memory[1:4], plain(finished)[[700, 3, 3]])
    assert not memory[[0, 4]].any()


@pytest.mark.parametrize(
    "out",
    [np.zeros((2, 16, 16, 3), np.uint8), np.zeros((1, 16, 16, 4), np.uint8), np.zeros((1, 16, 16, 3), np.int8),
     np.zeros((1, 16, 32, 3), np.uint8)[:, :, ::2], np.zeros((1, 16, 16, 6), np.uint8)[..., ::2]],
    ids=lambda out: f"{out.dtype} {out.shape}",
)  # fmt: skip
def test_memory_that_does_not_fit_is_refused(finished: Path, out: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="instead of a contiguous uint8"):
        TileStore(finished).read([0], out)
    assert not out.any()


def test_tiles_are_read_into_their_places_in_a_batch(finished: Path) -> None:
    store, memory = TileStore(finished), np.zeros((5, 16, 16, 3), np.uint8)
    assert store.read([3, 700, 5], memory, np.array([4, 0, 2])) is memory
    np.testing.assert_array_equal(memory[[4, 0, 2]], plain(finished)[[3, 700, 5]])
    assert not memory[[1, 3]].any()
    with pytest.raises(IndexError):
        store.read([3], memory, np.array([5]))
    with pytest.raises(ValueError, match=r"`places` is \(1,\) for 2 rows"):
        store.read([3, 4], memory, np.array([0]))
    with pytest.raises(ValueError, match="instead of a contiguous uint8"):
        store.read([3], memory[:, :, ::2], np.array([0]))


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


@pytest.mark.parametrize("count", [80, pytest.param(1000, marks=pytest.mark.nightly)])
def test_every_flipped_byte_is_detected(copied: Path, count: int) -> None:
    """Places over all shards, their ends among them: an error naming the file, or the very same pixels."""
    expected, random = TileStore(copied).read(slice(None)), np.random.default_rng(0)
    files = shard_files(copied)
    for number in range(count):
        file = files[number % len(files)]
        intact = file.read_bytes()
        near_an_end = number < count / 4
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


def test_swapped_shards_are_refused(copied: Path) -> None:
    """Each is whole in itself: the column of checksums tells at reading, the hashes of commit.json at verification."""
    first, second = shard_files(copied)[:2]
    spare = copied.parent / "spare"
    shutil.move(first, spare)
    shutil.move(second, first)
    shutil.move(spare, second)
    store = TileStore(copied)
    for file, row in ((first, 0), (second, 256)):
        with pytest.raises(StoreError, match="another tile") as caught:
            store.read([row])
        assert str(caught.value).startswith(f"{file}: is damaged: ")
    faults = verify_store(copied)
    assert len(faults) == 2
    assert {fault.split(": ")[0] for fault in faults} == {str(first), str(second)}


def test_a_store_replaced_under_its_reader_gives_no_wrong_pixel(copied: Path, small_slide: Path) -> None:
    """The reader has the first shard mapped, so it stays; the second is another store's now."""
    store, expected = TileStore(copied), plain(copied)
    store.read([0])
    config = TilingConfig(mpp=0.5, tile_px=16, codec=store.attributes.config["codec"], overlap=0.5)
    other = tile_slide(small_slide, copied.parent / "other", config).store
    copied.rename(copied.parent / "before")
    other.rename(copied)
    np.testing.assert_array_equal(store.read([5, 0]), expected[[5, 0]])
    with pytest.raises(StoreError, match="another tile"):
        store.read(range(256, 512))


# A shard of two chunks with room for three, put together by hand from the zarr v3 specification.
CHUNKS = (b"first", b"2nd")


def by_hand() -> bytes:
    bodies = b"".join(c + struct.pack("<I", google_crc32c.value(c)) for c in CHUNKS)
    index = struct.pack("<6Q", 0, 9, 9, 7, 2**64 - 1, 2**64 - 1)
    return bodies + index + struct.pack("<I", google_crc32c.value(index))


def test_a_shard_is_as_the_specification_says() -> None:
    assert pack_shard(CHUNKS, 3) == (by_hand(), [google_crc32c.value(chunk) for chunk in CHUNKS])
    assert pack_shard([], 1)[0] == struct.pack("<2QI", 2**64 - 1, 2**64 - 1, google_crc32c.value(b"\xff" * 16))


INDEX = len(by_hand()) - 16 * 3 - 4


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize(
    ("offset", "length"),
    [(2**64 - 1, 9), (2**64 - 5, 9), (0, 2**64 - 1), (0, 10**6), (10**6, 9), (0, 0), (0, 4), (1, 9), (0, 8)],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, row: int, offset: int, length: int) -> None:
    """Its own checksum fits."""
    data = bytearray(by_hand())
    struct.pack_into("<2Q", data, INDEX + 16 * row, offset, length)
    struct.pack_into("<I", data, len(data) - 4, google_crc32c.value(bytes(data[INDEX:-4])))
    file = shard_path(tmp_path, 0)
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    reader = ShardReader(tmp_path, 3, lambda chunk, tile: np.copyto(tile, chunk[:1]))
    with pytest.raises(StoreError, match="is damaged") as caught:
        reader.read_into([row], np.zeros((1, 1), np.uint8))
    assert str(caught.value).startswith(f"{file}: ")


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


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # fork is what is tested
def test_a_reader_forked_while_others_read_keeps_working(finished: Path) -> None:
    """Nothing that another thread holds at that moment is missing in the child."""
    expected = checksum(TileStore(finished))
    for _ in range(10):
        store, stop = TileStore(finished), threading.Event()
        assert store.read([0]).any()  # zarr-python reads the column of checksums here; shards are mapped by threads
        readers = [threading.Thread(target=keep_reading, args=(store, stop)) for _ in range(3)]
        for reader in readers:
            reader.start()
        child = os.fork()
        if not child:
            os._exit(0 if checksum(store) == expected else 1)
        assert ended(child) == 0
        stop.set()
        for reader in readers:
            reader.join()


def keep_reading(store: TileStore, stop: threading.Event) -> None:
    while not stop.is_set():
        store._shards._mapped.clear()
        store.read([0, 256, 512])


def ended(child: int) -> int:
    """Its exit code; a child that hangs is killed."""
    for _ in range(3000):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGKILL


def test_only_so_many_shards_stay_mapped(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In all readers of the process together, the oldest first."""
    monkeypatch.setattr(tiling.stores.shards, "_MAPPED_SHARDS", 2)
    monkeypatch.setattr(tiling.stores.shards, "_recent", deque())
    expected, stores = plain(finished), (TileStore(finished), TileStore(finished))
    for number, row in ((0, 0), (1, 300), (0, 600), (0, 0), (1, 300), (1, 301)):
        np.testing.assert_array_equal(stores[number].read([row])[0], expected[row])
        assert sum(len(store._shards._mapped) for store in stores) <= 2
    assert [list(store._shards._mapped) for store in stores] == [[0], [1]]


def test_a_store_that_is_dropped_is_unmapped(finished: Path) -> None:
    store = TileStore(finished)
    tiles = store.read(slice(None))
    assert mappings(finished) == len(shard_files(finished))
    del store
    gc.collect()
    assert mappings(finished) == 0
    np.testing.assert_array_equal(tiles, plain(finished))


def mappings(store: Path) -> int:
    return Path("/proc/self/maps").read_text().count(f"{store}/tiles/")


# Opens every store of a folder with room for 64 descriptors and reads from each, forwards and backwards.
_MANY = """
import os, resource, sys
from pathlib import Path
from tiling import TileStore
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
stores = [TileStore(path) for path in sorted(Path(sys.argv[1]).iterdir())]
sums = {int(store.read([0, 256, 700]).sum()) for store in stores + stores[::-1]}
print(len(stores), *sums, len(os.listdir("/proc/self/fd")))
"""


def test_a_hundred_stores_need_few_descriptors(finished: Path, tmp_path: Path) -> None:
    for number in range(100):
        shutil.copytree(finished, tmp_path / str(number), copy_function=os.link)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _MANY, tmp_path], capture_output=True, text=True, check=True
    )
    opened, total, descriptors = map(int, done.stdout.split())
    assert (opened, total) == (100, int(plain(finished)[[0, 256, 700]].sum()))
    assert descriptors < 32
