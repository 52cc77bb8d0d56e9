"""The models that can be named."""

from __future__ import annotations

from pathlib import Path

from pipeline import console


def models() -> None:
    """Models that `--model` takes by name: what comes with the package, lies in $SPECSLIDE_MODELS, or can be fetched.

    $SPECSLIDE_MODELS names folders that hold models: specslide's, or WSInfer's with config.json and
    torchscript_model.pt. `wsinfer:NAME` is looked for there, then in the hub's cache, and then on the hub. TorchScript
    is a program: name only models of people you trust.

    Examples:

    `specslide models`

    `specslide heatmap slide.svs --model breast-idc --out heatmaps`

    `specslide heatmap slide.svs --model wsinfer:breast-tumor-resnet34.tcga-brca --out heatmaps`
    """
    from inference.models.find import WSINFER, models_at_hand
    from inference.models.known import ZOO

    here = dict(models_at_hand())
    rows = [(name, *_facts(folder)) for name, folder in here.items()]
    rows += [
        (WSINFER + name, model.task, "", "", "see its page", f"to be fetched: {model.hub}")
        for name, model in ZOO.items()
        if WSINFER + name not in here
    ]
    columns = ("name", "for", "classes", "scale", "licence", "where")
    console.show_table("models that --model takes by name, for research use only", columns, rows)


def _facts(folder: Path) -> tuple[str, str, str, str, str]:
    """What a model is for, its classes, scale and licence, and where it lies; why it cannot be used in their place."""
    from inference.models.known import PACKAGED, ZOO
    from inference.models.wsinfer_config import is_zoo_folder, read_zoo_config
    from tiling.core.errors import ModelError
    from training.models.info import read_record

    where = "comes with specslide" if folder in PACKAGED.values() else str(folder)
    try:
        if is_zoo_folder(folder):
            config = read_zoo_config(folder)
            task = ZOO[folder.name].task if folder.name in ZOO else ""
            scale = f"{config.patch_size_pixels} px, {config.spacing_um_px:g} µm/px"
            return task, ", ".join(config.class_names), scale, "see its page", where
        info = read_record(folder)
    except ModelError as error:
        return f"cannot be used: {error.what}", "", "", "", where
    scale = "" if info.mpp is None else f"{info.tile_px} px, {info.mpp:g} µm/px"
    return info.said("tissue"), ", ".join(info.classes), scale, info.said("licence"), where
