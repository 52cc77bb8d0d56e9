"""A trained model for other programs: ONNX, TorchScript, or a folder that WSInfer and QuPath's WSInfer extension run.

An export is run and compared with the model it was made from before it gets its name. The temperature is folded in.
Everything is exported for a CPU in float32; names of files and of the machine are taken out.
"""

from __future__ import annotations

import copy
import io
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from inference.onnx import onnx_graph, onnx_session
from tiling.core.artefact import Recipe, atomic_folder, locked_folder, require_own
from tiling.core.errors import ModelError, OutputError
from tiling.core.files import canonical_json
from tiling.core.versions import RESEARCH_USE, software_versions
from training import ModelInfo, TileModel
from training.models.classifier import TileClassifier
from training.models.info import IN_COLOURS, warn_of_colours

ExportFormat = Literal["onnx", "torchscript", "wsinfer"]
TOLERANCE = 1e-4
"""How far an export's outputs may be from torch's: probabilities absolutely, logits relatively where above 1."""
ONNX_FILE, TORCHSCRIPT_FILE = "model.onnx", "model.pt"
WSINFER_MODEL, WSINFER_CONFIG = "torchscript_model.pt", "config.json"  # the names that WSInfer's programs look for
FACTS, CARD = "export.json", "README.md"
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
_CHECKED_TILES = 5

Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Logits divided by the temperature, and probabilities, each (B, C)."""


@dataclass(frozen=True)
class ExportReport:
    """The result of an export."""

    folder: Path
    file: Path
    difference: float
    """The largest difference from torch's probabilities on the tiles that were checked."""


class Resize(nn.Module):
    """Pictures (B, C, T, T) -> (B, C, side, side): torch's antialiased bilinear resizing as products with one matrix.

    Exporters do not know that operator, or do it in their own ways; products are the same everywhere.
    """

    weights: Tensor

    def __init__(self, tile_px: int, side: int) -> None:
        super().__init__()
        self.same = tile_px == side
        unit = torch.eye(tile_px)[None, None]
        weights = functional.interpolate(unit, (side, tile_px), mode="bilinear", antialias=True)[0, 0]
        self.register_buffer("weights", weights)  # (side, T); rows sum to 1

    def forward(self, pictures: Tensor) -> Tensor:
        """See the class."""
        return pictures if self.same else self.weights @ pictures @ self.weights.T


class CalibratedClassifier(nn.Module):
    """Tiles uint8 (B, T, T, 3) -> (logits / temperature, probabilities), each float32 (B, C)."""

    def __init__(self, network: TileClassifier, info: ModelInfo) -> None:
        super().__init__()
        self.network, self.temperature = network, info.temperature
        self.resize = Resize(info.tile_px, network.input_px)

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        pixels = self.resize(tiles.permute(0, 3, 1, 2).float() / 255).clamp(0, 1)
        logits = self.network.logits(pixels) / self.temperature
        return logits, torch.softmax(logits, dim=1)


