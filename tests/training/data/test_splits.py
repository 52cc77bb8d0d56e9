from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.data.splits import SPLITS, fold_of, joined, split_by_fold, split_units, torn

Tiles = list[tuple[int, int]]
"""(unit, class) of each tile."""
tiles_of_units = st.lists(st.tuples(st.integers(0, 15), st.integers(0, 2)), min_size=1, max_size=80)


def columns(tiles: Tiles) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    return np.array([f"case{unit}" for unit, _ in tiles]), np.array([k for _, k in tiles])


def strata(tiles: Tiles) -> list[set[str]]:
    """The units by the rarest class they hold (in units; the smaller class of two as rare), the rarest group first."""
    units_of = {k: {f"case{unit}" for unit, c in tiles if c == k} for k in sorted({k for _, k in tiles})}
    groups, dealt = [], set[str]()
    for k in sorted(units_of, key=lambda k: (len(units_of[k]), k)):
        groups.append(units_of[k] - dealt)
        dealt |= units_of[k]
    return groups


def one_side_each(unit: NDArray[np.str_], side: NDArray[np.generic]) -> dict[str, object]:
    """The side of each unit, which has one."""
    sides = {str(u): set(side[unit == u].tolist()) for u in np.unique(unit)}
    assert all(len(found) == 1 for found in sides.values()), "a unit is on one side"
    return {u: found.pop() for u, found in sides.items()}


# --- one split ---


@settings(max_examples=150, deadline=None)
@given(
    tiles=tiles_of_units,
    fractions=st.tuples(st.floats(0.05, 0.45), st.floats(0, 0.45)),
    seed=st.integers(0, 5),
)
def test_splits_never_leak_and_do_not_depend_on_the_order(
    tiles: Tiles, fractions: tuple[float, float], seed: int
) -> None:
    unit, label = columns(tiles)
    val_fraction, test_fraction = fractions

    def split(order: NDArray[np.int64]) -> NDArray[np.str_]:
        found = split_units(
            unit[order], label[order], val_fraction=val_fraction, test_fraction=test_fraction, seed=seed
        )
        return found[np.argsort(order)]

    straight = split(np.arange(len(tiles)))
    assert (straight == split(np.random.default_rng(seed).permutation(len(tiles)))).all()
    split_of = one_side_each(unit, straight)
    assert set(split_of.values()) <= set(SPLITS), "every unit has a side"

    counts = Counter(split_of.values())
    for name, fraction in zip(SPLITS, (1 - sum(fractions), *fractions), strict=True):
        assert abs(counts[name] - fraction * len(split_of)) < 2
        if len(split_of) >= 3 and fraction > 0:
            assert counts[name] >= 1
    groups = strata(tiles)
    for number, group in enumerate(groups):  # the first and the last group begin or end the deal: they come nearest
        within = 1 if number in (0, len(groups) - 1) else 2
        for name in SPLITS:
            ideal = len(group) * counts[name] / len(split_of)
            assert abs(sum(split_of[u] == name for u in group) - ideal) < within


@pytest.mark.parametrize("seed", range(20))
def test_rare_cases_are_spread_over_the_splits(seed: int) -> None:
    case_id = np.array([f"case{i}" for i in range(40)])
    label = np.array([1] * 8 + [0] * 32)  # 8 of 40 cases hold the rare class
    split = split_units(case_id, label, val_fraction=0.25, test_fraction=0.25, seed=seed)
    rare = [int(((split == name) & (label == 1)).sum()) for name in SPLITS]
    assert rare == [4, 2, 2]
    assert [int((split == name).sum()) for name in SPLITS] == [20, 10, 10]


def test_splits_differ_by_seed() -> None:
    case_id, label = np.array([f"case{i}" for i in range(40)]), np.zeros(40, dtype=np.int64)
    splits = {tuple(split_units(case_id, label, val_fraction=0.2, test_fraction=0.2, seed=s)) for s in range(5)}
    assert len(splits) == 5


# --- folds ---


@settings(max_examples=150, deadline=None)
@given(tiles=tiles_of_units, folds=st.integers(2, 6), seed=st.integers(0, 5))
def test_folds_partition_the_units_evenly_in_every_group(tiles: Tiles, folds: int, seed: int) -> None:
    unit, label = columns(tiles)
    if len(set(unit)) < folds:
        with pytest.raises(ValueError, match="folds"):
            fold_of(unit, label, folds=folds, seed=seed)
        return
    fold = fold_of(unit, label, folds=folds, seed=seed)
    order = np.random.default_rng(seed).permutation(len(tiles))
    assert (fold_of(unit[order], label[order], folds=folds, seed=seed) == fold[order]).all()
    fold_of_unit = one_side_each(unit, fold)
    for group in [set(fold_of_unit), *strata(tiles)]:
        counts = [sum(fold_of_unit[u] == f for u in group) for f in range(folds)]
        assert sum(counts) == len(group), "every unit is in a fold"
        assert max(counts) - min(counts) <= 1


@settings(max_examples=100, deadline=None)
@given(tiles=tiles_of_units, folds=st.integers(2, 5), share=st.floats(0.05, 0.4), seed=st.integers(0, 5))
def test_each_unit_is_tested_in_one_round_and_never_trained_on_in_it(
    tiles: Tiles, folds: int, share: float, seed: int
) -> None:
    unit, label = columns(tiles)
    units = set(unit.tolist())
    if len(units) < folds:
        return
    tested: Counter[str] = Counter()
    for fold in range(folds):
        split = split_by_fold(unit, label, folds=folds, fold=fold, val_fraction=share, seed=seed)
        split_of = one_side_each(unit, split)
        tested.update(u for u, name in split_of.items() if name == "test")
        counts = Counter(split_of.values())
        assert abs(counts["val"] - share * len(units)) < 2, "a share of all units, though taken from the rest of them"
    assert tested == Counter(units)


# --- what belongs together ---


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20))
def test_joined_units_are_the_connected_ones(rows: list[tuple[int, int, int]]) -> None:
    unit, *ties = (np.array(column) for column in zip(*rows, strict=True))
    found = joined(np.array([f"u{u}" for u in unit]), *ties)
    part = list(
        range(len(rows))
    )  # the oracle: spread the smallest row over whatever shares a value, until all is still
    for _ in rows:
        for a, b in itertools.product(range(len(rows)), repeat=2):
            if any(x == y for x, y in zip(rows[a], rows[b], strict=True)):
                part[a] = part[b] = min(part[a], part[b])
    for a, b in itertools.combinations(range(len(rows)), 2):
        assert (found[a] == found[b]) == (part[a] == part[b])
    for name in set(found.tolist()):
        assert name == min(f"u{unit[i]}" for i in np.flatnonzero(found == name))


def test_nothing_is_joined_without_ties() -> None:
    unit = np.array(["b", "a", "b"])
    assert joined(unit).tolist() == joined(unit, np.arange(3)).tolist() == unit.tolist()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 1)), max_size=12))
def test_what_is_torn_is_found(rows: list[tuple[int, int]]) -> None:
    unit, side = np.array([u for u, _ in rows], dtype=int), np.array([s for _, s in rows], dtype=int)
    divided = sorted({u for u, _ in rows if {s for v, s in rows if v == u} == {0, 1}})
    found = torn(unit, side)
    assert (found is None) == (not divided)
    if found:
        a, b = found
        assert unit[a] == unit[b] == divided[0]
        assert side[a] != side[b]
