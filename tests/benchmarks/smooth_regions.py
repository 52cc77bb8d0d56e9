"""CPU seconds that the regions of a noisy map take with smoothing: `python -m tests.benchmarks.smooth_regions`.

Every tile of a slide of 100,000 x 80,000 px is drawn at random, which no model's map comes near: the goal is below ten
seconds, in proportion to the tiles.
"""

from __future__ import annotations

import time

import numpy as np

from inference.maps.regions import find_regions
from tiling.grid import Grid, Raster


def main() -> None:
    random = np.random.default_rng(0)
    for height, width in ((60, 80), (120, 160), (320, 400)):
        grid = Grid(width0=width * 256, height0=height * 256, slide_mpp=0.25, tile_px=256, tile_px0=256, stride_px0=256)
        heat = Raster(random.random((height, width)).astype(np.float32), 256.0)
        began = time.process_time()
        regions = find_regions(heat, grid, threshold=0.5, smoothing_um=16.0)
        print(f"{height * width:7,} tiles: {time.process_time() - began:5.2f} s of CPU, {len(regions):,} regions")


if __name__ == "__main__":
    main()
