"""The model folder: `weights.safetensors`, `model.json` (a `ModelRecord`), `README.md` (the card), and `commit.json`.

`novelty.safetensors` is there where the model detects out-of-distribution tiles. Nothing in the folder is pickled.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from tiling.core.artefact import Recipe, atomic_folder, content_hash, folder_faults, locked_folder
from tiling.core.errors import ConfigError, ModelError, SpecslideError
from tiling.core.files import canonical_json, sha256_file
from training.models.backbones import Architecture, find_architecture, make_backbone
from training.models.classifier import TileClassifier, TileModel
from training.models.info import INFO, ModelInfo, ModelRecord, read_info, read_record
from training.models.ood import APPEARANCE, Gaussians, Novelty
from training.models.stain import missing_package

Info = TypeVar("Info", bound=ModelRecord)
Network = TypeVar("Network", bound=nn.Module)

WEIGHTS, NOVELTY, CARD = "weights.safetensors", "novelty.safetensors", "README.md"


def save_model(
    folder: Path,
    network: nn.Module,
    info: Info,
    card: str,
    novelty: Novelty | None = None,
    recipe: Recipe | None = None,
) -> Info:
    """Publish a model folder atomically; an older one is replaced. Equal arguments give equal bytes.

    Args:
        folder: Its path.
        network: The trained classifier, whose backbone is all that is kept of one of tiles.
        info: What model.json says.
        card: The model card, Markdown.
        novelty: How the training tiles are spread; `info.novelty` sums it up.
        recipe: What the model was made from.

    Returns:
        The info with the weights' hash.

    Raises:
        OutputError: If it cannot be written.
    """
    kept = network.backbone if isinstance(network, TileClassifier) else network
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in kept.state_dict().items()}
    if info.training.get("half_weights"):
        state = {name: tensor.half() if _is_matrix(tensor) else tensor for name, tensor in state.items()}
    with locked_folder(folder), atomic_folder(folder, recipe) as partial:
        (partial / WEIGHTS).write_bytes(save(state))  # save_file would let nobody else read it
        if novelty is not None:
            (partial / NOVELTY).write_bytes(save(_novelty_tensors(novelty)))
        info = info.model_copy(update={"hashes": info.hashes | {WEIGHTS: sha256_file(partial / WEIGHTS)}})
        (partial / INFO).write_text(canonical_json(info.model_dump(mode="json")), encoding="utf-8")
        (partial / CARD).write_text(card, encoding="utf-8")
    return info


def round_matrices(network: nn.Module) -> None:
    """Round a network's matrices to what 16 bits can hold, as `half_weights` keeps them; vectors, norms' stay whole."""
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if _is_matrix(tensor):
                tensor.copy_(tensor.half())


def _is_matrix(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 1


def load_model(folder: Path | str, device: str | torch.device = "cpu") -> TileModel:
    """The tile classifier of a folder, in evaluation mode on `device`, after every byte of the folder was checked.

    Raises ModelError for a folder that is missing, incomplete, changed, or whose weights do not fit its backbone, for a
    model of bags, and for one that normalises stains where the package for it is not installed.
    """
    folder = Path(folder)
    require_intact(folder)
    info = read_info(folder)
    if info.stain_norm is not None and (fix := missing_package()) is not None:
        raise ModelError(folder, "it normalises stains with the package torchstain, which is missing", fix)
    backbone = with_weights(folder, lambda: _make_backbone(info))
    network = TileClassifier(backbone, info.input_px, info.mean, info.std)
    network.stain = info.stain_norm
    place = torch.device(device)
    novelty = _load_novelty(folder, info, network.backbone)
    return TileModel(
        network.eval().to(place), info, content_hash(folder), place, None if novelty is None else novelty.to(place)
    )


def require_intact(folder: Path) -> None:
    """Raise ModelError unless a folder is a model's and every byte of it is as it was written."""
    if not folder.is_dir():
        raise ModelError(folder, "is not a model folder", "pass the folder `model` of a training run")
    for path in folder.iterdir() if os.access(folder, os.R_OK | os.X_OK) else [folder]:
        if not os.access(path, os.R_OK):
            raise ModelError(path, "may not be read by you", "ask its owner for the right to read it")
    faults = folder_faults(folder)
    if faults:
        raise ModelError(folder, f"is damaged: {faults[0]}", "copy it again from where it was made, or train again")


def with_weights(folder: Path, make: Callable[[], Network]) -> Network:
    """The network that `make` makes, with the weights of a model's folder. Raises ModelError if they do not fit."""
    try:
        with torch.device("meta"):
            needed = {name: list(tensor.shape) for name, tensor in make().state_dict().items()}
        _check_shapes(folder / WEIGHTS, needed)
        network = make()
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (ConfigError, RuntimeError, OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(folder, f"its weights do not fit its backbone ({reason})", "train again") from None
    return network


def verify_model(folder: Path) -> list[str]:
    """The faults of a model folder, one sentence each; every byte is read. Empty if it is intact."""
    faults = folder_faults(folder)
    if not faults:
        try:
            read_record(folder)
        except SpecslideError as error:
            return [str(error)]
    return faults


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


def _novelty_tensors(novelty: Novelty) -> dict[str, Tensor]:
    """The tensors of the file `novelty.safetensors`, by name."""
    parts = {"features": novelty.features, "appearance": novelty.appearance}
    return {
        f"{part}_{name}": getattr(gaussians, name).cpu().contiguous()
        for part, gaussians in parts.items()
        for name in ("means", "whitening")
    }


def _check_shapes(weights: Path, needed: Mapping[str, list[int]]) -> None:
    """Raise RuntimeError unless the file holds what the network needs, before any memory is taken for either."""
    with safe_open(weights, framework="pt") as file:
        held = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - it is no dict
    for name in sorted(needed.keys() | held.keys()):
        if needed.get(name) != held.get(name):
            raise RuntimeError(f"{name!a} is {held.get(name)} and should be {needed.get(name)}")


def _make_backbone(info: ModelInfo) -> nn.Module:
    """The untrained network of a saved model, for which no hub is asked."""
    own = find_architecture(info.backbone)
    return make_backbone(Architecture(own.name, info.backbone_args, own.settings), len(info.classes), info.input_px)
