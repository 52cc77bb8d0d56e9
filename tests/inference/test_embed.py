"""Features of slides and stores: the same from both, equal to timm's own, refused by name, whole or not at all."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from math import erf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from inference import EmbedConfig, EncoderConfig, embed, embed_slide, load_encoder
from inference.encoders import TileEncoder, _finished, _layer
from inference.export_model import _scripted as scripted
from inference.known_encoders import ENCODERS
from inference.onnx import onnx_graph
from inference.readahead import Batch
from inference.sources import Source
from tests.inference.conftest import picture, write_model
from tiling import Grid, TileStore, TilingConfig, tile_slide
from tiling.core.artefact import read_commit
from tiling.core.errors import ConfigError, ModelError, OutputError
from tiling.grid import Raster, Tiles
from tiling.stores.features import Encoder, FeatureStore, verify_features
from tiling.stores.label import label_store
from tiling.stores.store import SlideFacts
from training import load_model
from training.models.backbones import packaged_weights
from training.models.classifier import TileClassifier


def some_tiles(count: int = 5, side: int = 32) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


@pytest.fixture(scope="session")
def encoder(model_folder: Path) -> TileEncoder:
    """The last features of a small model of tiles of 32 px at 0.5 mpp."""
    return load_encoder(EncoderConfig(encoder=str(model_folder)))


@pytest.fixture(scope="session")
def store(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lossless store of the slide, with its tiles."""
    config = TilingConfig(mpp=0.5, tile_px=32, codec="lossless", min_tissue=0.3)
    return tile_slide(slide, tmp_path_factory.mktemp("stores"), config).store


def test_features_of_a_slide_are_those_of_its_lossless_store(
    slide: Path, store: Path, encoder: TileEncoder, tmp_path: Path
) -> None:
    """In any number of reading threads and blocks; the columns too, and nothing but the places decides the batches."""
    config = EmbedConfig(min_tissue=0.3, dtype="float32", readers=2, batch_size=7)
    reports = [embed_slide(source, encoder, tmp_path / source.suffix, config) for source in (slide, store)]
    ours, theirs = (FeatureStore(report.store) for report in reports)
    assert len(ours) > 50
    np.testing.assert_array_equal(ours.read(), theirs.read())
    np.testing.assert_allclose(ours.read(), encoder.encode(TileStore(store).read(slice(None))), rtol=1e-5, atol=1e-5)
    assert ours.attributes.settings["backend"] == "onnx"
    assert ours.tiles.places() == theirs.tiles.places() == TileStore(store).tiles.places()
    assert set(ours.tiles.columns) == set(theirs.tiles.columns) == set(TileStore(store).tiles.columns)
    for name, values in TileStore(store).tiles.columns.items():
        np.testing.assert_array_equal(ours.tiles.columns[name], values)
        np.testing.assert_array_equal(theirs.tiles.columns[name], values)
    assert (ours.slide, ours.grid) == (theirs.slide, theirs.grid)
    assert ours.identity == theirs.identity
    assert ours.thumbnail is not None


def test_packaged_weights_give_timm_s_own_features() -> None:
    """Against timm's network without a head, on pictures that are resized and normalised by hand."""
    encoder = load_encoder(EncoderConfig(tile_px=224))
    network: Any = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    state = {name: value for name, value in packaged_weights().items() if not name.startswith("classifier")}
    network.load_state_dict(state)
    tiles = some_tiles(3, 224)
    with torch.inference_mode():
        pixels = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
        expected = network.eval()((pixels - 0.5) / 0.5).numpy()
    np.testing.assert_allclose(encoder.encode(tiles), expected, atol=1e-5)
    assert (encoder.record.dim, encoder.record.mpp, encoder.record.licence) == (1280, 0.5, "Apache-2.0")
    backend, encode = encoder.chosen("auto", "auto")
    assert backend == "onnx"
    np.testing.assert_allclose(encode(tiles), expected, atol=2e-5)  # of features up to 4


