"""Where a model lies that is given by name or path. Knows nothing of torch.

A name is, in this order: a model's folder; one that comes with the package; a folder of that name in $SPECSLIDE_MODELS
(several folders, set apart as in PATH); and `wsinfer:NAME`, a folder of that name there too, or in the hub's cache, or
on the hub itself. A hub is asked only for such a name, and told nothing but it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from inference.models.known import PACKAGED, ZOO
from inference.models.wsinfer_config import CONFIG, SCRIPT, is_zoo_folder, require_hub_file
from tiling.core.artefact import COMMIT
from tiling.core.errors import ModelError
from training.models.info import INFO

PLACES = "SPECSLIDE_MODELS"
WSINFER = "wsinfer:"


def find_model(named: Path | str) -> Path:
    """The folder of a model, given by path or name. Raises ModelError for one that there is not.

    Example:
        >>> find_model("breast-idc").name
        'breast-idc'
    """
    folder, name = Path(named), str(named)
    if name.startswith(WSINFER):
        return _zoo_model(name.removeprefix(WSINFER))
    if is_model_folder(folder):
        return folder
    if name in PACKAGED:
        return PACKAGED[name]
    for place in model_places():
        if is_model_folder(place / name):
            return place / name
    if name.startswith("hf-hub:"):
        fix = f"specslide import model {name} --mpp MPP --out MODEL makes a model folder of a classifier of timm's"
        raise ModelError(name, "is on a hub, which does not say at what scale it was trained", fix)
    if is_model_folder(folder / "model"):
        raise ModelError(folder, "is a training run", f"pass its model: {folder / 'model'}")
    raise ModelError(folder, "is not a model folder", f"pass the folder `model` of a training run, or {_names(name)}")


def is_model_folder(folder: Path) -> bool:
    """Whether a folder holds a model, of specslide or of WSInfer; a damaged one too."""
    published = (folder / COMMIT).exists() and not (folder / "model").is_dir()  # a damaged model; no run
    return (folder / INFO).exists() or published or is_zoo_folder(folder)


def model_places() -> list[Path]:
    """The folders of $SPECSLIDE_MODELS."""
    return [Path(place) for place in os.environ.get(PLACES, "").split(os.pathsep) if place]


def models_at_hand() -> Iterator[tuple[str, Path]]:
    """Name and folder of each model that comes with the package or lies in $SPECSLIDE_MODELS."""
    yield from PACKAGED.items()
    for place in model_places():
        for folder in sorted(place.iterdir()) if place.is_dir() else ():
            if is_model_folder(folder):
                yield (WSINFER if is_zoo_folder(folder) else "") + folder.name, folder


def _zoo_model(name: str) -> Path:
    """A WSInfer model's folder: in $SPECSLIDE_MODELS, or in the hub's cache, into which it is fetched if need be."""
    for place in model_places():
        if is_zoo_folder(place / name):
            return place / name
    hub = ZOO[name].hub if name in ZOO else name
    if hub.count("/") != 1:
        fix = f"use one of {', '.join(ZOO)}, or wsinfer:OWNER/NAME, or put its folder into ${PLACES}"
        raise ModelError(f"{WSINFER}{name}", f"there is no such model in the zoo, and none in ${PLACES}", fix)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        files = [Path(hf_hub_download(hub, file)) for file in (CONFIG, SCRIPT)]
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        fix = f"put a folder {Path(name).name} with {CONFIG} and {SCRIPT} into a folder that ${PLACES} names"
        what = f"is not in the hub's cache and cannot be fetched from {hub} ({type(error).__name__})"
        raise ModelError(f"{WSINFER}{name}", what, fix) from None
    for file in files:
        require_hub_file(file)
    return files[0].parent


def _names(named: str) -> str:
    """Where names are told, and which one may have been meant."""
    close = get_close_matches(named, [*dict(models_at_hand()), *(WSINFER + name for name in ZOO)], n=1)
    return "a name, as `specslide models` lists them" + (f": {close[0]}?" if close else "")
