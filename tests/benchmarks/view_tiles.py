"""Tiles a second of the viewer against openslide's DeepZoomGenerator, both to JPEG of the same tiles, on one thread.

    python -m tests.benchmarks.view_tiles path/to/CMU-1-Small-Region.svs

The slides are 20,000 x 20,000 px: the real one's pixels repeated, in pyramids of JPEG tiles of 256 px, each level half
of the one before, and of 240 px, a quarter, as Aperio's. Each round draws the same random tiles of each of the four
finest levels by each way in turn; what counts is the median over rounds of the ratio of their processor times within a
round, since the speed of a shared machine drifts. Then first views and new viewports through the whole server, and its
memory over 10,000 requests.
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

SIDE0, QUALITY = 20_000, 85
PYRAMIDS = {256: (1, 2, 4, 8, 16), 240: (1, 4, 16)}
"""Downsamples of the levels, by the side of their tiles, pixels."""
Tile = tuple[int, int, int]
"""Zoom, column, row."""


def write_slide(path: Path, source: Path, tile_px: int) -> None:
    """A pyramid of 20,000 x 20,000 px: the source's pixels repeated, JPEG tiles of so many pixels."""
    with Slide(source) as slide:
        pixels = slide.read_region(0, 0, 0, slide.width, slide.height)
    times = [-(-SIDE0 // length) for length in pixels.shape[:2]]
    whole = np.tile(pixels, (*times, 1))[:SIDE0, :SIDE0]
    options: dict[str, Any] = {
        "tile": (tile_px, tile_px),
        "photometric": "rgb",
        "compression": "jpeg",
        "compressionargs": {"level": 90},
    }
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for scale in PYRAMIDS[tile_px]:
            tiff.write(
                whole[::scale, ::scale], subfiletype=int(scale > 1), resolution=(20_000 / scale, 20_000 / scale),
                resolutionunit="CENTIMETER", metadata=None, **options,
            )  # fmt: skip


def sample(zooms: Zooms, zoom: int, count: int, seed: int) -> list[Tile]:
    """As many random tiles of a level, none twice."""
    places = zooms.tiles(zoom)
    return [(zoom, *at) for at in random.Random(seed).sample(places, min(count, len(places)))]


def by_viewer(pictures: Pictures, zooms: Zooms, tiles: Sequence[Tile]) -> float:
    began = time.process_time()
    for zoom, column, row in tiles:
        square = zooms.square(zoom, column, row)
        assert square is not None
        pictures.jpeg(0, square)
    return time.process_time() - began


def by_deepzoom(path: Path, zooms: Zooms, tiles: Sequence[Tile]) -> float:
    with openslide.OpenSlide(path) as slide:
        generator = DeepZoomGenerator(slide, zooms.tile_px, 0, limit_bounds=False)
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


def compare(path: Path, tile_px: int, rounds: int, count: int) -> None:
    """Print the median ratio of each of the four finest levels, and of all."""
    zooms, totals = Zooms((SIDE0, SIDE0), tile_px), [[0.0, 0.0] for _ in range(rounds)]
    for back in range(4):
        spent = list[tuple[float, float]]()
        for number in range(rounds):
            tiles = sample(zooms, zooms.last - back, count, number)
            pictures = Pictures(find_cohort([path]).slides, cache_bytes=0)
            with pictures.opened(0):
                spent.append((by_viewer(pictures, zooms, tiles), by_deepzoom(path, zooms, tiles)))
            pictures.close()
            totals[number] = [total + one for total, one in zip(totals[number], spent[-1], strict=True)]
        _say(f"tiles of {tile_px} px, 1/{1 << back}, {len(tiles)} a round", spent, len(tiles))
    _say(f"tiles of {tile_px} px, all", totals, 4 * count)


def _say(what: str, spent: Sequence[Sequence[float]], tiles: int) -> None:
    ours, theirs = (1000 * statistics.median(one) / tiles for one in zip(*spent, strict=True))
    ratio = statistics.median(other / own for own, other in spent)
    print(f"{what}: {ours:.2f} ms a tile, DeepZoomGenerator {theirs:.2f} ms: median ratio {ratio:.2f}", flush=True)


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
        for tile_px in PYRAMIDS:
            write_slide(Path(folder) / f"{tile_px}.tif", asked.slide, tile_px)
            compare(Path(folder) / f"{tile_px}.tif", tile_px, asked.rounds, asked.tiles)
        asyncio.run(views(Path(folder) / "256.tif", asked.requests))


if __name__ == "__main__":
    main()