def test_weights_of_a_file_give_timm_s_own_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network: Any = timm.create_model("test_vit", num_classes=3).eval()
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    encoder = load_encoder(
        EncoderConfig(encoder="test_vit", weights=str(tmp_path / "vit.safetensors"), tile_px=160, mpp=1.0)
    )
    tiles = some_tiles(3, 160)
    with torch.inference_mode():
        mean, std = (torch.tensor(network.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
        pixels = (torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255 - mean) / std
        expected = network.forward_head(network.forward_features(pixels), pre_logits=True).numpy()
    np.testing.assert_allclose(encoder.encode(tiles), expected, atol=1e-5)
    assert (encoder.record.tile_px, encoder.record.input_px, encoder.record.mpp) == (160, 160, 1.0)


def test_the_same_weights_in_another_file_are_the_same_encoder(tmp_path: Path) -> None:
    network: Any = timm.create_model("test_vit")
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    torch.save(network.state_dict(), tmp_path / "vit.pth")
    records = [
        load_encoder(EncoderConfig(encoder="test_vit", weights=str(tmp_path / name))).record
        for name in ("vit.safetensors", "vit.pth")
    ]
    assert records[0] == records[1]


def test_a_model_folder_gives_what_its_head_sees(model_folder: Path, encoder: TileEncoder) -> None:
    model = load_model(model_folder)
    seen: list[torch.Tensor] = []
    head: Any = model.network.backbone.get_submodule("fc")
    handle = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    tiles = some_tiles()
    model.predict(tiles)
    handle.remove()
    np.testing.assert_allclose(encoder.encode(tiles), seen[0].numpy(), atol=1e-6)
    assert (encoder.record.kind, encoder.record.sha256) == ("model", model.sha256)


def test_class_token_beside_the_mean_of_patches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As Virchow2 does it, on a small network with registers; and the middle of a larger tile, as Prov-GigaPath."""
    args: dict[str, Any] = {"img_size": 32, "reg_tokens": 2, "global_pool": "", "dynamic_img_size": True}
    torch.manual_seed(0)
    network: Any = timm.create_model("test_vit", num_classes=0, **args).eval()
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    known = replace(ENCODERS["virchow2"], architecture="test_vit", args=args, tile_px=40, input_px=32, fit="crop")
    monkeypatch.setitem(ENCODERS, "small", known)
    encoder = load_encoder(EncoderConfig(encoder="small", weights=str(tmp_path / "vit.safetensors")))
    tiles = some_tiles(3, 40)
    with torch.inference_mode():
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (known.mean, known.std))
        pixels = torch.from_numpy(tiles[:, 4:36, 4:36]).permute(0, 3, 1, 2).float() / 255
        tokens = network((pixels - mean) / std)
        expected = torch.cat([tokens[:, 0], tokens[:, 3:].mean(1)], 1).numpy()
    np.testing.assert_allclose(encoder.encode(tiles), expected, atol=1e-5)
    assert encoder.record.fit == "crop"


PARAMETERS = {
    "uni": 303, "uni2-h": 681, "virchow": 631, "virchow2": 631, "h-optimus-0": 1134, "prov-gigapath": 1134,
    "phikon-v2": 303, "conch": 86,
}  # fmt: skip
"""Millions, as the encoders' pages and papers give them."""


@pytest.mark.parametrize("name", ENCODERS)
def test_known_encoders_are_of_the_published_size(name: str) -> None:
    """The networks made without memory; one token's length, twice that for class token beside mean."""
    known = ENCODERS[name]
    args = {key: _layer(value) for key, value in known.args.items()}
    with torch.device("meta"):
        network: Any = timm.create_model(known.architecture, num_classes=0, **args)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(PARAMETERS[name], abs=1.5)
    if not known.attention_heads:
        assert known.dim == network.num_features * (2 if known.pooling == "token+mean" else 1)


SIDE, PATCH, DIM, LAYERS, HEADS = 32, 16, 64, 2, 2


def dinov2_weights(random: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Random weights of a small DINOv2 network by transformers' names."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, DIM), "embeddings.mask_token": (1, DIM),
        "embeddings.position_embeddings": (1, 1 + (SIDE // PATCH) ** 2, DIM),
        "embeddings.patch_embeddings.projection.weight": (DIM, 3, PATCH, PATCH),
        "embeddings.patch_embeddings.projection.bias": (DIM,), "layernorm.weight": (DIM,), "layernorm.bias": (DIM,),
    }  # fmt: skip
    wide = {"attention.output.dense": (DIM, DIM), "mlp.fc1": (3 * DIM, DIM), "mlp.fc2": (DIM, 3 * DIM)}
    wide |= {f"attention.attention.{part}": (DIM, DIM) for part in ("query", "key", "value")}
    for layer in range(LAYERS):
        within = f"encoder.layer.{layer}"
        shapes |= {f"{within}.{name}.weight": shape for name, shape in wide.items()}
        shapes |= {f"{within}.{name}.bias": shape[:1] for name, shape in wide.items()}
        shapes |= {f"{within}.norm{n}.{kind}": (DIM,) for n in (1, 2) for kind in ("weight", "bias")}
        shapes |= {f"{within}.layer_scale{n}.lambda1": (DIM,) for n in (1, 2)}
    return {name: random.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}


def dinov2_token(w: dict[str, NDArray[np.float32]], pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The class token of normalised pictures (B, 3, S, S), by the formulas of the network."""

    def linear(x: Any, name: str) -> Any:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Any, name: str) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def heads(x: Any) -> Any:
        return x.reshape(*x.shape[:2], HEADS, -1).swapaxes(1, 2)

    n, of_patch = SIDE // PATCH, "embeddings.patch_embeddings.projection"
    patches = pixels.reshape(-1, 3, n, PATCH, n, PATCH).transpose(0, 2, 4, 1, 3, 5).reshape(len(pixels), n * n, -1)
    x = patches @ w[f"{of_patch}.weight"].reshape(DIM, -1).T + w[f"{of_patch}.bias"]
    x = np.concatenate([np.tile(w["embeddings.cls_token"], (len(x), 1, 1)), x], 1) + w["embeddings.position_embeddings"]
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        y = norm(x, f"{at}.norm1")
        q, k, v = (heads(linear(y, f"{at}.attention.attention.{part}")) for part in ("query", "key", "value"))
        weights = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(DIM / HEADS))
        y = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(x.shape)
        x = x + linear(y, f"{at}.attention.output.dense") * w[f"{at}.layer_scale1.lambda1"]
        y = linear(norm(x, f"{at}.norm2"), f"{at}.mlp.fc1")
        y = y * (1 + np.vectorize(erf)(y / np.sqrt(2))) / 2
        x = x + linear(y, f"{at}.mlp.fc2") * w[f"{at}.layer_scale2.lambda1"]
    return np.asarray(norm(x, "layernorm")[:, 0])


def test_a_dinov2_network_by_transformers_names_is_its_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Phikon-v2 is published, on a small network."""
    known = replace(ENCODERS["phikon-v2"], architecture="test_vit", tile_px=SIDE, input_px=SIDE)
    monkeypatch.setitem(ENCODERS, "small", replace(known, args={"img_size": SIDE, "init_values": 1.0, "depth": LAYERS}))
    weights = dinov2_weights(np.random.default_rng(0))
    path = tmp_path / "model.safetensors"
    save_file({name: torch.from_numpy(value) for name, value in weights.items()}, path)
    tiles = some_tiles(3, SIDE)
    pixels = ((tiles / 255 - known.mean) / known.std).astype(np.float32).transpose(0, 3, 1, 2)
    encoder = load_encoder(EncoderConfig(encoder="small", weights=str(path)))
    np.testing.assert_allclose(encoder.encode(tiles), dinov2_token(weights, pixels), atol=1e-4)
    del weights["encoder.layer.1.mlp.fc2.bias"]
    save_file({name: torch.from_numpy(value) for name, value in weights.items()}, path)
    with pytest.raises(ModelError, match=r"model\.safetensors.*layer\.1\.mlp\.fc2\.bias"):
        load_encoder(EncoderConfig(encoder="small", weights=str(path)))


def conch_weights(network: Any, dim: int) -> dict[str, torch.Tensor]:
    """Random weights around a vision transformer's, by CONCH's names, text's and captions' among them."""
    torch.manual_seed(1)
    width, pool = network.num_features, "visual.attn_pool_contrast"
    shapes: dict[str, tuple[int, ...]] = {
        f"{pool}.query": (1, dim), f"{pool}.attn.q_proj_weight": (dim, dim), f"{pool}.attn.k_proj_weight": (dim, width),
        f"{pool}.attn.v_proj_weight": (dim, width), f"{pool}.attn.in_proj_bias": (3 * dim,),
        f"{pool}.attn.out_proj.weight": (dim, dim), f"{pool}.attn.out_proj.bias": (dim,),
        f"{pool}.ln_q.weight": (dim,), f"{pool}.ln_q.bias": (dim,), f"{pool}.ln_k.weight": (width,),
        f"{pool}.ln_k.bias": (width,), "visual.ln_contrast.weight": (dim,), "visual.ln_contrast.bias": (dim,),
        "visual.proj_contrast": (dim, dim), "visual.attn_pool_caption.query": (4, width), "logit_scale": (),
        "text.cls_emb": (width,),
    }  # fmt: skip
    trunk = {f"visual.trunk.{name}": tensor for name, tensor in network.state_dict().items()}
    return trunk | {name: torch.randn(shape) for name, shape in shapes.items()}


def attention_pooled(tokens: Any, w: dict[str, Any], heads: int) -> Any:
    """Tokens (B, N, K) -> (B, D), by the formulas of attention and of layer normalisation, in float64."""

    def norm(x: Any, name: str) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    pool = "visual.attn_pool_contrast"
    bias = np.split(w[f"{pool}.attn.in_proj_bias"], 3)
    keys = norm(tokens, f"{pool}.ln_k")
    q = norm(w[f"{pool}.query"], f"{pool}.ln_q") @ w[f"{pool}.attn.q_proj_weight"].T + bias[0]
    k, v = (keys @ w[f"{pool}.attn.{n}_proj_weight"].T + b for n, b in (("k", bias[1]), ("v", bias[2])))
    out = []
    for qh, kh, vh in zip(*(np.split(x, heads, axis=-1) for x in (q, k, v)), strict=True):
        weights = np.exp(kh @ qh[0] / np.sqrt(len(qh[0])))
        out.append(((weights / weights.sum(-1, keepdims=True))[..., None] * vh).sum(1))
    pooled = np.concatenate(out, -1) @ w[f"{pool}.attn.out_proj.weight"].T + w[f"{pool}.attn.out_proj.bias"]
    return norm(pooled, "visual.ln_contrast")


def test_the_image_tower_of_conch_is_its_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small network, from a file that holds the network of images and text."""
    args: dict[str, Any] = {"img_size": SIDE, "dynamic_img_size": True}
    torch.manual_seed(0)
    network: Any = timm.create_model("test_vit", num_classes=0, **args).eval()
    known = replace(
        ENCODERS["conch"], architecture="test_vit", args=args, dim=16, tile_px=SIDE, input_px=SIDE, attention_heads=4
    )
    monkeypatch.setitem(ENCODERS, "small", known)
    weights = conch_weights(network, 16)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    tiles = some_tiles(3, SIDE)
    encoder = load_encoder(EncoderConfig(encoder="small", weights=str(tmp_path / "pytorch_model.bin")))
    pixels = torch.from_numpy(((tiles / 255 - known.mean) / known.std).astype(np.float32).transpose(0, 3, 1, 2))
    with torch.inference_mode():
        tokens = network.forward_features(pixels).double().numpy()
    expected = attention_pooled(tokens, {name: tensor.double().numpy() for name, tensor in weights.items()}, 4)
    np.testing.assert_allclose(encoder.encode(tiles), expected, atol=1e-4)
    assert (encoder.record.dim, encoder.record.licence) == (16, "CC-BY-NC-ND-4.0")
    del weights["visual.ln_contrast.bias"]
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"ln_contrast\.bias"):
        load_encoder(EncoderConfig(encoder="small", weights=str(tmp_path / "pytorch_model.bin")))


class _Eigen(nn.Module):
    """Features that the exporter does not know."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = torch.linalg.eigvals(pixels.mean(1)).real
        return values


class _Picture(nn.Module):
    """A small network of pictures, whose features depend on places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.maps = nn.Conv2d(3, 6, 3, stride=2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.maps(pixels)).mean((2, 3))


@pytest.mark.parametrize("name", ["encoder.pt", "encoder.onnx"])
def test_torchscript_and_onnx_are_equal_to_torch(name: str, tmp_path: Path) -> None:
    network = _Picture().eval()
    example = torch.zeros(1, 3, 32, 32)
    data = scripted(network, example) if name.endswith(".pt") else onnx_graph(network, example, "x", ["y"])
    (tmp_path / name).write_bytes(data)
    config = EncoderConfig(encoder=str(tmp_path / name), tile_px=32, mpp=0.5, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    encoder, tiles = load_encoder(config), some_tiles()
    with torch.inference_mode():
        pixels = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
        pixels = (pixels - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(
            1, 3, 1, 1
        )
        expected = network(pixels).numpy()
    np.testing.assert_allclose(encoder.encode(tiles), expected, atol=1e-5)
    assert encoder.record.name == name


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"encoder": "uni"}, "weights: .*hf-hub:MahmoodLab/UNI"),
        ({"encoder": "resnet18"}, "weights: .*random"),
        ({"encoder": "tf_efficientnet_lite0", "weights": "none"}, "weights: .*random"),
        ({"encoder": "no-such-network"}, "no-such-network"),
        ({"encoder": "uni", "mpp": 0.25, "weights": "w.pth"}, "mpp: .*leave it out"),
        ({"encoder": "absent.onnx"}, r"absent\.onnx: cannot be read"),
        ({"encoder": "test_vit", "weights": "absent.pth"}, r"absent\.pth"),
    ],
)
def test_what_cannot_be_an_encoder_is_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises((ConfigError, ModelError), match=named):
        load_encoder(EncoderConfig.model_validate(settings))


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="model"):
        load_encoder(EncoderConfig(encoder=str(tmp_path)))


def test_features_made_otherwise_are_refused_by_what_differs(
    slide: Path, store: Path, encoder: TileEncoder, tmp_path: Path
) -> None:
    first = embed_slide(slide, encoder, tmp_path)
    assert embed_slide(slide, encoder, tmp_path).reused
    assert embed_slide(slide, encoder, tmp_path, EmbedConfig(batch_size=3, readers=3)).reused
    fields: dict[str, Any] = {"mpp": 1.0, "tile_px": 64, "sha256": "0" * 64, "name": "other"}
    for name, value in fields.items():
        other = replace(encoder, record=encoder.record.model_copy(update={name: value}))
        with pytest.raises(OutputError, match=f"encoder_{name} was"):
            embed_slide(slide, other, tmp_path)
    for settings in ({"dtype": "float32"}, {"min_tissue": 0.9}, {"overlap": 0.5}, {"quality": False}):
        with pytest.raises(OutputError, match=next(iter(settings))):
            embed_slide(slide, encoder, tmp_path, EmbedConfig.model_validate(settings))
    with pytest.raises(OutputError, match="store"):
        embed_slide(store, encoder, tmp_path, slide_id="disc")
    made = embed_slide(slide, encoder, tmp_path, EmbedConfig(overlap=0.5), overwrite=True)
    assert made.tiles > first.tiles
    assert not made.reused


def test_either_backend_s_features_are_kept_unless_one_is_asked_for(
    slide: Path, encoder: TileEncoder, tmp_path: Path
) -> None:
    """They agree; those of torch are as earlier versions made and named them."""
    for made, other in (("torch", "onnx"), ("auto", "torch")):
        first = embed_slide(slide, encoder, tmp_path / made, EmbedConfig(backend=made))
        recipe = read_commit(first.store).recipe
        assert recipe is not None
        assert recipe.settings.get("backend") == (None if made == "torch" else made)
        assert embed_slide(slide, encoder, tmp_path / made).reused
        with pytest.raises(OutputError, match="backend"):
            embed_slide(slide, encoder, tmp_path / made, EmbedConfig(backend=other))


class _Unlike(nn.Module):
    """Features of tiles that a graph, which holds what a flag said once, does not compute."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(3, 6, 3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.maps(pixels).mean((2, 3))
        return maps * 2 if torch.onnx.is_in_onnx_export() else maps


@pytest.mark.parametrize("network", [_Unlike, _Eigen])
def test_what_onnx_runtime_does_not_compute_is_left_to_torch(
    network: type[nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    classifier = TileClassifier(network(), 32, (0.5,) * 3, (0.5,) * 3)
    facts = {"name": "odd", "kind": "timm", "sha256": "0" * 64, "tile_px": 32, "mpp": 0.5}
    encoder = _finished(classifier, torch.device("cpu"), "own", "resize", facts)
    assert encoder.chosen("auto", "auto") == ("torch", encoder.encode)
    assert "torch is used" in caplog.text
    with pytest.raises(ModelError, match="--backend torch"):
        encoder.chosen("onnx", "auto")


def test_backends_that_cannot_be_or_do_not_pay(encoder: TileEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert encoder.chosen("torch", "auto") == ("torch", encoder.encode)
    large = replace(encoder, onnx_pays=False)
    assert large.chosen("auto", "auto") == ("torch", encoder.encode)
    assert large.chosen("onnx", "auto")[0] == "onnx"
    for kind, asked in (("onnx", "torch"), ("torchscript", "onnx")):
        of_file = replace(encoder, record=encoder.record.model_copy(update={"kind": kind}), onnx=None)
        assert of_file.chosen("auto", "auto")[1] is encoder.encode
        with pytest.raises(ConfigError, match="backend"):
            of_file.chosen(asked, "auto")  # type: ignore[arg-type]


def test_a_store_of_other_tiles_is_refused(store: Path, encoder: TileEncoder, tmp_path: Path) -> None:
    for change in ({"mpp": 2.0}, {"tile_px": 64}):
        other = replace(encoder, record=encoder.record.model_copy(update=change))
        with pytest.raises(ModelError, match=r"32 px at 0\.5 .*not"):
            embed_slide(store, other, tmp_path)


def test_labels_change_no_features(store: Path, encoder: TileEncoder, tmp_path: Path) -> None:
    """Nor is a store embedded anew when it is labelled."""
    copy = Path(shutil.copytree(store, tmp_path / store.name))
    before = embed_slide(copy, encoder, tmp_path / "out")
    feature = {
        "type": "Feature",
        "geometry": shapely.geometry.mapping(shapely.box(200, 200, 290, 280)),
        "properties": {},
    }
    (tmp_path / "labels.geojson").write_text(json.dumps(feature))
    label_store(copy, tmp_path / "labels.geojson")
    assert embed_slide(copy, encoder, tmp_path / "out").reused
    again = embed_slide(copy, encoder, tmp_path / "anew")
    assert FeatureStore(again.store).identity == FeatureStore(before.store).identity
    assert any(name.startswith("annotation/") for name in FeatureStore(again.store).tiles.columns)


def test_stopped_at_any_tile_nothing_is_left_and_the_next_ends_with_the_same_bytes(
    slide: Path, encoder: TileEncoder, tmp_path: Path
) -> None:
    whole = embed_slide(slide, encoder, tmp_path / "whole", EmbedConfig(batch_size=8))
    for stop_at in (1, 40):

        def progress(done: int, total: int, stop_at: int = stop_at) -> None:
            if done >= stop_at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            embed_slide(slide, encoder, tmp_path / "out", EmbedConfig(batch_size=8), progress=progress)
        assert not [path for path in (tmp_path / "out").iterdir() if not path.name.endswith(".lock")]
    again = embed_slide(slide, encoder, tmp_path / "out", EmbedConfig(batch_size=8))
    assert FeatureStore(again.store).sha256 == FeatureStore(whole.store).sha256


def test_damage_is_found_and_mended(slide: Path, encoder: TileEncoder, tmp_path: Path) -> None:
    path = embed_slide(slide, encoder, tmp_path).store
    before = FeatureStore(path).sha256
    chunk = path / "features/c/0/0"
    data = bytearray(chunk.read_bytes())
    data[100] ^= 1
    chunk.write_bytes(data)
    assert len(verify_features(path)) == 1
    with pytest.raises(OutputError, match="features/c/0/0"):
        embed_slide(slide, encoder, tmp_path)
    assert not embed_slide(slide, encoder, tmp_path, overwrite=True).reused
    assert FeatureStore(path).sha256 == before


def test_features_that_are_not_finite_name_the_tile(slide: Path, tmp_path: Path) -> None:
    broken = load_encoder(EncoderConfig(encoder=str(write_model(tmp_path / "broken", broken=True))))
    with pytest.raises(ModelError, match=r"disc, tile at x \d+, y \d+"):
        embed_slide(slide, broken, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.zarr"))


def test_memory_does_not_grow_with_the_slide(slide: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """200,000 tiles, whose features alone take 100 MB, in the memory of a few batches and the tiles' places."""
    count, side, dim = 200_000, 448, 128
    grid = Grid(width0=side * 8, height0=side * 8, slide_mpp=0.5, tile_px=8, tile_px0=8, stride_px0=8)
    tiles = Tiles.all_of(grid).only(np.arange(count))
    record = Encoder(name="made-up", kind="timm", sha256="0" * 64, tile_px=8, mpp=0.5, dim=dim)
    answers = np.random.default_rng(0).normal(size=(512, dim)).astype(np.float32)
    encoder = TileEncoder(record, torch.device("cpu"), lambda pixels: answers[: len(pixels)])
    pixels = np.zeros((512, 8, 8, 3), np.uint8)

    def batches() -> Iterator[Batch]:
        for start in range(0, count, 512):
            rows = np.arange(start, min(start + 512, count))
            yield rows, pixels[: len(rows)]

    def source(*arguments: object, **more: object) -> Source:
        facts = SlideFacts(
            slide_id="disc", sha256="1" * 64, width=side * 8, height=side * 8, mpp=0.5, vendor="generic-tiff",
            objective_power=None, level_downsamples=(1.0,),
        )  # fmt: skip
        left_out = dict.fromkeys(("no_tissue", "filtered", "outside_roi", "undecodable"), 0)
        return Source(facts, tiles, Raster(picture(64), 8.0), batches(), left_out, np.zeros(count, np.bool_))  # type: ignore[arg-type]

    monkeypatch.setattr(embed, "slide_source", source)
    tracemalloc.start()
    report = embed_slide(slide, encoder, tmp_path, EmbedConfig(dtype="float32"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.tiles == count
    assert peak < 40 << 20  # places and their copies are 10 MB
    np.testing.assert_array_equal(FeatureStore(report.store).read([0, 511, 512, 199_999]), answers[[0, 511, 0, 319]])
