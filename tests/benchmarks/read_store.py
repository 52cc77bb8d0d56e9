"""Tiles a second from a store in random batches: our reader against plain zarr-python and against bare JPEG decoding.

    python -m tests.benchmarks.read_store [path/to/CMU-1-Small-Region.svs]

The store is made from the slide, its tiles overlapping so that there are a thousand. Each round reads the same random
rows by each way in turn; what counts is the median over rounds of the ratio within a round, since the speed of a
shared machine drifts. The rows of a round are read once before, so that all find them in the page cache.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import zarr
from numpy.typing import NDArray

from tiling import Slide, TileStore, TilingConfig, tile_slide
from tiling.stores.shards import ShardReader

SLIDE = Path(__file__).resolve().parents[3] / "shared" / "data" / "slides" / "CMU-1-Small-Region.svs"
BATCH = 256
Rows = NDArray[np.intp]


def make_store(slide: Path, folder: Path, overlap: float) -> TileStore:
    """256 px tiles at the slide's own scale, jpeg:90."""
    with Slide(slide) as opened:
        mpp = opened.mpp
    return TileStore(tile_slide(slide, folder, TilingConfig(mpp=mpp, overlap=overlap)).store)


def chunks(store: TileStore) -> list[bytes]:
    """The JPEG file of every tile, found in the shards by their indexes."""
    reader = store._shards
    per_shard = reader._per_shard
    places = [divmod(row, per_shard) for row in range(len(store))]
    return [reader._chunk(reader._shard(number), number, slot, None).tobytes() for number, slot in places]


def seconds(work: Callable[..., object], *given: Any) -> float:
    start = time.perf_counter()
    work(*given)
    return time.perf_counter() - start


def decode_only(jpegs: list[bytes], rows: Rows) -> None:
    for row in rows.tolist():
        simplejpeg.decode_jpeg(jpegs[row], "RGB", fastdct=False, fastupsample=False)


def speedup(read: Callable[[Rows], object], batches: list[Rows], *, two_first: bool) -> float:
    """Time of one thread over that of two."""

    def read_and_drop(rows: Rows) -> None:
        read(rows)

    def timed(threads: int) -> float:
        with ThreadPoolExecutor(threads) as pool:
            return seconds(lambda: list(pool.map(read_and_drop, batches)))

    times = {threads: timed(threads) for threads in ((2, 1) if two_first else (1, 2))}
    return times[1] / times[2]


def one_by_one(array: zarr.Array[Any], rows: Rows) -> None:
    for row in rows.tolist():
        _ = array[row]


def against_decoding(store: TileStore, rounds: int, random: np.random.Generator) -> str:
    jpegs, times = chunks(store), []
    memory = np.empty((BATCH, store.grid.tile_px, store.grid.tile_px, 3), np.uint8)
    for _ in range(rounds):
        rows = random.integers(0, len(store), BATCH)
        store.read(rows, memory)
        fresh, reused, floor = (
            seconds(store.read, rows),
            seconds(store.read, rows, memory),
            seconds(decode_only, jpegs, rows),
        )
        times.append((fresh, floor, floor / fresh, floor / reused))
    fresh, floor, ratio, ratio_reused = (statistics.median(column) for column in zip(*times, strict=True))
    return (
        f"TileStore.read {BATCH / fresh:.0f}, decode alone {BATCH / floor:.0f} tiles/s; read/decode {ratio:.2f}, "
        f"into memory that is reused {ratio_reused:.2f} ({rounds} rounds)"
    )


def against_threads(store: TileStore, rounds: int, random: np.random.Generator) -> str:
    """With bare decoding as a control: it cannot gain more than the cores that others leave free."""
    jpegs, ratios = chunks(store), []
    for number in range(rounds):
        batches = [random.integers(0, len(store), BATCH) for _ in range(4)]
        ways = (store.read, partial(decode_only, jpegs))
        ratios.append([speedup(way, batches, two_first=number % 2 == 1) for way in ways])
    ours, control = (statistics.median(column) for column in zip(*ratios, strict=True))
    return f"two threads/one {ours:.2f}, of decode alone {control:.2f} ({rounds} rounds of 4 batches)"


def python_share(store: TileStore, rounds: int, random: np.random.Generator) -> str:
    """What `read` does beside decoding, which is all that can hold Python's lock: the same without decoding."""
    reader = ShardReader(store.path / "tiles", store._shards._per_shard, lambda chunk, tile: None)
    assert store._checksums is not None
    out, shares = np.empty((BATCH, 1), np.uint8), []
    for _ in range(rounds):
        rows = random.integers(0, len(store), BATCH)
        checksums = store._checksums[rows].tolist()
        store.read(rows)
        shares.append(seconds(reader.read_into, rows.tolist(), out, checksums) / seconds(store.read, rows))
    return f"beside decoding: {100 * statistics.median(shares):.1f}% of the time ({rounds} rounds)"


def against_zarr(store: TileStore, rounds: int, random: np.random.Generator) -> str:
    array = zarr.open_array(store.path / "tiles", mode="r")
    times = []
    for _ in range(rounds):
        rows = random.integers(0, len(store), BATCH)
        np.testing.assert_array_equal(store.read(rows)[:2], np.stack([array[row] for row in rows[:2].tolist()]))
        ours, batch, single = (
            seconds(store.read, rows),
            seconds(array.oindex.__getitem__, rows),
            seconds(one_by_one, array, rows),
        )
        times.append((batch / ours, single / ours))
    batch, single = (statistics.median(column) for column in zip(*times, strict=True))
    return f"TileStore.read/zarr-python: batch by `oindex` {batch:.1f}, tile by tile {single:.1f} ({rounds} rounds)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path, nargs="?", default=SLIDE, help="a slide to take the tiles from")
    parser.add_argument("--overlap", type=float, default=0.75, help="of the tiles: the more, the larger the store")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--zarr-rounds", type=int, default=3, help="zarr-python takes seconds a batch")
    given = parser.parse_args()
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(given.slide, Path(folder), given.overlap)
        print(f"{len(store)} tiles of {store.grid.tile_px} px")
        print(against_decoding(store, given.rounds, random))
        print(python_share(store, given.rounds, random))
        print(against_threads(store, given.rounds, random))
        print(against_zarr(store, given.zarr_rounds, random))


if __name__ == "__main__":
    main()
