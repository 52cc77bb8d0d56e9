"""The allow-list of what may be said of a backbone beside its name. Knows nothing of torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MAX_INPUT_PX = 4096

BACKBONE_ARGS: Mapping[str, int] = {
    # pictures and patches, pixels
    "img_size": 4096, "patch_size": 256, "window_size": 256, "dynamic_img_size": 1, "dynamic_img_pad": 1,
    "strict_img_size": 1,
    # the layers' sizes and numbers
    "depth": 256, "depths": 256, "layers": 256, "dims": 16_384, "embed_dim": 16_384, "num_heads": 256, "mlp_ratio": 64,
    "reg_tokens": 256, "class_token": 1, "no_embed_class": 1,
    # what the layers are
    "act_layer": 1, "norm_layer": 1, "global_pool": 1, "qkv_bias": 1, "qk_norm": 1, "pre_norm": 1, "final_norm": 1,
    "fc_norm": 1,
    # how they start and are trained
    "init_values": 1, "ls_init_value": 1, "drop_rate": 1, "proj_drop_rate": 1, "attn_drop_rate": 1, "drop_path_rate": 1,
}  # fmt: skip
"""What may be said of a backbone beside its name, by a hub's configuration or a model folder, and the largest number
for it. timm takes more, among it files to read and code to run."""
_WORD = re.compile(r"\w{0,32}")


def refused_args(args: Mapping[str, Any]) -> str:
    """Why a backbone may not be made with these arguments, naming the first that is refused; "" if it may."""
    for name, value in args.items():
        if name not in BACKBONE_ARGS:
            return f"{name!a} is no argument of a backbone that is known to be safe"
        parts = value if isinstance(value, list | tuple) and 0 < len(value) <= 16 else (value,)
        if not all(_is_plain(part, BACKBONE_ARGS[name]) for part in parts):
            return f"{name} may be a word or a number from 0 to {BACKBONE_ARGS[name]}, or a few of them"
    return ""


def _is_plain(value: object, largest: int) -> bool:
    """Whether this is a word, a truth value, nothing, or a number of that size."""
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    return value is None or (isinstance(value, int | float) and 0 <= value <= largest)  # NaN is not
