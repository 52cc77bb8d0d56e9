"""Folders as the WSInfer zoo has them, made from timm's networks."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import nn

CONFIG: dict[str, Any] = {
    "spec_version": "1.0",
    "architecture": "test_resnet",
    "num_classes": 2,
    "class_names": ["Other", "Tumor"],
    "patch_size_pixels": 48,
    "spacing_um_px": 1.0,
    "transform": [
        {"name": "Resize", "arguments": {"size": 32}},
        {"name": "ToTensor"},
        {"name": "Normalize", "arguments": {"mean": [0.7, 0.6, 0.7], "std": [0.2, 0.25, 0.2]}},
    ],
}


def network(seed: int = 0) -> nn.Module:
    """A small network of timm's with random weights, for two classes."""
    torch.manual_seed(seed)
    made: Any = timm.create_model("test_resnet", num_classes=2).eval()
    with torch.no_grad():
        made.get_classifier().weight.mul_(30)  # so that tiles differ
    return cast(nn.Module, made)


def write_zoo_folder(folder: Path, **changes: Any) -> Path:
    """A folder with config.json and TorchScript, as wsinfer-zoo defines them; changes are of the configuration."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(network(), torch.zeros(1, 3, 32, 32))  # type: ignore[no-untyped-call]
        torch.jit.save(traced, folder / "torchscript_model.pt")
    return folder
