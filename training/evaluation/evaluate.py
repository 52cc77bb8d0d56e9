"""The verb: models and labelled tiles they were not trained on -> metrics by group, a comparison, and pictures.

out/evaluation.json      all figures, published last      out/evaluation.md          the same, to be read
out/<model>_performance.png                                curves, confusion matrix, reliability
out/<model>_gallery.png                                    the tiles most confidently right and wrong
out/<model>_<column>.png                                   metrics by site, scanner or case
out/comparison.png       what model B gains over A         out/predictions.csv        probabilities of each tile
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from tiling.core.artefact import locked_folder
from tiling.core.errors import ConfigError, InputError, ModelError
from tiling.core.files import canonical_json, output_error, write_file
from tiling.core.settings import checked
from training.config import TrainConfig
from training.data.dataset import Tiles
from training.data.samples import MPP_TOLERANCE, Samples, samples_from_images, samples_from_stores, split_samples
from training.data.splits import SPLITS
from training.evaluation.figures import GalleryRow, Predictions, by_group, comparison, gallery, performance
from training.evaluation.metrics import Floats, Interval, Ints
from training.evaluation.tables import COLUMNS, Evaluation, Group, ModelResult, compare, measure, measure_groups
from training.models.folder import GroupSummary, MetricSummary, ModelInfo, TileModel

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (tiles done, tiles in all)."""

GALLERY_TILES, GALLERY_CLASSES = 8, 6


def labelled_tiles(
    info: ModelInfo,
    *,
    images: Path | None = None,
    stores: Path | None = None,
    manifest: Path | None = None,
    mpp: float | None = None,
    where: str | None = None,
) -> Samples:
    """The tiles of `images`, or of `stores` and `manifest`, labelled, filtered and capped as the model's training was.

    The classes are the model's, in its order. `where` replaces the filter of the training. Images without `mpp` are
    taken to be at the model's scale and shrunk or enlarged to its tiles. The split is the data's own; of data without
    one that the model was trained on, the split that training made; else "". Raises ConfigError if the options name
    no data, ModelError if the tiles' scale is not the model's, InputError for labels the model does not know and
    whatever `training.data.samples` refuses.
    """
    config = _data_settings(info)
    if images is not None and stores is None and manifest is None:
        where_from: Path = images
        config = config.model_copy(update={"where": where})
        samples = samples_from_images(images, config, mpp=mpp or info.mpp, to_train=False)
    elif stores is not None and manifest is not None and images is None:
        where_from = manifest
        config = config.model_copy(update={"where": where or config.where})
        samples = samples_from_stores(stores, manifest, config, to_train=False)
    else:
        raise ConfigError("evaluate options", "name no data", "pass --stores with --manifest, or --images")
    if samples.kind == "stores" or mpp is not None:
        _require_scale(samples, info, stores or where_from)
    samples = _as_classes(samples, info.classes, where_from)
    return _as_trained(samples, info, config) or samples


def choose_tiles(samples: Samples, split: str, where: Path) -> Ints:
    """Indices (n,) of the tiles of a split or of "all". Raises ConfigError for another name, InputError without any."""
    if split == "all":
        return np.arange(len(samples))
    if split not in SPLITS:
        raise ConfigError("--split", f"{split!r} is no split", f"use {', '.join(SPLITS)} or all")
    if (samples.split == "").all():
        what = "names no splits, and is not what the model was trained on"
        raise InputError(where, what, "pass --split all if the model never saw these cases, or add a column split")
    chosen = samples.where(split)
    if not len(chosen):
        raise InputError(where, f"has no tile of the split {split}", f"use {', '.join(SPLITS)} or all")
    return chosen


