"""heatmaps/<slide_id>: made from the store, the models that have not seen the slide's case, and its annotation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pipeline.execution.devices import has_gpu_driver
from pipeline.study.ledger import Step, append
from pipeline.study.stages.stage import HEATMAPS, Artefact, Stage, Study, Trained, is_published, state_of
from pipeline.study.stages.tile import name_of as store_of
from tiling.core.artefact import TO_DO, State
from tiling.core.errors import SpecslideError
from tiling.core.text import counted

if TYPE_CHECKING:
    import shapely

    from inference import Ensemble, HeatmapReport, PredictConfig
    from tiling.core.pages import Picture, Section
    from tiling.manifest import ManifestRow
    from training import TileModel
    from training.models.info import ModelRecord

NONE = f"{HEATMAPS}/..."
"""Where no slide can be named."""


def name_of(row: ManifestRow) -> str:
    """The name of a slide's heatmap in the study."""
    return f"{HEATMAPS}/{row.slide_id}"


def split_of(row: ManifestRow, trainings: Sequence[Mapping[str, str]]) -> str:
    """The split of a slide that gets a heatmap, where `trainings` give that of each case that they know.

    Of a cross-validation, where each case is tested once, that is test; so it is of a slide that no training has seen
    and whose row names none.
    """
    from training.data.splits import SPLIT_NAMES

    splits = {split_by_case[row.case_id] for split_by_case in trainings if row.case_id in split_by_case}
    if "test" in splits:
        return "test"
    return next(iter(sorted(splits)), SPLIT_NAMES.get((row.split or "test").lower(), "test"))


def rows_of(study: Study) -> list[ManifestRow]:
    """The slides that get a heatmap, as far as their splits are known."""
    if study.config.heatmap.slides == "all":
        return study.usable
    trainings = [training.split_of for training in study.trainings] if study.has_stores else []
    return [row for row in study.usable if split_of(row, trainings) == "test"]


def _artefacts(study: Study) -> list[Artefact]:
    by_split = study.config.heatmap.slides == "test"
    if not study.has_stores and by_split and not any(row.split for row in study.usable):
        why = "the test split is known once the slides are tiled"
        return [Artefact(NONE, lambda: State("to do", why))]
    try:
        rows = rows_of(study)
    except SpecslideError:  # there is nothing to learn from, which the trainings say
        rows = study.usable
    if not rows:
        return [Artefact(NONE, skip="no slide is in the test split")]
    if not study.has_models:
        return [Artefact(name_of(row)) for row in rows]
    return [Artefact(name_of(row), partial(state_of, partial(_look, row, study))) for row in rows]


def models_of(row: ManifestRow, study: Study) -> tuple[Trained, ...]:
    """The models that make a slide's heatmap: those that have not seen its case, and of these as configured."""
    unseen = tuple(one for one in study.trained if one.training.split_of.get(row.case_id) == "test")
    chosen = unseen if study.config.repeats.folds is not None and unseen else tuple(study.trained)
    return (min(chosen, key=_log_loss),) if study.config.heatmap.model == "best" else chosen


def _log_loss(one: Trained) -> float:
    metric = one.info.metrics.get("val", {}).get("log_loss")
    return np.inf if metric is None or metric.value is None else metric.value


def loaded(chosen: Sequence[Trained], study: Study) -> TileModel | Ensemble:
    """The models as one model or ensemble, on the device that predicts; each is loaded once."""
    from pipeline.execution.jobs import load_models

    return load_models([one.folder for one in chosen], study.device)


def predict_settings(study: Study) -> PredictConfig:
    """The settings of the predictions."""
    from inference.config import PredictConfig

    return PredictConfig(**study.config.heatmap.model_dump(exclude={"slides", "model", "outputs"}))


def truth_of(row: ManifestRow, info: ModelRecord, study: Study) -> shapely.Geometry | None:
    """The annotated area of the model's positive class; None for a label image, which has no outlines.

    The slide's store knows where its coordinates begin. Raises InputError, StoreError.
    """
    from tiling import TileStore
    from tiling.annotations.label_image import SUFFIXES
    from tiling.annotations.rasterize import read_polygons

    if row.annotation is None or row.annotation.suffix.lower() in SUFFIXES:
        return None
    frame = TileStore(study.out / store_of(row)).slide.frame()
    return read_polygons(row.annotation, frame, study.config.tile.annotation).get(info.positive_class)


def _look(row: ManifestRow, study: Study) -> State:
    from inference.ensemble import models_hash
    from inference.recipes import heatmap_recipe
    from tiling.core.artefact import state

    if not is_published(study.out / name_of(row)):
        return TO_DO
    models = models_of(row, study)
    recipe = heatmap_recipe(
        study.out / store_of(row), models_hash(models[0].info.mpp, [one.sha256 for one in models]),
        predict_settings(study), bf16=_uses_bf16(study), truth=truth_of(row, models[0].info, study),
        outputs=study.config.heatmap.outputs,
    )  # fmt: skip
    return state(study.out / name_of(row), recipe)


