"""One tiling job with HistoPrep or its fork histoslice (they share their interface), run in a venv that has it.

    python with_histoprep.py histoprep|histoslice SLIDE OUT TILE_PX0 TILE_PX CORES

Settings: its own tissue mask, at most half background, JPEG quality 90, no thumbnails, metrics or masks, and a worker a
core; one is its reading and saving loop in this process. Neither resizes a tile: where `TILE_PX` is less than
`TILE_PX0` (the level-0 side), the tiles pass through `yield_regions` with a transform, and are saved here as it would
save them.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image


def resized(tile: NDArray[np.uint8], side: int) -> Any:
    return cv2.resize(tile, (side, side), interpolation=cv2.INTER_AREA)


def save_resized(reader: Any, out: Path, coordinates: Any, tile_px: int, cores: int) -> None:
    out.mkdir(parents=True)
    for tile, xywh in reader.yield_regions(coordinates, transform=partial(resized, side=tile_px), num_workers=cores):
        Image.fromarray(tile).save(out / "x{}_y{}_w{}_h{}.jpeg".format(*xywh), quality=90)


def main(package: str, slide: str, out: str, tile_px0: int, tile_px: int, cores: int) -> None:
    cv2.setNumThreads(1)
    reader = importlib.import_module(package).SlideReader(slide)
    _, mask = reader.get_tissue_mask()
    coordinates = reader.get_tile_coordinates(mask, tile_px0, max_background=0.5)
    start, start_cpu = time.perf_counter(), time.process_time()
    if tile_px == tile_px0:
        reader.save_regions(out, coordinates, quality=90, save_thumbnails=False, num_workers=cores, verbose=False)
    else:
        save_resized(reader, Path(out), coordinates, tile_px, cores)
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    print(json.dumps({"tiles": len(coordinates.coordinates), "seconds": seconds, "cpu_seconds": cpu}))


if __name__ == "__main__":
    _, package, slide, out, tile_px0, tile_px, cores = sys.argv
    main(package, slide, out, int(tile_px0), int(tile_px), int(cores))
