"""What it costs to give a slide's pixels in sRGB by its ICC profile: in a tile of 256 px, and in a whole tiling.

    python -m tests.benchmarks.icc path/to/CMU-1-Small-Region.svs [--rounds 5]

The slide is made of the real one's pixels, once with a profile of three primaries, once with one of a table (17 points
a side), as scanners write them. A tile is converted by littleCMS, and by a look-up in a table of all 16.8 million
colours, which littleCMS makes once: as tiling does after so many pixels. Medians over the rounds, in processor time,
for the machine is shared; a tiling is of all tiles of 256 px at the slide's own scale, as jpeg:90.
"""

from __future__ import annotations

import argparse
import io
import shutil
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import ImageCms

from tests.tiling.icc_files import rgb_profile
from tiling import Slide, TilingConfig, tile_slide
from tiling.config import TissueConfig
from tiling.slides.colour import ToSrgb, looked_up

UInt8Array = NDArray[np.uint8]
_POINTS = 17


def table_profile() -> bytes:
    """A profile of RGB by a table into CIELAB (lut8Type of ICC.1:2001-04), for its cost alone."""
    ramp = np.linspace(0, 255, _POINTS)
    red, green, blue = np.meshgrid(ramp, ramp, ramp, indexing="ij")
    lab = np.stack([(red + 2 * green + blue) / 4, 128 + (red - green) / 3, 128 + (green - blue) / 3], -1)
    identity = b"".join(struct.pack(">i", 65536 * (n % 4 == 0)) for n in range(9))
    own = bytes(range(256)) * 3
    data = b"mft1\0\0\0\0" + bytes((3, 3, _POINTS, 0)) + identity + own + lab.round().astype(np.uint8).tobytes() + own
    at = 128 + 4 + 12
    header = rgb_profile()[:128].replace(b"XYZ ", b"Lab ")
    return struct.pack(">I", at + len(data)) + header[4:] + struct.pack(">I4sII", 1, b"A2B0", at, len(data)) + data


def slide_with(path: Path, picture: UInt8Array, profile: bytes) -> Path:
    """A tiled JPEG TIFF of one level with that profile."""
    tifffile.imwrite(
        path, picture, tile=(256, 256), photometric="rgb", metadata=None, compression="jpeg", iccprofile=profile,
        compressionargs={"level": 90}, resolution=(2e4, 2e4), resolutionunit="CENTIMETER",
    )  # fmt: skip
    return path


def median_ms(job: Callable[[], object], rounds: int) -> float:
    """Median processor time of a call, milliseconds."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        job()
        times.append(1000 * (time.process_time() - start))
    return statistics.median(times)


def repeated(job: Callable[[], object], times: int) -> None:
    """Do a job several times."""
    for _ in range(times):
        job()


def tiled(path: Path, out: Path, config: TilingConfig) -> None:
    """Tile a slide anew, on one thread."""
    shutil.rmtree(out / "slide.zarr", ignore_errors=True)
    tile_slide(path, out, config, threads=1)


def main() -> None:
    """Measure, and print a line for each kind of profile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with Slide(asked.slide) as opened:
        picture = opened.read_region(0, 0, 0, opened.width, opened.height)
    config = TilingConfig(mpp="native", tissue=TissueConfig(method="all"))
    with tempfile.TemporaryDirectory() as place:
        for name, profile in (("three primaries", rgb_profile()), ("a table", table_profile())):
            path = slide_with(Path(place) / "slide.tif", picture, profile)
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            convert, tile = ToSrgb(own), np.ascontiguousarray(picture[1000:1256, 1000:1256])
            made, table = median_ms(convert.table, asked.rounds), convert.table()
            jobs: list[Callable[[], object]] = [partial(convert.computed, tile), partial(looked_up, tile, table)]
            direct, by_table = (median_ms(partial(repeated, job, 50), asked.rounds) / 50 for job in jobs)
            tilings = [
                partial(tiled, path, Path(place), one) for one in (config, config.model_copy(update={"icc": "srgb"}))
            ]
            plain, srgb = (median_ms(job, asked.rounds) for job in tilings)
            print(
                f"{name}: a tile {direct:.2f} ms by littleCMS, {by_table:.2f} ms by a table that takes {made:.0f} ms; "
                f"tiling {plain:.0f} ms without, {srgb:.0f} ms with: {srgb / plain - 1:+.0%}"
            )


if __name__ == "__main__":
    main()