def _uses_bf16(study: Study) -> bool:
    """Whether heatmaps are computed in bf16. Torch, which takes seconds to load, is asked only where a GPU may be."""
    precision = study.config.heatmap.precision
    if precision == "32" or (precision == "auto" and (study.device == "cpu" or not has_gpu_driver())):
        return False
    from inference.backends import uses_bf16

    return uses_bf16(study.place(), precision)


def _make(study: Study, artefacts: Sequence[Artefact]) -> None:
    """The heatmaps, slides of the same models together; those that fail are noted."""
    from pipeline.execution.job import require_folder
    from pipeline.execution.jobs import HeatmapJob, predict_all

    rows = {name_of(row): row for row in rows_of(study)}
    append(study.out, "plan", steps=[Step("heatmap", name, "to do") for name in rows])
    require_folder(study.out / HEATMAPS)
    jobs: dict[tuple[Trained, ...], list[HeatmapJob]] = {}
    for name, row in rows.items():
        try:
            truth = truth_of(row, study.trained[0].info, study)
        except SpecslideError as error:
            study.fail_slide(name, row, str(error))
            continue
        job = HeatmapJob(
            study.out / store_of(row), row.slide_id, study.out / HEATMAPS, predict_settings(study),
            truth=truth, outputs=study.config.heatmap.outputs, overwrite=True, ledger=study.out,
        )  # fmt: skip
        jobs.setdefault(models_of(row, study), []).append(job)
    reports: dict[str, HeatmapReport] = {}
    here = study.config.cluster is None and study.place().type == "cpu"
    for chosen, of_models in jobs.items():
        models = loaded(chosen, study) if here else [one.folder for one in chosen]
        for outcome in predict_all(of_models, models, device=study.device, cluster=study.config.cluster):
            name = f"{HEATMAPS}/{outcome.job.slide_id}"
            if outcome.result is not None:
                reports[name] = outcome.result
            else:
                study.fail_slide(name, rows[name], outcome.error or "")
    study.results["heatmap"] = [reports[name] for name in rows if name in reports]


def tile_auroc(study: Study) -> float | None:
    """AUROC of every predicted tile of the slides whose every tile is known; None without both classes.

    A tile is positive if at least half of it is annotated so. Known are annotated slides, and those that need no
    annotation, being negative.
    """
    from training.evaluation.metrics import auroc

    positive, negative = study.trained[0].info.positive_class, study.config.train.negative_class
    known = {row.slide_id: row for row in study.rows if row.annotation is not None or row.label == negative}
    tiles = [
        tile
        for report in study.results.get("heatmap", ())
        if report.slide_id in known
        for tile in _scored_tiles(report, known[report.slide_id], positive, study)
    ]
    scores, labels = np.array([score for score, _ in tiles]), np.array([label for _, label in tiles], np.int64)
    return None if len(set(labels.tolist())) < 2 else float(auroc(np.stack([1 - scores, scores], 1), labels))


def _scored_tiles(report: HeatmapReport, row: ManifestRow, positive: str, study: Study) -> list[tuple[float, bool]]:
    import pyarrow.parquet

    from inference.exports import TABLE
    from tiling import TileStore

    store = TileStore(study.out / store_of(row))
    table = pyarrow.parquet.read_table(report.folder / TABLE)
    fractions = store.annotations.get(positive, np.zeros(len(store), np.float32)).tolist()
    fraction_at = dict(zip(store.tiles.places(), fractions, strict=True))
    places = zip(table["minx"].to_pylist(), table["miny"].to_pylist(), strict=True)
    return list(zip(table[f"prob_{positive}"].to_pylist(), [fraction_at[p] >= 0.5 for p in places], strict=True))


def _sections(study: Study) -> list[Section]:
    from tiling.core.pages import Section

    auroc = tile_auroc(study)
    known = "" if auroc is None else f"AUROC of all their tiles against the truth: {auroc:.4f}."
    overlays = pictures_of(study.results.get("heatmap", []))
    return [Section("Heatmaps", f"Annotated regions are outlined in white. {known}", pictures=overlays)]


def pictures_of(reports: Sequence[HeatmapReport]) -> tuple[Picture, ...]:
    """The overlays of heatmaps, each of which opens its report."""
    from inference.exports import OVERLAY
    from inference.heatmap import REPORT
    from tiling.core.pages import Picture

    pages = {r.slide_id: r.folder / REPORT for r in reports}  # results of earlier versions have none
    return tuple(
        Picture(r.folder / OVERLAY, _caption(r), pages[r.slide_id] if pages[r.slide_id].exists() else None)
        for r in reports
    )


def _caption(report: HeatmapReport) -> str:
    scores = report.scores
    if scores.mean is None:
        return f"{report.slide_id}: no tissue"
    of_tiles = f"mean {scores.mean:.2f}, top 5% {scores.top5_mean:.2f}, {counted(report.tiles, 'tile')}"
    whole = "" if report.bag is None else f"probability {report.bag:.2f}; each tile alone: "
    text = f"{report.slide_id}: {whole}{of_tiles}"
    return f"{text}. {report.warning}" if report.warning else text


HEATMAP = Stage("heatmap", _artefacts, _make, _sections)
