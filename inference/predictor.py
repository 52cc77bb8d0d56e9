"""Models that predict tiles: one or several, on their devices, in batches. Knows nothing of slides and stores."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from inference.backends import BatchSizer, Predict, auto_batch_size, choose_backend, uses_bf16
from inference.config import PredictConfig
from inference.ensemble import Ensemble, averaged, members, orientations
from inference.ood import comparable
from inference.sources import Demand
from tiling.core.arrays import Float32Array, UInt8Array
from tiling.core.errors import ModelError
from training import TileModel

_MAX_READERS = 8


@dataclass(frozen=True)
class Predictor:
    """Models on their devices, and how tiles are shown to them: backend, mixed precision, test-time augmentation."""

    models: tuple[TileModel, ...]
    predictors: tuple[Predict, ...]
    backends: tuple[str, ...]
    bf16: bool
    tta: bool
    batch_size: int
    readers: int

    @classmethod
    def of(cls, model: TileModel | Ensemble, config: PredictConfig) -> Predictor:
        """The predictor of one model or of an ensemble. Raises ConfigError, ModelError for what cannot be done here."""
        models = comparable(members(model))
        backends, predictors = zip(*(choose_backend(m, config.backend, config.precision) for m in models), strict=True)
        on_gpu = any(m.device.type != "cpu" for m in models)
        return cls(
            models=models,
            predictors=tuple(
                BatchSizer(predict, (m.sha256, str(m.device), backend))
                for m, predict, backend in zip(models, predictors, backends, strict=True)
            ),
            backends=backends,
            bf16=any(uses_bf16(m.device, config.precision) for m in models),
            tta=config.tta,
            batch_size=config.batch_size or min(auto_batch_size(m) for m in models),
            readers=config.readers or auto_readers(on_gpu),
        )

    @property
    def demand(self) -> Demand:
        """The tiles that the models ask for. Raises ModelError for one of unknown scale."""
        return Demand(model_mpp(self.models[0]), self.models[0].info.tile_px, self.batch_size, self.readers)

    @property
    def threshold(self) -> float:
        """The decision threshold: the mean of the models', rounded to float32 as probabilities are.

        So a tile at the threshold is at it in every comparison.
        """
        return float(np.float32(np.mean([model.info.threshold for model in self.models])))

    @property
    def ood_quantile(self) -> float | None:
        """The smallest OOD quantile of the models, so that none promises less; None where they cannot tell."""
        known = [model.info.novelty.quantile for model in self.models if model.novelty and model.info.novelty]
        return min(known, default=None)

    def answers(self, tiles: UInt8Array) -> tuple[Float32Array, Float32Array | None]:
        """Mean probabilities over models and orientations (B, C), and the positive class's standard deviation (B,).

        Of models with `novelty` (B, C + 1), as `inference.backends.Predict`.
        """
        views = list(orientations(tiles)) if self.tta else [tiles]  # views of one array, not copies
        answers = (predict(view) for predict in self.predictors for view in views)
        return averaged(answers, self.models[0].info.positive)


def auto_readers(on_gpu: bool) -> int:
    """Threads that read and decode for a network: on a CPU, which needs the cores itself, one."""
    return max(1, min(_MAX_READERS, (os.cpu_count() or 1) - 1)) if on_gpu else 1


def model_mpp(model: TileModel) -> float:
    """Micrometres per pixel of the model's tiles. Raises ModelError if it was trained on images of unknown scale."""
    if model.info.mpp is None:
        fix = "train it again and pass --mpp with the scale of its images"
        raise ModelError(
            "the model", "does not say at what scale it was trained, so it cannot be laid over slides", fix
        )
    return model.info.mpp
