"""The verb `make_bag_heatmap`: a model of bags and a slide's features become a heatmap of attention.

What the map shows is attention, named so, relative to the largest on the slide; beside it, in the tables and QuPath's
objects, is the probability that each tile alone would have. The slide's score is the bag's calibrated probability.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import shapely

from inference.config import OutputConfig
from inference.encoders import Encode
from inference.ensemble import entropy
from inference.explain import bag_positives
from inference.exports.content import Content
from inference.heatmap import publish_heatmap
from inference.occlusion import require_occlusion
from inference.prediction import BagPrediction, Prediction
from inference.recipes import bag_heatmap_recipe
from inference.report.evidence import Evidence, gather_evidence
from inference.reports import HeatmapReport
from tiling.core.arrays import Float32Array
from tiling.core.errors import ConfigError, ModelError
from tiling.grid import Raster
from tiling.manifest import require_slide_id
from tiling.stores.features import Encoder, FeatureStore
from training.data.bags import numbered
from training.mil.model import CHUNK_TILES, BagModel

_WHITE_PX = 1024  # longer side of what stands for a slide that nobody has a picture of


def make_bag_heatmap(
    features: Path | str,
    model: BagModel,
    out_dir: Path | str,
    *,
    source: Path | None = None,
    slide_id: str | None = None,
    slide_mpp: float | None = None,
    truth: shapely.Geometry | None = None,
    outputs: OutputConfig = OutputConfig(),  # noqa: B008 - frozen
    encode: Encode | None = None,
    overwrite: bool = False,
) -> HeatmapReport:
    """Explain a slide's features by a model of bags and write `<out_dir>/<slide_id>/`, as `make_heatmap` does.

    Args:
        features: The slide's feature store.
        model: The model of bags.
        out_dir: Folder of the results, one folder a slide.
        source: The slide or tile store that the features are of, whose tiles the report shows; None: it shows none.
        slide_id: Names the folder; None: as the feature store says.
        slide_mpp: Micrometres per level-0 pixel, where the slide's file does not say.
        truth: Level-0 pixels; outlined in the picture.
        outputs: Which further files are written.
        encode: The function of the model's encoder, for `outputs.occlusion`.
        overwrite: Replace a result made otherwise, or a damaged one.

    Returns:
        What became of the slide.

    Raises:
        ModelError: For features of another encoder than the model's, naming the difference.
        StoreError: For a damaged feature store.
        OutputError, ConfigError: As `make_heatmap`; and `outputs.occlusion` needs `source` and `encode`.
    """
    positives = None
    if outputs.occlusion:
        require_occlusion()
        if source is None or encode is None:
            fix = "pass slides or tile stores in place of features"
            raise ConfigError("occlusion", "needs the tiles' pixels and the encoder", fix)
        positives = bag_positives(model, encode)
    store = FeatureStore(features)
    slide_id = require_slide_id(slide_id or store.slide_id, Path(features))
    require_encoder(model, store.encoder, store.path)
    recipe = bag_heatmap_recipe(store, model.sha256, truth=truth, outputs=outputs)

    def evidence(prediction: Prediction) -> Evidence:
        return Evidence() if source is None else gather_evidence(source, prediction, slide_mpp, positives)

    return publish_heatmap(
        Path(out_dir) / slide_id, recipe, lambda: predict_bag(store, model, slide_id), model.device,
        Content.of(outputs, truth), evidence=evidence, overwrite=overwrite,
    )  # fmt: skip


def require_encoder(model: BagModel, encoder: Encoder, where: object) -> None:
    """Raise ModelError unless features of that encoder are those that the model has learned from."""
    if difference := model.info.encoder.difference(encoder):
        what = f"holds features of another encoder than the model's: {difference}"
        raise ModelError(where, what, "embed the slide by the model's encoder, see its card")


def predict_bag(store: FeatureStore, model: BagModel, slide_id: str | None = None) -> Prediction:
    """What a model of bags says of a slide, and of each of its tiles, in the memory of a chunk of their features."""
    model.info.warn_of_colours(store.icc, store.path)
    count, classes = len(store), len(model.info.classes)
    if count:
        found = model.explain(_Chunks(store))
        bag, probabilities = BagPrediction(found.probabilities, found.attention), found.tiles
    else:  # nothing was looked at, and nothing is said
        nothing = np.full(classes, np.nan, np.float32)
        bag, probabilities = BagPrediction(nothing, np.empty(0, np.float32)), np.empty((0, classes), np.float32)
    encoder, info = store.encoder, model.info
    return Prediction(
        slide=store.slide.model_copy(update={"slide_id": slide_id or store.slide_id}),
        tiles=replace(store.tiles, columns={}),
        probabilities=probabilities,
        classes=info.classes,
        positive=info.positive,
        threshold=float(np.float32(info.threshold)),
        thumbnail=store.thumbnail or _white(store),
        provenance={
            "model_sha256": model.sha256,
            "weights_sha256": info.hashes["weights.safetensors"],
            "backbone": info.network,
            "model_mpp": encoder.mpp,
            "model_tile_px": encoder.tile_px,
            "encoder_sha256": encoder.sha256,
            "map": "attention relative to the largest",
            "settings": {"features_sha256": store.sha256, "features_identity": store.identity},
        }
        | ({} if store.icc == "none" else {"icc": store.icc}),
        columns={
            "attention": bag.attention,
            "relative_attention": bag.relative,
            "entropy": entropy(probabilities),
        },
        left_out=store.attributes.left_out,
        bag=bag,
    )


class _Chunks:
    """The features of a slide as a bag's chunks (k, 1 + D), read again whenever they are gone through."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store

    def __iter__(self) -> Iterator[Float32Array]:
        for start in range(0, len(self._store), CHUNK_TILES):
            yield numbered(self._store.read(slice(start, start + CHUNK_TILES)), 0, self._store.path)


def _white(store: FeatureStore) -> Raster:
    """A white picture of the slide's shape."""
    width, height = store.grid.size0
    downsample = max(width, height) / _WHITE_PX if max(width, height) > _WHITE_PX else 1.0
    shape = (max(1, round(height / downsample)), max(1, round(width / downsample)), 3)
    return Raster(np.full(shape, 255, np.uint8), downsample)
