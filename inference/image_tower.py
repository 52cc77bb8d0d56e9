"""The image tower of a vision-language network of CoCa's kind: a vision transformer whose tokens attention pools.

As CONCH has it (Lu et al. 2024; https://github.com/mahmoodlab/CONCH, `vision_tower.py` and `transformer.py`): what
it gives of an image before the projection that compares it with text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

_TOWER = "visual."
_PARTS = ("trunk.", "attn_pool_contrast.", "ln_contrast.")


class ImageTower(nn.Module):
    """Normalised pictures float32 (B, 3, S, S) -> features (B, D); the names of its weights are CONCH's."""

    def __init__(self, trunk: nn.Module, dim: int, heads: int) -> None:
        """`trunk` is one of timm's vision transformers, `dim` the length of a feature vector, of that many heads."""
        super().__init__()
        of: Any = trunk  # which all of timm's networks offer
        self.trunk = of
        self.attn_pool_contrast = _AttentionPool(of.num_features, dim, heads)
        self.ln_contrast = nn.LayerNorm(dim)
        self.pretrained_cfg = {"classifier": ()}
        """As timm's networks say that they have no head."""

    def forward(self, pictures: Tensor) -> Tensor:
        """See the class."""
        pooled = self.attn_pool_contrast(self.trunk.forward_features(pictures))
        return cast(Tensor, self.ln_contrast(pooled))


class _AttentionPool(nn.Module):
    """Tokens (B, N, K) -> (B, D): what one learned query makes of them by multi-head attention."""

    def __init__(self, token_dim: int, dim: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, dim))
        self.attn = nn.MultiheadAttention(dim, heads, kdim=token_dim, vdim=token_dim, batch_first=True)
        self.ln_q = nn.LayerNorm(dim)
        self.ln_k = nn.LayerNorm(token_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        keys = self.ln_k(tokens)
        query = self.ln_q(self.query).expand(len(tokens), 1, -1)
        return cast(Tensor, self.attn(query, keys, keys, need_weights=False)[0][:, 0])


def tower_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an image tower among those of the whole network, which also has text's and captions'."""
    whole = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return {
        name.removeprefix(_TOWER): tensor
        for name, tensor in whole.items()
        if name.startswith(tuple(f"{_TOWER}{part}" for part in _PARTS))
    }
