"""Weights of a DINOv2 vision transformer in the layout of Hugging Face's transformers -> timm's names of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tiling.core.errors import ModelError

_MARK = "embeddings.cls_token"
_WHOLE = {
    "cls_token": _MARK,
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_OF_A_LAYER = {
    "norm1": "norm1", "attn.proj": "attention.output.dense", "norm2": "norm2", "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}  # fmt: skip
_PARTS = ("query", "key", "value")


def timm_state(state: Mapping[str, Tensor], where: object) -> Mapping[str, Tensor]:
    """The weights under timm's names if they are in that layout, else as they are.

    Raises ModelError, naming `where`, for one that is missing.
    """
    if _MARK not in state:
        return state
    try:
        named = {ours: state[theirs] for ours, theirs in _WHOLE.items()}
        layers = sorted({name.split(".")[2] for name in state if name.startswith("encoder.layer.")})
        for number in layers:
            ours, theirs = f"blocks.{number}", f"encoder.layer.{number}"
            for kind in ("weight", "bias"):
                parts = [state[f"{theirs}.attention.attention.{part}.{kind}"] for part in _PARTS]
                named[f"{ours}.attn.qkv.{kind}"] = torch.cat(parts)
                named |= {f"{ours}.{a}.{kind}": state[f"{theirs}.{b}.{kind}"] for a, b in _OF_A_LAYER.items()}
            named |= {f"{ours}.ls{n}.gamma": state[f"{theirs}.layer_scale{n}.lambda1"] for n in (1, 2)}
    except KeyError as error:
        what = f"lacks {error.args[0]}, of a DINOv2 network by Hugging Face's names"
        raise ModelError(where, what, "fetch the file again") from None
    return named
