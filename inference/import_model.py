"""The verb `import_model`: a classifier of timm's, from a folder or a hub, becomes a model folder.

Its weights stay as they are. What timm does not say, the scale of its tiles, is told; what nobody measured, calibration
and a threshold, is said to be missing.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save

from inference.models.wsinfer import UNCALIBRATED
from tiling.core.artefact import Recipe, require_own, state
from tiling.core.errors import ConfigError, ModelError, OutputError
from tiling.core.files import sha256_json
from tiling.core.settings import first_fault
from tiling.core.text import printable
from tiling.core.versions import RESEARCH_USE, software_versions
from tiling.grid import Mpp, TilePx
from training import TrainConfig
from training.data.preparation import positive_class
from training.models.backbones import (
    HUB,
    Architecture,
    find_architecture,
    find_folder_architecture,
    make_backbone,
    read_weights,
)
from training.models.classifier import TileClassifier
from training.models.folder import save_model
from training.models.info import INFO, ModelInfo, read_info

WEIGHTS_FILE = "model.safetensors"


class ImportModelConfig(BaseModel):
    """What timm's configuration does not say of a classifier."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mpp: Mpp
    """Micrometres per pixel of the tiles it was trained on."""
    tile_px: TilePx | None = None
    """Side of these tiles, pixels; None: of the pictures that it sees."""
    classes: tuple[str, ...] | None = Field(None, min_length=2)
    """Names of its outputs, in their order; None: as its configuration names them."""
    positive_class: str | None = None
    """The class that heatmaps show; None: the last that is not called normal, benign or the like."""
    tissue: str = ""
    """What it was trained on, which its card says."""
    licence: str = ""
    """Its licence, which its card says."""


def import_model(source: str, out: Path, config: ImportModelConfig, *, overwrite: bool = False) -> ModelInfo:
    """Make a model folder of a classifier of timm's.

    The whole tile is seen, resized to the network's own size; timm's own evaluation may crop it.

    Args:
        source: A folder with `config.json` and `model.safetensors`, as timm's `save_for_hf` writes it, or
            `hf-hub:owner/name`.
        out: The model's folder.
        config: What is to be told of it.
        overwrite: Replace a model made otherwise, or a damaged one.

    Returns:
        What model.json says.

    Raises:
        ConfigError: For a hub that cannot be reached, classes that are not named, or as many as it does not have.
        ModelError: For a folder without these files, a network that is unknown, and weights that do not fit it.
        OutputError: For a folder made otherwise, unless `overwrite`, and one that holds something else.
    """
    hub = source.startswith(HUB)
    own = find_architecture(source) if hub else find_folder_architecture(Path(source))
    weights = read_weights(source if hub else str(Path(source) / WEIGHTS_FILE))
    info = _info(own, config, source)
    network = make_backbone(own, len(info.classes), info.input_px)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ModelError(source, f"its weights do not fit {own.name} ({reason})", "fetch it again") from None
    if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise ModelError(source, "holds weights that are no numbers", "fetch it again")
    made_of = {
        "weights": hashlib.sha256(save(weights)).hexdigest(),
        "network": sha256_json(info.model_dump(mode="json")),
    }
    recipe = Recipe("model from timm", made_of)
    if out.exists():
        found = state(out, recipe)
        if found.state == "done":
            return read_info(out)
        require_own(out, INFO, "a model")
        if not overwrite:
            what = f"holds another model, or a damaged one: {found.why or 'it is incomplete'}"
            raise OutputError(out, what, "choose another --out, or pass --overwrite")
    classifier = TileClassifier(network, info.input_px, info.mean, info.std)
    return save_model(out, classifier, info, _card(info), recipe=recipe)


def _info(own: Architecture, config: ImportModelConfig, source: str) -> ModelInfo:
    """What model.json is to say. Raises ConfigError, or ModelError for what cannot be."""
    classes, side = _classes(own, config, source), _side(own, source)
    if config.positive_class not in (None, *classes):
        raise ConfigError("positive_class", f"{config.positive_class!r} is none of {', '.join(classes)}", "correct it")
    record = {
        "backbone": own.name, "backbone_args": own.args, "input_px": side, "mean": own.settings.get("mean"),
        "std": own.settings.get("std"), "classes": classes, "mpp": config.mpp, "tile_px": config.tile_px or side,
        "positive_class": positive_class(classes, TrainConfig(positive_class=config.positive_class)),
        "temperature": 1.0, "threshold": 0.5, "best_epoch": 0, "data": {}, "metrics": {}, "hashes": {},
        "training": {"limits": UNCALIBRATED, "tissue": config.tissue, "licence": config.licence},
        "software": software_versions("timm"),
    }  # fmt: skip
    try:
        return ModelInfo.model_validate(record)
    except ValidationError as error:
        raise ModelError(source, f"its configuration cannot be used: {first_fault(error)}", "use another") from None


def _card(info: ModelInfo) -> str:
    """The model's card, Markdown: what is known of it."""
    said = "".join(f"- {name}: {printable(info.said(name))}\n" for name in ("tissue", "licence") if info.said(name))
    return f"""# Tile classifier of {printable(info.network)}

{RESEARCH_USE} {info.limits}

- made by: others, and taken over from timm's files with its weights as they are
- classes: {", ".join(map(printable, info.classes))}; heatmaps show {printable(info.positive_class)}
- tiles: {info.tile_px} px at {info.mpp:.4g} µm/px, as told when it was taken over; seen at {info.input_px} px
{said}"""


def _classes(own: Architecture, config: ImportModelConfig, source: str) -> tuple[str, ...]:
    """The names of the outputs, as told or as the configuration has them."""
    names, count = config.classes or own.settings.get("label_names"), own.settings.get("num_classes")
    if isinstance(names, dict):  # by number
        names = [names[number] for number in sorted(names, key=lambda number: (len(str(number)), str(number)))]
    if not names or not isinstance(names, list | tuple):
        raise ConfigError("classes", f"{source} does not name its {count} classes", "pass them, in their order")
    if len(names) != count:
        raise ConfigError("classes", f"{source} has {count} outputs, not {len(names)}", "name each, in their order")
    return tuple(str(name) for name in names)


def _side(own: Architecture, source: str) -> int:
    """The side of the picture that it sees, pixels."""
    size = own.settings["input_size"]
    if not isinstance(size, list | tuple) or len(size) != 3 or size[0] != 3 or size[1] != size[2]:
        what = f"sees pictures of (channels, height, width) {size}"
        raise ModelError(source, what, "use one of squares in red, green and blue")
    if not isinstance(size[1], int):
        raise ModelError(source, f"sees pictures of a side of {size[1]!r}", "use another")
    return size[1]
