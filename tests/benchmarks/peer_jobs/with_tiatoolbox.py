"""One tiling job with TIAToolbox, run in a venv that has it.

    python with_tiatoolbox.py SLIDE OUT TILE_PX0 TILE_PX CORES SLIDE_MPP MASKED

Settings: `SlidingWindowPatchExtractor` with its own tissue mask (`morphological`), tiles at least half tissue (MASKED
0: every tile, and no mask), those that cross the slide's edge left out, its reader's default (OpenSlide), Pillow as the
encoder, quality 90, one process, as its `save_tiles` and its documentation do it. Tiling is reading and encoding; the
mask and the places come before.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path


def main(slide: str, out: str, tile_px0: int, tile_px: int, slide_mpp: float, masked: bool) -> None:
    importlib.import_module("cv2").setNumThreads(1)
    image = importlib.import_module("PIL.Image")
    reader = importlib.import_module("tiatoolbox.wsicore.wsireader").WSIReader.open(
        slide, mpp=slide_mpp, power=10 / slide_mpp
    )
    patches = importlib.import_module("tiatoolbox.tools.patchextraction").SlidingWindowPatchExtractor(
        reader, patch_size=tile_px, input_mask="morphological" if masked else None,
        min_mask_ratio=0.5 if masked else 0, within_bound=True,
        resolution=slide_mpp * tile_px0 / tile_px, units="mpp",
    )  # fmt: skip
    folder = Path(out)
    folder.mkdir(parents=True)
    start, start_cpu = time.perf_counter(), time.process_time()
    for number in range(len(patches)):
        image.fromarray(patches[number]).save(folder / f"{number}.jpg", quality=90)
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    print(json.dumps({"tiles": len(patches), "seconds": seconds, "cpu_seconds": cpu}))


if __name__ == "__main__":
    _, slide, out, tile_px0, tile_px, _, slide_mpp, masked = sys.argv  # it works with one core
    main(slide, out, int(tile_px0), int(tile_px), float(slide_mpp), masked == "1")
