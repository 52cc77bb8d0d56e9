"""One tiling job with hs2p, run in a venv that has it.

    python with_hs2p.py SLIDE OUT TILE_PX0 TILE_PX CORES SLIDE_MPP

Settings: the vips backend, its default `hsv` segmentation, tiles at least half tissue, its own grouping of neighbouring
tiles into one read of up to 8 x 8, Pillow as the encoder (its default: PyTurboJPEG needs a system library), quality 90,
a worker a core. It writes one tar a slide. Tiling is `extract_tiles_to_tar`, which reads, resizes (bilinear), encodes.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path


def main(slide: str, out: str, tile_px0: int, tile_px: int, cores: int, slide_mpp: float) -> None:
    importlib.import_module("cv2").setNumThreads(1)
    api = importlib.import_module("hs2p.api")
    result = api.tile_slide(
        api.SlideSpec(sample_id="slide", image_path=Path(slide), spacing_at_level_0=slide_mpp),
        tiling=api.TilingConfig(
            requested_spacing_um=slide_mpp * tile_px0 / tile_px,
            requested_tile_size_px=tile_px,
            tolerance=0.05,
            overlap=0.0,
            backend="vips",
        ),
        segmentation=api.SegmentationConfig(method="hsv"),
        masks=replace(api.DEFAULT_MASK_SAMPLING, min_coverage={"tissue": 0.5}),
        num_workers=cores,
    )
    api.save_tiling_result(result, Path(out))
    start, start_cpu = time.perf_counter(), time.process_time()
    _, kept = api.extract_tiles_to_tar(result, Path(out), jpeg_quality=90, jpeg_backend="pil", num_workers=cores)
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    print(json.dumps({"tiles": len(kept.x), "seconds": seconds, "cpu_seconds": cpu}))


if __name__ == "__main__":
    _, slide, out, tile_px0, tile_px, cores, slide_mpp = sys.argv
    main(slide, out, int(tile_px0), int(tile_px), int(cores), float(slide_mpp))
