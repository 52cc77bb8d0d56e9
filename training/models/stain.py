"""Stain normalisation by Macenko's and Reinhard's methods: tiles -> tiles that look stained like the training tiles.

The package torchstain, from the extra `specslide[stain]`, measures Macenko's stains and converts Reinhard's colours;
the change itself is one matrix a tile, or a shift and a scale a channel, done to all tiles of a batch at once. It runs
on the CPU wherever the tiles are: torchstain's order statistics are refused on a GPU that must be deterministic. Knows
nothing of models.

Tiles are uint8 (B, T, T, 3). A tile with too little stain to measure is not changed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tiling.core.errors import ConfigError
from training.models.stain_targets import MacenkoTarget, Method, ReinhardTarget, StainTarget

WHITE = 240.0
"""Grey level of the lamp's light, as torchstain takes it."""
MIN_DENSITY = 0.15
"""Optical density from which a pixel counts as stained (Macenko's beta)."""
MIN_STAINED = 0.05
"""Share of a tile's pixels that must be stained, or it is not changed."""
MIN_ANGLE = 0.05
"""Sine of the angle between a tile's two stains (3 degrees) below which they cannot be separated."""
MIN_SPREAD = 0.5
"""Standard deviation of a tile's L*, a* and b* below which there is nothing to scale."""


def missing_package() -> str | None:
    """What to do if torchstain is not installed; None if it is."""
    try:
        import torchstain  # noqa: F401
    except ImportError:
        return "install it with pip install 'specslide[stain]'"
    return None


def stain_target(method: Method, tiles: Tensor) -> StainTarget:
    """The typical staining of tiles: medians over those that show stain, so that the typical tile hardly changes.

    Raises ConfigError without torchstain, or if no tile shows stain.
    """
    if (fix := missing_package()) is not None:
        raise ConfigError("stain_norm", f"{method} needs the package torchstain", fix)
    *measured, usable = _macenko(tiles) if method == "macenko" else _reinhard(tiles, _lab(tiles))
    if not usable.any():
        raise ConfigError("stain_norm", "the training tiles show no stain to measure", "use stain_norm none")
    medians = [part[usable].median(dim=0).values for part in measured]
    if method == "reinhard":
        return ReinhardTarget(mean=_numbers(medians[0]), std=_numbers(medians[1]))
    haematoxylin, eosin = (vector / vector.norm() for vector in medians[0].T)
    return MacenkoTarget(haematoxylin=_numbers(haematoxylin), eosin=_numbers(eosin), amounts=_numbers(medians[1]))


def normalise(tiles: Tensor, target: StainTarget) -> Tensor:
    """Tiles uint8 (B, T, T, 3) with the target's staining; each is measured and changed by itself."""
    if not len(tiles):
        return tiles
    apply = _to_macenko if isinstance(target, MacenkoTarget) else _to_reinhard
    changed, usable = apply(tiles.cpu(), target)
    levels = changed.round().clamp(0, 255).to(torch.uint8)
    return torch.where(usable[:, None, None, None], levels, tiles.cpu()).to(tiles.device)


_Measured = tuple[Tensor, Tensor, Tensor]
"""Two statistics of each of n tiles, and whether they are of use, bool (n,)."""


def _macenko(tiles: Tensor) -> _Measured:
    """Haematoxylin and eosin as columns (n, 3, 2), NaN where unknown, and their amounts (n, 2)."""
    from torchstain.torch.normalizers.macenko import TorchMacenkoNormalizer

    usable = _stained(tiles).all(dim=-1).flatten(1).float().mean(dim=1) >= MIN_STAINED
    stains, amounts = torch.full((len(tiles), 3, 2), torch.nan), torch.full((len(tiles), 2), torch.nan)
    for row in usable.nonzero()[:, 0].tolist():
        measure = TorchMacenkoNormalizer()
        measure.fit(tiles[row].permute(2, 0, 1), Io=WHITE, beta=MIN_DENSITY)
        stains[row], amounts[row] = measure.HERef, measure.maxCRef
    angle = torch.linalg.cross(stains[..., 0], stains[..., 1], dim=-1).norm(dim=-1)
    usable = (angle >= MIN_ANGLE) & (amounts > 0).all(dim=1) & amounts.isfinite().all(dim=1)  # NaN is none of these
    return stains, amounts, usable


def _to_macenko(tiles: Tensor, target: Any) -> tuple[Tensor, Tensor]:
    """Grey levels float32, and whether each tile's are of use.

    With a tile's stains S and the target's S', as columns, and the ratios r of their amounts, the new density is
    S' diag(r) S^+ times the old: torchstain's own arithmetic, as one matrix a tile.
    """
    stains, amounts, usable = _macenko(tiles)
    stains = torch.where(usable[:, None, None], stains, torch.eye(3)[:, :2])
    ratio = torch.where(usable[:, None], torch.tensor(target.amounts) / amounts, 1.0)
    wanted = torch.tensor([target.haematoxylin, target.eosin]).T
    matrix = (wanted * ratio[:, None, :]) @ torch.linalg.pinv(stains)  # (B, 3, 3)
    density = _density(tiles).flatten(1, 2)  # (B, T * T, 3)
    return (WHITE * (-density @ matrix.mT).exp()).reshape(tiles.shape), usable


def _reinhard(tiles: Tensor, lab: Tensor) -> _Measured:
    """Mean and standard deviation (n, 3) of L*, a* and b*, `lab` (n, T, T, 3)."""
    stained = _stained(tiles).any(dim=-1).flatten(1).float().mean(dim=1) >= MIN_STAINED
    mean, std = lab.mean(dim=(1, 2)), lab.std(dim=(1, 2))
    return mean, std, stained & (std >= MIN_SPREAD).all(dim=1)


def _to_reinhard(tiles: Tensor, target: Any) -> tuple[Tensor, Tensor]:
    """Grey levels float32, and whether each tile's are of use."""
    from torchstain.torch.utils.lab2rgb import lab2rgb

    lab = _lab(tiles)
    mean, std, usable = (part.reshape(len(tiles), 1, 1, -1) for part in _reinhard(tiles, lab))
    changed = (lab - mean) / std.clamp(min=MIN_SPREAD) * torch.tensor(target.std) + torch.tensor(target.mean)
    coded = changed * torch.tensor([2.55, 1, 1]) + torch.tensor([0, 128, 128])  # as torchstain, and OpenCV, code them
    return 255 * lab2rgb(_tall(coded)).reshape(tiles.shape), usable.flatten()


def _lab(tiles: Tensor) -> Tensor:
    """L*, a* and b*, float32 (B, T, T, 3)."""
    from torchstain.torch.utils.rgb2lab import rgb2lab

    coded: Tensor = rgb2lab(_tall(tiles.float() / 255)).movedim(0, -1).reshape(tiles.shape)
    return (coded - torch.tensor([0, 128, 128])) / torch.tensor([2.55, 1, 1])


def _tall(tiles: Tensor) -> Tensor:
    """The tiles below one another as one picture, (3, B * T, T)."""
    return tiles.flatten(0, 1).movedim(-1, 0)


def _density(tiles: Tensor) -> Tensor:
    """Natural optical density as torchstain counts it: a level more than there is, against the lamp's."""
    return -((tiles.float() + 1) / WHITE).log()


def _stained(tiles: Tensor) -> Tensor:
    return torch.ge(_density(tiles), MIN_DENSITY)


def _numbers(tensor: Tensor) -> Any:
    return tuple(tensor.tolist())
