"""Batches regrouped against plain slices."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.readahead import Batch, regrouped


def batch(indices: list[int]) -> Batch:
    """Tiles of 2 px whose every value is their index."""
    found = np.array(indices, np.intp)
    return found, np.broadcast_to(found[:, None, None, None], (len(found), 2, 2, 3)).astype(np.uint8)


@given(st.lists(st.integers(0, 7), max_size=12), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_regrouping_keeps_every_tile_in_its_place(lengths: list[int], size: int) -> None:
    ends = np.cumsum([0, *lengths]).tolist()
    batches = [batch(list(range(a, b))) for a, b in pairwise(ends)]
    found = list(regrouped(batches, size))
    assert [index for indices, _ in found for index in indices.tolist()] == list(range(ends[-1]))
    assert all((pixels == indices[:, None, None, None]).all() for indices, pixels in found)
    assert [len(indices) for indices, _ in found] == [min(size, ends[-1] - at) for at in range(0, ends[-1], size)]


def test_whole_batches_are_not_copied() -> None:
    whole = batch([0, 1, 2])
    assert np.shares_memory(next(regrouped([whole], 3))[1], whole[1])
