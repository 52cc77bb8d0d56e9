"""One tiling job with specslide in this process, to time its tiling alone: `specslide tile` is timed from outside.

    python -m tests.benchmarks.peer_jobs.with_specslide SLIDE OUT TILE_PX TILE_MPP SLIDE_MPP CODEC CORES MASKED

Tiling is `tiling.stores.write.write_tiles`: it draws each tile through reading, measuring (the default quality columns,
which no peer has) and encoding, and writes and syncs the shards.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any
from unittest.mock import patch

import cv2

from tiling import TilingConfig, tile_slide
from tiling.config import TissueConfig
from tiling.stores.write import write_tiles


def main(
    slide: str, out: str, tile_px: int, tile_mpp: float, slide_mpp: float, codec: str, cores: int, masked: bool
) -> None:
    cv2.setNumThreads(1)  # as a worker of `specslide tile` does
    seconds = cpu = 0.0

    def timed(*given: Any) -> int:
        nonlocal seconds, cpu
        start, start_cpu = time.perf_counter(), time.process_time()
        tiles = write_tiles(*given)
        seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
        return tiles

    config = TilingConfig(
        mpp=tile_mpp, tile_px=tile_px, codec=codec, tissue=TissueConfig(method="local" if masked else "all")
    )
    with patch("tiling.tile.write_tiles", timed):
        report = tile_slide(slide, out, config, slide_mpp=slide_mpp, threads=cores)
    print(json.dumps({"tiles": report.tiles, "seconds": seconds, "cpu_seconds": cpu}))


if __name__ == "__main__":
    _, slide, out, tile_px, tile_mpp, slide_mpp, codec, cores, masked = sys.argv
    main(slide, out, int(tile_px), float(tile_mpp), float(slide_mpp), codec, int(cores), masked == "1")
