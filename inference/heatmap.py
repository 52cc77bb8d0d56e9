"""The result folder of one slide: predictions, pictures and QuPath objects, published whole or not at all."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import shapely

from inference.backends import uses_bf16
from inference.config import OutputConfig, PredictConfig
from inference.ensemble import Ensemble, members
from inference.exports.formats import write_outputs
from inference.exports.geojson import write_geojson
from inference.exports.png import overlay_png
from inference.exports.tables import write_tables
from inference.maps.scores import SlideScores, areas_mm2, slide_scores
from inference.ood import outside
from inference.predict import Prediction, Progress, is_store, predict_slide, prediction_settings
from inference.report.report import gather_evidence, report_html
from tiling import Slide, TileStore
from tiling.core.artefact import atomic_folder, folder_faults, locked_folder, require_own
from tiling.core.errors import OutputError
from tiling.core.files import canonical_json, sha256_json
from tiling.core.versions import RESEARCH_USE, software_versions
from tiling.manifest import require_slide_id
from tiling.slides.slide import slide_name
from training import TileModel
from training.devices import device_name

log = logging.getLogger(__name__)

TABLE, TABLE_CSV, OVERLAY, OBJECTS, SUMMARY, REPORT = (
    "predictions.parquet", "predictions.csv", "overlay.png", "heatmap.geojson", "slide.json", "report.html",
)  # fmt: skip


VERSION = 2
"""Of what is written, and how: results of another are made anew. 2: areas are those of the regions."""


@dataclass(frozen=True)
class HeatmapReport:
    """What became of one slide."""

    slide_id: str
    folder: Path
    tiles: int
    scores: SlideScores
    reused: bool
    """Whether the result was there already, made from the same slide, model and settings."""
    warning: str | None = None
    """What a person must know of the result before anything else: that it lies outside what the model has seen."""


def make_heatmap(
    source: Path | str,
    model: TileModel | Ensemble,
    out_dir: Path | str,
    config: PredictConfig = PredictConfig(),  # noqa: B008 - frozen
    *,
    slide_id: str | None = None,
    slide_mpp: float | None = None,
    roi: Path | None = None,
    truth: shapely.Geometry | None = None,
    outputs: OutputConfig = OutputConfig(),  # noqa: B008 - frozen
    overwrite: bool = False,
    progress: Progress | None = None,
) -> HeatmapReport:
    """Predict a slide or store and write `<out_dir>/<slide_id>/`; nothing, if it is there already.

    The folder holds the tiles' probabilities (Parquet and CSV), the overlay picture, QuPath tile objects, a report
    to be read (HTML), and `slide.json` with scores, how much lies outside what the model has seen, and provenance.
    `truth` (level-0 pixels) is outlined in the picture; `outputs` names further formats. Raises as `predict_slide`,
    ConfigError for an id that cannot name a folder, and OutputError for a result made otherwise, unless `overwrite`,
    and for a folder that holds something else.
    """
    path = Path(source)
    identity, slide_id = _identity(path, slide_id, slide_mpp)
    require_slide_id(slide_id, path)  # it names the folder; a store may say anything
    key = _key(identity, path, model, config, roi, truth, outputs)
    folder = Path(out_dir) / slide_id
    with locked_folder(folder):
        if folder.exists():
            report = standing_result(folder, key)
            if report:
                return report
            require_own(folder, SUMMARY, "a heatmap")
            if not overwrite:
                what = "holds another result, or a damaged one"
                raise OutputError(folder, what, "choose another --out, or pass --overwrite")
        prediction = predict_slide(
            path, model, config, slide_id=slide_id, slide_mpp=slide_mpp, slide_sha256=identity.get("slide"), roi=roi,
            progress=progress,
        )  # fmt: skip
        scores = _scores(prediction)
        with atomic_folder(folder) as partial:
            write_tables(prediction, partial / TABLE, partial / TABLE_CSV)
            write_geojson(prediction, partial / OBJECTS)
            write_outputs(prediction, outputs, partial)
            (partial / OVERLAY).write_bytes(overlay_png(prediction, truth))
            evidence = gather_evidence(path, prediction, slide_mpp)
            page = report_html(prediction, scores, evidence, _software())
            (partial / REPORT).write_text(page, encoding="utf-8")
            summary = _summary(prediction, scores, key, model)
            (partial / SUMMARY).write_text(canonical_json(summary), encoding="utf-8")
    return HeatmapReport(slide_id, folder, len(prediction.x0), scores, False, _warned(slide_id, summary))


def result_key(
    source: Path,
    model: TileModel | Ensemble,
    config: PredictConfig,
    *,
    slide_mpp: float | None = None,
    roi: Path | None = None,
    truth: shapely.Geometry | None = None,
    outputs: OutputConfig = OutputConfig(),  # noqa: B008 - frozen
) -> str:
    """SHA-256 of all that decides the result that `make_heatmap` would make; raises as it does for the source."""
    return _key(_identity(source, None, slide_mpp)[0], source, model, config, roi, truth, outputs)


def _key(
    identity: dict[str, Any],
    path: Path,
    model: TileModel | Ensemble,
    config: PredictConfig,
    roi: Path | None,
    truth: shapely.Geometry | None,
    outputs: OutputConfig,
) -> str:
    settings, outlined = prediction_settings(path, config, roi), None if truth is None else truth.wkt
    written = outputs.model_dump(mode="json") if outputs.formats else None
    return sha256_json([VERSION, identity, model.sha256, settings, _in_bf16(model, config), outlined, written])


def _in_bf16(model: TileModel | Ensemble, config: PredictConfig) -> bool:
    """Whether the result would be computed in bf16, which "auto" leaves to the device; nothing is refused yet."""
    return config.precision == "bf16" or any(uses_bf16(m.device, config.precision) for m in members(model))


def _identity(path: Path, slide_id: str | None, slide_mpp: float | None) -> tuple[dict[str, Any], str]:
    """What the tiles are made from, and the slide's id."""
    if is_store(path):
        store = TileStore(path)
        return {"store": store.pixels_sha256}, slide_id or store.slide.slide_id
    with Slide(path, mpp=slide_mpp) as slide:
        return {"slide": slide.sha256(), "mpp": slide.mpp}, slide_id or slide_name(path)


