"""Labelled tiles, or bags of them, as a table of facts: `Samples`, a row each, and a `Split` of them; no pixel is read.

Knows nothing of torch or models, and never opens a slide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiling.core.arrays import Icc
from tiling.core.files import sha256_json

Ints = NDArray[np.int64]
Texts = NDArray[np.str_]

TEXTS = ("case_id", "slide_id", "split", "site", "scanner")
"""The columns of `Samples` that come as texts from tables."""


class BagPart(NamedTuple):
    """The tiles of one feature store that belong to a bag."""

    path: Path
    """The store."""
    slide_id: str
    rows: Ints
    """Which of its tiles, (n,), in order."""
    sha256: str
    """The store's identity."""
    slide_sha256: str
    """Of the slide."""


@dataclass(frozen=True)
class Samples:
    """N labelled tiles, from images or from tile stores, or N labelled bags of tiles' features; all arrays are (N,)."""

    kind: Literal["images", "stores", "bags"]
    classes: tuple[str, ...]
    """Class names; `label` counts in this order."""
    sources: tuple[Path, ...]
    """Image files, or store folders; of a bag, its first."""
    hashes: tuple[str, ...]
    """What identifies the content of each source: SHA-256 of an image file, a store's `pixels_sha256`, a bag's stores
    and rows."""
    tile_px: int
    """Side of a stored tile, or the commonest of the images, pixels."""
    mpp: float | None
    """Micrometres per pixel of a tile; None if unknown."""
    label: Ints
    source: Ints
    """Index into `sources`."""
    row: Ints
    """Row in the store; 0 for images and bags, as are the next three."""
    x0: Ints
    """Left edge on the slide, level-0 pixels."""
    y0: Ints
    """Upper edge on the slide, level-0 pixels."""
    tile_px0: Ints
    """Side on the slide, level-0 pixels."""
    case_id: Texts
    slide_id: Texts
    split: Texts
    """"train", "val" or "test"; the same for all tiles of a case, and of a site where those are split."""
    site: Texts
    """Where the slide comes from; "" if unknown."""
    scanner: Texts
    """What scanned it; "" if unknown."""
    clear: NDArray[np.bool_]
    """Whether a tile is of its class beyond doubt. Others are validated and tested on, as heatmaps show them too, and
    not trained on."""
    mpp_assumed: bool = False
    """Whether `mpp` is only taken to be the model's, since nobody said the pictures' own."""
    fit: Literal["stretch", "pad", "crop"] = "stretch"
    """How pictures that are no squares are made such."""
    icc: Icc = "none"
    """The colours of their pixels: see `tiling.TilingConfig.icc`; of images as they are in the files."""
    whole: tuple[str, ...] = ()
    """SHA-256 of everything in each store, by which models of version 0.1 know them."""
    slides: tuple[str, ...] = ()
    """SHA-256 of the slide of each source, where these are tile stores."""
    bags: tuple[tuple[BagPart, ...], ...] = ()
    """Of each source that is a bag, the stores it is made of."""

    def __len__(self) -> int:
        return len(self.label)

    @property
    def noun(self) -> str:
        """What a sample is: a tile, or a bag."""
        return "bag" if self.kind == "bags" else "tile"

    def where(self, split: str) -> Ints:
        """Indices of the tiles of a split, in order; of "train", of those that are clear."""
        chosen = self.split == split
        return np.flatnonzero(chosen & self.clear if split == "train" else chosen)

    def split_of(self, name: str, tile_px: int | None = None) -> Split:
        """The tiles of a split; "all": every tile. They are read at `tile_px`, by default their own."""
        indices = np.arange(len(self)) if name == "all" else self.where(name)
        return Split(name, self, indices, tile_px or self.tile_px)

    def identity(self) -> str:
        """SHA-256 of what a model learns from: the content of the sources, which tiles of them, labels and splits."""
        return self._identity

    @cached_property
    def _identity(self) -> str:
        digest = hashlib.sha256()
        for numbers in (self.label, self.source, self.row, *([] if self.clear.all() else [self.clear])):
            digest.update(numbers.astype("<i8").tobytes())
        facts = [self.classes, self.hashes, self.tile_px, self.mpp]
        columns = (self.case_id, self.split, self.slide_id, self.site)  # slide and site, for sampling balances them
        return sha256_json([digest.hexdigest(), *facts, *(column.tolist() for column in columns)])

    def known_as(self, identity: str | None) -> bool:
        """Whether a hash is the samples' identity, by this version or by 0.1, which counted a store's labels too."""
        return identity in (self.identity(), replace(self, hashes=self.whole or self.hashes).identity())

    def content(self) -> Ints:
        """A number for each tile's source, (N,), equal where the content of the sources is."""
        _, content_of = np.unique(np.array(self.hashes), return_inverse=True)
        return np.asarray(content_of[self.source])

    def levels(self, names: Collection[str], indices: Ints) -> dict[str, NDArray[Any]]:
        """The columns that sampling balances over: by name, the class, slide, case or site of those samples, (n,)."""
        columns = {"class": self.label, "slide": self.slide_id, "case": self.case_id, "site": self.site}
        return {name: columns[name][indices] for name in names}


@dataclass(frozen=True)
class Split:
    """The tiles of one side: what is trained on, validated on or tested on."""

    name: str
    """train, val, test, or all."""
    samples: Samples
    indices: Ints
    """(n,) into the samples, in order."""
    tile_px: int
    """Side at which the tiles are read, pixels."""

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; labels count in this order."""
        return self.samples.classes

    @property
    def label(self) -> Ints:
        """Labels, (n,)."""
        return self.samples.label[self.indices]

    @property
    def case_id(self) -> Texts:
        """Cases, (n,)."""
        return self.samples.case_id[self.indices]

    @property
    def slide_id(self) -> Texts:
        """Slides, (n,)."""
        return self.samples.slide_id[self.indices]

    def column(self, name: str) -> Texts:
        """Values of a column to group by: case, slide, site or scanner; "" where unknown, (n,)."""
        columns = {"case": self.samples.case_id, "slide": self.samples.slide_id}
        return (columns[name] if name in columns else getattr(self.samples, name))[self.indices]

    def only(self, positions: Ints) -> Split:
        """Some of the split's tiles, by their positions (m,) in it."""
        return replace(self, indices=self.indices[positions])
