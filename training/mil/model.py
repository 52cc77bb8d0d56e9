"""The bag classifier: bags of tiles' features -> logits, and a trained one, ready to predict.

Bags come as training.data.bags makes them: a tile is the number of its slide in the bag, then its features. Knows
nothing of stores or labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tiling.core.artefact import content_hash
from training.mil.heads import HEADS, Bag, Chunk, HeadShape, Pooled
from training.models.classifier import TileModel
from training.models.folder import load_model, require_intact, with_weights
from training.models.info import INFO, BagInfo, read_bag_info, read_record

Floats = NDArray[np.float32]

CHUNK_TILES = 8192
"""Tiles of a bag that are in memory at once, where nothing is trained."""


class BagClassifier(nn.Module):
    """A head that sees standardised features: each of the D numbers less its mean, over its spread, in training.

    Called with bags float32 (B, n, 1 + D) it returns logits (B, C). With `slide_mean` these are the mean over a bag's
    slides of the logits that each slide has, and a tile's attention is that of its slide over their number.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, head: str, shape: HeadShape, *, slide_mean: bool = False) -> None:
        super().__init__()
        self.head = HEADS[head](shape)
        self.slide_mean = slide_mean
        self.register_buffer("mean", torch.zeros(shape.dim))
        self.register_buffer("spread", torch.ones(shape.dim))

    def standardise(self, features: Floats) -> None:
        """Take mean and spread from features (n, D); a number that does not vary is only centred."""
        spread = features.std(axis=0, dtype=np.float64)
        self.mean = torch.from_numpy(features.mean(axis=0, dtype=np.float64).astype(np.float32))
        self.spread = torch.from_numpy(np.where(spread > 0, spread, 1).astype(np.float32))

    def pixels(self, tiles: Tensor) -> Tensor:
        """Bags as they are; of a tile classifier this makes what augmentations act on."""
        return tiles

    def logits(self, bags: Tensor) -> Tensor:
        """Bags float32 (B, n, 1 + D) -> logits (B, C)."""
        size = bags.shape[1] if self.training else CHUNK_TILES
        return self.pooled(list(torch.split(bags, size, dim=1))).logits

    def forward(self, bags: Tensor) -> Tensor:
        """Bags float32 (B, n, 1 + D) -> logits (B, C)."""
        return self.logits(bags)

    def pooled(self, bags: Iterable[Tensor]) -> Pooled:
        """Logits (B, C) and attention (B, n) of B bags in chunks (B, k, 1 + D), which are gone through repeatedly."""
        if not self.slide_mean:
            pooled: Pooled = self.head(self._chunks(bags, lambda slides: slides >= 0))
            return pooled
        slides = 1 + int(max(chunk[..., 0].max().item() for chunk in bags))
        alone = [self._of_slide(bags, number) for number in range(slides)]
        there = torch.stack([present for _, present in alone])[..., None]  # (S, B, 1)
        share = there / there.sum(dim=0)
        logits, attention = (torch.stack([getattr(p, name) for p, _ in alone]) for name in Pooled._fields)
        return Pooled((share * logits).sum(dim=0), (share * attention).sum(dim=0))

    def tile_logits(self, features: Tensor) -> Tensor:
        """Logits (n, C) of n bags of one tile each, of features (n, D)."""
        return self.head.tile_logits((features - self.mean) / self.spread)

    def _of_slide(self, bags: Iterable[Tensor], number: int) -> tuple[Pooled, Tensor]:
        """What the head makes of one slide of each bag, and which bags have it, bool (B,)."""
        present = torch.stack([(chunk[..., 0] == number).any(dim=1) for chunk in bags]).any(dim=0)
        # a bag without it is pooled whole, for a head needs a tile, and weighs nothing
        return self.head(self._chunks(bags, lambda slides: (slides == number) | ~present[:, None])), present

    def _chunks(self, bags: Iterable[Tensor], real: Callable[[Tensor], Tensor]) -> Bag:
        chunks = _Standardised(self, bags, real)
        return list(chunks) if isinstance(bags, list) and len(bags) == 1 else chunks


