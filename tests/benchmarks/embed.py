"""Embedding a slide, from opening it to the finished feature store, against the encoder alone over the same tiles.

    python -m tests.benchmarks.embed path/to/CMU-1-Small-Region.svs [--side 10000] [--rounds 3] [--readers 1 2]

The slide repeats the real one's own streams with coarser levels as scanners add them; the encoder is ImageNet's
EfficientNet-Lite0, whose weights are packaged, or `--encoder` with `--weights`. Each round measures every way in turn:
the encoder alone over the kept tiles, already in memory, in the batches that embedding takes; and `embed_slide` with
each number of reading threads, with the tiles' quality measured and without. What counts is the median over rounds of
the ratio within a round, since the speed of a shared machine drifts; of processor time, which others' work hardly
changes, the ratio is printed too: it says what reading, measuring and writing cost in all, beside the encoder or behind
it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from inference import EmbedConfig, EncoderConfig, embed_slide, load_encoder
from inference.backends import auto_batch
from tests.benchmarks.peers import make_slide
from tiling import Slide
from tiling.stores.features import FeatureStore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path, help="a JPEG SVS or TIFF to take the streams from")
    parser.add_argument("--side", type=int, default=10_000, help="of the slide that is made, pixels")
    parser.add_argument("--encoder", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--readers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backend", default="auto", choices=("auto", "torch", "onnx"))
    options = parser.parse_args()
    encoder = load_encoder(EncoderConfig(encoder=options.encoder, weights=options.weights), options.device)
    side, ways = encoder.record.tile_px, [(n, quality) for n in options.readers for quality in (True, False)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        make_slide(options.slide, path, options.side)
        kept = FeatureStore(embed_slide(path, encoder, Path(folder) / "first").store)
        with Slide(path) as slide:
            size0, size = (kept.grid.tile_px0,) * 2, (side, side)
            tiles = np.stack([slide.read_scaled(x, y, size0, size) for x, y in kept.tiles.places()])
        batch = auto_batch(encoder.device, max(side, encoder.record.input_px or side))
        encode = encoder.chosen(options.backend, "auto")[1]
        ratios: dict[tuple[int, bool], list[float]] = {way: [] for way in ways}
        for number in range(options.rounds):
            start, cpu = time.perf_counter(), time.process_time()
            for first in range(0, len(tiles), batch):
                encode(tiles[first : first + batch])
            alone, own = time.perf_counter() - start, time.process_time() - cpu
            print(f"round {number + 1}: {len(tiles)} tiles, encoder alone {alone:.1f} s, {len(tiles) / alone:.0f}/s")
            for readers, quality in ways:
                config = EmbedConfig(readers=readers, quality=quality, backend=options.backend)
                start, cpu = time.perf_counter(), time.process_time()
                name = f"{number}-{readers}-{quality}"
                embed_slide(path, encoder, Path(folder) / "out", config, slide_id=name)
                took, used = time.perf_counter() - start, time.process_time() - cpu
                ratios[readers, quality].append(took / alone)
                found = f"{took:.1f} s, ratio {took / alone:.3f}, processor time {used / own:.3f}"
                print(f"  {readers} readers, quality {quality}: {found}")
    for (readers, quality), of_rounds in ratios.items():
        print(f"{readers} readers, quality {quality}: median ratio {statistics.median(of_rounds):.3f}")


if __name__ == "__main__":
    main()
