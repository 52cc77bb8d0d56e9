"""Batches of tiles that were read ahead. Knows nothing of slides, stores and models."""

from __future__ import annotations

from collections.abc import Generator, Iterable

import numpy as np
from numpy.typing import NDArray

Batch = tuple[NDArray[np.intp], NDArray[np.uint8]]
"""Indices of tiles (n,), and their pixels (n, T, T, 3)."""
Batches = Generator[Batch, None, None]


def regrouped(batches: Iterable[Batch], size: int) -> Batches:
    """Tiles regrouped into batches of exactly `size`, but for the last; batches of that size pass untouched.

    A batch must not depend on which tiles were left out on the way: in other batches a network rounds otherwise.
    """
    indices, pixels = np.empty(0, np.intp), np.empty((0, 0, 0, 3), np.uint8)
    for more, tiles in batches:
        if len(more):
            indices = np.concatenate([indices, more]) if len(indices) else more
            pixels = np.concatenate([pixels, tiles]) if len(pixels) else tiles
        while len(indices) >= size:
            yield indices[:size], pixels[:size]
            indices, pixels = indices[size:], pixels[size:]
    if len(indices):
        yield indices, pixels