class _Standardised:
    """The chunks of bags as a head sees them."""

    def __init__(self, network: BagClassifier, bags: Iterable[Tensor], real: Callable[[Tensor], Tensor]) -> None:
        self.network, self.bags, self.real = network, bags, real

    def __iter__(self) -> Iterator[Chunk]:
        for bag in self.bags:
            features = (bag[..., 1:] - self.network.mean) / self.network.spread
            yield Chunk(features, self.real(bag[..., 0]))


@dataclass(frozen=True)
class BagExplanation:
    """What a model says of one bag of n tiles."""

    probabilities: Floats
    """Class probabilities of the bag, float32 (C,), after the temperature."""
    attention: Floats
    """float32 (n,), in [0, 1], sums to 1; no probability."""
    tiles: Floats
    """Class probabilities that a bag of each tile alone has, float32 (n, C), after the temperature."""


@dataclass(frozen=True)
class BagModel:
    """A trained model of bags, ready to predict on its device."""

    network: BagClassifier
    info: BagInfo
    sha256: str
    """One hash of the whole model folder."""
    device: torch.device

    def __repr__(self) -> str:
        return f"<BagModel {', '.join(self.info.classes)} by {self.info.network}>"

    @property
    def backend(self) -> str:
        """What computes."""
        return "torch"

    def predict(self, tiles: Floats) -> Floats:
        """Class probabilities float32 (B, C), after the temperature, of bags float32 (B, n, 1 + D)."""
        with torch.inference_mode():
            return self._probabilities(self.network(torch.from_numpy(tiles).to(self.device)))

    def explain(self, chunks: Iterable[Floats]) -> BagExplanation:
        """What the model says of one bag, of any length, in the memory of one chunk.

        Args:
            chunks: The bag's tiles in chunks (k, 1 + D); they are gone through several times, so no generator.

        Returns:
            Probabilities of the bag and of each tile, and attention.
        """
        bags = _OnDevice(chunks, self.device)
        with torch.inference_mode():
            pooled = self.network.pooled(bags)
            tiles = [self._probabilities(self.network.tile_logits(chunk[0, :, 1:])) for chunk in bags]
            attention = pooled.attention[0].float().cpu().numpy()
            return BagExplanation(self._probabilities(pooled.logits)[0], np.asarray(attention), np.concatenate(tiles))

    def _probabilities(self, logits: Tensor) -> Floats:
        return np.asarray(torch.softmax(logits.float() / self.info.temperature, dim=1).cpu().numpy())


class _OnDevice:
    """The chunks (k, 1 + D) of one bag as tensors (1, k, 1 + D)."""

    def __init__(self, chunks: Iterable[Floats], device: torch.device) -> None:
        self.chunks, self.device = chunks, device

    def __iter__(self) -> Iterator[Tensor]:
        for chunk in self.chunks:
            yield torch.from_numpy(chunk)[None].to(self.device)


def load_bag_model(folder: Path | str, device: str | torch.device = "cpu") -> BagModel:
    """The model of bags in a folder, in evaluation mode on `device`, after every byte of the folder was checked.

    Raises ModelError for a folder that is missing, incomplete, changed, of a tile classifier, or whose weights do not
    fit.
    """
    folder, place = Path(folder), torch.device(device)
    require_intact(folder)
    info = read_bag_info(folder)
    network = with_weights(
        folder,
        lambda: BagClassifier(
            info.head,
            HeadShape(info.encoder.dim, len(info.classes), info.head_dim, info.dropout, info.top_k),
            slide_mean=info.bag == "case-mean",
        ),
    )
    return BagModel(network.eval().to(place), info, content_hash(folder), place)


def load_any_model(folder: Path | str, device: str | torch.device = "cpu") -> TileModel | BagModel:
    """The model in a folder, of tiles or of bags. Raises as `load_model` and `load_bag_model`."""
    known = (Path(folder) / INFO).exists() and isinstance(read_record(Path(folder)), BagInfo)
    return load_bag_model(folder, device) if known else load_model(folder, device)
