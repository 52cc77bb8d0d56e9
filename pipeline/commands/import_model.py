"""A classifier of timm's into a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import console
from pipeline.commands.options import Overwrite


def import_model(
    source: Annotated[str, typer.Argument(help="Folder with config.json and model.safetensors, or hf-hub:OWNER/NAME.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the model.")],
    mpp: Annotated[float, typer.Option(min=0.001, max=1000, help="Micrometres per pixel of its training tiles.")],
    tile_px: Annotated[int | None, typer.Option(help="Side of these tiles, pixels; default: of what it sees.")] = None,
    classes: Annotated[
        str | None, typer.Option(help="Names of its outputs in their order, with commas; default: its own.")
    ] = None,
    positive_class: Annotated[str | None, typer.Option(help="The class that heatmaps show.")] = None,
    tissue: Annotated[str, typer.Option(help="What it was trained on, for its card.")] = "",
    licence: Annotated[str, typer.Option(help="Its licence, for its card.")] = "",
    overwrite: Overwrite = False,
) -> None:
    """Make a model folder of a tile classifier that timm saved or that lies on a hub, for `heatmap --model`.

    Its weights stay as they are. It is not calibrated, its threshold of 0.5 is chosen on no data, and it cannot tell
    tiles that are unlike those it was trained on: every report by it says so.

    Examples:

    `specslide import model resnet18-lymph --mpp 0.5 --classes normal,tumour --out model`

    `specslide import model hf-hub:OWNER/NAME --mpp 0.5 --tile-px 256 --positive-class tumour --out model`
    """
    from inference.import_model import ImportModelConfig
    from inference.import_model import import_model as verb
    from tiling.core.settings import checked

    names = None if classes is None else tuple(name.strip() for name in classes.split(","))
    told = {"mpp": mpp, "tile_px": tile_px, "classes": names, "positive_class": positive_class}
    config = checked(ImportModelConfig, told | {"tissue": tissue, "licence": licence}, "import model")
    info = verb(source, out, config, overwrite=overwrite)
    console.say(f"{out}: {info.backbone}, {', '.join(info.classes)}; heatmaps show {info.positive_class}")
    console.say(f"to use it: specslide heatmap SLIDE --model {out} --out heatmaps")