def standing_result(folder: Path, key: str) -> HeatmapReport | None:
    """The result in a folder if it is whole and has that key, see `result_key`; else None."""
    if folder_faults(folder) or not (folder / SUMMARY).is_file():
        return None
    summary = json.loads((folder / SUMMARY).read_bytes())
    if summary["key"] != key:
        return None
    log.info("%s: complete already", folder)
    scores, warning = SlideScores(**summary["scores"]), _warned(folder.name, summary)
    return HeatmapReport(folder.name, folder, summary["tiles"], scores, True, warning)


def _warned(slide_id: str, summary: Mapping[str, Any]) -> str | None:
    """The warning of a result, which is also logged; None where there is none, or nothing is known."""
    warning: str | None = (summary.get("out_of_distribution") or {}).get("warning")
    if warning is not None:
        log.warning("%s: %s", slide_id, warning)
    return warning


def _scores(prediction: Prediction) -> SlideScores:
    values, threshold = prediction.probabilities[:, prediction.positive], prediction.threshold
    areas = areas_mm2(values, threshold, prediction.x0, prediction.y0, prediction.grid)
    return slide_scores(values, threshold, areas)


def _summary(prediction: Prediction, scores: SlideScores, key: str, model: TileModel | Ensemble) -> dict[str, Any]:
    known = outside(prediction.columns, prediction.ood_quantile)
    return {
        "format": "specslide-heatmap",
        "version": VERSION,
        "key": key,
        "slide": prediction.slide.model_dump(mode="json"),
        "grid": prediction.grid.model_dump(mode="json"),
        "tiles": len(prediction.x0),
        "classes": prediction.classes,
        "positive_class": prediction.classes[prediction.positive],
        "threshold": prediction.threshold,
        "scores": asdict(scores),
        "out_of_distribution": None if known is None else known.record(),
        "made_from": prediction.provenance,
        "device": device_name(members(model)[0].device),
        "software": _software(),
        "notice": RESEARCH_USE,
    }


def _software() -> dict[str, str]:
    return software_versions("torch", "timm", "numpy", "openslide-bin")
