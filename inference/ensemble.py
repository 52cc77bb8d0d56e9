"""Ensembles and test-time augmentation: mean and uncertainty (spread, entropy) of several models, or several views of a
tile. Torch is not needed for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from tiling.core.arrays import Float32Array, UInt8Array
from tiling.core.errors import ModelError
from tiling.core.files import sha256_json
from tiling.grid import same_scale

if TYPE_CHECKING:
    from training import TileModel


@dataclass(frozen=True)
class Ensemble:
    """Models of the same classes and of the same tiles that are asked together; see `make_ensemble`."""

    models: tuple[TileModel, ...]

    @cached_property
    def sha256(self) -> str:
        """One hash of all models; see `models_hash`."""
        return models_hash(self.models[0].info.mpp, [model.sha256 for model in self.models])


def models_hash(mpp: float | None, hashes: Sequence[str]) -> str:
    """The hash of an ensemble: of its models in any order, and of the first one's scale; of one model, its own."""
    return hashes[0] if len(hashes) == 1 else sha256_json([mpp, sorted(hashes)])


def make_ensemble(models: Sequence[TileModel]) -> TileModel | Ensemble:
    """One model as itself, several as an ensemble. Raises ModelError for models that cannot be averaged.

    They must name the same classes in the same order, call the same one positive, and be of tiles of the same side and
    scale (`tiling.grid.same_scale`). The first one's tiles are the ensemble's, and the mean of their thresholds its
    threshold.
    """
    first, *others = models
    for number, model in enumerate(others, start=2):
        for what, theirs, ours in (
            ("the classes", model.info.classes, first.info.classes),
            ("the positive class", model.info.positive_class, first.info.positive_class),
            ("tiles of side, in px,", model.info.tile_px, first.info.tile_px),
        ):
            if theirs != ours:
                raise _misfit(number, model, f"has {what} {_said(theirs)}, and the first one {_said(ours)}")
        if not _close(model.info.mpp, first.info.mpp):
            what = f"was trained at {model.info.mpp} micrometres a pixel, and the first one at {first.info.mpp}"
            raise _misfit(number, model, what)
    if len({model.sha256 for model in models}) < len(models):
        raise ModelError("the ensemble", "holds one model twice", "name each once")
    return Ensemble(tuple(models)) if others else first


def members(model: TileModel | Ensemble) -> tuple[TileModel, ...]:
    """The models of an ensemble; of a single model, itself."""
    return model.models if isinstance(model, Ensemble) else (model,)


def orientations(tiles: UInt8Array) -> Iterator[UInt8Array]:
    """Tiles uint8 (B, T, T, 3) in all eight orientations, the given one first: four rotations, each also mirrored."""
    for mirrored in (tiles, tiles[:, :, ::-1]):
        for turns in range(4):
            yield np.rot90(mirrored, turns, axes=(1, 2))


def averaged(answers: Iterable[Float32Array], positive: int) -> tuple[Float32Array, Float32Array | None]:
    """The mean of probabilities (B, C), and the standard deviation of the positive class's, float32 (B,).

    What follows the probabilities in a row, see inference.backends.Predict, is averaged too.
    The deviation is the population's (divided by the number of answers). A single answer is itself, and has none.
    """
    stack = np.stack(list(answers))  # (A, B, C)
    if len(stack) == 1:
        return stack[0], None
    exact = stack.astype(np.float64)
    return exact.mean(0).astype(np.float32), exact[..., positive].std(0).astype(np.float32)


def entropy(probabilities: Float32Array) -> Float32Array:
    """The predictive entropy of probabilities (N, C) in nats, float32 (N,): 0 for a sure answer, ln C for none at all.

    -sum p ln p over the classes (Shannon 1948), with 0 ln 0 = 0.
    """
    p = probabilities.astype(np.float64)
    terms = np.where(p > 0, -p * np.log(np.where(p > 0, p, 1)), 0)
    return np.asarray(terms.sum(1), np.float32)


def _close(mpp: float | None, other: float | None) -> bool:
    return mpp == other or (mpp is not None and other is not None and same_scale(mpp, other))


def _misfit(number: int, model: TileModel, what: str) -> ModelError:
    where = f"model {number} of the ensemble ({model.info.backbone}, {model.sha256[:8]})"
    return ModelError(where, what, "put models of the same classes and tiles together")


def _said(value: object) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)