class NormalisedClassifier(nn.Module):
    """The module that WSInfer calls: normalised tiles float32 (B, 3, T, T) -> logits / temperature (B, C).

    WSInfer applies the softmax.

    Tiles are resized to the backbone's side in here, so that no program does it in its own way. That it happens after
    normalisation makes no difference: both are affine, and a bilinear mean has weights that sum to 1.
    """

    def __init__(self, network: TileClassifier, info: ModelInfo) -> None:
        super().__init__()
        self.backbone, self.temperature = network.backbone, info.temperature
        self.resize = Resize(info.tile_px, network.input_px)

    def forward(self, normal: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.backbone(self.resize(normal).contiguous(memory_format=torch.channels_last))
        return logits / self.temperature


def export_model(model: TileModel, to: ExportFormat, out_dir: Path | str, *, overwrite: bool = False) -> ExportReport:
    """Export a model into the folder `out_dir`, whole or not at all, once it gives what torch gives.

    `onnx` writes model.onnx: `tiles` uint8 (batch, tile_px, tile_px, 3) -> `logits` and `probabilities`, float32
    (batch, classes), calibrated; classes, scale and colours are in its metadata. `torchscript` writes model.pt with the
    same input and outputs. `wsinfer` writes torchscript_model.pt and config.json by the wsinfer-zoo schema, spec 1.0.
    Beside it are export.json with classes, scale, colours, threshold and provenance, and README.md.

    Args:
        model: The model.
        to: onnx, torchscript or wsinfer.
        out_dir: The folder.
        overwrite: Replace an export that is there already.

    Returns:
        What was written.

    Raises:
        ModelError: For a model that cannot be exported, or whose export differs from it.
        OutputError: For an export that is there already, unless `overwrite`, and a folder that holds something else.
    """
    folder = Path(out_dir)
    with locked_folder(folder):
        require_own(folder, FACTS, "an export")
        if folder.exists() and not overwrite:
            raise OutputError(folder, "is there already", "choose another --out, or pass --overwrite")
        config = wsinfer_config(model.info) if to == "wsinfer" else None
        if config is not None:
            warn_of_colours(model.info.icc, "none", "a slide in WSInfer or QuPath", "model", "probabilities")
        data, name, difference = _EXPORTS[to](model)
        facts = _facts(model, to, name, difference)
        recipe = Recipe("export", {"model": model.sha256}, {"to": to, "version": facts["version"]})
        with atomic_folder(folder, recipe, made_with=facts["software"]) as partial:
            (partial / name).write_bytes(data)
            (partial / FACTS).write_text(canonical_json(facts), encoding="utf-8")
            (partial / CARD).write_text(_card(facts), encoding="utf-8")
            if config is not None:
                (partial / WSINFER_CONFIG).write_text(canonical_json(config), encoding="utf-8")
    return ExportReport(folder, folder / name, difference)


def wsinfer_config(info: ModelInfo) -> dict[str, Any]:
    """The content of config.json by the wsinfer-zoo schema, spec 1.0. Raises ModelError for a model without scale."""
    if info.mpp is None:
        fix = "train it again and pass --mpp with the scale of its images"
        raise ModelError("the model", "does not say at what scale it was trained, which WSInfer needs", fix)
    return {
        "spec_version": "1.0",
        "architecture": info.backbone,
        "num_classes": len(info.classes),
        "class_names": list(info.classes),
        "patch_size_pixels": info.tile_px,
        "spacing_um_px": info.mpp,
        "transform": [
            {"name": "Resize", "arguments": {"size": info.tile_px}},
            {"name": "ToTensor"},
            {"name": "Normalize", "arguments": {"mean": list(info.mean), "std": list(info.std)}},
        ],
        "icc": info.icc,  # which the schema leaves room for, and specslide reads
    }


def _as_onnx(model: TileModel) -> tuple[bytes, str, float]:
    network = CalibratedClassifier(_portable(model), model.info)
    example = torch.from_numpy(_tiles(model.info.tile_px))
    data = onnx_graph(network, example, "tiles", ("logits", "probabilities"), _of_use(model.info))
    session = onnx_session(data)

    def run(tiles: NDArray[np.uint8]) -> Outputs:
        logits, probabilities = session(tiles)
        return logits, probabilities

    return data, ONNX_FILE, _difference("the ONNX export", model, run)


def _as_torchscript(model: TileModel) -> tuple[bytes, str, float]:
    example = torch.from_numpy(_tiles(model.info.tile_px))
    data = _scripted(CalibratedClassifier(_portable(model), model.info), example)
    loaded = load_script(data)

    def run(tiles: NDArray[np.uint8]) -> Outputs:
        with torch.inference_mode():
            logits, probabilities = loaded(torch.from_numpy(tiles))
        return logits.numpy(), probabilities.numpy()

    return data, TORCHSCRIPT_FILE, _difference("the TorchScript export", model, run)


def _as_wsinfer(model: TileModel) -> tuple[bytes, str, float]:
    info = model.info
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (info.mean, info.std))

    def normalised(tiles: NDArray[np.uint8]) -> Tensor:  # as ToTensor and Normalize do
        return (torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255 - mean) / std

    data = _scripted(NormalisedClassifier(_portable(model), info), normalised(_tiles(info.tile_px)))
    loaded = load_script(data)

    def run(tiles: NDArray[np.uint8]) -> Outputs:
        with torch.inference_mode():
            logits = loaded(normalised(tiles))
        return logits.numpy(), torch.softmax(logits, dim=1).numpy()

    return data, WSINFER_MODEL, _difference("the WSInfer export", model, run)


_EXPORTS: dict[ExportFormat, Callable[[TileModel], tuple[bytes, str, float]]] = {
    "onnx": _as_onnx, "torchscript": _as_torchscript, "wsinfer": _as_wsinfer,
}  # fmt: skip


def _portable(model: TileModel) -> TileClassifier:
    """The network on the CPU in float32. Raises ModelError for one whose stain normalisation cannot be exported."""
    if model.network.stain is not None:
        what = "normalises stains by an eigenvalue problem a tile, which other programs cannot run"
        raise ModelError("the model", what, "export a model trained without stain normalisation")
    return copy.deepcopy(model.network).cpu().float().eval()


