"""Seconds and memory from a cohort of tile stores to a training's first batch: a million tiles in a thousand stores.

    python -m tests.benchmarks.train_start [--stores 1000] [--tiles 1000] [--workers 0]

The stores are copies of one, made up, each as of a slide of its own; their tiles are small, since the start reads those
of one batch alone. The start is that of `specslide train`: the manifest and all stores opened and checked, tiles
labelled by annotation, cases split, and the first batch loaded. It runs twice, each time in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import zarr

from tiling.core.artefact import atomic_folder, locked_folder
from tiling.grid import Grid, Raster, Tiles
from tiling.stores.codec import TileCodec
from tiling.stores.store import SlideFacts, StoreAttributes
from tiling.stores.write import write_columns, write_tiles
from training.config import TrainConfig
from training.data.from_stores import samples_from_stores
from training.data.loaders import make_splits, train_batches, train_loader

_SIDE = 16


def make_stores(folder: Path, stores: int, tiles: int) -> Path:
    """Write the stores into `folder/stores`, and the manifest of their slides, whose path is returned."""
    across = int(np.ceil(np.sqrt(tiles)))
    size0 = across * _SIDE
    grid = Grid(width0=size0, height0=size0, slide_mpp=0.5, tile_px=_SIDE, tile_px0=_SIDE, stride_px0=_SIDE)
    random = np.random.default_rng(0)
    every = Tiles.all_of(grid).only(np.arange(tiles))
    names = ("tissue", "quality/blur", "quality/pen", "annotation/tumour")
    columns = {name.removeprefix("quality/"): random.random(tiles, np.float32).round() for name in names}
    placed = Tiles(grid, every.x0, every.y0, columns)
    facts = SlideFacts(
        slide_id="first", sha256="0" * 64, width=size0, height=size0, mpp=0.5, vendor="made-up", objective_power=None,
        level_downsamples=(1.0,),
    )  # fmt: skip
    attributes = StoreAttributes(
        slide=facts, grid=grid, mpp=0.5, mask_px0=1, thumbnail_px0=1, quality=("blur", "pen"), annotation=("tumour",),
        config={"codec": "jpeg:90"}, config_sha256="", software={},
    )  # fmt: skip
    codec, first = TileCodec.parse("jpeg:90"), folder / "first"
    first.mkdir()
    write_tiles(first, _SIDE, codec, map(codec.encode, random.integers(0, 256, (tiles, _SIDE, _SIDE, 3), np.uint8)))
    pictures = {"mask": Raster(np.ones((64, 64), np.bool_), 1), "thumbnail": Raster(np.zeros((64, 64, 3), np.uint8), 1)}
    write_columns(first, placed, pictures, attributes)
    rows = ["slide_path,slide_id,case_id,site"]
    for number in range(stores):
        name, final = f"slide-{number:04}", folder / "stores" / f"slide-{number:04}.zarr"
        with locked_folder(final), atomic_folder(final) as partial:
            shutil.copytree(first, partial, dirs_exist_ok=True)
            slide = facts.model_copy(update={"slide_id": name, "sha256": f"{number:064x}"})
            zarr.open_group(partial, mode="r+").attrs["slide"] = slide.model_dump(mode="json")
        rows.append(f"{name}.svs,{name},case-{number // 2:04},site-{number % 5}")
    (folder / "manifest.csv").write_text("\n".join(rows))
    return folder / "manifest.csv"


def start(stores: Path, manifest: Path, workers: int) -> None:
    """Start a training, as far as its first batch, and print what that took."""
    began, began_cpu = time.perf_counter(), time.process_time()
    from lightning.fabric import Fabric  # not before training has mended torchvision

    config = TrainConfig(workers=workers, device="cpu")
    samples = samples_from_stores(stores, manifest, config)
    known = time.perf_counter() - began
    train = make_splits(samples, config)["train"]
    batch = next(iter(train_loader(train, train_batches(train, config), config, Fabric(accelerator="cpu", devices=1))))
    took, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    print(
        f"{len(samples)} tiles of {len(samples.sources)} stores: labelled and split after {known:.1f} s, "
        f"{len(batch.labels)} loaded after {took:.1f} s ({cpu:.1f} s of processor time), {peak_gb:.2f} GB in all",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", type=int, default=1000)
    parser.add_argument("--tiles", type=int, default=1000, help="in each store")
    parser.add_argument("--workers", type=int, default=0, help="processes that load the tiles")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        manifest = make_stores(Path(place), options.stores, options.tiles)
        for _ in range(2):
            spawned = multiprocessing.get_context("spawn")
            process = spawned.Process(target=start, args=(Path(place) / "stores", manifest, options.workers))
            process.start()
            process.join()


if __name__ == "__main__":
    main()
