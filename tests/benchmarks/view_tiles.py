"""Tiles a second of the viewer against openslide's DeepZoomGenerator, both to JPEG of the same tiles, on one thread.

    python -m tests.benchmarks.view_tiles path/to/CMU-1-Small-Region.svs

The slide is 20,000 x 20,000 px: the real one's pixels repeated, in a pyramid of JPEG tiles of 256 px. Each round draws
the same random tiles of the four finest levels by each way in turn; what counts is the median over rounds of the ratio
of their processor times within a round, since the speed of a shared machine drifts. Then first views and new viewports
through the whole server, and its memory over 10,000 requests.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import tifffile
from openslide.deepzoom import DeepZoomGenerator
from starlette.types import Message

from inference.viewer.cohort import find_cohort
from inference.viewer.pictures import Pictures
from inference.viewer.server import make_app
from inference.viewer.site import Site
from inference.viewer.zooms import Zooms
from tiling.slides.slide import Slide

SIDE0, TILE_PX, QUALITY = 20_000, 256, 85
Tile = tuple[int, int, int]
"""Zoom, column, row."""


def write_slide(path: Path, source: Path) -> None:
    """A pyramid of 20,000 x 20,000 px: the source's pixels repeated, JPEG tiles of 256 px."""
    with Slide(source) as slide:
        pixels = slide.read_region(0, 0, 0, slide.width, slide.height)
    times = [-(-SIDE0 // length) for length in pixels.shape[:2]]
    whole = np.tile(pixels, (*times, 1))[:SIDE0, :SIDE0]
    options: dict[str, Any] = {
        "tile": (TILE_PX, TILE_PX),
        "photometric": "rgb",
        "compression": "jpeg",
        "compressionargs": {"level": 90},
    }
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for number in range(5):
            scale = 1 << number
            tiff.write(
                whole[::scale, ::scale], subfiletype=int(number > 0), resolution=(20_000 / scale, 20_000 / scale),
                resolutionunit="CENTIMETER", metadata=None, **options,
            )  # fmt: skip


def sample(zooms: Zooms, count: int, seed: int) -> list[Tile]:
    """As many random tiles of each of the four finest levels, none twice."""
    random_ = random.Random(seed)
    levels = range(zooms.last - 3, zooms.last + 1)
    return [(z, *at) for z in levels for at in random_.sample(zooms.tiles(z), min(count, len(zooms.tiles(z))))]


def by_viewer(pictures: Pictures, zooms: Zooms, tiles: Sequence[Tile]) -> float:
    began = time.process_time()
    for zoom, column, row in tiles:
        square = zooms.square(zoom, column, row)
        assert square is not None
        pictures.jpeg(0, square)
    return time.process_time() - began


def by_deepzoom(path: Path, zooms: Zooms, tiles: Sequence[Tile]) -> float:
    with openslide.OpenSlide(path) as slide:
        generator = DeepZoomGenerator(slide, TILE_PX, 0, limit_bounds=False)
        shift = generator.level_count - 1 - zooms.last
        began = time.process_time()
        for zoom, column, row in tiles:
            picture = generator.get_tile(zoom + shift, (column, row))
            picture.save(io.BytesIO(), "jpeg", quality=QUALITY)
        return time.process_time() - began


async def fetch(app: object, address: str) -> int:
    """The length of an answer of the application."""
    sent: list[Message] = []
    scope = {
        "type": "http", "http_version": "1.1", "method": "GET", "path": f"/{address}", "raw_path": b"/",
        "query_string": b"", "headers": [(b"host", b"localhost"), (b"cookie", b"specslide=t")], "scheme": "http",
        "root_path": "", "client": None, "server": None, "asgi": {"version": "3.0"},
    }  # fmt: skip

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)  # type: ignore[operator]
    assert sent[0]["status"] == 200, address
    return sum(len(message.get("body", b"")) for message in sent)


def resident_mib() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


async def views(path: Path, requests: int) -> None:
    """First view, new viewports and memory, through the server's application."""
    began = time.perf_counter()
    site = Site(find_cohort([path]))
    app, zooms = make_app(site, "t"), Zooms((SIDE0, SIDE0))
    first = [(z, c, r) for z in (2,) for c, r in zooms.tiles(z)]
    addresses = ["data/slides.json", "data/0/slide.json", *(f"data/0/{z}/{c}-{r}.jpg" for z, c, r in first)]
    await asyncio.gather(*(fetch(app, address) for address in addresses))
    print(f"first view ({len(first)} tiles), with opening the slide: {time.perf_counter() - began:.2f} s")
    random_, times = random.Random(1), []
    for _ in range(20):
        zoom = random_.randint(4, zooms.last)
        across = max(at[0] for at in zooms.tiles(zoom)) + 1
        column, row = random_.randrange(max(1, across - 6)), random_.randrange(max(1, across - 4))
        wanted = [(zoom, column + c, row + r) for c in range(6) for r in range(4)]
        began = time.perf_counter()
        tiles = [f"data/0/{z}/{c}-{r}.jpg" for z, c, r in wanted if zooms.square(z, c, r)]
        await asyncio.gather(*(fetch(app, tile) for tile in tiles))
        times.append(time.perf_counter() - began)
    print(f"new viewport of 24 tiles: median {1000 * statistics.median(times):.0f} ms, max {1000 * max(times):.0f} ms")
    everything = [address for address in site.addresses() if address.endswith(".jpg")]
    before = resident_mib()
    for number in range(requests):
        await fetch(app, everything[number % len(everything)])
    print(f"memory: {before:.0f} MiB, after {requests:,} more requests {resident_mib():.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiles", type=int, default=60, help="of each level, in a round")
    parser.add_argument("--requests", type=int, default=10_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.tif"
        write_slide(path, asked.slide)
        zooms, ratios, rates = Zooms((SIDE0, SIDE0)), [], []
        for number in range(asked.rounds):
            tiles = sample(zooms, asked.tiles, number)
            pictures = Pictures(find_cohort([path]).slides, cache_bytes=0)
            with pictures.opened(0):
                ours, theirs = by_viewer(pictures, zooms, tiles), by_deepzoom(path, zooms, tiles)
            pictures.close()
            ratios.append(theirs / ours)
            rates.append((len(tiles) / ours, len(tiles) / theirs))
            print(f"round {number}: {rates[-1][0]:.0f} tiles/s, DeepZoomGenerator {rates[-1][1]:.0f}: {ratios[-1]:.2f}")
        print(f"median ratio {statistics.median(ratios):.2f}")
        asyncio.run(views(path, asked.requests))


if __name__ == "__main__":
    main()
