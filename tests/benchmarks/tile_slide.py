"""Tiling a large JPEG slide on one thread: against the same job through OpenSlide, and against bare decode and encode.

    python -m tests.benchmarks.tile_slide path/to/CMU-1-Small-Region.svs [--side 20000] [--rounds 3]

The slide is made by repeating the real one's own streams. Jobs: 256 px tiles at twice the slide's mpp, masked, with
quality columns, as jpeg:90; and `source` at native scale. Medians of the ratios within a round.
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import openslide

import tiling.slide
from tests.benchmarks.read_regions import repeated
from tiling import Slide, TileStore, TilingConfig, tile_slide
from tiling.codec import encode_jpeg
from tiling.jpegtiff import decode_stream

MPP = 0.5


def seconds(job: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def tiled(slide: Path, out: Path, config: TilingConfig, *, fast: bool = True) -> TileStore:
    """The whole job of tiling, with or without the fast reader."""
    shutil.rmtree(out, ignore_errors=True)
    opened = tiling.slide._open_fast
    if not fast:
        tiling.slide._open_fast = lambda path, reader: None
    try:
        return TileStore(tile_slide(slide, out, config, slide_mpp=MPP).store)
    finally:
        tiling.slide._open_fast = opened


def openslide_native(slide: Path, store: TileStore) -> None:
    """The tiles of a store at native scale through OpenSlide and the encoder, and nothing else."""
    with openslide.OpenSlide(str(slide)) as opened:
        side = store.grid.tile_px0
        for x, y in zip(store.x.tolist(), store.y.tolist(), strict=True):
            encode_jpeg(np.asarray(opened.read_region((x, y), 0, (side, side)))[..., :3], 90)


def floor(slide: Path, store: TileStore) -> None:
    """Decode each native tile under the store's tiles once at half size, and encode each stored tile."""
    with Slide(slide, mpp=MPP) as opened:
        native = opened.native_tile_px(0)
        assert native is not None
        width, height = native
        side = store.grid.tile_px0
        under = {
            (column, row)
            for x, y in zip(store.x.tolist(), store.y.tolist(), strict=True)
            for column in range(x // width, min(math.ceil((x + side) / width), math.ceil(opened.width / width)))
            for row in range(y // height, min(math.ceil((y + side) / height), math.ceil(opened.height / height)))
        }
        streams = [opened.native_stream(0, *place) for place in sorted(under)]
        tiles = store.read(range(min(len(store), 256)))
    for stream in streams:
        assert stream is not None
        decode_stream(stream, width, height, 2)
    for row in range(len(store)):
        encode_jpeg(tiles[row % len(tiles)], 90)


def main() -> None:
    """Make the slide, run the rounds, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    half = TilingConfig(mpp=2 * MPP, tile_px=256)
    own = TilingConfig(mpp=MPP, tile_px=240, codec="source")
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        slide, out = Path(folder) / "slide.tif", Path(folder) / "out"
        repeated(options.slide, slide, options.side)
        for _ in range(options.rounds):
            fast = seconds(lambda: tiled(slide, out, half))
            store = TileStore(out / "slide.zarr")
            bare = seconds(partial(floor, slide, store))
            slow = seconds(lambda: tiled(slide, out, half, fast=False))
            source = seconds(lambda: tiled(slide, out, own))
            copied = TileStore(out / "slide.zarr")
            native = seconds(partial(openslide_native, slide, copied))
            for name, value in {
                "tiles/s, jpeg:90 at 2x": len(store) / fast,
                "times as fast as through OpenSlide": slow / fast,
                "of the floor": bare / fast,
                "tiles/s, source": len(copied) / source,
                "source, times as fast as OpenSlide and encoder": native / source,
            }.items():
                rows.setdefault(name, []).append(value)
    for name, values in rows.items():
        print(f"{name:50s} {statistics.median(values):8.2f}   {min(values):.2f} to {max(values):.2f}")


if __name__ == "__main__":
    main()
