"""A model tested on labelled tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import console
from pipeline.commands.options import CheckOption, DataOptions, model_folders
from pipeline.commands.settings import Settings, options_of, settings_of
from pipeline.meter import progress_of


@options_of(DataOptions)
def evaluate(
    models: Annotated[
        list[Path], typer.Argument(help="A model's folder or name, or two to compare on the same tiles.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the figures and pictures.")],
    settings: Settings,
    by: Annotated[list[str] | None, typer.Option(help="Groups: site, scanner or case; may be repeated.")] = None,
    check: CheckOption = False,
) -> None:
    """Test a model on labelled tiles or bags, or compare two: metrics with intervals over cases, by group; pictures.

    The split is the data's own, or the one that training made of the same data. The folder gets
    evaluation.json, evaluation.html and .md, predictions.csv, the pictures, and commit.json, which says what they were
    made from.

    Examples:

    `specslide evaluate run/model --images index.csv --out test`

    `specslide evaluate mean/model gated/model --bags features --manifest labels.csv --out test`

    `specslide evaluate erm/model sd/model --stores stores --manifest other.csv --split all --by scanner --out test`
    """
    data = settings_of(DataOptions, settings, "evaluate options")
    if check:
        return
    data.require()
    folders = model_folders(models)
    from inference.backends import quickest
    from inference.models.load import load_any_model
    from training import evaluate_models, load_train_config
    from training.devices import device_of
    from training.evaluation.metrics import METRIC_NAMES

    device = device_of(load_train_config())
    loaded = [load_any_model(folder, device) for folder in folders]
    chosen = data.labelled(loaded[0].info)
    quick = [quickest(model, len(chosen)) for model in loaded]
    with progress_of("evaluation", f"{chosen.samples.noun}s") as progress:
        found = evaluate_models(
            quick, chosen, out, by=by or (), resamples=data.resamples, seed=data.seed, batch_size=data.batch_size,
            progress=progress,
        )  # fmt: skip
    results: dict[str, Any] = {model.name: model.overall.metrics for model in found.models}
    results |= {"B minus A": found.differences} if found.differences else {}
    rows = [(label, *(result[name] for result in results.values())) for name, label in METRIC_NAMES.items()]
    columns = ("metric", *results)
    console.show_table(f"{len(chosen):,} {chosen.samples.noun}s of the split {data.split}, in {out}", columns, rows)
