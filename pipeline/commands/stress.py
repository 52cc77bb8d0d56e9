"""A model tested on shifted tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import console
from pipeline.commands.options import CheckOption, DataOptions, model_folders
from pipeline.commands.settings import Settings, options_of, settings_of
from pipeline.meter import progress_of
from tiling.core.errors import ConfigError
from training.config import ShiftsConfig


@options_of(DataOptions, ShiftsConfig, without=("bags",))
def stress(
    models: Annotated[list[Path], typer.Argument(help="Models' folders or names; all are drawn into one picture.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the figures and the picture.")],
    settings: Settings,
    check: CheckOption = False,
) -> None:
    """How well models withstand what another scanner or laboratory changes: a metric against each shift's strength.

    DIR gets stress.json, stress.csv and stress.png: curves with intervals over cases, and the area under each.

    Examples:

    `specslide stress run/model --images index.csv --out stress`

    `specslide stress erm/model sd/model --stores stores --manifest slides.csv --shifts sharpness,stain --out stress`
    """
    data = settings_of(DataOptions, settings, "stress options")
    config = settings_of(ShiftsConfig, settings, "stress options")
    if check:
        return
    data.require()
    named = names_of(model_folders(models))
    from inference import load_model
    from pipeline.execution.job import require_folder
    from training import load_train_config
    from training.devices import device_of
    from training.evaluation.metrics import METRIC_NAMES
    from training.evaluation.robustness import stress as verb

    device = device_of(load_train_config())
    loaded = {name: load_model(folder, device) for name, folder in named.items()}
    chosen = data.labelled(next(iter(loaded.values())).info)
    require_folder(out)
    with progress_of("stress", "predictions") as progress:
        found = verb(
            loaded, chosen, out, config, resamples=data.resamples, seed=data.seed, batch_size=data.batch_size,
            progress=progress,
        )  # fmt: skip
    rows: list[tuple[object, ...]] = [("none", *found.unshifted.values())]
    rows += [(shift, *(curve.area for curve in curves.values())) for shift, curves in found.curves.items()]
    title = f"mean {METRIC_NAMES[config.metric]} over the strengths of each shift; {len(chosen):,} tiles, in {out}"
    console.show_table(title, ("shift", *found.models), rows)


def names_of(models: list[Path]) -> dict[str, Path]:
    """What to call model folders: the run's folder where the model's is called `model`, or else whole paths."""
    resolved = [folder.resolve() for folder in models]
    names = [folder.parent.name if folder.name == "model" else folder.name for folder in resolved]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in models]
    if len(set(resolved)) < len(resolved):
        raise ConfigError("models", "one is named twice", "name each once")
    return dict(zip(names, models, strict=True))
