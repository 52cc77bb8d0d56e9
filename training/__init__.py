"""Tile store or image table -> model. Never opens a slide."""

from typing import TYPE_CHECKING

from tiling.core.lazy import make_lazy
from training.models.torchvision_shim import mend_on_import

if TYPE_CHECKING:
    from training.config import TrainConfig, load_train_config
    from training.data.dataset import Samples, samples_from_images, samples_from_stores
    from training.evaluation.evaluate import choose_tiles, evaluate_models, labelled_tiles
    from training.losses import SpectralDecouplingLoss
    from training.models.folder import ModelInfo, TileModel, load_model
    from training.train import TrainResult, train, training_key

__all__ = [
    "ModelInfo",
    "Samples",
    "SpectralDecouplingLoss",
    "TileModel",
    "TrainConfig",
    "TrainResult",
    "choose_tiles",
    "evaluate_models",
    "labelled_tiles",
    "load_model",
    "load_train_config",
    "samples_from_images",
    "samples_from_stores",
    "train",
    "training_key",
]

make_lazy(
    __name__,
    {
        "ModelInfo": "training.models.folder",
        "Samples": "training.data.dataset",
        "SpectralDecouplingLoss": "training.losses",
        "TileModel": "training.models.folder",
        "TrainConfig": "training.config",
        "TrainResult": "training.train",
        "choose_tiles": "training.evaluation.evaluate",
        "evaluate_models": "training.evaluation.evaluate",
        "labelled_tiles": "training.evaluation.evaluate",
        "load_model": "training.models.folder",
        "load_train_config": "training.config",
        "samples_from_images": "training.data.dataset",
        "samples_from_stores": "training.data.dataset",
        "train": "training.train",
        "training_key": "training.train",
    },
)
mend_on_import()
