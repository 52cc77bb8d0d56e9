"""Images a second of a training step fed from a tile store, against the same step on tiles that are in memory already.

    python -m tests.benchmarks.train_input [path/to/CMU-1-Small-Region.svs] [--tile-px 128] [--workers 0 1]

A step is the trainer's: augmentation, forward, loss with spectral decoupling, backward, AdamW. The store is made from
the slide, its tiles overlapping so that there are many; they are read in the trainer's random order. Each round trains
the same number of steps by each way in turn, from a loader that starts with nothing read ahead; what counts is the
median over rounds of the ratio within a round, since the speed of a shared machine drifts. Without workers the same
ratio is given in CPU time of the process too, which others on the machine hardly disturb. `--backbone null` is no
network but a look at each pixel: what the loader can feed a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from tests.benchmarks.read_store import SLIDE
from tiling import Slide, TileStore, TilingConfig, tile_slide
from training.augmentations import AUGMENTATIONS
from training.data.dataset import Batch, TileDataset, loader_workers
from training.data.dataset import whole_batch as whole_batch
from training.data.samplers import Shuffled
from training.data.samples import Samples
from training.losses import SpectralDecouplingLoss
from training.models.classifier import TileClassifier, make_classifier

Step = Callable[[Batch], None]


def samples_of(slide: Path, folder: Path, tile_px: int, overlap: float) -> Samples:
    """The tiles of a slide at its own scale, jpeg:90, labelled in turn."""
    with Slide(slide) as opened:
        mpp = opened.mpp
    path = tile_slide(slide, folder, TilingConfig(mpp=mpp, tile_px=tile_px, overlap=overlap)).store
    store = TileStore(path)
    rows, names = np.arange(len(store)), np.repeat(store.slide.slide_id, len(store))
    nothing = np.zeros_like(rows)
    return Samples(
        kind="stores", classes=("a", "b"), sources=(path,), hashes=(store.sha256,), tile_px=tile_px, mpp=mpp,
        label=rows % 2, source=nothing, row=rows, x0=nothing, y0=nothing, tile_px0=nothing, case_id=names,
        slide_id=names, split=np.repeat("train", len(rows)), site=names, scanner=names,
        clear=np.ones(len(rows), np.bool_),
    )  # fmt: skip


def training_step(network: TileClassifier, device: torch.device) -> Step:
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    loss, random = SpectralDecouplingLoss(0.01), torch.Generator(device).manual_seed(0)

    def step(batch: Batch) -> None:
        tiles, labels = (tensor.to(device, non_blocking=True) for tensor in (batch.tiles, batch.labels))
        logits = network.logits(AUGMENTATIONS["light"](network.pixels(tiles), random))
        optimiser.zero_grad()
        loss.terms(logits, labels).total.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step


def null_step(batch: Batch) -> None:
    """A look at each value."""
    batch.tiles.max()


def seconds(step: Step, batches: Iterable[Batch], device: torch.device) -> tuple[float, float, float]:
    """(of all steps, of these waiting for a batch, of the process's CPU time)"""
    waited, start, start_cpu = 0.0, time.perf_counter(), time.process_time()
    iterator: Iterator[Batch] = iter(batches)
    while True:
        before = time.perf_counter()
        batch = next(iterator, None)
        waited += time.perf_counter() - before
        if batch is None:
            break
        step(batch)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, waited, time.process_time() - start_cpu


def compare(samples: Samples, step: Step, device: torch.device, workers: int, given: argparse.Namespace) -> str:
    sampler = Shuffled(len(samples), seed=0, draws=given.steps * given.batch)
    loader = DataLoader(
        TileDataset(samples.split_of("all")), batch_size=given.batch, sampler=sampler,
        num_workers=workers, persistent_workers=workers > 0, pin_memory=device.type == "cuda", collate_fn=whole_batch,
    )  # fmt: skip
    made = next(iter(loader))
    made = Batch(*(tensor.to(device) for tensor in made))
    ways: dict[str, Iterable[Batch]] = {"store": loader, "memory": [made] * given.steps}
    for batches in ways.values():
        seconds(step, batches, device)
    rounds = []
    for number in range(given.rounds):
        sampler.set_epoch(number)
        order = list(ways) if number % 2 else list(reversed(ways))
        taken = {name: seconds(step, ways[name], device) for name in order}
        (fed, waited, fed_cpu), (floor, _, floor_cpu) = taken["store"], taken["memory"]
        rounds.append((fed, floor, floor / fed, floor_cpu / fed_cpu, waited / fed))
    fed, floor, ratio, cpu_ratio, waiting = (statistics.median(column) for column in zip(*rounds, strict=True))
    images = given.steps * given.batch
    in_cpu_time = "" if workers else f" ({cpu_ratio:.3f} in CPU time)"
    return (
        f"{workers} workers: {images / fed:.0f} images/s from the store, {images / floor:.0f} from memory; ratio "
        f"{ratio:.3f}{in_cpu_time}, waiting {100 * waiting:.1f}% ({given.rounds} rounds of {given.steps} steps)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path, nargs="?", default=SLIDE, help="a slide to take the tiles from")
    parser.add_argument("--backbone", default="resnet10t", help="of timm's, or null")
    parser.add_argument("--tile-px", type=int, default=128, help="side of the tiles, and of what the backbone sees")
    parser.add_argument("--overlap", type=float, default=0.5, help="of the tiles: the more, the larger the store")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="a round, by each way")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--workers", type=int, nargs="*", help="processes that load; default: the trainer's own choice")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    device = torch.device(given.device)
    torch.manual_seed(0)
    step: Step = null_step
    if given.backbone != "null":
        step = training_step(make_classifier(given.backbone, 2, given.tile_px, given.tile_px).to(device), device)
    with tempfile.TemporaryDirectory() as folder:
        samples = samples_of(given.slide, Path(folder), given.tile_px, given.overlap)
        print(f"{given.backbone}, {len(samples)} tiles of {given.tile_px} px, batches of {given.batch}, on {device},")
        print(f"{torch.get_num_threads()} threads")
        for workers in given.workers or [loader_workers(None, device.type)]:
            print(compare(samples, step, device, workers, given), flush=True)


if __name__ == "__main__":
    main()
