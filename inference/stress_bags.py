"""Bags shifted as another scanner or laboratory would: pixels -> shift -> encoder -> what models of bags say.

The tiles are those of the feature stores; their pixels are read again, from the slides or from tile stores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.embed import demand_of, sized
from inference.encoders import TileEncoder
from inference.readahead import Batch
from tiling import Slide, TileStore
from tiling.core.arrays import Float32Array, Icc
from tiling.core.errors import StoreError
from tiling.core.threads import read_ahead
from tiling.grid import Tiles
from tiling.manifest import ManifestRow
from tiling.stores.features import FeatureStore
from tiling.tile import read_tiles
from training.data.bags import numbered
from training.data.samples import BagPart, Split
from training.evaluation.predictions import Model, Predictions, View, predictions_of, require_finite

_VIEWS_BYTES = 1 << 30
"""So many bytes of a bag's features, under several shifts, are in memory: the bag is read again for the others."""
_OTHER_PIXELS = 0.2
"""A share of the features' norm: if those of unshifted tiles lie farther from the stored ones, they are of others."""
_READ_AHEAD = 2
Rows = NDArray[np.intp]


@dataclass(frozen=True)
class ShiftedBags:
    """Predicts bags whose tiles are shifted before the encoder sees them: a `PredictViews` of the stress test."""

    encoder: TileEncoder
    """That of the models."""
    slides: Mapping[str, ManifestRow]
    """The bags' slides by their ids."""
    stores: Path | None = None
    """Folder of tile stores to take the pixels from; None: from the slides."""

    def __call__(
        self, models: Mapping[str, Model], split: Split, views: Sequence[View], report: Callable[[int], None]
    ) -> dict[str, list[Predictions]]:
        """Predictions of the bags of a split under each view, by model; a view's features are made once for all models.

        Args:
            models: Models of bags, all of this encoder.
            split: n bags.
            views: What is done to the tiles before the encoder sees them.
            report: Called with the number of predictions done since the last call.

        Returns:
            By model, predictions of the n bags for each view, in the order of the split's classes.

        Raises:
            StoreError: If the pixels are not those that the features were made of.
            SlideError: If a tile of a slide cannot be read.
            ModelError: If a probability is not finite.
        """
        found = {name: np.empty((len(views), len(split), len(split.classes))) for name in models}
        order = {name: [model.info.classes.index(one) for one in split.classes] for name, model in models.items()}
        for position, index in enumerate(split.indices.tolist()):
            parts = split.samples.bags[split.samples.source[index]]
            for first, bag in enumerate(self._bags(parts, views)):
                for name, model in models.items():
                    found[name][first, position] = model.predict(bag[None])[0, order[name]]
                    require_finite(found[name][first, [position]], split.slide_id[[position]])
                    report(1)
        facts = {name: (m.info.threshold, split.classes.index(m.info.positive_class)) for name, m in models.items()}
        return {name: [predictions_of(split, p, *facts[name]) for p in found[name]] for name in models}

    def _bags(self, parts: Sequence[BagPart], views: Sequence[View]) -> Iterator[Float32Array]:
        """The bag (n, 1 + D) under each view, as many views at once as memory allows."""
        tiles = sum(len(part.rows) for part in parts)
        at_once = max(1, _VIEWS_BYTES // (4 * tiles * (1 + self.encoder.record.dim)))
        for start in range(0, len(views), at_once):
            shown = views[start : start + at_once]
            of_parts = [self._part(part, number, shown, check=start == 0) for number, part in enumerate(parts)]
            for view in range(len(shown)):
                yield np.concatenate([part[view] for part in of_parts])

    def _part(self, part: BagPart, number: int, views: Sequence[View], *, check: bool) -> list[Float32Array]:
        """Tiles (n, 1 + D) of a slide of that number in its bag, under each view."""
        store, encode, demand = FeatureStore(part.path), sized(self.encoder), demand_of(self.encoder)
        tiles = store.tiles.only(part.rows)
        made: list[list[Float32Array]] = [[] for _ in views]
        wanted = [
            np.arange(start, min(start + demand.batch_size, len(tiles)))
            for start in range(0, len(tiles), demand.batch_size)
        ]
        with self._pixels(part.slide_id, tiles, store.icc) as read:
            tasks = (partial(read, rows) for rows in wanted)
            with closing(read_ahead(tasks, demand.readers, demand.readers + _READ_AHEAD)) as batches:
                for rows, pixels in batches:
                    if check and rows[0] == 0:
                        _require_alike(encode(pixels), store.read(part.rows[rows]), part.path)
                    for view, of_view in zip(views, made, strict=True):
                        features = encode(view(pixels)).astype(store.dtype).astype(np.float32)
                        of_view.append(numbered(features, number, part.path))
        return [np.concatenate(of_view) for of_view in made]

    @contextmanager
    def _pixels(self, slide_id: str, tiles: Tiles, icc: Icc) -> Iterator[Callable[[Rows], Batch]]:
        """What reads the pixels of some of a slide's tiles, by their indices, in the colours that were embedded."""
        if self.stores is not None:
            store = TileStore(self.stores / f"{slide_id}.zarr")
            if store.icc != icc:
                what = f"holds pixels made with --icc {store.icc}, its features were made with --icc {icc}"
                raise StoreError(store.path, what, "pass the stores that were embedded, or leave them out")
            rows_of = _rows_of(store, tiles)
            yield lambda rows: (rows, store.read(rows_of[rows]))
            return
        row = self.slides[slide_id]
        with Slide(row.slide_path, mpp=row.mpp, icc=icc) as slide:
            yield lambda rows: (rows, np.stack([tile for _, tile in read_tiles(slide, tiles.only(rows), max_bad=0.0)]))


def _rows_of(store: TileStore, tiles: Tiles) -> Rows:
    """The rows (n,) of a store that hold those tiles. Raises StoreError for a tile that is not there."""
    row = {place: number for number, place in enumerate(store.tiles.places())}
    same = (store.grid.tile_px, store.grid.tile_px0) == (tiles.grid.tile_px, tiles.grid.tile_px0)
    if missing := [place for place in tiles.places() if not same or place not in row]:
        x0, y0 = missing[0]
        what = f"does not hold the tile of {tiles.side_px0} px at x {x0}, y {y0}, which has features"
        raise StoreError(store.path, what, "pass the stores that were embedded, or leave them out to read the slides")
    return np.array([row[place] for place in tiles.places()], np.intp)


def _require_alike(found: Float32Array, stored: Float32Array, where: Path) -> None:
    """Raise StoreError unless features (n, D) are those that are stored, but for rounding and compression."""
    if np.linalg.norm(found - stored) > _OTHER_PIXELS * np.linalg.norm(stored):
        what = "holds other features than its slide's tiles have"
        raise StoreError(where, what, "name the slide that was embedded in the manifest, or embed it again")
