"""The verb: models and labelled tiles they were not trained on -> metrics by group, a comparison, and pictures.

out/evaluation.json      all figures, published last      out/evaluation.md, .html   the same, to be read
out/<model>_performance.png                                curves, confusion matrix, reliability
out/<model>_gallery.png                                    the tiles most confidently right and wrong
out/<model>_<column>.png                                   metrics by site, scanner or case
out/comparison.png       what model B gains over A         out/predictions.csv        probabilities of each tile
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tiling.core.artefact import atomic_folder, locked_folder, require_own
from tiling.core.errors import ConfigError, InputError, ModelError
from tiling.core.files import canonical_json, write_file
from tiling.core.pages import markdown_page
from tiling.core.settings import checked
from tiling.core.versions import software_versions
from tiling.grid import same_scale
from training.config import AnyConfig, BagConfig, TrainConfig
from training.data.bags import encoder_of
from training.data.dataset import TileDataset
from training.data.from_features import samples_from_features
from training.data.from_images import samples_from_images
from training.data.from_stores import samples_from_stores
from training.data.preparation import split_samples
from training.data.samples import Samples, Split
from training.data.splits import SPLITS
from training.devices import device_name
from training.evaluation.bootstrap import Interval
from training.evaluation.figures import GalleryRow, by_group, comparison, gallery, performance
from training.evaluation.predictions import Model, Predictions, predict_views, prediction_table
from training.evaluation.results import (
    COLUMNS,
    Evaluation,
    ModelResult,
    compare,
    measure,
    measure_groups,
    worse_than_chance,
)  # fmt: skip
from training.models.info import BagInfo, GroupSummary, ModelInfo
from training.recipes import evaluation_recipe

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (tiles done, tiles in all)."""

GALLERY_TILES, GALLERY_CLASSES = 8, 6


def labelled_tiles(
    info: ModelInfo | BagInfo,
    *,
    images: Path | None = None,
    stores: Path | None = None,
    bags: Path | None = None,
    manifest: Path | None = None,
    mpp: float | None = None,
    where: str | None = None,
) -> Samples:
    """The tiles of `images`, or of `stores` and `manifest`, labelled, filtered and capped as the model's training was.

    Of a model of bags, the bags of the feature stores in `bags` and of `manifest`.

    The classes are the model's, in its order. The split is the data's own; of data without one that the model was
    trained on, the split that training made; else "".

    Args:
        info: The model's.
        images: Table of labelled images.
        stores: Folder of tile stores.
        bags: Folder of feature stores, for a model of bags.
        manifest: Table of the stores' slides.
        mpp: Micrometres per pixel of the images; None: the model's. They are shrunk or enlarged to the model's tiles.
        where: A filter by the stores' columns, in place of the training's.

    Returns:
        The tiles.

    Raises:
        ConfigError: If the arguments name no data, or two.
        ModelError: If the tiles' scale, or the features' encoder, is not the model's.
        InputError: For labels that the model does not know, and as `samples_from_images` and `samples_from_stores`.
    """
    config = _data_settings(info)
    given = {name for name, path in (("images", images), ("stores", stores), ("bags", bags)) if path is not None}
    where_from = manifest or images or Path()
    if isinstance(info, BagInfo) != ("bags" in given):
        what = f"classifies {info.noun}s, and the data are {'bags' if bags else 'tiles'}"
        raise ModelError("the model", what, f"pass {'--bags' if isinstance(info, BagInfo) else '--stores or --images'}")
    if isinstance(config, BagConfig) and bags is not None and manifest is not None and given == {"bags"}:
        config = config.model_copy(update={"where": where or config.where})
        samples = samples_from_features(bags, manifest, config, to_train=False)
        _require_encoder(samples, info, bags)
    elif isinstance(config, TrainConfig) and images is not None and manifest is None and given == {"images"}:
        config = config.model_copy(update={"where": where})
        samples = samples_from_images(images, config, mpp=mpp or info.mpp, to_train=False)
    elif isinstance(config, TrainConfig) and stores is not None and manifest is not None and given == {"stores"}:
        config = config.model_copy(update={"where": where or config.where})
        samples = samples_from_stores(stores, manifest, config, to_train=False)
    else:
        fix = "pass --stores with --manifest, or --images, or --bags with --manifest"
        raise ConfigError("evaluate options", "name no data", fix)
    if samples.kind == "stores" or mpp is not None:
        _require_scale(samples, info, stores or where_from)
    if samples.kind != "images":  # nobody knows how those came to be
        info.warn_of_colours(samples.icc, stores or bags or where_from)
    samples = _as_classes(samples, info.classes, where_from)
    assumed = images is not None and mpp is None and info.mpp is not None
    return _as_trained(samples, info, config) or replace(samples, mpp_assumed=assumed)


