"""The verb `predict_slide`: a slide or a store, and a model, become the probabilities of its tiles."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from inference.config import PredictConfig
from inference.ensemble import Ensemble, entropy
from inference.models.known import packaged_name
from inference.ood import ood_columns
from inference.prediction import Prediction
from inference.predictor import Predictor
from inference.recipes import is_store, prediction_settings
from inference.sources import (
    Rows,
    Source,
    min_tissue_of,
    require_columns_of_slides,
    slide_source,
    store_source,
)
from tiling import Slide, TileStore
from tiling.core.arrays import Float32Array
from tiling.core.errors import ModelError
from tiling.slides.files import slide_name
from training import TileModel

Progress = Callable[[int, int], None]
"""Called with (tiles done, tiles in all)."""


def predict_slide(
    source: Path | str,
    model: TileModel | Ensemble,
    config: PredictConfig = PredictConfig(),  # noqa: B008 - frozen
    *,
    slide_id: str | None = None,
    slide_mpp: float | None = None,
    slide_sha256: str | None = None,
    roi: Path | None = None,
    progress: Progress | None = None,
) -> Prediction:
    """Predict every tissue tile of a slide, or of a tile store (a folder `*.zarr`), with one model or several.

    A slide finer than the model's scale is resampled while it is read, tile by tile: it is never in memory as a whole.
    A store brings its scale, overlap and min_tissue.

    Args:
        source: A slide, or a tile store.
        model: One model, or several as an ensemble.
        config: How the tiles are predicted.
        slide_id: What the slide is called; None: as the store says, or the slide's file.
        slide_mpp: Micrometres per level-0 pixel, in place of what the slide's file says.
        slide_sha256: The hash of the slide, if it is known.
        roi: GeoJSON or ASAP XML; tiles outside all its polygons are left out.
        progress: Called with (tiles done, tiles in all).

    Returns:
        The probabilities of the tiles, with their places and what they were made by.

    Raises:
        ModelError: Where scales do not fit and nothing can be resampled, and for a model that gives no finite
            probability, naming the tile.
        SlideError, StoreError: If the source cannot be read.
        InputError: If `roi` cannot be read.
        ConfigError: For a column in `config.where` that there is not, and what this machine cannot do.

    Example:
        >>> from inference import load_model, predict_slide
        >>> model = load_model("results/training/seed-0/model")
        >>> prediction = predict_slide("results/stores/synthetic-04.zarr", model)
        >>> prediction.probabilities.shape == (len(prediction.tiles), 2)
        True
    """
    path = Path(source)
    if config.where is not None and not is_store(path):
        require_columns_of_slides(config.where)
    settings = prediction_settings(path, config, roi)
    predictor = Predictor.of(model, config)
    with ExitStack() as stack:
        if is_store(path):
            store = TileStore(path)
            found = store_source(store, slide_id or store.slide.slide_id, predictor.demand, config, roi)
            settings |= {"store_sha256": store.sha256, "store_pixels_sha256": store.pixels_sha256}
            settings["min_tissue"], icc = min_tissue_of(store, config), store.icc
        else:
            icc = config.icc or predictor.models[0].info.icc
            slide, name = stack.enter_context(Slide(path, mpp=slide_mpp, icc=icc)), slide_id or slide_name(path)
            found = slide_source(slide, name, slide_sha256, predictor.demand, config, roi)
        for one in predictor.models:
            one.info.warn_of_colours(icc, path)
        predicted, probabilities, columns = _predict(found, predictor, progress or (lambda done, total: None))
    first, filtered = predictor.models[0].info, int(found.filtered.sum())
    undecodable = len(found.tiles) - len(predicted) - filtered
    return Prediction(
        slide=found.slide,
        tiles=found.tiles.only(predicted),
        probabilities=probabilities,
        classes=first.classes,
        positive=first.positive,
        threshold=predictor.threshold,
        thumbnail=found.thumbnail,
        provenance=_provenance(model, predictor, settings) | ({} if icc == "none" else {"icc": icc}),
        columns=columns,
        left_out={
            **found.left_out,
            "filtered": found.left_out["filtered"] + filtered,
            "undecodable": found.left_out["undecodable"] + undecodable,
        },
        ood_quantile=predictor.ood_quantile,
    )


def require_machine(model: TileModel | Ensemble, config: PredictConfig) -> None:
    """Raise ConfigError or ModelError if this machine cannot compute as configured, before any slide is opened."""
    Predictor.of(model, config)


def _predict(
    source: Source, predictor: Predictor, progress: Progress
) -> tuple[Rows, Float32Array, dict[str, Float32Array]]:
    """Indices of the tiles predicted, (N,), their probabilities, (N, C), and `Prediction.columns`."""
    total, classes, tells = len(source.tiles), len(predictor.models[0].info.classes), predictor.ood_quantile is not None
    predicted = np.zeros(total, np.bool_)
    answers = np.empty((total, classes + tells), np.float32)
    spread = np.zeros(total, np.float32) if predictor.tta or predictor.models[1:] else None
    with closing(source.batches):
        for rows, pixels in source.batches:
            answers[rows], deviation = predictor.answers(pixels)
            finite = np.isfinite(answers[rows]).all(1)
            if not finite.all():
                row = rows[~finite][0]
                where = f"{source.slide.slide_id}, tile at x {source.tiles.x0[row]}, y {source.tiles.y0[row]}"
                raise ModelError(where, "the model gives no finite probability", "check the model's training")
            if spread is not None and deviation is not None:
                spread[rows] = deviation
            predicted[rows] = True
            progress(int(rows[-1]) + 1, total)
    if total and not predicted[-1]:  # the last tiles were passed over
        progress(total, total)
    done = np.flatnonzero(predicted)
    probabilities = answers[done, :classes]
    columns = {"entropy": entropy(probabilities)} | ({} if spread is None else {"spread": spread[done]})
    return done, probabilities, columns | (ood_columns(answers[done, classes]) if tells else {})


def _provenance(model: TileModel | Ensemble, predictor: Predictor, settings: dict[str, Any]) -> dict[str, Any]:
    facts: list[dict[str, Any]] = [
        {
            "model_sha256": m.sha256,
            "weights_sha256": m.info.hashes["weights.safetensors"],
            "backbone": m.info.backbone,
            "model_mpp": m.info.mpp,
            "model_tile_px": m.info.tile_px,
        }
        | ({"limits": m.info.limits} if m.info.limits else {})
        | ({"model": name} if (name := packaged_name(m.info.hashes["weights.safetensors"])) else {})
        for m in predictor.models
    ]
    made = facts[0]
    if len(facts) > 1:
        names = " + ".join(sorted({str(fact["backbone"]) for fact in facts}))
        made = made | {"model_sha256": model.sha256, "backbone": f"{len(facts)} models, {names}", "models": facts}
        del made["weights_sha256"]
        made.pop("model", None)
    used = {"backend": ", ".join(sorted(set(predictor.backends)))}
    return made | used | ({"precision": "bf16"} if predictor.bf16 else {}) | {"settings": settings}
