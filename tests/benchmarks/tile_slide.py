"""Tiling a large JPEG slide: against the same job through OpenSlide, bare decode and encode, and with two threads.

    python -m tests.benchmarks.tile_slide path/to/CMU-1-Small-Region.svs [--side 20000] [--rounds 3]

The slide is made by repeating the real one's own streams: once as a single level, once with the coarser levels that
scanners add (1/4 and 1/8), from which the tissue mask is then made. Jobs: 256 px tiles at twice the slide's mpp,
masked, with quality columns, as jpeg:90; and `source` at native scale. The floor decodes each native tile under a kept
tile once, at half size, and encodes each kept tile; a single level must be decoded whole for its mask too, and the
second floor counts that. All on one thread, but for two of the jobs, and from the page cache, but for two others.
Medians over the rounds of the ratios within a round; rates are of this machine.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import openslide

import tiling.slides.slide
from tests.benchmarks.read_regions import repeated
from tiling import Slide, TileStore, TilingConfig, tile_slide
from tiling.slides.jpeg_stream import decode_stream
from tiling.stores.codec import encode_jpeg

MPP = 0.5


def seconds(job: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Job:
    """A finished tiling job and how long it took."""

    store: TileStore
    seconds: float
    tiling_seconds: float
    """From the first tile to the last, its encoding and the writing of all but the last shard between them."""

    @property
    def tiles_per_s(self) -> float:
        """While tiling."""
        return (len(self.store) - 1) / self.tiling_seconds


def tiled(slide: Path, out: Path, config: TilingConfig, *, fast: bool = True, threads: int = 1) -> Job:
    """The whole job of tiling, with or without the fast reader."""
    shutil.rmtree(out, ignore_errors=True)
    opened, times = tiling.slides.slide._open_fast, list[float]()
    if not fast:
        tiling.slides.slide._open_fast = lambda path, reader: None
    try:
        start = time.perf_counter()
        report = tile_slide(
            slide, out, config, slide_mpp=MPP, threads=threads,
            progress=lambda done, total: times.append(time.perf_counter()),
        )  # fmt: skip
        return Job(TileStore(report.store), time.perf_counter() - start, times[-1] - times[0])
    finally:
        tiling.slides.slide._open_fast = opened


def evicted(slide: Path) -> Path:
    """The slide, which the page cache then holds no more: it is read from the disk again."""
    with slide.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return slide


def openslide_native(slide: Path, store: TileStore) -> float:
    """Tiles a second of a store at native scale, through OpenSlide and the encoder, and nothing else."""
    with openslide.OpenSlide(str(slide)) as opened:
        side, start = store.grid.tile_px0, time.perf_counter()
        for x, y in store.tiles.places():
            encode_jpeg(np.asarray(opened.read_region((x, y), 0, (side, side)))[..., :3], 90)
        return len(store) / (time.perf_counter() - start)


def floors(slide: Path, store: TileStore) -> tuple[float, float]:
    """Seconds to decode and encode what the store needs (see above), and those to decode all of level 0 at 1/8."""
    with Slide(slide, mpp=MPP) as opened:
        native = opened.native_tile_px(0)
        assert native is not None
        width, height = native
        columns, rows = math.ceil(opened.width / width), math.ceil(opened.height / height)
        side = store.grid.tile_px0
        under = {
            (column, row)
            for x, y in store.tiles.places()
            for column in range(x // width, min(math.ceil((x + side) / width), columns))
            for row in range(y // height, min(math.ceil((y + side) / height), rows))
        }
        needed = [opened.native_stream(0, *place) for place in sorted(under)]
        everything = [opened.native_stream(0, column, row) for row in range(rows) for column in range(columns)]
        tiles = store.read(range(min(len(store), 256)))

    def decode(streams: list[bytes | None], denom: Literal[2, 8]) -> None:
        memory = np.empty((height // denom, width // denom, 3), np.uint8)
        for stream in streams:
            assert stream is not None
            decode_stream(stream, width, height, denom, memory)

    def encode() -> None:
        for row in range(len(store)):
            encode_jpeg(tiles[row % len(tiles)], 90)

    return seconds(partial(decode, needed, 2)) + seconds(encode), seconds(partial(decode, everything, 8))


def compare(slide: Path, out: Path) -> dict[str, float]:
    """One round on a slide: the figures by name."""
    half = TilingConfig(mpp=2 * MPP, tile_px=256)
    fast = tiled(slide, out, half)
    floor, mask_floor = floors(slide, fast.store)
    slow = tiled(slide, out, half, fast=False)
    two = tiled(slide, out, half, threads=2)
    full, full_two = (tiled(slide, out, TilingConfig(mpp=MPP, tile_px=256), threads=threads) for threads in (1, 2))
    with Slide(slide, mpp=MPP) as opened:
        native = opened.native_tile_px(0)
        assert native is not None
    copied = TilingConfig(mpp=MPP, tile_px=native[0], codec="source")
    cold, cold_source = tiled(evicted(slide), out, half), tiled(evicted(slide), out, copied)
    source = tiled(slide, out, copied)
    loop = openslide_native(slide, source.store)
    return {
        "jpeg:90 at 2x, tiles/s of the whole job": len(fast.store) / fast.seconds,
        "  times as fast as through OpenSlide": slow.seconds / fast.seconds,
        "  times as fast while tiling": slow.tiling_seconds / fast.tiling_seconds,
        "  of the floor": floor / fast.seconds,
        "  of the floor that decodes level 0 for the mask": (floor + mask_floor) / fast.seconds,
        "  two threads, times one": fast.seconds / two.seconds,
        "  two threads, times one while tiling": fast.tiling_seconds / two.tiling_seconds,
        "  not in the page cache, times as long": cold.seconds / fast.seconds,
        "jpeg:90 at native scale, two threads, times one": full.seconds / full_two.seconds,
        "  while tiling": full.tiling_seconds / full_two.tiling_seconds,
        "source, tiles/s of the whole job": len(source.store) / source.seconds,
        "  source, not in the page cache, times as long": cold_source.seconds / source.seconds,
        "  tiles/s while tiling": source.tiles_per_s,
        "  while tiling, times a loop of OpenSlide and encoder": source.tiles_per_s / loop,
        "  whole job, times that bare loop": len(source.store) / source.seconds / loop,
    }


def main() -> None:
    """Make the slides, run the rounds, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        slides = {"one level": Path(folder) / "flat.tif", "pyramid": Path(folder) / "pyramid.tif"}
        repeated(options.slide, slides["one level"], options.side)
        repeated(options.slide, slides["pyramid"], options.side, (4, 8))
        rounds = [
            {name: compare(slide, Path(folder) / "out") for name, slide in slides.items()}
            for _ in range(options.rounds)
        ]
    for name in slides:
        print(name)
        for figure in rounds[0][name]:
            values = [of_round[name][figure] for of_round in rounds]
            print(f"  {figure:55s} {statistics.median(values):8.2f}   {min(values):.2f} to {max(values):.2f}")


if __name__ == "__main__":
    main()
