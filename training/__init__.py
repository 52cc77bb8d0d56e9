"""Tile store, feature store or image table -> model. Never opens a slide."""

from typing import TYPE_CHECKING

from tiling.core.lazy import make_lazy
from training.models.torchvision_shim import mend_on_import

if TYPE_CHECKING:
    from training.config import BagConfig, TrainConfig, load_train_config
    from training.data.from_features import samples_from_features
    from training.data.from_images import samples_from_images
    from training.data.from_stores import samples_from_stores
    from training.data.samples import Samples
    from training.evaluation.evaluate import choose_tiles, evaluate_models, labelled_tiles
    from training.losses import SpectralDecouplingLoss
    from training.mil.model import BagModel, load_any_model, load_bag_model
    from training.models.classifier import TileModel
    from training.models.folder import load_model
    from training.models.info import ModelInfo
    from training.recipes import model_recipe, model_state
    from training.selection.candidates import TuneConfig
    from training.train import TrainResult, train
    from training.tune import tune

__all__ = [
    "BagConfig",
    "BagModel",
    "ModelInfo",
    "Samples",
    "SpectralDecouplingLoss",
    "TileModel",
    "TrainConfig",
    "TrainResult",
    "TuneConfig",
    "choose_tiles",
    "evaluate_models",
    "labelled_tiles",
    "load_any_model",
    "load_bag_model",
    "load_model",
    "load_train_config",
    "model_recipe",
    "model_state",
    "samples_from_features",
    "samples_from_images",
    "samples_from_stores",
    "train",
    "tune",
]

make_lazy(
    __name__,
    {
        "BagConfig": "training.config",
        "BagModel": "training.mil.model",
        "ModelInfo": "training.models.info",
        "Samples": "training.data.samples",
        "SpectralDecouplingLoss": "training.losses",
        "TileModel": "training.models.classifier",
        "TrainConfig": "training.config",
        "TrainResult": "training.train",
        "TuneConfig": "training.selection.candidates",
        "choose_tiles": "training.evaluation.evaluate",
        "evaluate_models": "training.evaluation.evaluate",
        "labelled_tiles": "training.evaluation.evaluate",
        "load_any_model": "training.mil.model",
        "load_bag_model": "training.mil.model",
        "load_model": "training.models.folder",
        "load_train_config": "training.config",
        "model_recipe": "training.recipes",
        "model_state": "training.recipes",
        "samples_from_features": "training.data.from_features",
        "samples_from_images": "training.data.from_images",
        "samples_from_stores": "training.data.from_stores",
        "train": "training.train",
        "tune": "training.tune",
    },
)
mend_on_import()
