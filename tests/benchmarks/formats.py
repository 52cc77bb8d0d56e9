"""Which path each slide format takes, and its pace against OpenSlide's, as a table in Markdown and as JSON.

    python -m tests.benchmarks.formats path/to/CMU-1-Small-Region.svs [--side 3072] [--rounds 3] [--formats NAME ...]
        [--json figures.json]

The slides are made of the real one's pixels, repeated. Each round opens a slide anew by each way and reads the same
regions, row by row, at its native scale and at twice that; OpenSlide reads its best level and its pixels are averaged
where that is too fine. `source` copies the slide's own tiles, against reading them through OpenSlide and encoding them.
What counts is the median over the rounds of the ratio within a round, in processor time of one thread: on a shared
machine the clock on the wall measures the others.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import openslide
import tifffile
from numpy.typing import NDArray

from tests.tiling.dicom_files import write_instance
from tests.tiling.ndpi_files import write_ndpi
from tests.tiling.philips_files import write_philips
from tiling import Slide
from tiling.core.versions import software_versions
from tiling.slides.files import entry_file
from tiling.stores.codec import encode_jpeg

PX = 512  # side of a region of the result
TILE_PX = 256
UInt8Array = NDArray[np.uint8]
APERIO = "Aperio Image Library v11.2.1 \r\n{w}x{h} [0,0 {w}x{h}] (256x256) {kind} Q=30|AppMag = 20|MPP = 0.5"
LIBRARIES = ("imagecodecs", "numpy", "opencv-python-headless", "openslide-bin", "simplejpeg", "tifffile")


def jpeg2000(tile: UInt8Array) -> bytes:
    """As scanners write it: lossy, about 2.7 bits a pixel."""
    return bytes(imagecodecs.jpeg2k_encode(tile, codecformat="j2k", level=40, mct=True))


def tiff(path: Path, picture: UInt8Array, compression: str, arguments: dict[str, Any] | None = None) -> Path:
    """A plain tiled TIFF of one level."""
    tifffile.imwrite(
        path, picture, tile=(TILE_PX, TILE_PX), photometric="rgb", metadata=None, compression=compression,
        compressionargs=arguments, resolution=(2e4, 2e4), resolutionunit="CENTIMETER",
    )  # fmt: skip
    return path


def aperio(path: Path, picture: UInt8Array, compression: str, arguments: dict[str, Any]) -> Path:
    """An SVS of one level."""
    height, width = picture.shape[:2]
    tifffile.imwrite(
        path, picture, tile=(TILE_PX, TILE_PX), photometric="rgb", metadata=None, compression=compression,
        compressionargs=arguments, description=APERIO.format(w=width, h=height, kind="J2K/KDU"),
    )  # fmt: skip
    return path


def dicom(path: Path, picture: UInt8Array, **how: Any) -> Path:
    """A DICOM slide of one level."""
    return write_instance(path / "slide.dcm", picture, **how).parent


Write = Callable[[Path, UInt8Array], Path]
FORMATS: dict[str, tuple[str, Write]] = {
    "SVS, TIFF, OME-TIFF: JPEG": ("a.tif", partial(tiff, compression="jpeg", arguments={"level": 90})),
    "Philips TIFF": ("j.tiff", lambda path, picture: write_philips(path, picture, (1,), mpp=0.5)),
    "TIFF: LZW": ("b.tif", partial(tiff, compression="lzw")),
    "TIFF: deflate": ("c.tif", partial(tiff, compression="zlib")),
    "SVS: JPEG 2000, RGB (33005)": (
        "d.svs", partial(aperio, compression="aperio_jp2000_rgb", arguments={"level": 40}),
    ),
    "SVS: JPEG 2000, YCbCr (33003)": (
        "e.svs", partial(aperio, compression="aperio_jp2000_ycbc", arguments={"level": 40}),
    ),
    "DICOM: JPEG": ("f", dicom),
    "DICOM: JPEG 2000": (
        "g", partial(dicom, syntax="1.2.840.10008.1.2.4.91", colours="YBR_ICT", encode=jpeg2000),
    ),
    "NDPI, strips of 256 px": ("h.ndpi", lambda path, picture: write_ndpi(path, [picture], "422", restart=16)),
    "NDPI, strips of 1024 px": ("i.ndpi", lambda path, picture: write_ndpi(path, [picture], "422", restart=64)),
}  # fmt: skip


def regions(side: int, times: int) -> list[tuple[int, int]]:
    """Corners, level-0 pixels, of regions of `PX` at `times` the scale."""
    step = PX * times
    return [(x, y) for y in range(0, side - step + 1, step) for x in range(0, side - step + 1, step)]


def by_specslide(path: Path, times: int) -> float:
    """Regions a second of processor time."""
    with Slide(path, mpp=0.5) as slide:
        corners, start = regions(slide.width, times), time.process_time()
        for x, y in corners:
            slide.read_scaled(x, y, (PX * times,) * 2, (PX, PX))
        return len(corners) / (time.process_time() - start)


def by_openslide(path: Path, times: int) -> float:
    """The same through OpenSlide."""
    with openslide.OpenSlide(str(entry_file(path))) as slide:
        level = slide.get_best_level_for_downsample(times + 0.01)
        side = round(PX * times / slide.level_downsamples[level])
        corners, start = regions(slide.dimensions[0], times), time.process_time()
        for corner in corners:
            rgb = np.ascontiguousarray(np.asarray(slide.read_region(corner, level, (side, side)))[..., :3])
            if side != PX:
                cv2.resize(rgb, (PX, PX), interpolation=cv2.INTER_AREA)
        return len(corners) / (time.process_time() - start)


def copied(path: Path) -> float | None:
    """How many times as fast the slide's own tiles are copied as read through OpenSlide and encoded; None: no copy."""
    with Slide(path, mpp=0.5) as slide, openslide.OpenSlide(str(entry_file(path))) as general:
        native = slide.native_tile_px(0)
        if native is None:
            return None
        places = [(c, r) for r in range(slide.height // native[1]) for c in range(slide.width // native[0])]
        start = time.process_time()
        for place in places:
            slide.native_stream(0, *place)
        middle = time.process_time()
        for column, row in places:
            region = general.read_region((column * native[0], row * native[1]), 0, native)
            encode_jpeg(np.asarray(region)[..., :3], 90)
        return (time.process_time() - middle) / (middle - start)


def measured(path: Path, rounds: int) -> dict[str, Any]:
    """The figures of one slide."""
    with Slide(path, mpp=0.5) as slide:
        figures: dict[str, Any] = {"reader": slide.reader}
    for name, times in (("native", 1), ("2x", 2)):
        pairs = [(by_specslide(path, times), by_openslide(path, times)) for _ in range(rounds)]
        figures[name] = statistics.median(ours / theirs for ours, theirs in pairs)
        figures[f"{name}, regions/s"] = [[round(ours, 1), round(theirs, 1)] for ours, theirs in pairs]
    figures["source"] = copied(path)
    return figures


def table(figures: dict[str, dict[str, Any]]) -> str:
    """The table, Markdown."""
    lines = ["| format | read by | native | at 2x | `source` |", "|---|---|---|---|---|"]
    for name, row in figures.items():
        source = "" if row["source"] is None else f"{row['source']:.0f}"
        lines.append(f"| {name} | {row['reader']} | {row['native']:.1f} | {row['2x']:.1f} | {source} |")
    return "\n".join(lines)


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Write the slides, measure them, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--side", type=int, default=3072)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    with Slide(options.slide) as slide:
        whole = slide.read_region(0, 0, 0, slide.width // 16 * 16, slide.height // 16 * 16)
    times = (math.ceil(options.side / whole.shape[0]), math.ceil(options.side / whole.shape[1]), 1)
    picture = np.ascontiguousarray(np.tile(whole, times)[: options.side, : options.side])
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (file, write) in ((name, FORMATS[name]) for name in options.formats):
            figures[name] = measured(write(Path(folder) / file, picture), options.rounds)
    print(table(figures))
    about = {"processor": processor(), "python": platform.python_version(), **software_versions(*LIBRARIES)}
    print("\n" + ", ".join(f"{name} {version}" for name, version in about.items()))
    if options.json is not None:
        options.json.write_text(json.dumps({"about": about, "figures": figures}, indent=2))


if __name__ == "__main__":
    main()
