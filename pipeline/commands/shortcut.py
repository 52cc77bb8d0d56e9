"""The study of shortcuts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import console
from pipeline.commands.options import listed
from tiling.core.errors import ConfigError


def shortcut(
    out: Annotated[Path, typer.Option(help="Folder of the study.")],
    images: Annotated[Path | None, typer.Option(help="Table of labelled images: path, label, case_id.")] = None,
    stores: Annotated[Path | None, typer.Option(help="Folder of tile stores; needs --manifest.")] = None,
    manifest: Annotated[Path | None, typer.Option(help="Table of the stores' slides.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; options override it.")] = None,
    confounder: Annotated[str | None, typer.Option(help="sharpness (default), brightness, hue or marker.")] = None,
    amount: Annotated[float | None, typer.Option(help="How strong the change is, in the confounder's unit.")] = None,
    strength: Annotated[
        float | None, typer.Option(help="How often it agrees with the label: 1 always, 0.5 by chance.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(help="Of erm, weight_decay, sd, sd+weight_decay, stain_norm, strong, sd+strong; commas between."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Paired repetitions; default 10.")] = None,
    lambdas: Annotated[str | None, typer.Option(help="Grid of spectral decoupling, commas between.")] = None,
    weight_decays: Annotated[str | None, typer.Option(help="Grid of weight decay, commas between.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of each training.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Any timm model; default test_resnet, a very small one.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes, one thread each; default: one a core.")] = None,
) -> None:
    """Whether networks learn more than a shortcut: something that follows the label in training, and not in the tests.

    Each seed splits the cases anew. Lambda and weight decay are chosen on validation with the shortcut in it, and the
    whole grid is shown. The folder gets study.md, study.csv, study.png and examples.png. Stopped at any time, the
    same command goes on.

    Examples:

    `specslide study shortcut --images index.csv --confounder sharpness --strength 0.95 --out study`

    `specslide study shortcut --stores stores --manifest slides.csv --methods weight_decay,sd --seeds 5 --out study`
    """
    from pipeline.execution.pool import default_workers
    from training import TrainConfig, samples_from_images, samples_from_stores
    from training.shortcut.config import TESTS, load_shortcut_config
    from training.shortcut.experiment import study_shortcut
    from training.shortcut.report import NAMES

    options = {
        "confounder": confounder, "amount": amount, "strength": strength, "methods": listed(methods), "seeds": seeds,
        "sd_lambdas": listed(lambdas), "weight_decays": listed(weight_decays), "epochs": epochs,
        "backbone": backbone,
    }  # fmt: skip
    settings = load_shortcut_config(config, options)
    if images is not None and stores is None:
        samples = samples_from_images(images, TrainConfig())
    elif stores is not None and manifest is not None and images is None:
        samples = samples_from_stores(stores, manifest, TrainConfig())
    else:
        raise ConfigError("study options", "name no data", "pass --images, or --stores with --manifest")
    with console.progress_bar("networks") as bar:
        task = bar.add_task("training", total=None, tiles="")
        lines = study_shortcut(
            samples, out, settings, workers=workers or default_workers(),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    rows = [(line.method, *(line.estimate(t) for t in TESTS), line.gain("unconfounded")) for line in lines]
    head = ("method", *(NAMES[test] for test in TESTS), "gain over weight decay, unconfounded")
    console.show_table(f"balanced accuracy; study in {out}", head, rows)
