"""The reading side's own pace: the tiles of a slide, as prediction reads them, for a null model: one multiplication.

    python -m tests.benchmarks.null_model path/to/CMU-1-Small-Region.svs [--mpp 1.0] [--tile-px 128] [--readers 1,2]

That is what a GPU will see of it. The slide repeats the real one's own streams with coarser levels as scanners add
them. Each round reads the kept tiles, whose places are known by then, in turn with a loop of bare reads by one thread,
and for each number of reader threads through batches. Printed are tiles a second, and the medians over rounds of two
ratios within a round: against the first number of readers, and against the bare loop times the readers or the cores,
whichever are fewer.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from inference.config import PredictConfig
from inference.sources import Demand, slide_source
from tests.benchmarks.peers import make_slide
from tiling import Slide
from tiling.core.arrays import Float32Array, UInt8Array
from tiling.core.threads import usable_cores
from tiling.grid import Tiles


class NullModel:
    """One multiplication of each value of a batch, uint8 (B, T, T, 3), into memory of its own, as a GPU has."""

    def __init__(self) -> None:
        self._out: Float32Array = np.empty((0, 0, 0, 3), np.float32)

    def __call__(self, tiles: UInt8Array) -> float:
        if len(self._out) < len(tiles):
            self._out = np.empty(tiles.shape, np.float32)
        return float(np.multiply(tiles, np.float32(1 / 255), out=self._out[: len(tiles)])[-1, -1, -1, -1])


def rate(tiles: int, work: Callable[[], object]) -> float:
    """Tiles a second."""
    start = time.perf_counter()
    work()
    return tiles / (time.perf_counter() - start)


def bare(slide: Slide, tiles: Tiles) -> None:
    """Each tile read by itself."""
    size0, size = (tiles.side_px0,) * 2, (tiles.grid.tile_px,) * 2
    for x0, y0 in tiles.places():
        slide.read_scaled(x0, y0, size0, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path, help="a JPEG SVS or TIFF to take the streams from")
    parser.add_argument("--side", type=int, default=20_000, help="of the slide that is made, pixels")
    parser.add_argument("--mpp", type=float, default=1.0, help="of the tiles; the slide's is 0.5")
    parser.add_argument("--tile-px", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--readers", default="1,2", help="numbers of threads")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    readers = [int(number) for number in options.readers.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        make_slide(options.slide, path, options.side)
        ratios: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            rates: dict[str, float] = {}
            for count in readers:
                with Slide(path) as slide:
                    demand = Demand(options.mpp, options.tile_px, options.batch_size, count)
                    source = slide_source(slide, "slide", "0" * 64, demand, PredictConfig(), None)
                    if not rates:
                        rates["bare"] = rate(len(source.tiles), lambda s=slide, t=source.tiles: bare(s, t))  # type: ignore[misc]
                    name, batches, model = f"{count} readers", source.batches, NullModel()
                    rates[name] = rate(len(source.tiles), lambda b=batches, m=model: [m(p) for _, p in b])  # type: ignore[misc]
                fair = rates["bare"] * min(count, usable_cores())
                ratios.setdefault(f"{name} / {readers[0]}", []).append(rates[name] / rates[f"{readers[0]} readers"])
                ratios.setdefault(f"{name} / bare reads x {min(count, usable_cores())}", []).append(rates[name] / fair)
            shown = ", ".join(f"{name} {value:.0f}" for name, value in rates.items())
            print(f"{len(source.tiles)} tiles of {options.tile_px} px, tiles a second: {shown}", flush=True)
        for name, values in ratios.items():
            print(f"{name}: {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
