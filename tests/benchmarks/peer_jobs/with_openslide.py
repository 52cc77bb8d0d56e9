"""One tiling job with a bare OpenSlide loop, run in a venv of openslide-python, openslide-bin, OpenCV and Pillow.

    python with_openslide.py SLIDE OUT TILE_PX0 TILE_PX CORES MASKED

Settings: Otsu's threshold on a thumbnail 32 times smaller, tiles at least half tissue (MASKED 0: every tile),
OpenSlide's cache at 256 MB so that no native tile is decoded twice in a row of tiles, cv2.INTER_AREA to resize, and
Pillow's JPEG at quality 90, one file a tile, in a thread a core.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import openslide
from PIL import Image

DOWN = 32


def tissue_corners(slide: openslide.OpenSlide, side: int, masked: bool) -> list[tuple[int, int]]:
    width, height = slide.dimensions
    grey = np.asarray(slide.get_thumbnail((width // DOWN, height // DOWN)).convert("L"))
    _, mask = cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY_INV + cv2.THRESH_OTSU)
    corners = [(x, y) for y in range(0, height - side + 1, side) for x in range(0, width - side + 1, side)]
    step = side // DOWN
    return [(x, y) for x, y in corners if mask[y // DOWN :, x // DOWN :][:step, :step].mean() >= 0.5 * masked]


def save_tiles(
    slide: openslide.OpenSlide, corners: list[tuple[int, int]], out: Path, tile_px0: int, tile_px: int, cores: int
) -> None:
    out.mkdir(parents=True)

    def save(corner: tuple[int, int]) -> None:
        x, y = corner
        tile = np.asarray(slide.read_region((x, y), 0, (tile_px0, tile_px0)))[..., :3]
        if tile_px != tile_px0:
            tile = np.asarray(cv2.resize(tile, (tile_px, tile_px), interpolation=cv2.INTER_AREA))
        Image.fromarray(tile).save(out / f"x{x}_y{y}.jpeg", quality=90)

    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(save, corners))


def main(path: str, out: str, tile_px0: int, tile_px: int, cores: int, masked: bool) -> None:
    cv2.setNumThreads(1)
    with openslide.OpenSlide(path) as slide:
        slide.set_cache(openslide.OpenSlideCache(256 << 20))
        corners = tissue_corners(slide, tile_px0, masked)
        start, start_cpu = time.perf_counter(), time.process_time()
        save_tiles(slide, corners, Path(out), tile_px0, tile_px, cores)
        seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    print(json.dumps({"tiles": len(corners), "seconds": seconds, "cpu_seconds": cpu}))


if __name__ == "__main__":
    _, path, out, tile_px0, tile_px, cores, masked = sys.argv
    main(path, out, int(tile_px0), int(tile_px), int(cores), masked == "1")
