"""What models say of single tiles that are shown to them changed: the functions that `inference.occlusion` asks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from inference.config import PredictConfig
from inference.encoders import Encode, load_encoder
from inference.ensemble import Ensemble, make_ensemble, models_hash
from inference.known_encoders import encoder_like
from inference.occlusion import Positives
from inference.predictor import Predictor
from tiling.core.arrays import Float32Array, UInt8Array
from tiling.core.errors import ConfigError, ModelError
from training import TileModel, load_bag_model, load_model
from training.mil.model import BagModel
from training.models.info import BagInfo, read_record


def tile_positives(model: TileModel | Ensemble, config: PredictConfig) -> Positives:
    """What a tile classifier, or several, say of tiles, as `predict_slide` computes it."""
    predictor = Predictor.of(model, config)
    positive = predictor.models[0].info.positive
    return lambda tiles: np.ascontiguousarray(predictor.answers(tiles)[0][:, positive], np.float32)


def bag_positives(model: BagModel, encode: Encode) -> Positives:
    """What a model of bags says of tiles, each as if it were the whole slide, by the function of its encoder."""

    def positives(tiles: UInt8Array) -> Float32Array:
        bags = np.pad(encode(tiles).astype(np.float32), ((0, 0), (1, 0)))[:, None]  # (B, 1, 1 + D), each of its slide 0
        return np.ascontiguousarray(model.predict(bags)[:, model.info.positive])

    return positives


def load_positives(
    folders: Sequence[Path], made: Collection[str], encoder: str | None = None, weights: str | None = None
) -> dict[str, Positives]:
    """The models in some folders, and the ensemble of the tile classifiers among them, on the CPU.

    Args:
        folders: Of tile classifiers or of models of bags.
        made: The hashes of the models that made the heatmaps at hand.
        encoder: Of models of bags: where their encoder lies, or what it is called, if their card does not say.
        weights: The file of its weights.

    Returns:
        By the hashes that heatmaps call them by.

    Raises:
        ConfigError: For a model that made none of the heatmaps, and an encoder that cannot be found.
        ModelError: For a folder that is no model's, or is damaged, and an encoder that is not the model's.
    """
    bags = [folder for folder in folders if isinstance(read_record(folder), BagInfo)]
    tiles = [load_model(folder) for folder in folders if folder not in bags]
    found = {model.sha256: tile_positives(model, PredictConfig()) for model in tiles}
    for folder in bags:
        model = load_bag_model(folder)
        loaded = load_encoder(encoder_like(model.info.encoder, encoder, weights))
        if difference := model.info.encoder.difference(loaded.record):
            raise ModelError(folder, f"has learned from another encoder: {difference}", "pass its --encoder")
        found[model.sha256] = bag_positives(model, loaded.chosen("auto", "auto")[1])
    whole = models_hash(tiles[0].info.mpp, [model.sha256 for model in tiles]) if tiles else ""
    if whole in made:
        found[whole] = tile_positives(make_ensemble(tiles), PredictConfig())
    elif unused := [sha256[:8] for sha256 in found if sha256 not in made]:
        what = f"({', '.join(unused)}) made none of these heatmaps"
        raise ConfigError("model", what, "pass the models that made them, or the heatmaps that they made")
    return found
