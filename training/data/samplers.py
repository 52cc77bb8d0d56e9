"""The order in which an epoch draws its tiles: a function of seed and epoch alone, however many workers load them.

The law. An epoch of n draws is shared out from the top down: equally among the classes, a class's share equally among
its sites, a site's among its cases, a case's among its slides, a slide's among its tiles; levels that are not in
`balance` are left out. Where a number does not divide, the rest goes to siblings drawn at random, one each. So

- the expected number of draws of a tile is n * product over levels of 1 / (number of siblings it has there),
- in every epoch siblings differ by one draw at most, and
- with no `balance` and as many draws as tiles, each tile is drawn once.

The levels are nested in that order whatever order they are named in, for a slide lies in one case and a case (mostly)
at one site: to balance sites inside a slide would do nothing. Where every class is at every site, and so on, all cells
of a level have the same share. Knows nothing of torch, images or stores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

NESTING = ("class", "site", "case", "slide")
"""What sampling can be balanced over, the outermost first."""


def epoch_order(
    count: int, *, seed: int, epoch: int, draws: int | None = None, levels: Sequence[NDArray[np.generic]] = ()
) -> Ints:
    """Which tiles an epoch draws, in random order, int64 (`draws`,). See the law above.

    Args:
        count: Number of tiles.
        seed: Seed of the training.
        epoch: From 0.
        draws: Number of draws; None: as many as there are tiles.
        levels: What to balance over, outermost first: the value of each tile (`count`,).

    Returns:
        Indices of tiles; the same for the same arguments.
    """
    random = np.random.default_rng([seed, epoch])
    drawn = _shared_out(count if draws is None else draws, np.arange(count), levels, random)
    return drawn[random.permutation(len(drawn))]


class Shuffled:
    """The order of each epoch, for a torch DataLoader; `set_epoch` chooses it, from 0, and Lightning calls that.

    `levels` maps names of `NESTING` to the value of each tile (count,). torch's RandomSampler would carry a state from
    epoch to epoch that depends on how far the loader's workers read ahead.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        *,
        draws: int | None = None,
        levels: Mapping[str, NDArray[np.generic]] | None = None,
    ) -> None:
        nested = [levels[name] for name in NESTING if name in levels] if levels else []
        self._levels = [np.unique(values, return_inverse=True)[1] for values in nested]
        self.count, self.seed, self.epoch = count, seed, 0
        self._draws = count if draws is None else draws

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Draws of an epoch."""
        return self._draws

    def __iter__(self) -> Iterator[int]:
        order = epoch_order(self.count, seed=self.seed, epoch=self.epoch, draws=self._draws, levels=self._levels)
        return iter(order.tolist())


def global_batches(order: Ints, batch_size: int, rank: int = 0, world: int = 1, *, start: int = 0) -> list[Ints]:
    """The share of one process in each global batch of consecutive draws.

    Each global batch is cut into equal contiguous parts, so that the parts of all ranks, joined, are the batch that one
    process alone would have read. An incomplete last batch is left out, unless it is the only one: a batch of one tile
    would upset batch norms.

    Args:
        order: The draws of an epoch, (n,).
        batch_size: Tiles in a global batch.
        rank: Which process this is, from 0.
        world: How many processes there are.
        start: Position in the order, where a batch begins, before which batches are left out.

    Returns:
        The indices of this process's tiles, an array a batch.

    Raises:
        ValueError: If a batch does not divide by `world`, or `start` does not by `batch_size`.
    """
    size = min(batch_size, len(order))
    if size % world or start % batch_size:
        raise ValueError(f"a batch of {size} for {world} processes from position {start}: they do not divide")
    part = size // world
    begins = range(start, len(order) - size + 1, size) if size else range(0)
    return [order[begin + rank * part : begin + (rank + 1) * part] for begin in begins]


def _shared_out(draws: int, tiles: Ints, levels: Sequence[NDArray[np.generic]], random: np.random.Generator) -> Ints:
    """`draws` of the `tiles` (n,), each as often as the law says, int64 (draws,)."""
    if not levels:
        whole, rest = divmod(draws, len(tiles))
        extra = random.choice(tiles, rest, replace=False) if rest else tiles[:0]
        return np.concatenate([np.tile(tiles, whole), extra])
    value = levels[0][tiles]
    _, sizes = np.unique(value, return_counts=True)
    groups = np.split(tiles[np.argsort(value, kind="stable")], np.cumsum(sizes)[:-1])
    whole, rest = divmod(draws, len(groups))
    share = np.full(len(groups), whole)
    share[random.permutation(len(groups))[:rest]] += 1
    parts = [_shared_out(int(s), group, levels[1:], random) for s, group in zip(share, groups, strict=True)]
    return np.concatenate(parts)
