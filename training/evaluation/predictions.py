"""What models say of labelled tiles: one loop that predicts, `Predictions`, and the table they are written as."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tiling.core.errors import ModelError
from training.data.dataset import TileDataset
from training.data.samples import Split
from training.evaluation.metrics import Floats, Ints, Metric, decide, standard_metrics
from training.evaluation.tables import csv_text
from training.models.info import BagInfo, ModelInfo

View = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""Tiles uint8 (n, T, T, 3) -> tiles as the model is to see them."""


class Model(Protocol):
    """A trained model of tiles, or of bags, as what tests it knows it."""

    @property
    def info(self) -> ModelInfo | BagInfo:
        """Its record."""
        ...

    @property
    def sha256(self) -> str:
        """One hash of its folder."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def backend(self) -> str:
        """What computes: "torch" or "onnx"."""
        ...

    def predict(self, tiles: NDArray[Any], /) -> NDArray[np.float32]:
        """Class probabilities float32 (B, C) of what its `TileDataset` reads, (B, ...)."""
        ...


@dataclass(frozen=True)
class Predictions:
    """A model's probabilities of N labelled tiles, or bags."""

    probabilities: Floats
    """float64 (N, C)."""
    labels: Ints
    """int64 (N,) in [0, C)."""
    case_ids: NDArray[np.str_]
    """(N,)."""
    classes: tuple[str, ...]
    threshold: float
    """The positive class is called from this probability on."""
    positive: int
    """Index of the positive class."""

    @property
    def called(self) -> Ints:
        """The class the model calls, (N,)."""
        return decide(self.probabilities, self.threshold, self.positive)

    def chosen(self, which: NDArray[Any]) -> Predictions:
        """Those of some of the tiles: indices (n,), or a mask bool (N,)."""
        parts = {name: getattr(self, name)[which] for name in ("probabilities", "labels", "case_ids")}
        return replace(self, **parts)

    def metrics(self) -> dict[str, Metric]:
        """Its `standard_metrics`, each a function of weights."""
        return standard_metrics(self.probabilities, self.labels, threshold=self.threshold, positive=self.positive)


def predictions_of(split: Split, probabilities: Floats, threshold: float, positive: int) -> Predictions:
    """The predictions of a split: probabilities with the labels and cases of its tiles.

    Args:
        split: n tiles.
        probabilities: (n, C).
        threshold: The decision threshold, in [0, 1].
        positive: Index of the positive class.

    Returns:
        The predictions.
    """
    return Predictions(probabilities, split.label, split.case_id, split.classes, threshold, positive)


def predict_views(
    model: Model,
    split: Split,
    views: Sequence[View],
    *,
    batch_size: int = 256,
    report: Callable[[int], None] = lambda count: None,
) -> list[Predictions]:
    """Predictions of the tiles of a split under each of several views (perturbations); each tile is read once.

    Args:
        model: The model; the tiles are read at its own side.
        split: n tiles, of the model's classes in any order.
        views: What is done to the tiles before the model sees them.
        batch_size: Tiles the model sees at once; of bags, which come whole, it is one.
        report: Called with the number of predictions done since the last call.

    Returns:
        Predictions of the n tiles for each view, in the order of the split's classes.

    Raises:
        ModelError: If a probability is not finite.
        InputError, StoreError: If a tile cannot be read.
    """
    info = model.info
    tiles = TileDataset(replace(split, tile_px=info.tile_px))
    order = [info.classes.index(name) for name in split.classes]
    found = [np.empty((len(split), len(order))) for _ in views]
    batch_size = 1 if split.samples.kind == "bags" else batch_size
    for start in range(0, len(split), batch_size):
        positions = list(range(start, min(start + batch_size, len(split))))
        pixels = tiles.__getitems__(positions).tiles.numpy()
        for view, probabilities in zip(views, found, strict=True):
            probabilities[positions] = model.predict(view(pixels))[:, order]
            require_finite(probabilities[positions], split.slide_id[positions])
            report(len(positions))
    positive = split.classes.index(info.positive_class)
    return [predictions_of(split, probabilities, info.threshold, positive) for probabilities in found]


def prediction_table(splits: Sequence[Split], predicted: Sequence[Mapping[str, Predictions]]) -> str:
    """CSV: a row a tile, with its place in level-0 pixels and the calibrated probabilities of each model by its name.

    A bag has no place. `predicted` holds, for each split, the predictions of its tiles by model; with one model its
    name is left out.
    """
    classes, names = splits[0].classes, list(predicted[0])
    columns = [f"prob_{name}" if len(names) == 1 else f"{model}_prob_{name}" for model in names for name in classes]
    head = ["split", "case_id", "slide_id", "site", "scanner", "minx", "miny", "width", "height", "label"]
    rows: list[list[object]] = []
    for split, by_model in zip(splits, predicted, strict=True):
        samples = split.samples
        values = np.concatenate([p.probabilities for p in by_model.values()], axis=1)
        for i, p in zip(split.indices, values, strict=True):
            side = samples.tile_px0[i]
            place = [samples.x0[i], samples.y0[i], side, side] if samples.kind == "stores" else [""] * 4
            facts = [samples.split[i], samples.case_id[i], samples.slide_id[i], samples.site[i], samples.scanner[i]]
            rows.append([*facts, *place, classes[samples.label[i]], *(f"{value:.6f}" for value in p)])
    return csv_text([*head, *columns], rows)


def require_finite(probabilities: Floats, slide_ids: NDArray[np.str_]) -> None:
    """Raise ModelError, naming the slide, unless all probabilities (n, C) of samples of those slides are finite."""
    broken = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
    if len(broken):
        what = "the model gives no finite probability for a tile of it"
        raise ModelError(str(slide_ids[broken[0]]), what, "check the model's training")