def choose_tiles(samples: Samples, split: str, where: Path) -> Split:
    """The tiles of a split or of "all". Raises ConfigError for another name, InputError if there are none."""
    if split not in (*SPLITS, "all"):
        raise ConfigError("--split", f"{split!r} is no split", f"use {', '.join(SPLITS)} or all")
    if split != "all" and (samples.split == "").all():
        what = "names no splits, and is not what the model was trained on"
        fix = "pass --split all if the model never saw these cases, or add a column split: split.csv of the run has it"
        raise InputError(where, what, fix)
    chosen = samples.split_of(split)
    if not len(chosen):
        raise InputError(where, f"has no {samples.noun} of the split {split}", f"use {', '.join(SPLITS)} or all")
    return chosen


def evaluate_models(
    models: Sequence[Model],
    split: Split,
    out: Path,
    *,
    by: Sequence[str] = (),
    resamples: int = 1000,
    seed: int = 0,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Evaluation:
    """Test one model, or two on the same tiles (or bags), and publish the files listed above as the folder `out`.

    Args:
        models: One or two models of the same classes and scale.
        split: Tiles to test on, of `labelled_tiles` of the first model.
        out: The folder; an earlier evaluation there is replaced when the new one is complete.
        by: Columns to group by: site, scanner, case.
        resamples: Bootstrap resamples of the cases.
        seed: Decides the resamples.
        batch_size: Tiles the model sees at once.
        progress: Called with (tiles done, tiles in all).

    Returns:
        The figures.

    Raises:
        ModelError: For a model that does not fit the tiles or the other one.
        InputError: For a column that nobody filled.
        OutputError: If `out` cannot be written, or holds something else.

    Example:
        >>> from training import evaluate_models, labelled_tiles, load_model
        >>> model = load_model("results/training/seed-0/model")
        >>> stores, manifest = Path("results/stores"), Path("cohort/manifest.csv")
        >>> tiles = labelled_tiles(model.info, stores=stores, manifest=manifest).split_of("test")
        >>> found = evaluate_models([model], tiles, Path("test"), resamples=10)
        >>> sorted(found.models[0].overall.metrics)[:3]
        ['auroc', 'average_precision', 'balanced_accuracy']
    """
    if not 1 <= len(models) <= 2:
        raise ConfigError("models", f"{len(models)} are given", "pass one, or two to compare")
    names = ("model",) if len(models) == 1 else ("A", "B")
    by_name = dict(zip(names, models, strict=True))
    for column in by:
        _require_column(split, column)
    notes = require_comparable(by_name, split)
    hashes = {name: model.sha256 for name, model in by_name.items()}
    recipe = evaluation_recipe(hashes, split, by=by, resamples=resamples, seed=seed)
    with locked_folder(out):
        require_own(out, "evaluation.json", "an evaluation")
        report = counter(progress, len(models) * len(split))
        predicted = {
            name: predict_views(model, split, [lambda tiles: tiles], batch_size=batch_size, report=report)[0]
            for name, model in by_name.items()
        }
        results = tuple(
            ModelResult(
                name=name,
                sha256=model.sha256,
                backbone=model.info.network,
                threshold=model.info.threshold,
                temperature=model.info.temperature,
                overall=measure(predicted[name], resamples=resamples, seed=seed),
                groups={
                    column: measure_groups(predicted[name], split.column(column), resamples=resamples, seed=seed)
                    for column in by
                },
            )
            for name, model in by_name.items()
        )
        both = tuple(predicted.values())
        evaluation = Evaluation(
            classes=split.classes,
            positive_class=models[0].info.positive_class,
            split=split.name,
            resamples=resamples,
            models=results,
            differences=compare(*both, resamples=resamples, seed=seed) if len(both) == 2 else {},
            notes=(*notes, *worse_than_chance(results)),
            noun=split.samples.noun,
        )
        with atomic_folder(out, recipe, made_with=made_with(models[0])) as folder:
            _write(folder, evaluation, split, predicted, seed)
    return evaluation


def scale_notes(split: Split) -> list[str]:
    """A note on pictures whose scale was assumed; [] where it is known."""
    if not split.samples.mpp_assumed:
        return []
    scale = f"{split.samples.mpp:.4g} µm/px, the model's scale"
    return [f"The scale of the pictures was not given: they are taken to be at {scale}. Pass --mpp if they are not."]


def made_with(model: Model) -> dict[str, str]:
    """Versions of the software, the device and what computes there, behind a model's figures, for commit.json."""
    software = software_versions("torch", "onnxruntime", "timm", "numpy", "matplotlib", "scikit-learn")
    return software | {"device": device_name(model.device), "backend": model.backend}


def _write(folder: Path, evaluation: Evaluation, split: Split, predicted: Mapping[str, Predictions], seed: int) -> None:
    """Fill the folder of an evaluation."""
    for result in evaluation.models:
        name, overall = result.name, result.overall.metrics
        write_pictures(folder, name, split, predicted[name], overall, resamples=evaluation.resamples, seed=seed)
        for column, groups in result.groups.items():
            metrics = {group: of.metrics for group, of in groups.items()}
            write_file(folder / f"{name}_{column}.png", by_group(overall, metrics, f"{name} by {column}"))
    if evaluation.differences:
        write_file(folder / "comparison.png", comparison(evaluation.differences, "B minus A on the same tiles"))
    write_file(folder / "predictions.csv", prediction_table([split], [predicted]))
    write_file(folder / "evaluation.md", evaluation.page())
    pictures = sorted(path.name for path in folder.glob("*.png"))
    write_file(folder / "evaluation.html", markdown_page(evaluation.page(), pictures))
    write_file(folder / "evaluation.json", canonical_json(evaluation.record()))


def write_pictures(
    folder: Path,
    name: str,
    split: Split,
    predictions: Predictions,
    metrics: Mapping[str, Interval],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> None:
    """Write `<name>_performance.png` into a folder, and of tiles `<name>_gallery.png`.

    Args:
        folder: The folder.
        name: What the pictures are called.
        split: n tiles.
        predictions: Of these tiles.
        metrics: Of these predictions, with intervals.
        resamples: Bootstrap resamples behind the bands of the curves.
        seed: Decides the resamples.

    Raises:
        OutputError: If a file cannot be written.
        InputError, StoreError: If a tile cannot be read.
    """
    write_file(
        folder / f"{name}_performance.png", performance(predictions, metrics, name, resamples=resamples, seed=seed)
    )
    if split.samples.kind != "bags":
        write_file(folder / f"{name}_gallery.png", gallery(_gallery_rows(TileDataset(split), predictions), name))


def group_summaries(
    split: Split, predictions: Predictions, *, resamples: int = 1000, seed: int = 0
) -> tuple[GroupSummary, ...]:
    """The metrics of a split by site and by scanner, where one is known, as a model folder records them.

    Args:
        split: The tiles.
        predictions: What the model says of them.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.

    Returns:
        A summary a group, sites first.
    """
    return tuple(
        GroupSummary(
            split=split.name, column=column, name=name, cases=group.cases, tiles=group.tiles, metrics=group.metrics
        )
        for column in ("site", "scanner")
        if (split.column(column) != "").any()
        for name, group in measure_groups(predictions, split.column(column), resamples=resamples, seed=seed).items()
    )


def _data_settings(info: ModelInfo | BagInfo) -> AnyConfig:
    """How the model's training read its data; settings that this version does not know are left out.

    So is the augmentation, which need not be known here.
    """
    kind: type[AnyConfig] = BagConfig if isinstance(info, BagInfo) else TrainConfig
    known = {name: info.training[name] for name in info.training.keys() & kind.model_fields.keys() - {"augment"}}
    return checked(kind, known, "the model's training settings").model_copy(update={"positive_class": None})


def _require_encoder(samples: Samples, info: ModelInfo | BagInfo, where: Path) -> None:
    """Raise ModelError unless the features are made as the model's were."""
    if isinstance(info, BagInfo) and (how := info.encoder.difference(encoder_of(samples))):
        what = f"holds features of another encoder than the model's: {how}"
        raise ModelError(where, what, "embed the slides with the model's encoder")


def _require_scale(samples: Samples, info: ModelInfo | BagInfo, where: Path) -> None:
    """Raise ModelError unless the tiles show what the model's showed: the same scale and side."""
    if info.mpp is None or samples.mpp is None:
        fix = "train it again and pass --mpp with the scale of its images"
        raise ModelError("the model", f"does not say at what scale it was trained, so {where} may be at another", fix)
    if not same_scale(samples.mpp, info.mpp) or samples.tile_px != info.tile_px:
        what = f"has tiles of {samples.tile_px} px at {samples.mpp:.4g} µm/px, the model's are {info.tile_px} px at "
        fix = f"make them with specslide tile --mpp {info.mpp:g} --tile-px {info.tile_px}"
        fix = fix if samples.kind == "stores" else "pass the images' true --mpp, or images of the model's scale"
        raise ModelError(where, f"{what}{info.mpp:.4g}", fix)


def _as_classes(samples: Samples, classes: tuple[str, ...], where: Path) -> Samples:
    """The samples with the model's classes in the model's order."""
    unknown = [name for name in samples.classes if name not in classes]
    if unknown:
        what = f"has {samples.noun}s of {unknown[0]!r}, and the model knows {', '.join(classes)} only"
        raise InputError(where, what, "correct the labels, leave those tiles out, or pass a model of these classes")
    place = np.array([classes.index(name) for name in samples.classes])
    return replace(samples, classes=classes, label=place[samples.label])


def _as_trained(samples: Samples, info: ModelInfo | BagInfo, config: AnyConfig) -> Samples | None:
    """The samples in the splits the model's training had, if they are what it was trained on; else None."""
    try:
        split = split_samples(samples, config, Path())
    except InputError:  # they cannot be split so: the model was not trained on them
        return None
    return split if split.known_as(info.hashes.get("data")) else None


def require_comparable(models: Mapping[str, Model], split: Split) -> tuple[str, ...]:
    """Check that models may be compared on these tiles; returns warnings by name, which are logged too.

    Raises ModelError for a model that does not fit the tiles or the first one.
    """
    first = next(iter(models.values())).info
    for name, model in models.items():
        _require_fit(model.info, first, split.samples, name)
    notes = [note for name, model in models.items() for note in _leaks(name, model, split)] + scale_notes(split)
    for note in notes:
        log.warning("%s", note)
    return tuple(notes)


def _require_fit(info: ModelInfo | BagInfo, first: ModelInfo | BagInfo, samples: Samples, name: str) -> None:
    """Raise ModelError for a model that cannot be compared with the first on these tiles."""
    if set(info.classes) != set(first.classes) or info.positive_class != first.positive_class:
        a, b = (f"{', '.join(i.classes)} (positive {i.positive_class})" for i in (first, info))
        raise ModelError(name, f"has other classes: {b}, not {a}", "compare models of the same classes")
    if info.mpp is not None and first.mpp is not None and not same_scale(info.mpp, first.mpp):
        what = f"is for {info.mpp:.4g} µm/px, the first for {first.mpp:.4g}"
        raise ModelError(name, what, "compare models of the same scale")
    if isinstance(info, BagInfo) != (samples.kind == "bags"):
        raise ModelError(name, f"classifies {info.noun}s", "compare two models of tiles, or two of bags")
    if isinstance(info, BagInfo):
        _require_encoder(samples, info, Path(name))
    if samples.kind == "stores" and info.tile_px != samples.tile_px:
        what = f"is for tiles of {info.tile_px} px, these are of {samples.tile_px}"
        raise ModelError(name, what, "compare models of the same tile size")


def _leaks(name: str, model: Model, split: Split) -> list[str]:
    """A warning if some of the tiles are known to have been used to make the model."""
    samples, config = split.samples, _data_settings(model.info)
    unsplit = replace(samples, split=np.full(len(samples), ""))
    trained = _as_trained(samples, model.info, config) or _as_trained(unsplit, model.info, config)
    if trained is None:
        return []
    used = trained.split[split.indices]
    counts = [f"{int((used == side).sum()):,} of {side}" for side in SPLITS[:2] if (used == side).any()]
    if not counts:
        return []
    return [f"Of these {samples.noun}s the making of {name} used {' and '.join(counts)}: its figures are too good."]


def _require_column(split: Split, column: str) -> None:
    """Raise InputError if nobody filled the column."""
    if column not in COLUMNS:
        raise ConfigError("--by", f"{column!r} is no column to group by", f"use {', '.join(COLUMNS)}")
    values = split.column(column)
    if (values == "").all():
        raise InputError(
            f"--by {column}", f"no {split.samples.noun}'s {column} is known", f"fill the column {column} of the table"
        )
    if without := int((values == "").sum()):
        log.warning("the %s of %d of %d %ss is unknown", column, without, len(values), split.samples.noun)


def counter(progress: Progress | None, total: int) -> Callable[[int], None]:
    """A function that adds to what is done, and tells `progress` (done, in all)."""
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    return add


def _gallery_rows(tiles: TileDataset, predictions: Predictions) -> list[GalleryRow]:
    """For each of the most frequent classes: its tiles most confidently called otherwise, and called right."""
    counts = np.bincount(predictions.labels, minlength=len(predictions.classes))
    shown = sorted(np.argsort(-counts, kind="stable")[:GALLERY_CLASSES].tolist())
    return [_gallery_row(tiles, predictions, c, right) for c in shown for right in (False, True)]


def _gallery_row(tiles: TileDataset, predictions: Predictions, c: int, right: bool) -> GalleryRow:
    called = predictions.called
    candidates = np.flatnonzero((predictions.labels == c) & ((called == c) == right))
    order = np.argsort(predictions.probabilities[candidates, c] * (-1 if right else 1), kind="stable")
    positions = candidates[order[:GALLERY_TILES]].tolist()
    names, side = predictions.classes, tiles.split.tile_px
    return GalleryRow(
        title=f"{names[c]}: most confidently {'right' if right else 'wrong'}",
        tiles=tiles.__getitems__(positions).tiles.numpy() if positions else np.empty((0, side, side, 3), np.uint8),
        captions=[
            f"{_short(names[c])} {p[c]:.3f}\n{_short(case)}"
            for c, p, case in zip(
                called[positions], predictions.probabilities[positions], predictions.case_ids[positions], strict=True
            )
        ],
    )


def _short(text: str) -> str:
    return text if len(text) <= 14 else text[:6] + "…" + text[-7:]
