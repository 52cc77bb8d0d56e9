from __future__ import annotations

from collections import Counter
from fractions import Fraction
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.data.samplers import NESTING, Shuffled, epoch_order, global_batches

Rows = list[tuple[int, ...]]
"""The values of each tile, the outermost level first."""
tables = st.integers(0, 3).flatmap(
    lambda levels: st.lists(st.tuples(*[st.integers(0, 3)] * levels), min_size=1, max_size=25)
)


def levels_of(rows: Rows) -> list[NDArray[np.int64]]:
    return [np.array(column) for column in zip(*rows, strict=True)]


def shares(rows: Rows) -> list[Fraction]:
    """The law's closed form: product over levels of 1 / (number of siblings), tiles being the last level."""
    paths = [(*row, number) for number, row in enumerate(rows)]
    siblings = [
        [{p[depth] for p in paths if p[:depth] == path[:depth]} for depth in range(len(path))] for path in paths
    ]
    return [prod((Fraction(1, len(s)) for s in of_tile), start=Fraction(1)) for of_tile in siblings]


@settings(max_examples=150, deadline=None)
@given(rows=tables, seed=st.integers(0, 3), epoch=st.integers(0, 3))
def test_draws_that_divide_follow_the_law_exactly(rows: Rows, seed: int, epoch: int) -> None:
    share = shares(rows)
    assert sum(share) == 1
    draws = prod({s.denominator for s in share})
    if draws > 100_000:
        return
    order = epoch_order(len(rows), seed=seed, epoch=epoch, draws=draws, levels=levels_of(rows))
    assert np.bincount(order, minlength=len(rows)).tolist() == [s * draws for s in share]


@settings(max_examples=200, deadline=None)
@given(rows=tables, draws=st.integers(1, 60), seed=st.integers(0, 3))
def test_siblings_differ_by_one_draw_at_most(rows: Rows, draws: int, seed: int) -> None:
    order = epoch_order(len(rows), seed=seed, epoch=0, draws=draws, levels=levels_of(rows))
    assert len(order) == draws
    paths = [(*row, number) for number, row in enumerate(rows)]
    for depth in range(len(paths[0])):
        counts = Counter(paths[i][: depth + 1] for i in order.tolist())
        families: dict[tuple[int, ...], list[int]] = {}
        for path in {p[: depth + 1] for p in paths}:
            families.setdefault(path[:-1], []).append(counts[path])
        assert all(max(family) - min(family) <= 1 for family in families.values())


def test_the_rest_is_drawn_fairly() -> None:
    """Five draws over a table that they do not divide: over many epochs each tile's mean is what the law says."""
    rows: Rows = [(0, 0), (0, 0), (0, 1), (1, 0), (1, 0), (1, 0), (2, 5)]
    epochs, draws = 5000, 5
    total = np.zeros(len(rows))
    for epoch in range(epochs):
        order = epoch_order(len(rows), seed=1, epoch=epoch, draws=draws, levels=levels_of(rows))
        total += np.bincount(order, minlength=len(rows))
    expected = np.array([float(s * draws) for s in shares(rows)])
    # A tile's count in an epoch varies by one around its mean m: its variance is at most 1/4 + that of its ancestors'
    # rounding, each at most 1/4 too. Five standard errors of three such levels.
    assert np.abs(total / epochs - expected).max() < 5 * np.sqrt(3 / 4 / epochs)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ({}, [1 / 6] * 6),
        ({"class": [0, 0, 0, 0, 1, 1]}, [1 / 8] * 4 + [1 / 4] * 2),
        ({"slide": list("aaabbc")}, [1 / 9] * 3 + [1 / 6] * 2 + [1 / 3]),
        # each class half; in class 0 its slides a and b, in class 1 its slides b and c
        ({"slide": list("aaabbc"), "class": [0, 0, 0, 0, 1, 1]}, [1 / 12] * 3 + [1 / 4] * 3),
        # sites before slides: site y has only slide c
        ({"slide": list("aaabbc"), "site": list("xxxxxy")}, [1 / 12] * 3 + [1 / 8] * 2 + [1 / 2]),
    ],
)
def test_balance_in_any_combination(levels: dict[str, list[object]], expected: list[float]) -> None:
    named = {name: np.array(values) for name, values in levels.items()}
    draws = 720
    sampler = Shuffled(6, seed=0, draws=draws, levels=named)
    assert np.bincount(list(sampler)) / draws == pytest.approx(expected)
    turned = Shuffled(6, seed=0, draws=draws, levels=dict(reversed(named.items())))
    assert list(turned) == list(sampler), "the order in which levels are named does not matter"


def test_the_nesting_goes_from_the_largest_to_the_smallest() -> None:
    assert NESTING == ("class", "site", "case", "slide")


def test_order_depends_on_seed_and_epoch_alone() -> None:
    sampler = Shuffled(50, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(50))
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(Shuffled(50, seed=4)) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert first == np.random.default_rng([3, 0]).permutation(50).tolist(), "as in every version before"


def test_a_budget_draws_no_tile_twice_before_all_are_drawn() -> None:
    few, many = Shuffled(50, seed=0, draws=20), Shuffled(50, seed=0, draws=120)
    assert len(few) == len(set(few)) == 20
    assert len(many) == len(list(many)) == 120
    assert set(np.bincount(list(many))) == {2, 3}
    drawn = set[int]()
    for epoch in range(12):
        few.set_epoch(epoch)
        drawn |= set(few)
    assert len(drawn) == 50, "each epoch has tiles of its own"


@settings(max_examples=200, deadline=None)
@given(count=st.integers(1, 60), per_rank=st.integers(1, 8), world=st.integers(1, 4), skipped=st.integers(0, 3))
def test_ranks_share_the_batches_that_one_process_would_read(
    count: int, per_rank: int, world: int, skipped: int
) -> None:
    order, size = np.random.default_rng(0).permutation(count), per_rank * world
    if count < size and count % world:
        with pytest.raises(ValueError, match="divide"):
            global_batches(order, size, 0, world)
        return
    alone = global_batches(order, size)
    parts = [global_batches(order, size, rank, world) for rank in range(world)]
    assert len({len(part) for rank in parts for part in rank}) == 1, "equal parts"
    for number, batch in enumerate(alone):
        assert batch.tolist() == [i for rank in parts for i in rank[number].tolist()]
    assert np.concatenate(alone).tolist() == order[: sum(map(len, alone))].tolist()
    assert all(len(batch) == min(size, count) for batch in alone)
    assert count < size or count - len(alone) * size < size, "no full batch is left out"
    resumed = global_batches(order, size, 0, world, start=skipped * size)
    assert [part.tolist() for part in resumed] == [part.tolist() for part in parts[0][skipped:]]


def test_a_start_inside_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="position 3"):
        global_batches(np.arange(20), 8, start=3)
