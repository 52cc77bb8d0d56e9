"""The study of shortcuts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import console
from pipeline.commands.options import TileData
from pipeline.commands.settings import Settings, given_of, options_of, settings_of
from pipeline.meter import progress_of
from tiling.core.settings import load_settings
from training.config import TrainConfig
from training.shortcut.config import TESTS, ShortcutConfig


@options_of(
    TileData,
    ShortcutConfig,
    common=(
        *TileData.model_fields, "confounder", "amount", "strength", "keep_clear", "methods", "seeds", "rules",
        "lambdas", "weight_decays", "l2s", "epochs", "backbone",
    ),
    names={"sd_lambdas": "lambdas"},
)  # fmt: skip
def shortcut(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the study.")],
    settings: Settings,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; options override it.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes, one thread each; default: one per core.")
    ] = None,
) -> None:
    """Whether networks learn more than a shortcut: something that follows the label in training, and not in the tests.

    Each seed splits the cases anew. What a method leaves open (lambda, weight decay, ...) is chosen by each rule, on
    validation with the shortcut in it, and the whole grid is shown. The folder gets study.md, study.csv, study.png and
    examples.png. Stopped at any time, the same command goes on. Without data, tables and figure are made again from the
    runs that the folder holds.

    Examples:

    `specslide study shortcut --images index.csv --confounder sharpness --strength 0.95 --out study`

    `specslide study shortcut --stores stores --manifest slides.csv --methods weight_decay,sd --seeds 5 --out study`
    """
    wanted = load_settings(ShortcutConfig, config, given_of(ShortcutConfig, settings), "study settings")
    data = settings_of(TileData, settings, "study options")
    if data != TileData():
        data.require()
    from pipeline.execution.pool import default_workers
    from training.shortcut.experiment import report_shortcut, study_shortcut
    from training.shortcut.report import BASELINE, NAMES
    from training.trials.choice import chosen_lines

    if data == TileData():
        grid, wanted = report_shortcut(out)
    else:
        samples = data.samples(TrainConfig(positive_class=wanted.positive_class))
        with progress_of("training", "networks") as progress:
            grid = study_shortcut(samples, out, wanted, workers=workers or default_workers(), progress=progress)
    rows = []
    for rule in wanted.rules:
        lines = chosen_lines(grid, rule)
        gains = [line.gain(lines.get(BASELINE), "unconfounded") for line in lines.values()]
        rows += [
            (rule, line.method, *(line.estimate(t) for t in TESTS), "-" if gain is None else gain.signed())
            for line, gain in zip(lines.values(), gains, strict=True)
        ]
    head = ("chosen by", "method", *(NAMES[test] for test in TESTS), "gain over weight decay, unconfounded")
    console.show_table(f"balanced accuracy; study in {out}", head, rows)
