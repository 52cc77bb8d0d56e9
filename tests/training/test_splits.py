from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.splits import SPLITS, split_units


@settings(max_examples=150, deadline=None)
@given(
    tiles=st.lists(st.tuples(st.integers(0, 15), st.integers(0, 2)), min_size=1, max_size=80),
    fractions=st.tuples(st.floats(0.05, 0.45), st.floats(0, 0.45)),
    seed=st.integers(0, 5),
)
def test_splits_never_leak_and_do_not_depend_on_the_order(
    tiles: list[tuple[int, int]], fractions: tuple[float, float], seed: int
) -> None:
    case_id, label = np.array([f"case{c}" for c, _ in tiles]), np.array([k for _, k in tiles])
    val_fraction, test_fraction = fractions

    def split(order: NDArray[np.int64]) -> NDArray[np.str_]:
        found = split_units(
            case_id[order], label[order], val_fraction=val_fraction, test_fraction=test_fraction, seed=seed
        )
        return found[np.argsort(order)]

    straight = split(np.arange(len(tiles)))
    assert (straight == split(np.random.default_rng(seed).permutation(len(tiles)))).all()
    split_of = {str(case): {str(s) for s in straight[case_id == case]} for case in np.unique(case_id)}
    assert all(len(splits) == 1 for splits in split_of.values()), "a case is in one split"

    counts = [sum(splits == {name} for splits in split_of.values()) for name in SPLITS]
    for count, fraction in zip(counts, (1 - sum(fractions), *fractions), strict=True):
        assert abs(count - fraction * len(split_of)) < 2
        if len(split_of) >= 3 and fraction > 0:
            assert count >= 1


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
