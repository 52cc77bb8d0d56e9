"""Bags of tiles' features as arrays: whole, or as many of their tiles as training draws in an epoch.

A batch of B bags is one float32 array (B, n, 1 + D), n the tiles of the longest: of each tile the number of its slide
in the bag, from 0, and its features. Shorter bags end with padding, where that number is -1.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiling.core.errors import StoreError
from tiling.stores.features import Encoder, FeatureStore
from training.data.samples import BagPart, Ints, Samples

Floats = NDArray[np.float32]

PADDING = -1.0
_KEPT_BYTES = 1 << 30
"""A reader keeps features of so many bytes in memory, of the bags that it read first: each is read every epoch."""


class BagDraw(NamedTuple):
    """How many tiles of a bag are drawn, by which seed."""

    tiles: int
    seed: int


class BagReader:
    """Reads bags by their indices in the samples. The draw depends on seed, epoch and bag alone."""

    def __init__(self, samples: Samples, draw: BagDraw | None) -> None:
        self.samples, self.draw = samples, draw
        self.opened: dict[Path, FeatureStore] = {}
        self.kept: dict[Path, Floats] = {}
        self.left = _KEPT_BYTES

    def __call__(self, indices: Ints, epochs: Ints) -> Floats:
        """The bags (B, n, 1 + D) of those indices (B,), in those epochs (B,). Raises StoreError."""
        bags = [self._bag(index, epoch) for index, epoch in zip(indices.tolist(), epochs.tolist(), strict=True)]
        return padded(bags)

    def _bag(self, index: int, epoch: int) -> Floats:
        parts = self.samples.bags[self.samples.source[index]]
        counts = [len(part.rows) for part in parts]
        drawn = np.arange(sum(counts))
        if self.draw is not None and len(drawn) > self.draw.tiles:
            random = np.random.default_rng([self.draw.seed, epoch, index])
            drawn = np.sort(random.choice(drawn, self.draw.tiles, replace=False))
        ends = np.searchsorted(drawn, np.cumsum([0, *counts]))
        starts = np.cumsum([0, *counts[:-1]])
        read = [
            numbered(self._features(part, drawn[first:last] - start), number, part.path)
            for number, (part, start, first, last) in enumerate(zip(parts, starts, ends, ends[1:], strict=False))
            if last > first
        ]
        return np.concatenate(read)

    def _features(self, part: BagPart, places: Ints) -> Floats:
        """The features (n, D) of some of a part's tiles, by their places (n,) among its rows."""
        if part.path in self.kept:
            return self.kept[part.path][places]
        if part.path not in self.opened:
            self.opened[part.path] = FeatureStore(part.path)
        store = self.opened[part.path]
        size = 4 * len(part.rows) * store.dim
        if size > self.left:
            return store.read(part.rows[places])
        self.left -= size
        self.kept[part.path] = store.read(part.rows)
        return self.kept[part.path][places]


def encoder_of(samples: Samples) -> Encoder:
    """What made the features of the bags, which is the same for all. Raises StoreError."""
    return FeatureStore(samples.bags[0][0].path).encoder


def drawn_features(samples: Samples, indices: Ints, draw: BagDraw) -> Floats:
    """Some features (n, D) of every bag of those indices. Raises StoreError."""
    read = BagReader(samples, draw)
    bags = (read(np.array([index]), np.zeros(1, np.int64))[0] for index in indices.tolist())
    return np.concatenate([bag[:, 1:] for bag in bags])


def numbered(features: Floats, number: int, where: Path) -> Floats:
    """Tiles (n, 1 + D) of features (n, D) of a bag's slide of that number. Raises StoreError for what is not finite."""
    if not np.isfinite(features).all():
        raise StoreError(where, "holds a feature that is not finite", "embed the slide again, such as with float32")
    return np.concatenate([np.full((len(features), 1), number, np.float32), features], axis=1)


def padded(bags: list[Floats]) -> Floats:
    """Bags (n, 1 + D) of any n as one array (B, max n, 1 + D)."""
    out = np.zeros((len(bags), max(map(len, bags)), bags[0].shape[1]), np.float32)
    out[..., 0] = PADDING
    for row, bag in zip(out, bags, strict=True):
        row[: len(bag)] = bag
    return out
