"""Samples -> batches in the order and in the shares in which processes train and validate."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from lightning.fabric import Fabric
from torch.utils.data import DataLoader, Sampler

from tiling.core.errors import ConfigError
from training.config import AnyConfig, BagConfig, TrainConfig
from training.data.bags import BagDraw
from training.data.dataset import Batch, ShiftTiles, TileDataset, loader_workers, whole_batch
from training.data.samplers import Shuffled, global_batches
from training.data.samples import Samples, Split
from training.data.splits import SPLITS
from training.models.backbones import input_side


class TrainBatches(Sampler[list[int]]):
    """The share of each global batch (`global_batches`) that process `rank` of `world` trains on.

    Its positions are those of `TileDataset`, which counts on from epoch to epoch.
    """

    def __init__(self, order: Shuffled, batch_size: int, world: int = 1) -> None:
        self.order, self.world, self.rank = order, world, 0
        self.batch_size = min(batch_size, len(order))
        self.start = 0

    def at(self, epoch: int, start: int) -> None:
        """Choose the epoch, from 0, and how many of its batches to pass over."""
        self.order.set_epoch(epoch)
        self.start = start

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return len(self.order) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        order = np.fromiter(self.order, dtype=np.int64) + self.order.epoch * self.order.count
        first = self.start * self.batch_size
        for share in global_batches(order, self.batch_size, self.rank, self.world, start=first):
            yield share.tolist()


def train_batches(split: Split, config: AnyConfig, world: int = 1) -> TrainBatches:
    """The batches of the training split. Raises ConfigError if a batch cannot be shared out evenly."""
    levels = split.samples.levels(config.balance, split.indices)
    order = Shuffled(len(split), config.seed, draws=config.tiles_per_epoch, levels=levels)
    batches = TrainBatches(order, config.batch_size, world)
    if batches.batch_size % world:
        what = f"a batch of {batches.batch_size} tiles cannot be shared out evenly among {world} processes"
        raise ConfigError("batch_size", what, f"pass a multiple of {world}, and no more than the training tiles")
    if batches.batch_size // world < config.accumulate:
        what = f"{batches.batch_size // world} tiles a process cannot be computed in {config.accumulate} parts"
        raise ConfigError("accumulate", what, "accumulate less")
    return batches


def train_loader(
    split: Split, batches: TrainBatches, config: AnyConfig, fabric: Fabric, shift: ShiftTiles | None = None
) -> DataLoader[Batch]:
    """The loader of this process's shares of the training split.

    Args:
        split: The training split.
        batches: Which of its tiles make each batch.
        config: The settings of the training: loader workers.
        fabric: The processes that train together, and their device.
        shift: What makes the shifted copies that each batch brings along; None: it brings none.

    Returns:
        A loader of `Batch`es.
    """
    draw = BagDraw(config.bag_tiles, config.seed) if isinstance(config, BagConfig) else None
    return _loader(TileDataset(split, draw, shift), batches, config, fabric)


def eval_loader(split: Split, config: AnyConfig, fabric: Fabric) -> DataLoader[Batch]:
    """Loads this process's tiles of a split: each `world_size`-th, the last one again until all have as many.

    Bags come one at a time, whole.
    """
    count, world = len(split), fabric.world_size
    places = np.minimum(np.arange(fabric.global_rank, -(-count // world) * world, world), count - 1)
    tiles, size = TileDataset(split.only(places)), 1 if split.samples.kind == "bags" else 4 * config.batch_size
    batches = [list(range(first, min(first + size, len(tiles)))) for first in range(0, len(tiles), size)]
    return _loader(tiles, batches, config, fabric)


def make_splits(samples: Samples, config: AnyConfig) -> dict[str, Split]:
    """The sides of a training by their names, in the order of SPLITS.

    Tiles are read at their own side. Only images of no known scale, which may be large, are shrunk as they are read:
    nothing ties them to a tile's size.
    """
    side = samples.tile_px
    if isinstance(config, TrainConfig) and samples.kind == "images" and samples.mpp is None:
        side = min(side, input_side(config.backbone, config.input_px, side))
    return {name: samples.split_of(name, side) for name in SPLITS}


def _loader(
    tiles: TileDataset, batches: Sampler[list[int]] | list[list[int]], config: AnyConfig, fabric: Fabric
) -> DataLoader[Batch]:
    beside = min(fabric.world_size, max(1, torch.cuda.device_count()))  # a process a GPU of this machine
    workers = loader_workers(config.workers, fabric.device.type, beside)
    return DataLoader(
        tiles,
        batch_sampler=batches,
        generator=torch.Generator(),  # the loader's own draws, which depend on its workers, touch no other's
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=fabric.device.type == "cuda",
        collate_fn=whole_batch,
    )
