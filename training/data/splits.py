"""Which tiles train, validate and test: whole units (cases, or sites) to one side each. Pure, deterministic by seed.

A unit that leaks is worse than a failed run: what was given is checked, and what is made here is made of units that
share nothing (`joined`). Knows nothing of images or stores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tiling.core.errors import InputError

Ints = NDArray[np.int64]
Texts = NDArray[np.str_]

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "tune"), "val"),
    **dict.fromkeys(("test", "testing", "holdout"), "test"),
}


def joined(unit: Texts, *ties: NDArray[np.generic]) -> Texts:
    """The unit of each tile (N,), where units that share a value of one of the `ties` (N,) become one.

    They take the name that comes first. So the sites that a case was treated at are one site, and two cases that hold
    the same picture are one case.
    """
    names, unit_of = np.unique(unit, return_inverse=True)
    from scipy.sparse import coo_array  # slow to load, and rarely used
    from scipy.sparse.csgraph import connected_components

    nodes, edges = len(names), []
    for tie in ties:
        values, value_of = np.unique(tie, return_inverse=True)
        edges.append(np.stack([unit_of, nodes + value_of]))
        nodes += len(values)
    start, end = np.concatenate(edges, axis=1) if edges else np.empty((2, 0), dtype=np.int64)
    _, part = connected_components(coo_array((np.ones(len(start)), (start, end)), (nodes, nodes)), directed=False)
    part_of_name = part[: len(names)]
    first = np.full(nodes, len(names))
    np.minimum.at(first, part_of_name, np.arange(len(names)))
    return np.asarray(names[first[part_of_name]][unit_of])


def split_units(unit: Texts, label: Ints, *, val_fraction: float, test_fraction: float, seed: int) -> Texts:
    """The split of each tile, "train", "val" or "test", (N,): whole units, stratified by class.

    Units are grouped by the rarest class they hold, shuffled inside a group, and dealt out so that every group, and all
    units together, come as near to the fractions as whole units allow. Each split gets a unit if there are enough; the
    order of the rows does not matter.

    Args:
        unit: The unit of each tile, (N,): its case, or its site.
        label: The class of each tile, (N,).
        val_fraction: Share of the units that validate, in [0, 1).
        test_fraction: Share of the units that test, in [0, 1).
        seed: Decides, with the units, who goes where.

    Returns:
        The splits (N,).
    """
    units, unit_of = np.unique(unit, return_inverse=True)
    targets = _targets(len(units), (1 - val_fraction - test_fraction, val_fraction, test_fraction))
    split = np.empty(len(units), dtype=np.int64)
    split[_stratified_order(unit_of, label, len(units), seed)] = _deal(targets)
    return np.array(SPLITS)[split[unit_of]]


def split_by_fold(unit: Texts, label: Ints, *, folds: int, fold: int, val_fraction: float, seed: int) -> Texts:
    """The split of each tile, (N,), in one round of a cross-validation: the round's fold is the test.

    Over all rounds each unit is tested once, by a model that was neither trained on it nor chosen by it. The folds
    depend on seed and units alone.

    Args:
        unit: The unit of each tile, (N,): its case, or its site.
        label: The class of each tile, (N,).
        folds: Number of folds, at least 2.
        fold: The round, from 0.
        val_fraction: Share of all units that validate, dealt from the other folds as by `split_units`.
        seed: Decides, with the units, who goes where.

    Returns:
        The splits (N,), "train", "val" or "test".

    Raises:
        ValueError: If there are fewer units than folds.
    """
    tested = fold_of(unit, label, folds=folds, seed=seed) == fold
    split = np.full(len(unit), "test", dtype=np.array(SPLITS).dtype)
    share = val_fraction * folds / (folds - 1)
    split[~tested] = split_units(unit[~tested], label[~tested], val_fraction=share, test_fraction=0, seed=seed)
    return split


def fold_of(unit: Texts, label: Ints, *, folds: int, seed: int) -> Ints:
    """The fold of each tile, (N,), from 0 to `folds` - 1: whole units, stratified by class.

    In every group of units (by the rarest class they hold), and in all, the folds' numbers of units differ by one at
    most.

    Args:
        unit: The unit of each tile, (N,): its case, or its site.
        label: The class of each tile, (N,).
        folds: Number of folds.
        seed: Decides, with the units, who goes where.

    Returns:
        The folds (N,).

    Raises:
        ValueError: If there are fewer units than folds.
    """
    units, unit_of = np.unique(unit, return_inverse=True)
    if len(units) < folds:
        raise ValueError(f"{len(units)} units cannot make {folds} folds")
    fold = np.empty(len(units), dtype=np.int64)
    fold[_stratified_order(unit_of, label, len(units), seed)] = np.arange(len(units)) % folds
    return fold[unit_of]


def parse_splits(given: Sequence[str], where: object) -> Texts:
    """The splits (N,) that a table gives under any of their usual names. Raises InputError for gaps and other names."""
    named = [name for name in given if name]
    if len(named) < len(given):
        raise InputError(where, f"gives a split for {len(named)} of {len(given)} only", "fill the column or drop it")
    unknown = sorted({name for name in named if name.lower() not in SPLIT_NAMES})
    if unknown:
        raise InputError(where, f"the split {unknown[0]!r} is unknown", f"use {', '.join(SPLITS)}")
    return np.array([SPLIT_NAMES[name.lower()] for name in named])


def torn(unit: NDArray[np.generic], side: NDArray[np.generic]) -> tuple[int, int] | None:
    """The rows of the first unit (by value) that is on two sides, one row of each; None if there is none.

    `unit` and `side` are (N,); a side is a split, or a class.
    """
    _, first, unit_of = np.unique(unit, return_index=True, return_inverse=True)
    differs = np.flatnonzero(side != side[first[unit_of]])
    if len(differs) == 0:
        return None
    row = differs[unit_of[differs].argmin()]
    return int(first[unit_of[row]]), int(row)


def _stratified_order(unit_of: Ints, label: Ints, units: int, seed: int) -> Ints:
    """The units (U,), shuffled, in groups by the rarest class they hold: the rarest group first."""
    holds = np.stack([np.bincount(unit_of, weights=label == c, minlength=units) > 0 for c in np.unique(label)])
    rarity = np.argsort(np.argsort(holds.sum(axis=1), kind="stable"), kind="stable")
    stratum = np.where(holds, rarity[:, None], len(holds)).min(axis=0)
    shuffled = np.random.default_rng(seed).permutation(units)
    return shuffled[np.argsort(stratum[shuffled], kind="stable")]


def _targets(units: int, fractions: tuple[float, ...]) -> list[int]:
    """How many units each split gets: nearest to the fractions, at least one where the fraction is not 0."""
    exact = np.array(fractions) * units
    targets = np.floor(exact).astype(int)
    targets[np.argsort(targets - exact, kind="stable")[: units - targets.sum()]] += 1
    for split in np.flatnonzero((targets == 0) & (exact > 0)):
        if targets.max() > 1:
            targets[targets.argmax()] -= 1
            targets[split] += 1
    return [int(target) for target in targets]


def _deal(targets: Sequence[int]) -> Ints:
    """Splits in the order in which units get them: each prefix as near to the targets' proportions as can be."""
    total, given = sum(targets), np.zeros(len(targets))
    dealt = []
    for place in range(1, total + 1):
        owed = np.array(targets) * place / total - given
        split = int(np.where(given < targets, owed, -np.inf).argmax())
        given[split] += 1
        dealt.append(split)
    return np.array(dealt, dtype=np.int64)
