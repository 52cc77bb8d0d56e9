"""The study of other hospitals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import console
from pipeline.commands.options import require_there
from pipeline.commands.settings import Settings, options_of
from pipeline.meter import progress_of
from tiling.core.errors import ConfigError
from tiling.core.settings import load_settings
from training.config import TrainConfig
from training.external.config import AnyExternalConfig, ExternalBagConfig, ExternalConfig

if TYPE_CHECKING:
    from training.data.samples import Samples
    from training.trials.choice import Grid

_TABLE = "Table of labelled images (path, label, case_id, site): "
_SLIDES = "Table of labelled slides (slide_path, slide_id, case_id, label, site): "


@options_of(
    ExternalConfig,
    common=(
        "methods", "seeds", "rules", "lambdas", "weight_decays", "l2s", "augment", "epochs", "learning_rate",
        "backbone", "weights", "input_px", "positive_class",
    ),
    names={"sd_lambdas": "lambdas"},
)  # fmt: skip
def external(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the study.")],
    settings: Settings,
    train: Annotated[Path | None, typer.Option(help=f"{_TABLE}to train and validate on.")] = None,
    tested: Annotated[Path | None, typer.Option("--external", help=f"{_TABLE}other hospitals, to test on.")] = None,
    inside: Annotated[Path | None, typer.Option(help=f"{_TABLE}the training hospital's, tested on too.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; options override it.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 1,
) -> None:
    """Which regularisation, chosen on the training hospital alone, transfers to others.

    Every method trains with each setting of its grid under every seed. Each rule chooses among them by validation,
    which is a part of the training cases; the other hospitals' tiles test what was chosen. The folder gets study.md,
    study.csv and study.png. Stopped at any time, the same command goes on. Without data, tables and figure are made
    again from the runs that the folder holds.

    Examples:

    `specslide study external --train radboud.csv --external karolinska.csv --methods erm,weight_decay,sd --out study`

    `specslide study external --out study`
    """
    wanted = load_settings(ExternalConfig, config, settings, "study settings")
    tables = _tables(train, tested, inside)
    if tables is None:
        return _show_again(out)
    from training import samples_from_images

    reading = TrainConfig(positive_class=wanted.positive_class)
    samples = {name: samples_from_images(path, reading, to_train=name == "train") for name, path in tables.items()}
    _study(samples, out, wanted, workers)


@options_of(
    ExternalBagConfig,
    common=("head", "bag", "methods", "seeds", "rules", "lambdas", "weight_decays", "l2s", "epochs", "learning_rate"),
    names={"sd_lambdas": "lambdas"},
)
def bags(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the study.")],
    settings: Settings,
    features: Annotated[Path | None, typer.Option(help="Folder of the feature stores of all slides.")] = None,
    train: Annotated[Path | None, typer.Option(help=f"{_SLIDES}to train and validate on.")] = None,
    tested: Annotated[Path | None, typer.Option("--external", help=f"{_SLIDES}other hospitals, to test on.")] = None,
    inside: Annotated[Path | None, typer.Option(help=f"{_SLIDES}the training hospital's, tested on too.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; options override it.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 1,
) -> None:
    """The study of other hospitals, on models that learn from slide labels alone (see `train --bags`).

    As the command `study external`, with the features that `embed` makes in place of pictures. Features cannot be
    shifted, so the rules that look at shifted validation are not asked.

    Examples:

    `specslide study bags --features features --train radboud.csv --external karolinska.csv --head gated --out study`

    `specslide study bags --out study`
    """
    wanted = load_settings(ExternalBagConfig, config, settings, "study settings")
    tables = _tables(train, tested, inside)
    if tables is None:
        return _show_again(out)
    if features is None:
        raise ConfigError("the options", "name no features", "pass --features, the folder that specslide embed made")
    require_there(features)
    from training import BagConfig, samples_from_features

    reading = BagConfig(positive_class=wanted.positive_class, bag=wanted.bag)
    samples = {name: samples_from_features(features, path, reading, to_train=False) for name, path in tables.items()}
    _study(samples, out, wanted, workers)


def _tables(train: Path | None, tested: Path | None, inside: Path | None) -> dict[str, Path] | None:
    """The tables by name; None if there is none, and the study is to be shown again."""
    if (train is None) != (tested is None):
        raise ConfigError("the options", "name one table", "pass --train and --external, or neither")
    given = {"train": train, "external": tested, "inside": inside}
    tables = {name: path for name, path in given.items() if path is not None}
    require_there(*tables.values())
    return tables if train is not None else None


def _study(samples: dict[str, Samples], out: Path, wanted: AnyExternalConfig, workers: int) -> None:
    from training.external.experiment import study_external

    with progress_of("training", "networks") as progress:
        grid = study_external(
            samples["train"], samples["external"], out, wanted,
            inside=samples.get("inside"), workers=workers, progress=progress,
        )  # fmt: skip
    _show(grid, wanted, out)


def _show_again(out: Path) -> None:
    from training.external.experiment import report_external

    _show(*report_external(out), out)


def _show(grid: Grid, config: AnyExternalConfig, out: Path) -> None:
    from training.evaluation.metrics import METRIC_NAMES
    from training.external.report import EXTERNAL, MEASURES
    from training.trials.choice import chosen_lines

    rows = [
        (rule, line.method.replace("_", " "), *(line.estimate(EXTERNAL, measure) for measure in MEASURES))
        for rule in config.rules
        for line in chosen_lines(grid, rule).values()
    ]
    head = ("chosen by", "method", *(METRIC_NAMES.get(measure, measure) for measure in MEASURES))
    console.show_table(f"on what is external; study in {out}", head, rows)
