"""A model tested on labelled tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import console
from pipeline.commands.options import WhereOption


def evaluate(
    models: Annotated[list[Path], typer.Argument(help="A model folder, or two to compare on the same tiles.")],
    out: Annotated[Path, typer.Option(help="Folder of the figures and pictures.")],
    stores: Annotated[Path | None, typer.Option(help="Folder of tile stores; needs --manifest.")] = None,
    manifest: Annotated[Path | None, typer.Option(help="Table of the stores' slides.")] = None,
    images: Annotated[Path | None, typer.Option(help="Table of labelled images: path, label, case_id.")] = None,
    mpp: Annotated[float | None, typer.Option(help="Micrometres per pixel of the images; else the model's.")] = None,
    split: Annotated[str, typer.Option(help="train, val, test, or all for data the model never saw.")] = "test",
    by: Annotated[list[str] | None, typer.Option(help="Groups: site, scanner or case; may be repeated.")] = None,
    where: WhereOption = None,
    resamples: Annotated[int, typer.Option(min=0, max=100_000, help="Resamples of cases behind each interval.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Decides the resamples.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Tiles the model sees at once.")] = 256,
) -> None:
    """Test a model on labelled tiles, or compare two: metrics with intervals over cases, by group, and pictures.

    The split is the data's own, or the one that training made of the same data. The folder gets
    evaluation.json, evaluation.md, predictions.csv, the pictures, and commit.json, which says what they were made from.

    Examples:

    `specslide evaluate run/model --images index.csv --out test`

    `specslide evaluate erm/model sd/model --stores stores --manifest other.csv --split all --by scanner --out test`
    """
    from training import load_model, load_train_config
    from training.devices import device_of
    from training.evaluation.evaluate import choose_tiles, evaluate_models, labelled_tiles
    from training.evaluation.metrics import METRIC_NAMES

    device = device_of(load_train_config())
    loaded = [load_model(folder, device) for folder in models]
    data = {"images": images, "stores": stores, "manifest": manifest}
    samples = labelled_tiles(loaded[0].info, **data, mpp=mpp, where=where)
    chosen = choose_tiles(samples, split, manifest or images or Path())
    with console.progress_bar("tiles") as bar:
        shown = bar.add_task("evaluation", total=len(models) * len(chosen), tiles="")
        found = evaluate_models(
            loaded, chosen, out, by=by or (), resamples=resamples, seed=seed,
            batch_size=batch_size, progress=lambda done, total: bar.update(shown, completed=done, total=total),
        )  # fmt: skip
    results: dict[str, Any] = {model.name: model.overall.metrics for model in found.models}
    results |= {"B minus A": found.differences} if found.differences else {}
    rows = [(label, *(result[name] for result in results.values())) for name, label in METRIC_NAMES.items()]
    columns = ("metric", *results)
    console.show_table(f"{len(chosen):,} tiles of the split {split}, in {out}", columns, rows)