def _tiles(tile_px: int) -> NDArray[np.uint8]:
    """Tiles to check with, uint8 (B, T, T, 3): noise of several strengths, black and white."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (_CHECKED_TILES - 2, tile_px, tile_px, 3))
    noise[1] = 160 + noise[1] // 8
    noise[2, ..., 1] //= 2
    flat = [np.full((1, tile_px, tile_px, 3), value) for value in (0, 255)]
    return np.concatenate([noise, *flat]).astype(np.uint8)


def _difference(what: str, model: TileModel, run: Callable[[NDArray[np.uint8]], Outputs]) -> float:
    """The largest difference of probabilities, for a batch and for one tile. Raises ModelError above the tolerance."""
    network, worst = _portable(model), 0.0
    for tiles in (_tiles(model.info.tile_px), _tiles(model.info.tile_px)[:1]):
        with torch.inference_mode():
            expected = network(torch.from_numpy(tiles)) / model.info.temperature
            expected_probabilities = torch.softmax(expected, dim=1).numpy()
        logits, probabilities = run(tiles)
        worst = max(worst, float(np.abs(probabilities - expected_probabilities).max()))
        apart = np.abs(logits - expected.numpy()) / np.maximum(np.abs(expected.numpy()), 1)
        far = max(worst, float(apart.max()))
        if not (far <= TOLERANCE and np.isfinite(logits).all()):
            raise ModelError(what, f"differs from torch by {far:.2g}", "report it with the backbone's name")
    return worst


def load_script(data: bytes) -> Callable[..., Any]:
    """A TorchScript module from the bytes of its file."""
    with _scripting():
        loaded: Callable[..., Any] = torch.jit.load(io.BytesIO(data), map_location="cpu")  # type: ignore[no-untyped-call]
    return loaded


@contextmanager
def _scripting() -> Iterator[None]:
    """TorchScript without torch's word that it is deprecated: WSInfer and QuPath run nothing else."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        yield


def _scripted(network: nn.Module, example: Tensor) -> bytes:
    """TorchScript of a network, without the notes about source files that torch puts beside the code."""
    with _scripting(), torch.no_grad():
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        try:
            traced = torch.jit.trace(network.eval(), example, check_trace=False)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            fix = "use another backbone"
            raise ModelError("the model", f"cannot be exported to TorchScript ({reason})", fix) from error
        whole = io.BytesIO()
        torch.jit.save(traced, whole)
    bare = io.BytesIO()
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(bare, "w", zipfile.ZIP_STORED) as target:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                target.writestr(zipfile.ZipInfo(entry.filename, _ZIP_TIME), source.read(entry))
    return bare.getvalue()


def _of_use(info: ModelInfo) -> dict[str, Any]:
    """What a user of the export has to know of the model."""
    return info.model_dump(include={"backbone", "classes", "positive_class", "threshold", "tile_px", "mpp", "icc"})


def _facts(model: TileModel, to: ExportFormat, name: str, difference: float) -> dict[str, Any]:
    return {
        "format": "specslide-export",
        "version": 1,
        "to": to,
        "file": name,
        **_of_use(model.info),
        "temperature_folded_in": model.info.temperature,
        "largest_difference_from_torch": difference,
        "model_sha256": model.sha256,
        "software": software_versions("torch", "timm", "onnx", "onnxruntime"),
        "notice": RESEARCH_USE,
    }


def _card(facts: dict[str, Any]) -> str:
    scale = "an unknown scale" if facts["mpp"] is None else f"{facts['mpp']:g} µm/px"
    colours = IN_COLOURS[facts["icc"]]
    inputs = {
        "wsinfer": "normalised tiles float32 (batch, 3, side, side), see config.json; output: logits / temperature",
    }.get(facts["to"], "`tiles` uint8 RGB (batch, side, side, 3); outputs: logits / temperature, and probabilities")
    return (
        f"# {facts['backbone']}, exported by specslide\n\n{facts['notice']}\n\n"
        f"- `{facts['file']}`: {inputs}\n"
        f"- tiles of {facts['tile_px']} px at {scale}, pixels {colours}\n"
        f"- classes, in order: {', '.join(facts['classes'])}\n"
        f"- {facts['positive_class']} is called from a probability of {facts['threshold']:g} on\n"
        f"- differs from the model in torch by at most {facts['largest_difference_from_torch']:.1e} where checked\n"
        f"- model: SHA-256 {facts['model_sha256']}\n"
    )
