"""The tiles, or bags of tiles' features, of trials, in memory, and their splits by case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.core.errors import InputError
from tiling.core.files import sha256_json
from training.config import TrainConfig
from training.data.bags import BagDraw, BagReader, encoder_of
from training.data.dataset import TileDataset
from training.data.preparation import positive_class
from training.data.samples import Samples, Split
from training.data.splits import SPLITS, joined, split_units

Content = NDArray[Any]
"""uint8 tiles (N, T, T, 3), or float32 bags (N, n, 1 + D) as in `training.data.bags`."""
Ints = NDArray[np.int64]
Texts = NDArray[np.str_]

LARGEST = 2**32
"""Bytes of tiles that each process may hold."""


@dataclass(frozen=True)
class TileSet:
    """Labelled tiles, or bags, in memory."""

    tiles: Content
    label: Ints
    """(N,), 1 for the positive class, else 0"""
    unit: Texts
    """(N,): what no split tears apart, cases."""
    site: Texts
    """(N,), "" where unknown."""
    classes: tuple[str, str]
    """The negative class and the positive one."""
    identity: str
    """Hash of the content."""

    def only(self, chosen: Ints) -> TileSet:
        """Some of the tiles, by their indices (n,)."""
        arrays = (self.tiles[chosen], self.label[chosen], self.unit[chosen], self.site[chosen])
        return TileSet(*arrays, self.classes, sha256_json([self.identity, chosen.tolist()]))


def read_tiles(samples: Samples, positive: str | None = None, side_px: int | None = None) -> TileSet:
    """All pixels of the samples that are of their class beyond doubt.

    Args:
        samples: Tiles of two classes.
        positive: The class that counts as positive; None: as `positive_class` finds.
        side_px: Side at which pictures are read; None, and for stores: their own.

    Returns:
        The tiles.

    Raises:
        InputError: For other than two classes, and for more tiles than memory holds.
    """
    side = samples.tile_px if side_px is None or samples.kind == "stores" else side_px
    _refuse_large(len(samples) * side * side * 3, f"{len(samples)} tiles of {side} px", "use fewer or smaller tiles")
    read = TileDataset(Split("all", samples, np.flatnonzero(samples.clear), side))
    return _labelled(samples, lambda: read.__getitems__(list(range(len(read)))).tiles.numpy(), side, positive)


def read_bags(samples: Samples, positive: str | None = None, bag_tiles: int = 1024) -> TileSet:
    """All bags of the samples, each with at most `bag_tiles` of its tiles, drawn once.

    Args:
        samples: Bags of two classes.
        positive: As for `read_tiles`.
        bag_tiles: The limit.

    Returns:
        The bags.

    Raises:
        InputError: For other than two classes, and for more features than memory holds.
        StoreError: For a damaged store.
    """
    longest = min(bag_tiles, max(sum(len(part.rows) for part in bag) for bag in samples.bags))
    size = 4 * len(samples) * longest * (1 + encoder_of(samples).dim)
    _refuse_large(size, f"{len(samples)} bags of up to {longest} tiles", "lower bag_tiles")
    every = np.arange(len(samples))
    read = BagReader(samples, BagDraw(bag_tiles, 0))
    return _labelled(samples, lambda: read(every, np.zeros_like(every)), bag_tiles, positive)


def _labelled(samples: Samples, read: Callable[[], Content], size: int, positive: str | None) -> TileSet:
    """The clear ones of the samples with their content; `size` is what that depends on beside the samples."""
    if len(samples.classes) != 2:
        raise InputError("the study's data", f"has {len(samples.classes)} classes, not two", "leave the others out")
    positive = positive_class(samples.classes, TrainConfig(positive_class=positive))
    number = samples.classes.index(positive)
    return TileSet(
        tiles=read(),
        label=(samples.label == number)[samples.clear].astype(np.int64),
        unit=joined(samples.case_id, samples.content())[samples.clear],
        site=samples.site[samples.clear],
        classes=(samples.classes[1 - number], positive),
        identity=sha256_json([samples.identity(), size, positive]),
    )


def _refuse_large(size: int, what: str, fix: str) -> None:
    if size > LARGEST:
        raise InputError("the study's data", f"is {what}, more than {LARGEST // 2**30} GiB of memory hold", fix)


def split_of(data: TileSet, seed: int, *, val_fraction: float, test_fraction: float = 0.0) -> dict[str, Ints]:
    """Indices of the tiles of each split under a seed; no "test" without a fraction.

    Raises InputError if a split lacks a class.
    """
    split = split_units(data.unit, data.label, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
    chosen = {name: np.flatnonzero(split == name) for name in SPLITS[: 3 if test_fraction else 2]}
    for name, indices in chosen.items():
        missing = [data.classes[c] for c in (0, 1) if c not in data.label[indices]]
        if missing:
            what = f"of seed {seed} leaves no tile of {missing[0]!r} for {name}"
            raise InputError("the study's split", what, "add cases of it")
    return chosen
