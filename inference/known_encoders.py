"""Known encoders of histology: what each asks for and gives, by name. A table; knows nothing of torch.

Each entry is from the encoder's own model page and code, named beside it; what they do not say is not in the table.
Weights are never part of specslide: pass a local file, or the hub's name where a network and access to it are at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from inference.config import EncoderConfig
from tiling.core.errors import ConfigError
from tiling.stores.features import Encoder

Pooling = Literal["own", "pre-logits", "token", "token+mean"]
"""How maps or tokens become one vector: as the network itself does without a head; what its head makes logits of; the
class token; or that beside the mean of the patches' tokens, registers left out."""
Fit = Literal["resize", "crop"]
"""How a tile becomes the picture that the network sees: resized, or its middle."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class KnownEncoder:
    """What an encoder asks for, gives, and is licensed by."""

    architecture: str
    """timm's name of the network."""
    args: Mapping[str, Any]
    """What else timm needs to make it; layers by their names."""
    hub: str
    """Where its weights lie: `hf-hub:owner/name`."""
    dim: int
    """Length of a feature vector."""
    licence: str
    tile_px: int = 224
    """Side of its tiles, pixels."""
    input_px: int = 224
    """Side of the picture that the network sees, pixels."""
    fit: Fit = "resize"
    mpp: float = 0.5
    """Micrometres per pixel of its tiles."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    pooling: Pooling = "own"
    attention_heads: int = 0
    """Heads of the attention that pools the tokens, in a network of images and text; 0: it is of images alone."""


_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
_NC = "CC-BY-NC-ND-4.0"

ENCODERS: Final[dict[str, KnownEncoder]] = {
    # https://huggingface.co/MahmoodLab/UNI and https://github.com/mahmoodlab/UNI
    "uni": KnownEncoder(
        "vit_large_patch16_224",
        {"img_size": 224, "patch_size": 16, "init_values": 1e-5, "dynamic_img_size": True},
        "hf-hub:MahmoodLab/UNI",
        dim=1024,
        licence=_NC,
    ),
    # https://huggingface.co/MahmoodLab/UNI2-h
    "uni2-h": KnownEncoder(
        "vit_giant_patch14_224",
        {
            "img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8, "dynamic_img_size": True, **_SWIGLU,
        },
        "hf-hub:MahmoodLab/UNI2-h",
        dim=1536,
        licence=_NC,
    ),
    # https://huggingface.co/paige-ai/Virchow: class token beside the mean of the patches'
    "virchow": KnownEncoder(
        "vit_huge_patch14_224",
        {
            "img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": "", "dynamic_img_size": True,
            **_SWIGLU,
        },
        "hf-hub:paige-ai/Virchow",
        dim=2560,
        licence="Apache-2.0",
        pooling="token+mean",
    ),
    # https://huggingface.co/paige-ai/Virchow2 and arXiv 2408.00738: the four register tokens are left out
    "virchow2": KnownEncoder(
        "vit_huge_patch14_224",
        {
            "img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": "", "dynamic_img_size": True,
            "reg_tokens": 4, **_SWIGLU,
        },
        "hf-hub:paige-ai/Virchow2",
        dim=2560,
        licence=_NC,
        pooling="token+mean",
    ),
    # https://huggingface.co/bioptimus/H-optimus-0 and https://github.com/bioptimus/releases
    "h-optimus-0": KnownEncoder(
        "vit_giant_patch14_reg4_dinov2",
        {"img_size": 224, "init_values": 1e-5, "dynamic_img_size": False},
        "hf-hub:bioptimus/H-optimus-0",
        dim=1536,
        licence="Apache-2.0",
        mean=(0.707223, 0.578729, 0.703617),
        std=(0.211883, 0.230117, 0.177517),
    ),
    # https://huggingface.co/prov-gigapath/prov-gigapath: tiles of 256 px, of which the middle 224 are seen
    "prov-gigapath": KnownEncoder(
        "vit_giant_patch14_dinov2",
        {
            "img_size": 224, "patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24, "mlp_ratio": 5.33334,
            "dynamic_img_size": True,
        },
        "hf-hub:prov-gigapath/prov-gigapath",
        dim=1536,
        licence="Apache-2.0",
        tile_px=256,
        fit="crop",
    ),
    # https://huggingface.co/owkin/phikon-v2 and arXiv 2409.09173: 224 px at 0.5, weights by transformers' names
    "phikon-v2": KnownEncoder(
        "vit_large_patch16_224",
        {"img_size": 224, "patch_size": 16, "init_values": 1.0},
        "hf-hub:owkin/phikon-v2",
        dim=1024,
        licence="Owkin non-commercial",
        pooling="token",
    ),
    # https://github.com/mahmoodlab/CONCH: its image tower, before the projection; 512 px at 0.5 as TRIDENT cuts for it
    "conch": KnownEncoder(
        "vit_base_patch16_224",
        {"img_size": 448, "dynamic_img_size": True},
        "hf-hub:MahmoodLab/CONCH",
        dim=512,
        licence=_NC,
        tile_px=512,
        input_px=448,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        attention_heads=8,
    ),
}  # fmt: skip
"""Known encoders by name; `specslide embed --encoder NAME --weights FILE`."""


def encoder_like(record: Encoder, encoder: str | None = None, weights: str | None = None) -> EncoderConfig:
    """The settings that load an encoder of a record again; it may turn out to be another one.

    Args:
        record: What feature stores, and models of bags, say of their encoder.
        encoder: Where it lies, if it is a folder or file, or what it is called.
        weights: The file of its weights, where none are packaged.

    Returns:
        The settings for `inference.load_encoder`.

    Raises:
        ConfigError: For an encoder that a name alone does not give.
    """
    if record.kind == "imported":
        what = f"{record.name}: its features were imported, so nothing is known that computes them"
        raise ConfigError("encoder", what, "pass feature stores in place of slides")
    if record.kind != "timm" and encoder is None:
        fix = f"pass --encoder with its {'model folder' if record.kind == 'model' else 'file'}"
        raise ConfigError("encoder", f"{record.name} ({record.kind}) is needed to embed slides", fix)
    settings: dict[str, Any] = {"encoder": encoder or record.name, "weights": weights or "auto"}
    if record.kind != "model" and record.name not in ENCODERS:
        settings |= {"mpp": record.mpp, "tile_px": record.tile_px, "input_px": record.input_px}
    if record.kind in ("onnx", "torchscript"):
        settings |= {"mean": record.mean or (), "std": record.std or ()}
    return EncoderConfig.model_validate(settings)
