"""Tiles into a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import console
from pipeline.commands.options import CheckOption, LabelledData, Overwrite
from pipeline.commands.settings import Settings, options_of, settings_of
from training.config import AnyConfig, BagConfig, TrainConfig

if TYPE_CHECKING:
    from training import Samples


@options_of(
    LabelledData,
    BagConfig,
    TrainConfig,  # after it, for the defaults of tiles to be shown
    common=(
        *LabelledData.model_fields, "head", "bag", "bag_tiles", "backbone", "weights", "input_px", "sd_lambda",
        "weight_decay", "learning_rate", "epochs", "batch_size", "augment", "stain_norm", "seed", "workers", "group",
        "folds", "fold", "balance", "tiles_per_epoch", "where", "freeze", "devices", "logger",
    ),
    names={"loggers": "logger"},
)  # fmt: skip
def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")],
    settings: Settings,
    mpp: Annotated[
        float | None, typer.Option(help="Micrometres per pixel of the images, to use the model on slides.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; options override it.")] = None,
    overwrite: Overwrite = False,
    check: CheckOption = False,
) -> None:
    """Train a tile classifier, regularised by spectral decoupling, from tile stores or from a table of images.

    With --bags a classifier of whole slides (multiple-instance learning) is trained, from the features that
    the command `embed` makes and a label per slide; of the settings those of the pixels' network have no meaning then.

    Cases are split, never tiles. The run folder gets the model, metrics with intervals, and a learning curve.
    SIGTERM or SIGUSR1 saves the state and ends with exit code 75; the same command goes on, also after a kill. A model
    of the same data and settings is kept; another is refused, or with --overwrite replaced when the new one is there.

    Examples:

    `specslide train --stores stores --manifest slides.csv --out run`

    `specslide train --bags features --manifest labels.csv --head gated --out run`

    `specslide train --images index.csv --out run --mpp 4 --epochs 7 --seed 0`

    `specslide train --images index.csv --out run/fold2 --group site --folds 5 --fold 2 --balance class --balance slide`

    `srun --ntasks-per-node=4 specslide train --config train.yaml --images index.csv --out run --logger tensorboard`
    """
    data = settings_of(LabelledData, settings, "train options")
    wanted = data.config(config, settings)
    if check:
        return
    data.require()
    from training import train as verb
    from training.processes import is_first

    samples = data.bags_or_tiles(wanted, mpp)
    if is_first():
        _show_classes(samples, wanted)
    result = verb(samples, out, wanted, overwrite=overwrite)
    if not is_first():
        return
    splits = sorted(result.metrics.items(), reverse=True)  # validation first, also of a model that was complete
    rows = [(split, name, interval) for split, metrics in splits for name, interval in sorted(metrics.items())]
    console.show_table(
        f"model in {result.model}{', complete already' if result.reused else ''}",
        ("split", "metric", "value (95% interval over cases)"),
        rows,
    )


def _show_classes(samples: Samples, config: AnyConfig) -> None:
    """What is learned from, by class, and which class heatmaps will show."""
    from training.data.preparation import is_no_disease, positive_class
    from training.record import class_rows

    columns = ("class", f"{samples.noun}s to train on", "to validate on", "to test on", "sites")
    console.show_table(f"{len(samples.classes)} classes", columns, class_rows(samples))
    shown = positive_class(samples.classes, config)
    doubt = ", by its name the one without disease; name another with --positive-class" if is_no_disease(shown) else ""
    console.note(f"heatmaps of this model show the class {shown}{doubt}")
