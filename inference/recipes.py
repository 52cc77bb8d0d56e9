"""Recipes of heatmaps, their tests and features: what each is made from, to say if it is up to date. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from inference.config import ChooseConfig, EmbedConfig, EvaluateSlidesConfig, OutputConfig, PredictTilesConfig
from inference.summary import VERSION
from tiling import Slide, TileStore
from tiling.annotations.classes import ClassRules
from tiling.annotations.rasterize import annotation_hash
from tiling.core.artefact import Recipe, content_hash
from tiling.core.files import sha256_json, sha256_text
from tiling.manifest import ManifestRow
from tiling.slides.ome_zarr_reader import ome_zarr_mark
from tiling.stores.features import Encoder, FeatureStore
from tiling.stores.query import rows_where

BACKENDS = (None, "onnx", "auto")
"""What computed a heatmap or features that are there: any will do unless one is asked for, for they agree. None:
torch."""


def is_store(path: Path) -> bool:
    """Whether a path names a tile store rather than a slide."""
    try:
        return (path.name.endswith(".zarr") or (path / "zarr.json").exists()) and ome_zarr_mark(path) is None
    except OSError:  # a folder that may not be read: whoever opens it says so
        return False


def prediction_settings(source: Path, config: ChooseConfig, roi: Path | None = None) -> dict[str, Any]:
    """The settings that decide what is computed of that source; a store brings some of them.

    Raises InputError if the file `roi` cannot be read.
    """
    of_slides = set() if is_store(source) else {"overlap", "mpp_tolerance", "max_bad_tiles", "icc"}
    settings = config.model_dump(include={"min_tissue", "where"} | of_slides, exclude_none=True)
    settings |= config.model_dump(include={"tta", "precision"}, exclude_defaults=True)
    if config.backend != "torch":  # which was the default of version 0.1
        settings["backend"] = config.backend
    return settings | ({} if roi is None else {"roi_sha256": annotation_hash(roi)})


def heatmap_recipe(
    source: Path,
    models_sha256: str,
    config: PredictTilesConfig,
    *,
    bf16: bool = False,
    slide_mpp: float | None = None,
    roi: Path | None = None,
    truth: shapely.Geometry | None = None,
    outputs: OutputConfig = OutputConfig(),  # noqa: B008 - frozen
) -> Recipe:
    """The recipe of the heatmap that `make_heatmap` would make of these.

    A store counts by its pixels, so that other labels in it change nothing, but for the tiles that `config.where`
    chooses by them.

    Args:
        source: A slide, or a tile store.
        models_sha256: The hash of the model or ensemble.
        config: How the tiles are predicted.
        bf16: Whether the device computes in bf16 under `config.precision`.
        slide_mpp: Micrometres per level-0 pixel, where the slide's file does not say.
        roi: The region of interest.
        truth: What is outlined.
        outputs: Which further files are written.

    Returns:
        The recipe.

    Raises:
        SlideError, StoreError, InputError: If the source or `roi` cannot be read.
    """
    inputs, settings = _source(source, config, slide_mpp, roi)
    inputs["models"] = models_sha256
    if truth is not None:
        inputs["truth"] = sha256_text(truth.wkt)
    settings |= {"version": VERSION, "bf16": bf16, "outputs": _written(outputs)}
    return Recipe("heatmap", inputs, settings, _alike(config))


def bag_heatmap_recipe(
    features: FeatureStore,
    model_sha256: str,
    *,
    truth: shapely.Geometry | None = None,
    outputs: OutputConfig = OutputConfig(),  # noqa: B008 - frozen
) -> Recipe:
    """The recipe of the heatmap that `make_bag_heatmap` would make of a feature store, which counts by its features.

    Args:
        features: The feature store.
        model_sha256: The hash of the model of bags.
        truth: What is outlined.
        outputs: Which further files are written.

    Returns:
        The recipe.
    """
    inputs: dict[str, object] = {"features": features.identity, "models": model_sha256}
    if truth is not None:
        inputs["truth"] = sha256_text(truth.wkt)
    return Recipe("heatmap", inputs, {"version": VERSION, "outputs": _written(outputs)})


def _written(outputs: OutputConfig) -> dict[str, Any]:
    """The settings that decide what is written."""
    formats = outputs.model_dump(mode="json", exclude={"occlusion"}) if outputs.formats else {}
    return formats | ({"occlusion": True} if outputs.occlusion else {})


def feature_recipe(
    source: Path,
    encoder: Encoder,
    config: EmbedConfig,
    *,
    bf16: bool = False,
    slide_mpp: float | None = None,
    roi: Path | None = None,
) -> Recipe:
    """The recipe of the feature store that `embed_slide` would make of these.

    Args:
        source: A slide, or a tile store, which counts by its pixels as for a heatmap.
        encoder: What makes the features.
        config: How the tiles are chosen, and the features stored.
        bf16: Whether the device computes in bf16 under `config.precision`.
        slide_mpp: Micrometres per level-0 pixel, where the slide's file does not say.
        roi: The region of interest.

    Returns:
        The recipe.

    Raises:
        SlideError, StoreError, InputError: If the source or `roi` cannot be read.
    """
    inputs, settings = _source(source, config, slide_mpp, roi)
    known = {f"encoder_{name}": value for name, value in encoder.record().items()}
    own = {"dtype": config.dtype} | ({} if is_store(source) else {"quality": config.quality})
    return Recipe("features", inputs, settings | known | own | {"bf16": bf16}, _alike(config))


def _alike(config: ChooseConfig) -> dict[str, tuple[str | None, ...]]:
    """What of a recipe may be otherwise in an artefact that is there."""
    return {"backend": BACKENDS} if config.backend == "auto" else {}


def _source(
    source: Path, config: ChooseConfig, slide_mpp: float | None, roi: Path | None
) -> tuple[dict[str, object], dict[str, Any]]:
    """The inputs and settings of a recipe that a slide or store, and what is computed of it, give."""
    inputs: dict[str, object] = {}
    settings = prediction_settings(source, config, roi)
    if is_store(source):
        store = TileStore(source)
        inputs["store"] = store.pixels_sha256
        if config.where is not None:  # it may ask for annotations, which are none of the pixels
            inputs["chosen tiles"] = sha256_json(np.flatnonzero(rows_where(store, config.where)).tolist())
    else:
        with Slide(source, mpp=slide_mpp) as slide:
            inputs["slide"], settings["slide_mpp"] = slide.sha256(), slide.mpp
            if slide.frame.bounds is not None:  # earlier versions did not ask for them
                settings["bounds"] = slide.frame.bounds.model_dump()
    if roi is not None:
        inputs["region of interest"] = settings.pop("roi_sha256")
    return inputs, settings


def slides_recipe(results: Path, rows: Sequence[ManifestRow], config: EvaluateSlidesConfig) -> Recipe:
    """The recipe of `evaluate_slides`: the tested slides, and those of val where a threshold is chosen on them.

    Raises SpecslideError for a heatmap or annotation that is not there.
    """
    truth = {
        row.slide_id: [row.case_id, row.label, row.split, row.site, row.scanner]
        + ([] if row.annotation is None else [annotation_hash(row.annotation)])
        for row in rows
    }
    heatmaps = {row.slide_id: content_hash(results / row.slide_id) for row in rows}
    unchanged = {"annotation"} if config.annotation == ClassRules() else set()  # version 0.1 had none
    settings = config.model_dump(mode="json", exclude=unchanged)
    settings["score"] = config.score or "top5_mean"  # the default of version 0.1; what is tested says its own
    return Recipe("slides", {"heatmaps": heatmaps, "slides": sha256_json(truth)}, settings)
