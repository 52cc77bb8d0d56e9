"""The verb `heatmap`: predictions, pictures and QuPath objects of one slide, in a folder published atomically."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import shapely
import torch

from inference.backends import uses_bf16
from inference.config import OutputConfig, PredictConfig
from inference.ensemble import Ensemble, members
from inference.explain import tile_positives
from inference.exports import write_exports
from inference.exports.content import Content
from inference.maps.scores import areas_mm2, slide_scores
from inference.occlusion import require_occlusion
from inference.ood import outside
from inference.predict import Progress, predict_slide
from inference.prediction import BagPrediction, Prediction
from inference.recipes import heatmap_recipe, is_store
from inference.report.evidence import Evidence, gather_evidence
from inference.report.report import report_html
from inference.reports import HeatmapReport
from inference.summary import SUMMARY, BagScore, HeatmapSummary, OutOfDistribution, read_summary
from tiling import TileStore
from tiling.core.artefact import Recipe, atomic_folder, locked_folder, require_own, state
from tiling.core.errors import OutputError
from tiling.core.versions import software_versions
from tiling.manifest import require_slide_id
from tiling.slides.files import slide_name
from training import TileModel
from training.devices import device_name

log = logging.getLogger(__name__)

REPORT = "report.html"


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

    The folder holds what `inference.exports.EXPORTS` writes always (tables, overlay picture, QuPath tile objects) and
    on request, a report to be read (HTML), and `slide.json` with scores, how much lies outside what the model has seen,
    and provenance.

    Args:
        source: A slide, or a tile store.
        model: One model, or several as an ensemble.
        out_dir: Folder of the results, one folder a slide.
        config: How the tiles are predicted.
        slide_id: Names the folder; None: as the store says, or the slide's file.
        slide_mpp: Micrometres per level-0 pixel, where the slide's file does not say.
        roi: GeoJSON or ASAP XML; tiles outside all its polygons are left out.
        truth: Level-0 pixels; outlined in the picture.
        outputs: Which further files are written.
        overwrite: Replace a result made otherwise, or a damaged one.
        progress: Called with (tiles done, tiles in all).

    Raises:
        ConfigError: For an id that cannot name a folder, and `outputs.occlusion` without the package for it.
        OutputError: For a result made otherwise, unless `overwrite`, and a folder that holds something else.
        SpecslideError: As `predict_slide`.

    Example:
        >>> from inference import load_model, make_heatmap
        >>> model = load_model("results/training/seed-0/model")
        >>> make_heatmap("results/stores/synthetic-04.zarr", model, "heatmaps").folder.as_posix()
        'heatmaps/synthetic-04'
    """
    path = Path(source)
    if outputs.occlusion:
        require_occlusion()
    bf16 = any(uses_bf16(one.device, config.precision) for one in members(model))
    recipe = heatmap_recipe(
        path, model.sha256, config, bf16=bf16, slide_mpp=slide_mpp, roi=roi, truth=truth, outputs=outputs
    )
    slide_id = slide_id or (TileStore(path).slide.slide_id if is_store(path) else slide_name(path))
    require_slide_id(slide_id, path)  # it names the folder; a store may say anything

    def predict() -> Prediction:
        return predict_slide(
            path, model, config, slide_id=slide_id, slide_mpp=slide_mpp, slide_sha256=recipe.inputs.get("slide"),
            roi=roi, progress=progress,
        )  # fmt: skip

    def evidence(prediction: Prediction) -> Evidence:
        return gather_evidence(
            path, prediction, slide_mpp, tile_positives(model, config) if outputs.occlusion else None
        )

    return publish_heatmap(
        Path(out_dir) / slide_id, recipe, predict, members(model)[0].device, Content.of(outputs, truth),
        evidence=evidence, overwrite=overwrite,
    )  # fmt: skip


def publish_heatmap(
    folder: Path,
    recipe: Recipe,
    predict: Callable[[], Prediction],
    device: torch.device | None,
    content: Callable[[Prediction], Content],
    *,
    evidence: Callable[[Prediction], Evidence],
    overwrite: bool,
) -> HeatmapReport:
    """Write a heatmap's folder, unless it is there already, made by that recipe.

    Args:
        folder: The slide's.
        recipe: What it is made from.
        predict: Predicts the slide, if it has to be.
        device: Where that is computed; None: nothing is, another program did.
        content: What is to be written of a prediction.
        evidence: The tiles that the report shows of it.
        overwrite: Replace a result made otherwise, or a damaged one.

    Returns:
        What is there now.

    Raises:
        OutputError: For a result made otherwise, unless `overwrite`, and a folder that holds something else.
        SpecslideError: As `predict` and `evidence`.
    """
    with locked_folder(folder):
        if folder.exists():
            found = state(folder, recipe)
            if found.state == "done":
                log.info("%s: complete already", folder)
                return read_heatmap(folder)
            require_own(folder, SUMMARY, "a heatmap")
            if not overwrite:
                what = f"holds another result, or a damaged one: {found.why or 'it is incomplete'}"
                raise OutputError(folder, what, "choose another --out, or pass --overwrite")
        prediction = predict()
        summary = _summary(prediction, device)
        with atomic_folder(folder, recipe, made_with=summary.software | {"device": summary.device}) as partial:
            write_exports(content(prediction), partial)
            page = report_html(prediction, summary.scores, evidence(prediction), summary.software)
            (partial / REPORT).write_text(page, encoding="utf-8")
            summary.write(partial)
    return _reported(folder, summary, reused=False)


def read_heatmap(folder: Path) -> HeatmapReport:
    """The heatmap that is in a folder. Raises InputError for none."""
    return _reported(folder, read_summary(folder), reused=True)


def _reported(folder: Path, summary: HeatmapSummary, *, reused: bool) -> HeatmapReport:
    if summary.warning is not None:
        log.warning("%s: %s", folder.name, summary.warning)
    whole = None if summary.bag is None else summary.bag.probability
    return HeatmapReport(folder.name, folder, summary.tiles, summary.scores, reused, summary.warning, whole)


def _summary(prediction: Prediction, device: torch.device | None) -> HeatmapSummary:
    values, threshold = prediction.positives, prediction.threshold
    areas = areas_mm2(values, threshold, prediction.tiles, prediction.slide.frame().scanned)
    known = outside(prediction.columns, prediction.ood_quantile)
    return HeatmapSummary(
        slide=prediction.slide,
        grid=prediction.grid,
        tiles=len(prediction.tiles),
        classes=prediction.classes,
        positive_class=prediction.positive_class,
        threshold=threshold,
        scores=slide_scores(values, threshold, areas),
        bag=None if prediction.bag is None else _bag_score(prediction, prediction.bag),
        out_of_distribution=None if known is None else OutOfDistribution.model_validate(known),
        made_from=json.loads(json.dumps(prediction.provenance)),
        device="" if device is None else device_name(device),
        software=software_versions(*(() if device is None else ("torch", "timm")), "numpy", "openslide-bin"),
    )


def _bag_score(prediction: Prediction, bag: BagPrediction) -> BagScore:
    return BagScore(probability=float(bag.probabilities[prediction.positive]) if len(prediction.tiles) else None)
