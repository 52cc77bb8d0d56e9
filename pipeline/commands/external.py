"""The study of other hospitals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import console
from pipeline.commands.options import require_there
from pipeline.commands.settings import Settings, options_of
from tiling.core.errors import ConfigError
from tiling.core.settings import load_settings
from training.config import TrainConfig
from training.external.config import ExternalConfig

_TABLE = "Table of labelled images (path, label, case_id, site): "


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
    if (train is None) != (tested is None):
        raise ConfigError("the options", "name one table", "pass --train and --external, or neither")
    require_there(*(path for path in (train, tested, inside) if path is not None))
    from training.evaluation.metrics import METRIC_NAMES
    from training.external.experiment import report_external, study_external
    from training.external.report import EXTERNAL, MEASURES
    from training.trials.choice import chosen_lines

    if train is None or tested is None:
        grid, wanted = report_external(out)
    else:
        from training import samples_from_images

        reading = TrainConfig(positive_class=wanted.positive_class)
        with console.progress("training", "networks") as progress:
            grid = study_external(
                samples_from_images(train, reading),
                samples_from_images(tested, reading, to_train=False),
                out,
                wanted,
                inside=samples_from_images(inside, reading, to_train=False) if inside is not None else None,
                workers=workers,
                progress=progress,
            )
    rows = [
        (rule, line.method.replace("_", " "), *(line.estimate(EXTERNAL, measure) for measure in MEASURES))
        for rule in wanted.rules
        for line in chosen_lines(grid, rule).values()
    ]
    head = ("chosen by", "method", *(METRIC_NAMES.get(measure, measure) for measure in MEASURES))
    console.show_table(f"on external tiles; study in {out}", head, rows)
