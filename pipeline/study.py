"""The verb `run`: a study from its slides to its heatmaps, skipping what is done and unchanged.

Results in the study's folder: `stores/`, `training/` (with `model/`), `heatmaps/`, `index.html`, and `study.json` with
what was done and what was not.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import shapely

from inference.predict import PredictConfig
from inference.result import OVERLAY, REPORT, TABLE, HeatmapReport, make_heatmap
from pipeline.config import HeatmapConfig, StudyConfig, load_study
from pipeline.engines import default_workers
from pipeline.jobs import require_folder, tile_all, without_path
from pipeline.page import Picture, Section, write_page
from tiling import TileStore
from tiling.annotations import read_geojson
from tiling.errors import SpecslideError
from tiling.files import canonical_json, write_file
from tiling.manifest import ManifestRow, read_manifest, read_table
from tiling.versions import RESEARCH_USE, software_versions
from training import TileModel, load_model, samples_from_stores, train, training_key
from training.metrics import auroc
from training.model import read_info

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyReport:
    """What became of a study."""

    out: Path
    model: Path
    heatmaps: tuple[HeatmapReport, ...]
    failed: Mapping[str, str]
    """slide_id -> reason."""
    test_auroc: float | None
    """AUROC of all tiles of the heatmaps against their annotations; None without both."""
    trained: bool
    """False if the model was there already."""


def run(study: StudyConfig | Path | str) -> StudyReport:
    """Tile the slides of a study, train on them, and make the heatmaps; what is there and unchanged is kept.

    A slide that fails is reported with its reason and never stops the others. Raises SpecslideError where nothing can
    go on: a wrong configuration or manifest, or no model to be had from the slides that are left.
    """
    config = study if isinstance(study, StudyConfig) else load_study(Path(study))
    rows = read_manifest(config.manifest)
    require_folder(config.out)
    failed = _tile(rows, config)
    usable = [row for row in rows if row.slide_id not in failed]
    model, trained = _train(config, failed)
    heatmaps = []
    for row in _heatmap_rows(usable, config.heatmap, model):
        try:
            heatmaps.append(_heatmap(row, config, load_model(model)))
        except SpecslideError as error:
            failed[row.slide_id] = str(error)
    known = [report for report in heatmaps if report.slide_id in _with_truth(rows, config)]
    test_auroc = _tile_auroc(config.out / "stores", known, load_model(model))
    report = StudyReport(config.out, model, tuple(heatmaps), failed, test_auroc, trained)
    slide_of = {row.slide_id: str(row.slide_path) for row in rows}
    told = {slide_id: without_path(reason, slide_of[slide_id], slide_id) for slide_id, reason in failed.items()}
    _record(replace(report, failed=told), config)
    return report


def _tile(rows: list[ManifestRow], config: StudyConfig) -> dict[str, str]:
    """Tile all slides; returns those that failed."""
    workers = config.workers or default_workers()
    outcomes = tile_all(rows, config.out / "stores", config.tile, workers=workers, overwrite=True)
    return {outcome.job.slide_id: outcome.error for outcome in outcomes if outcome.error is not None}


def _train(config: StudyConfig, failed: Mapping[str, str]) -> tuple[Path, bool]:
    """The model folder, and whether it was made now."""
    samples = samples_from_stores(config.out / "stores", config.manifest, config.train, leave_out=failed)
    folder = config.out / "training" / "model"
    if folder.exists() and _trained_so(folder, training_key(samples, config.train)):
        log.info("%s: complete already", folder)
        return folder, False
    return train(samples, config.out / "training", config.train).model, True


def _trained_so(folder: Path, key: str) -> bool:
    try:
        load_model(folder)
        return read_info(folder).hashes.get("training") == key
    except SpecslideError as error:
        log.warning("%s; training again", error)
        return False


def _heatmap_rows(rows: list[ManifestRow], config: HeatmapConfig, model: Path) -> list[ManifestRow]:
    """The slides that get a heatmap, by the split that training used."""
    if config.slides == "all":
        return rows
    split_of = {line["case_id"]: line["split"] for line in read_table(model.parent / "split.csv")}
    return [row for row in rows if split_of.get(row.case_id, "test") == "test"]


def _heatmap(row: ManifestRow, config: StudyConfig, model: TileModel) -> HeatmapReport:
    store = config.out / "stores" / f"{row.slide_id}.zarr"
    settings = PredictConfig(**config.heatmap.model_dump(exclude={"slides"}))
    return make_heatmap(store, model, config.out / "heatmaps", settings, truth=_truth(row, model), overwrite=True)


def _truth(row: ManifestRow, model: TileModel) -> shapely.Geometry | None:
    """What the slide's annotation says of the model's positive class."""
    if row.annotation is None:
        return None
    return read_geojson(row.annotation).get(model.info.positive_class)


def _with_truth(rows: list[ManifestRow], config: StudyConfig) -> set[str]:
    """The slides whose every tile is known: annotated ones, and those that need no annotation, being negative."""
    return {row.slide_id for row in rows if row.annotation is not None or row.label == config.train.negative_class}


def _tile_auroc(stores: Path, heatmaps: list[HeatmapReport], model: TileModel) -> float | None:
    """AUROC of every predicted tile of these slides: positive if at least half of it is annotated so."""
    positive = model.info.positive_class
    scores, labels = [], []
    for report in heatmaps:
        store = TileStore(stores / f"{report.slide_id}.zarr")
        table = pyarrow.parquet.read_table(report.folder / TABLE)
        fraction_at = dict(
            zip(zip(store.x.tolist(), store.y.tolist(), strict=True), _fractions(store, positive), strict=True)
        )
        places = zip(table["minx"].to_pylist(), table["miny"].to_pylist(), strict=True)
        labels += [fraction_at[place] >= 0.5 for place in places]
        scores += table[f"prob_{positive}"].to_pylist()
    if len(set(labels)) < 2:
        return None
    return float(auroc(np.stack([1 - np.array(scores), np.array(scores)], 1), np.array(labels, np.int64)))


def _fractions(store: TileStore, name: str) -> list[float]:
    fractions: list[float] = store.annotations.get(name, np.zeros(len(store), np.float32)).tolist()
    return fractions


def _record(report: StudyReport, config: StudyConfig) -> None:
    """Write study.json and the index page."""
    record = {
        "config": config.model_dump(mode="json", exclude={"manifest", "out", "workers", "train"}),
        "slides": {r.slide_id: {"tiles": r.tiles, "scores": asdict(r.scores)} for r in report.heatmaps},
        "failed": dict(report.failed),
        "heatmap_tile_auroc": report.test_auroc,
        "training": read_info(report.model).training,
        "model": read_info(report.model).hashes,
        "software": software_versions(),
        "notice": RESEARCH_USE,
    }
    write_file(report.out / "study.json", canonical_json(record))
    write_page(report.out / "index.html", f"specslide: {report.out.name}", page_sections(report))


def page_sections(report: StudyReport) -> list[Section]:
    """What the study's page shows."""
    info, folder = read_info(report.model), report.model.parent
    measured = [
        (split, name, "undefined" if m.value is None else f"{m.value:.3f} ({m.low:.3f} to {m.high:.3f})")
        for split, metrics in info.metrics.items()
        for name, m in metrics.items()
    ]
    data = [(split, s.cases, s.slides, s.tiles) for split, s in info.data.items()]
    overlays = [Picture(r.folder / OVERLAY, _caption(r), _page_of(r)) for r in report.heatmaps]
    failed = [Section("Not analysed", columns=("slide", "reason"), rows=tuple(report.failed.items()))]
    auroc_text = (
        "" if report.test_auroc is None else f"AUROC of all their tiles against the truth: {report.test_auroc:.4f}."
    )
    return [
        Section("Heatmaps", f"Annotated regions are outlined in white. {auroc_text}", pictures=tuple(overlays)),
        *(failed if report.failed else []),
        Section(
            "Model",
            f"{info.backbone}, {info.training['epochs']} epochs, sd_lambda {info.training['sd_lambda']}.",
            ("split", "metric", "value (95% interval over cases)"),
            tuple(measured),
            (Picture(folder / "learning_curve.png", "learning curve"),),
        ),
        Section("Data", columns=("split", "cases", "slides", "tiles"), rows=tuple(data)),
        Section(
            "Tiling",
            "Mask outlined in blue, kept tiles in orange.",
            pictures=tuple(Picture(p, p.stem) for p in sorted((report.out / "stores").glob("*.png"))),
        ),
    ]


def _page_of(report: HeatmapReport) -> Path | None:
    """The slide's own page, which a click on its picture opens; results of earlier versions have none."""
    page = report.folder / REPORT
    return page if page.exists() else None


def _caption(report: HeatmapReport) -> str:
    scores = report.scores
    if scores.mean is None:
        return f"{report.slide_id}: no tissue"
    return f"{report.slide_id}: mean {scores.mean:.2f}, top 5% {scores.top5_mean:.2f}, {report.tiles} tiles"
