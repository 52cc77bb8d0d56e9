"""A model by its name or folder, of specslide or of WSInfer, ready to predict."""

from __future__ import annotations

from pathlib import Path

import torch

from inference.models.find import find_model
from inference.models.wsinfer import load_wsinfer
from inference.models.wsinfer_config import is_zoo_folder
from training import BagModel, TileModel
from training import load_any_model as load_trained
from training import load_model as load_tile_model
from training.models.info import INFO


def load_model(named: Path | str, device: str | torch.device = "cpu") -> TileModel:
    """The tile classifier of a folder or name, in evaluation mode on `device`, after every byte of it was checked.

    Names are those of `specslide models`. Raises ModelError for a folder that is missing, incomplete, changed or does
    not fit its network, for a model of bags, and for a name that there is not.

    Example:
        >>> from inference import load_model
        >>> load_model("breast-idc").info.classes
        ('benign', 'idc')
    """
    folder = find_model(named)
    return load_wsinfer(folder, device) if _is_zoo(folder) else load_tile_model(folder, device)


def load_any_model(named: Path | str, device: str | torch.device = "cpu") -> TileModel | BagModel:
    """The same, or a model of bags."""
    folder = find_model(named)
    return load_wsinfer(folder, device) if _is_zoo(folder) else load_trained(folder, device)


def _is_zoo(folder: Path) -> bool:
    return is_zoo_folder(folder) and not (folder / INFO).exists()
