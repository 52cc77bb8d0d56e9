"""A WSInfer model as one of specslide's: TorchScript with config.json, whose probabilities nobody calibrated here."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from inference.export_model import load_script
from inference.models.wsinfer_config import CONFIG, SCRIPT, ZooConfig, read_zoo_config
from tiling.core.errors import ModelError
from tiling.core.files import sha256_file, sha256_json
from training import ModelInfo, TileModel
from training.config import TrainConfig
from training.data.preparation import positive_class
from training.models.classifier import TileClassifier
from training.models.folder import WEIGHTS

UNCALIBRATED = (
    "It was not made by specslide: its probabilities are not calibrated, its threshold of 0.5 was chosen on no data, "
    "and it cannot tell tiles that are unlike those it was trained on."
)


def load_wsinfer(folder: Path, device: str | torch.device = "cpu") -> TileModel:
    """The WSInfer model of a folder, in evaluation mode on `device`.

    Its positive class is chosen by the names as in training; where there are several, the last. Raises ModelError for a
    file that cannot be read or does not do what config.json says.
    """
    config, place = read_zoo_config(folder), torch.device(device)
    path = folder / SCRIPT
    try:
        hashes = {CONFIG: sha256_file(folder / CONFIG), WEIGHTS: sha256_file(path)}
        module = load_script(path.read_bytes())
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ModelError(path, f"cannot be read as TorchScript ({reason})", "fetch it again") from None
    mean, std = config.normalisation()
    assert isinstance(module, torch.nn.Module)
    assert config.input_px is not None
    network = TileClassifier(module, config.input_px, mean, std).eval().to(place)
    _require_logits(network, config, path)
    return TileModel(network, _info(config, hashes), sha256_json(hashes), place)


def _require_logits(network: TileClassifier, config: ZooConfig, path: Path) -> None:
    """Raise ModelError unless two black tiles get a row of numbers each, one a class."""
    side = config.patch_size_pixels
    try:
        with torch.inference_mode():
            found = network(torch.zeros(2, side, side, 3, dtype=torch.uint8, device=network.mean.device))
        shape = tuple(found.shape)
    except (RuntimeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ModelError(path, f"cannot see pictures of {network.input_px} px ({reason})", "correct it") from None
    if shape != (2, config.num_classes):
        what = f"gives {shape} for two tiles, not a number for each of {config.num_classes} classes"
        raise ModelError(path, what, f"correct num_classes in {CONFIG}, or use another model")


def _info(config: ZooConfig, hashes: dict[str, str]) -> ModelInfo:
    mean, std = config.normalisation()
    return ModelInfo(
        backbone=re.sub(r"[^A-Za-z0-9_.]", "_", config.architecture) or "unknown",
        input_px=config.input_px or 0,
        mean=mean,
        std=std,
        classes=config.class_names,
        positive_class=positive_class(config.class_names, TrainConfig()),
        mpp=config.spacing_um_px,
        tile_px=config.patch_size_pixels,
        icc=config.icc,
        temperature=1.0,
        threshold=0.5,
        training={"limits": UNCALIBRATED},
        best_epoch=0,
        data={},
        metrics={},
        hashes=hashes,
        software={},
    )
