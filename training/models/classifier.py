"""The tile classifier: stored tiles -> logits, and a trained one, ready to predict.

Everything between a stored tile and its probabilities happens inside, so that prediction sees what training saw. Knows
nothing of data, slides or stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tiling.core.errors import ConfigError
from training.models.backbones import find_architecture, head_names, input_side, make_backbone, wrong_side
from training.models.info import ModelInfo
from training.models.ood import APPEARANCE, Novelty, appearance
from training.models.stain import normalise
from training.models.stain_targets import StainTarget


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
        for name in head_names(self.backbone):
            self.backbone.get_submodule(name).requires_grad_(True)
        self.frozen = True
        self.train(self.training)

    def train(self, mode: bool = True) -> TileClassifier:
        """Training or evaluation mode; a frozen backbone stays in evaluation mode, but for its head."""
        super().train(mode)
        if mode and self.frozen:
            self.backbone.eval()
            for name in head_names(self.backbone):
                self.backbone.get_submodule(name).train()
        return self

    def pixels(self, tiles: Tensor) -> Tensor:
        """Tiles uint8 (B, T, T, 3) -> float32 (B, 3, input_px, input_px) in [0, 1]: what augmentations act on."""
        if tiles.dtype != torch.uint8 or tiles.ndim != 4 or tiles.shape[-1] != 3:
            raise ValueError(f"tiles must be uint8 (B, T, T, 3), not {tiles.dtype} {tuple(tiles.shape)}")
        if self.stain is not None:
            tiles = normalise(tiles, self.stain)
        pixels = tiles.permute(0, 3, 1, 2).float().div_(255)  # in place: fresh memory costs as much as the division
        if pixels.shape[-2:] == (self.input_px, self.input_px):
            return pixels
        size = (self.input_px, self.input_px)
        return functional.interpolate(pixels, size, mode="bilinear", antialias=True).clamp(0, 1)

    def logits(self, pixels: Tensor) -> Tensor:
        """Pixels float32 (B, 3, input_px, input_px) in [0, 1] -> logits (B, C)."""
        logits: Tensor = self.backbone(self.normal(pixels))
        return logits

    def logits_and_features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C), and from the same forward the features and appearance for OOD detection, float32 (B, D + 9).

        That is the features that the last layer makes the logits of, and then the pixels' `appearance`.
        """
        network: Any = self.backbone  # which all of timm's networks offer
        maps = network.forward_features(self.normal(pixels))
        features = network.forward_head(maps, pre_logits=True).float()
        return network.forward_head(maps), torch.cat([features, appearance(pixels)], dim=1)

    def features(self, pixels: Tensor) -> Tensor:
        """Pixels float32 (B, 3, input_px, input_px) in [0, 1] -> what the last layer makes the logits of, (B, D)."""
        network: Any = self.backbone
        features: Tensor = network.forward_head(network.forward_features(self.normal(pixels)), pre_logits=True)
        return features

    def normal(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1] as the backbone takes them: less the mean, divided by the standard deviation."""
        return ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def forward(self, tiles: Tensor) -> Tensor:
        """Tiles uint8 (B, T, T, 3) -> logits (B, C)."""
        return self.logits(self.pixels(tiles))


class Features(nn.Module):
    """The input of OOD detection: tiles uint8 (B, T, T, 3) -> features and appearance, float32 (B, D + 9)."""

    def __init__(self, network: TileClassifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, tiles: Tensor) -> Tensor:
        """See the class."""
        return self.network.logits_and_features(self.network.pixels(tiles))[1]

    def offered(self) -> bool:
        """Whether the backbone gives features together with its logits; all of timm's that were tried do."""
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

    def __repr__(self) -> str:
        info, scale = self.info, "" if self.info.mpp is None else f" at {self.info.mpp:g} µm/px"
        return f"<TileModel {', '.join(info.classes)} by {info.network}; {info.tile_px} px{scale}>"

    @property
    def backend(self) -> str:
        """What computes."""
        return "torch"

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
    """An untrained classifier, with weights drawn from torch's random state.

    Mean and standard deviation are those of the backbone's own configuration.

    Args:
        backbone: One of timm's names, or `hf-hub:owner/name`.
        classes: Number of classes.
        input_px: Side of the picture the backbone sees; None: as `input_side` chooses.
        tile_px: Side of the tiles, pixels.

    Returns:
        The classifier, in training mode.

    Raises:
        ConfigError: For a name timm does not know, a hub that cannot be reached, a backbone without a head and an input
            size it refuses.
    """
    own = find_architecture(backbone)
    if not own.settings.get("classifier"):
        raise ConfigError("backbone", f"{backbone} is no classifier: it has no head", "use another of timm's models")
    side = input_side(backbone, input_px, tile_px)
    network: Any = make_backbone(own, classes, side)
    network.reset_classifier(classes)  # EfficientNets start heads of few classes so wide that the first logits explode
    classifier = TileClassifier(network, side, tuple(own.settings["mean"]), tuple(own.settings["std"]))
    try:  # some sizes are refused only when a picture comes
        with torch.inference_mode():
            classifier.eval()(torch.zeros(1, side, side, 3, dtype=torch.uint8))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise wrong_side(backbone, side, error) from None
    return classifier.train()