def evaluate_models(
    models: Sequence[TileModel],
    samples: Samples,
    chosen: Ints,
    out: Path,
    *,
    split: str = "all",
    by: Sequence[str] = (),
    resamples: int = 1000,
    seed: int = 0,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Evaluation:
    """Test one model, or two on the same tiles, and write the files listed above into `out`.

    `samples` are `labelled_tiles` of the first model, `chosen` indices (n,) into them, `split` what they are called in
    the report. `out/evaluation.json` is there only when everything else is; an older one is removed first. Raises
    ModelError for a model that does not fit the tiles or the other one, InputError for a column nobody filled,
    OutputError.
    """
    if not 1 <= len(models) <= 2:
        raise ConfigError("models", f"{len(models)} are given", "pass one, or two to compare")
    names = ("model",) if len(models) == 1 else ("A", "B")
    columns = {column: _column(samples, chosen, column) for column in by}
    for model in models:
        require_fit(model.info, models[0].info, samples)
    notes = [note for name, model in zip(names, models, strict=True) for note in leaks(name, model, samples, chosen)]
    for note in notes:
        log.warning("%s", note)
    with locked_folder(out / "evaluation"):
        _sweep(out)
        predictions = _predictions(models, samples, chosen, batch_size, progress or (lambda done, total: None))
        results = tuple(
            ModelResult(
                name=name,
                sha256=model.sha256,
                backbone=model.info.backbone,
                threshold=model.info.threshold,
                temperature=model.info.temperature,
                overall=measure(predicted, resamples=resamples, seed=seed),
                groups={
                    column: measure_groups(predicted, values, resamples=resamples, seed=seed)
                    for column, values in columns.items()
                },
            )
            for name, model, predicted in zip(names, models, predictions, strict=True)
        )
        evaluation = Evaluation(
            classes=samples.classes,
            positive_class=models[0].info.positive_class,
            split=split,
            resamples=resamples,
            models=results,
            differences=compare(*predictions, resamples=resamples, seed=seed) if len(models) == 2 else {},
            notes=tuple(notes),
        )
        tiles = Tiles(samples, chosen, models[0].info.tile_px)
        for result, predicted in zip(results, predictions, strict=True):
            overall = result.overall.metrics
            write_pictures(out, result.name, tiles, predicted, overall, resamples=resamples, seed=seed)
            for column, groups in result.groups.items():
                metrics = {name: group.metrics for name, group in groups.items()}
                write_file(
                    out / f"{result.name}_{column}.png", by_group(overall, metrics, f"{result.name} by {column}")
                )
        if evaluation.differences:
            write_file(out / "comparison.png", comparison(evaluation.differences, "B minus A on the same tiles"))
        table = _prediction_table(samples, chosen, dict(zip(names, predictions, strict=True)))
        write_file(out / "predictions.csv", table)
        write_file(out / "evaluation.md", evaluation.page())
        write_file(out / "evaluation.json", canonical_json(evaluation.record()))
    return evaluation


def write_pictures(
    folder: Path,
    name: str,
    tiles: Tiles,
    predictions: Predictions,
    metrics: dict[str, Interval],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> None:
    """Write `<name>_performance.png` and `<name>_gallery.png` of the predictions (n) of the tiles (n) into a folder.

    `metrics` are those of the same predictions. Raises OutputError, and what reading the tiles raises.
    """
    picture = performance(predictions, metrics, name, resamples=resamples, seed=seed)
    write_file(folder / f"{name}_performance.png", picture)
    write_file(folder / f"{name}_gallery.png", gallery(_gallery_rows(tiles, predictions), name))


def predictions_of(tiles: Tiles, probabilities: Floats, threshold: float, positive: int) -> Predictions:
    """The probabilities (n, C) of the tiles (n), with what is known of these."""
    samples, chosen = tiles.samples, tiles.indices
    return Predictions(
        probabilities, samples.label[chosen], samples.case_id[chosen], samples.classes, threshold, positive
    )


def group_summaries(
    split: str, tiles: Tiles, predictions: Predictions, *, resamples: int = 1000, seed: int = 0
) -> tuple[GroupSummary, ...]:
    """The metrics of a split by site and by scanner, where at least one is known: what a model folder records."""
    found = []
    for column in ("site", "scanner"):
        values = getattr(tiles.samples, column)[tiles.indices]
        if (values != "").any():
            groups = measure_groups(predictions, values, resamples=resamples, seed=seed)
            found += [_summary(split, column, name, group) for name, group in groups.items()]
    return tuple(found)


def _summary(split: str, column: str, name: str, group: Group) -> GroupSummary:
    metrics = {metric: MetricSummary(**vars(value)) for metric, value in group.metrics.items()}
    return GroupSummary.model_validate(
        {"split": split, "column": column, "name": name, "cases": group.cases, "tiles": group.tiles, "metrics": metrics}
    )


def _data_settings(info: ModelInfo) -> TrainConfig:
    """How the model's training read its data; settings that this version does not know are left out."""
    known = {name: value for name, value in info.training.items() if name in TrainConfig.model_fields}
    return checked(TrainConfig, known, "the model's training settings").model_copy(update={"positive_class": None})


def _require_scale(samples: Samples, info: ModelInfo, where: Path) -> None:
    """Raise ModelError unless the tiles show what the model's showed: the same scale and side."""
    if info.mpp is None or samples.mpp is None:
        fix = "train it again and pass --mpp with the scale of its images"
        raise ModelError("the model", f"does not say at what scale it was trained, so {where} may be at another", fix)
    if abs(samples.mpp / info.mpp - 1) > MPP_TOLERANCE or samples.tile_px != info.tile_px:
        what = f"has tiles of {samples.tile_px} px at {samples.mpp:.4g} µm/px, the model's are {info.tile_px} px at "
        fix = f"make them with specslide tile --mpp {info.mpp:g} --tile-px {info.tile_px}"
        fix = fix if samples.kind == "stores" else "pass the images' true --mpp, or images of the model's scale"
        raise ModelError(where, f"{what}{info.mpp:.4g}", fix)


def _as_classes(samples: Samples, classes: tuple[str, ...], where: Path) -> Samples:
    """The samples with the model's classes in the model's order."""
    unknown = [name for name in samples.classes if name not in classes]
    if unknown:
        what = f"has tiles of {unknown[0]!r}, and the model knows {', '.join(classes)} only"
        raise InputError(where, what, "correct the labels, leave those tiles out, or pass a model of these classes")
    place = np.array([classes.index(name) for name in samples.classes])
    return replace(samples, classes=classes, label=place[samples.label])


def _as_trained(samples: Samples, info: ModelInfo, config: TrainConfig) -> Samples | None:
    """The samples in the splits the model's training had, if they are what it was trained on; else None."""
    try:
        split = split_samples(samples, config, Path())
    except InputError:  # they cannot be split so: the model was not trained on them
        return None
    return split if split.identity() == info.hashes.get("data") else None


def require_fit(info: ModelInfo, first: ModelInfo, samples: Samples, name: str = "the second model") -> None:
    """Raise ModelError for a further model that cannot be compared with the first on these tiles."""
    if set(info.classes) != set(first.classes) or info.positive_class != first.positive_class:
        a, b = (f"{', '.join(i.classes)} (positive {i.positive_class})" for i in (first, info))
        raise ModelError(name, f"has other classes: {b}, not {a}", "compare models of the same classes")
    if info.mpp is not None and first.mpp is not None and abs(info.mpp / first.mpp - 1) > MPP_TOLERANCE:
        what = f"is for {info.mpp:.4g} µm/px, the first for {first.mpp:.4g}"
        raise ModelError(name, what, "compare models of the same scale")
    if samples.kind == "stores" and info.tile_px != samples.tile_px:
        what = f"is for tiles of {info.tile_px} px, these are of {samples.tile_px}"
        raise ModelError(name, what, "compare models of the same tile size")


def leaks(name: str, model: TileModel, samples: Samples, chosen: Ints) -> list[str]:
    """A warning if some of the tiles are known to have been used to make the model."""
    config, unsplit = _data_settings(model.info), replace(samples, split=np.full(len(samples), ""))
    trained = _as_trained(samples, model.info, config) or _as_trained(unsplit, model.info, config)
    if trained is None:
        return []
    used = trained.split[chosen]
    counts = [f"{int((used == split).sum()):,} of {split}" for split in SPLITS[:2] if (used == split).any()]
    if not counts:
        return []
    return [f"Of these tiles the making of {name} used {' and '.join(counts)}: its figures are too good."]


def _column(samples: Samples, chosen: Ints, column: str) -> NDArray[np.str_]:
    """The group of each chosen tile. Raises InputError if nobody filled the column."""
    if column not in COLUMNS:
        raise ConfigError("--by", f"{column!r} is no column to group by", f"use {', '.join(COLUMNS)}")
    values = (samples.case_id if column == "case" else getattr(samples, column))[chosen]
    if (values == "").all():
        raise InputError(f"--by {column}", f"no tile's {column} is known", f"fill the column {column} of the table")
    if without := int((values == "").sum()):
        log.warning("the %s of %d of %d tiles is unknown", column, without, len(values))
    return cast(NDArray[np.str_], values)


def _predictions(
    models: Sequence[TileModel], samples: Samples, chosen: Ints, batch_size: int, progress: Progress
) -> list[Predictions]:
    """What each model says of the chosen tiles, in the order of the samples' classes."""
    found = []
    for number, model in enumerate(models):
        info, before = model.info, number * len(chosen)

        def report(done: int, before: int = before) -> None:
            progress(before + done, len(models) * len(chosen))

        tiles = Tiles(samples, chosen, info.tile_px)
        own = _predict(model, tiles, batch_size, report)
        p = own[:, [info.classes.index(name) for name in samples.classes]]
        found.append(predictions_of(tiles, p, info.threshold, samples.classes.index(info.positive_class)))
    return found


def _predict(model: TileModel, tiles: Tiles, batch_size: int, report: Callable[[int], None]) -> Floats:
    """Probabilities float64 (n, C), in the order of the model's classes. Raises ModelError if one is not finite."""
    parts = []
    for start in range(0, len(tiles), batch_size):
        positions = list(range(start, min(start + batch_size, len(tiles))))
        parts.append(model.predict(tiles.__getitems__(positions).tiles.numpy()))
        report(positions[-1] + 1)
    probabilities = np.concatenate(parts).astype(np.float64)
    broken = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
    if len(broken):
        slide = tiles.samples.slide_id[tiles.indices[broken[0]]]
        raise ModelError(slide, "the model gives no finite probability for a tile of it", "check the model's training")
    return probabilities


def _gallery_rows(tiles: Tiles, predictions: Predictions) -> list[GalleryRow]:
    """For each of the most frequent classes: its tiles most confidently called otherwise, and called right."""
    counts = np.bincount(predictions.labels, minlength=len(predictions.classes))
    shown = sorted(np.argsort(-counts, kind="stable")[:GALLERY_CLASSES].tolist())
    return [_gallery_row(tiles, predictions, c, right) for c in shown for right in (False, True)]


def _gallery_row(tiles: Tiles, predictions: Predictions, c: int, right: bool) -> GalleryRow:
    called = predictions.called
    candidates = np.flatnonzero((predictions.labels == c) & ((called == c) == right))
    order = np.argsort(predictions.probabilities[candidates, c] * (-1 if right else 1), kind="stable")
    positions = candidates[order[:GALLERY_TILES]].tolist()
    names, side = predictions.classes, tiles.samples.tile_px
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


def _prediction_table(samples: Samples, chosen: Ints, predictions: dict[str, Predictions]) -> str:
    """CSV: a row a tile, with its place in level-0 pixels and each model's calibrated probabilities."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [
        f"prob_{name}" if len(predictions) == 1 else f"{model}_prob_{name}"
        for model in predictions
        for name in samples.classes
    ]
    head = ["split", "case_id", "slide_id", "site", "scanner", "minx", "miny", "width", "height", "label"]
    writer.writerow([*head, *columns])
    values = np.concatenate([p.probabilities for p in predictions.values()], axis=1)
    for i, p in zip(chosen, values, strict=True):
        side = samples.tile_px0[i]
        place = [samples.x0[i], samples.y0[i], side, side] if samples.kind == "stores" else [""] * 4
        facts = [samples.split[i], samples.case_id[i], samples.slide_id[i], samples.site[i], samples.scanner[i]]
        writer.writerow([*facts, *place, samples.classes[samples.label[i]], *(f"{value:.6f}" for value in p)])
    return text.getvalue()


def _sweep(out: Path) -> None:
    """Remove the files of an earlier evaluation, its record first."""
    own = ("evaluation.json", "evaluation.md", "predictions.csv", "comparison.png")
    pictures = [f"{m}_{p}.png" for m in ("model", "A", "B") for p in ("performance", "gallery", *COLUMNS)]
    try:
        for name in (*own, *pictures):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise output_error(out, error) from error
