"""Tile store or image table -> model. Never opens a slide."""

from training.models.torchvision_shim import mend_torchvision

mend_torchvision()  # before anything imports torchvision, as timm and lightning do

from training.config import TrainConfig, load_train_config  # noqa: E402
from training.data.samples import Samples, samples_from_images, samples_from_stores  # noqa: E402
from training.evaluation.evaluate import choose_tiles, evaluate_models, labelled_tiles  # noqa: E402
from training.losses import SpectralDecouplingLoss  # noqa: E402
from training.models.classifier import TileModel  # noqa: E402
from training.models.folder import load_model  # noqa: E402
from training.models.info import ModelInfo  # noqa: E402
from training.train import TrainResult, model_recipe, train  # noqa: E402

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
    "model_recipe",
    "samples_from_images",
    "samples_from_stores",
    "train",
]
