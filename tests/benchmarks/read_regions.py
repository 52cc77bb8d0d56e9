"""Regions a second of the fast JPEG reader against OpenSlide and against bare decoding, on one thread.

    python -m tests.benchmarks.read_regions path/to/CMU-1-Small-Region.svs

The slide that is read is made by repeating the real one's own compressed tiles, nothing re-encoded. Each round reads
the same band of regions, left to right and top to bottom, by each way in turn; what counts is the median over rounds
of the ratio within a round, since the speed of a shared machine drifts.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import openslide
import tifffile
from numpy.typing import NDArray

from tiling.slides.direct import open_tiled_levels
from tiling.slides.jpeg_stream import ScaleDenom, decode_stream
from tiling.slides.slide import Slide
from tiling.slides.tiled_levels import TiledLevels

PX = 512  # side of a region, level-0 pixels
Corner = tuple[int, int]
UInt8Array = NDArray[np.uint8]


@dataclass(frozen=True)
class Band:
    """The regions of one round and the native tiles that start in the band: each tile of the slide once."""

    corners: list[Corner]
    streams: list[bytes]
    tile_px: tuple[int, int]


def repeated(
    source: Path, target: Path, side_px: int | tuple[int, int], downsamples: tuple[Literal[2, 4, 8], ...] = ()
) -> None:
    """Write a TIFF of about `side_px` squared, or (width, height), from the whole tiles of the source's first page.

    With `downsamples`, the coarser levels that a scanner would add are encoded from it.
    """
    width_px, height_px = (side_px, side_px) if isinstance(side_px, int) else side_px
    with tifffile.TiffFile(source) as tiff:
        page: Any = tiff.pages[0]
        tile_w, tile_h = page.tilewidth, page.tilelength
        across, whole_columns, whole_rows = (
            math.ceil(page.imagewidth / tile_w),
            page.imagewidth // tile_w,
            page.imagelength // tile_h,
        )

        def stored(index: int) -> bytes:
            tiff.filehandle.seek(page.dataoffsets[index])
            return tiff.filehandle.read(page.databytecounts[index])

        tiles = [[stored(r * across + c) for c in range(whole_columns)] for r in range(whole_rows)]
        columns, rows = width_px // tile_w, height_px // tile_h
        common: dict[str, Any] = {
            "tile": (tile_h, tile_w),
            "compression": "jpeg",
            "photometric": page.photometric,
            "metadata": None,
            "resolution": (2e4, 2e4),
            "resolutionunit": "CENTIMETER",
        }
        with tifffile.TiffWriter(target) as writer:
            writer.write(
                (tiles[r % whole_rows][c % whole_columns] for r in range(rows) for c in range(columns)),
                shape=(rows * tile_h, columns * tile_w, 3),
                dtype=np.uint8,
                jpegtables=page.jpegtables,
                compressionargs={"outcolorspace": page.photometric.name.lower()},
                **common,
            )
            for downsample in downsamples:
                level = _shrunk(source, whole_rows, whole_columns, downsample)
                times = (math.ceil(rows / whole_rows), math.ceil(columns / whole_columns), 1)
                whole = np.tile(level, times)[: rows * tile_h // downsample, : columns * tile_w // downsample]
                arguments = {"level": 90, "outcolorspace": page.photometric.name.lower()}
                writer.write(whole, subfiletype=1, compressionargs=arguments, **common)


def _shrunk(source: Path, rows: int, columns: int, downsample: ScaleDenom) -> UInt8Array:
    """The part of the source's first level that whole tiles cover, at 1 / downsample, uint8 (h, w, 3)."""
    with Slide(source) as slide:
        native = slide.native_tile_px(0)
        assert native is not None
        size = (columns * native[0], rows * native[1])
        return slide.read_scaled(0, 0, size, (size[0] // downsample, size[1] // downsample))


def bands(fast: TiledLevels, width: int, height: int, rows: int) -> Iterator[Band]:
    """Bands of `rows` rows of regions."""
    native = fast.jpeg_tile_px(0)
    assert native is not None
    tile_w, tile_h = native
    for top in range(0, height - rows * PX + 1, rows * PX):
        corners = [(x, top + r * PX) for r in range(rows) for x in range(0, width - PX + 1, PX)]
        right = max(x for x, _ in corners) + PX
        streams = [
            fast.stream(0, column, row)
            for row in range(math.ceil(top / tile_h), math.ceil((top + rows * PX) / tile_h))
            for column in range(math.ceil(right / tile_w))
        ]
        yield Band(corners, [s for s in streams if s is not None], (tile_w, tile_h))


def seconds(work: Callable[..., None], *given: Any) -> float:
    start = time.perf_counter()
    work(*given)
    return time.perf_counter() - start


def read_fast(fast: TiledLevels, band: Band, denom: ScaleDenom) -> None:
    for x, y in band.corners:
        fast.read(0, x, y, PX, PX, denom)


def read_openslide(slide: openslide.OpenSlide, band: Band, denom: ScaleDenom) -> None:
    for corner in band.corners:
        pixels = np.ascontiguousarray(np.asarray(slide.read_region(corner, 0, (PX, PX)))[..., :3])
        if denom > 1:
            cv2.resize(pixels, (PX // denom, PX // denom), interpolation=cv2.INTER_AREA)


def decode_only(band: Band, denom: ScaleDenom) -> None:
    for stream in band.streams:
        decode_stream(stream, *band.tile_px, denom)


def compare(path: Path, rounds: int, denom: ScaleDenom) -> str:
    """One line: regions a second of each way, and the ratios."""
    with openslide.OpenSlide(str(path)) as slide, Slide(path) as facts:
        fast = open_tiled_levels(path, facts.levels)
        assert fast is not None
        with fast:
            found = list(bands(fast, facts.width, facts.height, rows=2))[: rounds + 1]
            times = [
                (
                    seconds(read_fast, fast, band, denom),
                    seconds(read_openslide, slide, band, denom),
                    seconds(decode_only, band, denom),
                )
                for band in found
            ][1:]  # the first warms up
    regions = len(found[0].corners)
    per_s = [regions / statistics.median(column) for column in zip(*times, strict=True)]
    gain = statistics.median(general / ours for ours, general, _ in times)
    of_floor = statistics.median(floor / ours for ours, _, floor in times)
    return (
        f"{PX} px at 1/{denom}: fast {per_s[0]:.0f}, OpenSlide {per_s[1]:.0f}, decode alone {per_s[2]:.0f} regions/s; "
        f"fast/OpenSlide {gain:.2f}, fast/floor {of_floor:.2f} (medians of {len(times)} rounds)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path, help="a JPEG SVS or TIFF to take the tiles from")
    parser.add_argument("--side-px", type=int, default=12_000, help="side of the slide that is made")
    parser.add_argument("--rounds", type=int, default=9, help="bands of regions, each read by each way")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "repeated.tif"
        repeated(given.slide, path, given.side_px)
        for denom in (1, 2, 4):
            print(compare(path, given.rounds, denom))


if __name__ == "__main__":
    main()
