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
    rows = [(name, _facts(folder)) for name, folder in here.items()]
    rows += [
        (WSINFER + name, f"{model.task}; licence: see its page; to be fetched from the hub")
        for name, model in ZOO.items()
        if WSINFER + name not in here
    ]
    console.show_table("models that --model takes by name, for research use only", ("name", "what it is"), rows)


def _facts(folder: Path) -> str:
    """What a model is for, its classes, scale and licence, and where it lies; or why it cannot be used."""
    from inference.models.known import PACKAGED, ZOO
    from inference.models.wsinfer_config import is_zoo_folder, read_zoo_config
    from tiling.core.errors import ModelError
    from training.models.info import read_record

    where = "comes with specslide" if folder in PACKAGED.values() else f"in {folder}"
    try:
        if not is_zoo_folder(folder):
            info = read_record(folder)
            task, licence = info.said("tissue"), info.said("licence")
            classes, tile_px, mpp = info.classes, info.tile_px, info.mpp
        else:
            config = read_zoo_config(folder)
            task, licence = ZOO[folder.name].task if folder.name in ZOO else "", "see its page"
            classes, tile_px, mpp = config.class_names, config.patch_size_pixels, config.spacing_um_px
    except ModelError as error:
        return f"cannot be used: {error.what}\n{where}"
    scale = "" if mpp is None else f"{tile_px} px, {mpp:g} µm/px"
    facts = (task, f"classes: {', '.join(classes)}", scale, licence and f"licence: {licence}", where)
    return "\n".join(fact for fact in facts if fact)
