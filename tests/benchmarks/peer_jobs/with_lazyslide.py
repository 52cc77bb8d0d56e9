"""One tiling job with LazySlide, run in a venv that has it.

    python with_lazyslide.py SLIDE OUT TILE_PX0 TILE_PX CORES SLIDE_MPP

Settings: its own tissue contours (`find_tissues`) and tiles (`tile_tissues`, at most half background), its reader's
default order (OpenSlide here), tiles through `wsi.iter.tile_images`, Pillow as the encoder, quality 90, one process.
It keeps places and no pixels itself; tiling is reading and encoding, contours and places come before.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path


def main(slide: str, out: str, tile_px0: int, tile_px: int, slide_mpp: float) -> None:
    importlib.import_module("cv2").setNumThreads(1)
    image = importlib.import_module("PIL.Image")
    lazyslide = importlib.import_module("lazyslide")
    wsi = importlib.import_module("wsidata").open_wsi(slide, store=None)
    lazyslide.pp.find_tissues(wsi)
    mpp = slide_mpp * tile_px0 / tile_px
    lazyslide.pp.tile_tissues(wsi, tile_px, mpp=mpp, slide_mpp=slide_mpp, background_fraction=0.5)
    folder = Path(out)
    folder.mkdir(parents=True)
    start, start_cpu, count = time.perf_counter(), time.process_time(), 0
    for tile in wsi.iter.tile_images("tiles"):
        image.fromarray(tile.image).save(folder / f"{tile.x}_{tile.y}.jpg", quality=90)
        count += 1
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    print(json.dumps({"tiles": count, "seconds": seconds, "cpu_seconds": cpu}))


if __name__ == "__main__":
    _, slide, out, tile_px0, tile_px, _, slide_mpp = sys.argv  # it works with one core
    main(slide, out, int(tile_px0), int(tile_px), float(slide_mpp))
