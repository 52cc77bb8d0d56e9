"""Tiles into a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import console
from pipeline.commands.options import WhereOption
from tiling.core.errors import ConfigError


def train(
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    stores: Annotated[Path | None, typer.Option(help="Folder of tile stores; needs --manifest.")] = None,
    manifest: Annotated[Path | None, typer.Option(help="Table of the stores' slides.")] = None,
    images: Annotated[Path | None, typer.Option(help="Table of labelled images: path, label, case_id.")] = None,
    mpp: Annotated[
        float | None, typer.Option(help="Micrometres per pixel of the images, to use the model on slides.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; options override it.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Any timm model; default tf_efficientnet_lite0.")] = None,
    weights: Annotated[str | None, typer.Option(help="packaged, none, or a file of weights.")] = None,
    input_px: Annotated[int | None, typer.Option(help="Side of the picture the backbone sees.")] = None,
    sd_lambda: Annotated[float | None, typer.Option(help="Spectral decoupling; default 0.01, 0 turns it off.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="AdamW's weight decay; default 0.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training tiles.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Tiles a step.")] = None,
    augment: Annotated[str | None, typer.Option(help="none, light (default), stain or strong.")] = None,
    stain_norm: Annotated[str | None, typer.Option(help="none (default), macenko or reinhard.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides split, order and augmentation.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that load tiles; default 0, on a GPU one a core.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Split by case (default) or by site.")] = None,
    folds: Annotated[int | None, typer.Option(help="Cross-validation: so many folds, each in turn the test.")] = None,
    fold: Annotated[int | None, typer.Option(help="Which fold is the test of this run, from 0.")] = None,
    balance: Annotated[
        list[str] | None, typer.Option(help="Draw evenly over class, site, case or slide; may be repeated.")
    ] = None,
    tiles_per_epoch: Annotated[int | None, typer.Option(help="Training tiles drawn an epoch; default: all.")] = None,
    where: WhereOption = None,
    freeze: Annotated[bool | None, typer.Option("--freeze", help="Train the head alone: a linear probe.")] = None,
    devices: Annotated[
        int | None, typer.Option(help="Processes, one a GPU; default 1, or as torchrun or srun started them.")
    ] = None,
    logger: Annotated[list[str] | None, typer.Option(help="tensorboard, mlflow or wandb, beside a CSV.")] = None,
) -> None:
    """Train a tile classifier, regularised by spectral decoupling, from tile stores or from a table of images.

    Cases are split, never tiles. The run folder gets the model, metrics with intervals, and a learning curve.
    SIGTERM or SIGUSR1 saves the state and ends with exit code 75; the same command goes on, also after a kill.

    Examples:

    `specslide train --stores stores --manifest slides.csv --out run`

    `specslide train --images index.csv --out run --mpp 4 --epochs 7 --seed 0`

    `specslide train --images index.csv --out run/fold2 --group site --folds 5 --fold 2 --balance class --balance slide`

    `srun --ntasks-per-node=4 specslide train --config train.yaml --images index.csv --out run --logger tensorboard`
    """
    from training import load_train_config, samples_from_images, samples_from_stores
    from training import train as verb

    options = {
        "backbone": backbone, "weights": weights, "input_px": input_px, "sd_lambda": sd_lambda,
        "weight_decay": weight_decay, "learning_rate": learning_rate, "epochs": epochs, "batch_size": batch_size,
        "augment": augment, "stain_norm": stain_norm,
        "seed": seed, "workers": workers, "where": where, "freeze": freeze, "devices": devices,
        "group": group, "folds": folds, "fold": fold, "balance": balance or None, "tiles_per_epoch": tiles_per_epoch,
        "loggers": logger or None,
    }  # fmt: skip
    settings = load_train_config(config, options)
    if images is not None and stores is None:
        samples = samples_from_images(images, settings, mpp=mpp)
    elif stores is not None and manifest is not None and images is None:
        samples = samples_from_stores(stores, manifest, settings)
    else:
        raise ConfigError("train options", "name no data", "pass --stores with --manifest, or --images")
    result = verb(samples, out, settings)
    if result.rank > 0:
        return
    rows = [(split, name, interval) for split, metrics in result.metrics.items() for name, interval in metrics.items()]
    console.show_table(f"model in {result.model}", ("split", "metric", "value (95% interval over cases)"), rows)
