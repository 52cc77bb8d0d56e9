"""The verb `embed_slide`: a slide or a store, and an encoder, become a feature store."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from inference.backends import BatchSizer, auto_batch, uses_bf16
from inference.config import EmbedConfig
from inference.encoders import TileEncoder
from inference.predict import Progress
from inference.predictor import auto_readers
from inference.recipes import feature_recipe, is_store
from inference.reports import EmbedReport
from inference.sources import (
    Demand,
    Source,
    min_tissue_of,
    require_columns_of_slides,
    slide_source,
    store_source,
)
from tiling import Slide, TileStore
from tiling.core.arrays import BoolArray, Float32Array
from tiling.core.artefact import Recipe, atomic_folder, locked_folder, require_own, state
from tiling.core.errors import ModelError, OutputError
from tiling.core.versions import software_versions
from tiling.manifest import require_slide_id
from tiling.slides.files import slide_name
from tiling.stores.features import MARK, FeatureAttributes, FeatureStore, feature_path
from tiling.stores.write_features import write_feature_columns, write_features
from training.devices import device_name
from training.models.info import warn_of_colours

log = logging.getLogger(__name__)


def embed_slide(
    source: Path | str,
    encoder: TileEncoder,
    out_dir: Path | str,
    config: EmbedConfig = EmbedConfig(),  # noqa: B008 - frozen
    *,
    slide_id: str | None = None,
    slide_mpp: float | None = None,
    roi: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> EmbedReport:
    """Write the feature store `<out_dir>/<slide_id>.features.zarr` of a slide or tile store, unless it is there.

    A slide is read once, tile by tile, and its pixels are stored nowhere. A store brings its scale, overlap and
    columns; labels as they are now, which change no feature.

    Args:
        source: A slide, or a tile store.
        encoder: What makes the features.
        out_dir: Folder of the feature stores.
        config: How the tiles are chosen, and the features stored.
        slide_id: What the slide is called; None: as the store says, or the slide's file.
        slide_mpp: Micrometres per level-0 pixel, where the slide's file does not say.
        roi: GeoJSON or ASAP XML; tiles outside all its polygons are left out.
        overwrite: Replace features made otherwise, or a damaged store.
        progress: Called with (tiles done, tiles in all).

    Returns:
        What became of the slide.

    Raises:
        ConfigError: For an id that cannot name a folder, and features that float16 cannot hold.
        OutputError: For features made otherwise, unless `overwrite`, saying how they differ.
        ModelError: Where scales do not fit, and for an encoder that gives no finite features, naming the tile.
        SlideError, StoreError, InputError: If the source or `roi` cannot be read.

    Example:
        >>> from inference import embed_slide, load_encoder
        >>> from inference.config import EncoderConfig
        >>> from tiling.stores.features import FeatureStore
        >>> encoder = load_encoder(EncoderConfig(encoder="results/training/seed-0/model"))
        >>> report = embed_slide("results/stores/synthetic-04.zarr", encoder, "features")
        >>> FeatureStore(report.store).read([0]).shape == (1, report.dim)
        True
    """
    path = Path(source)
    if config.where is not None and not is_store(path):
        require_columns_of_slides(config.where)
    bf16 = uses_bf16(encoder.device, config.precision)
    recipe = feature_recipe(path, encoder.record, config, bf16=bf16, slide_mpp=slide_mpp, roi=roi)
    store = TileStore(path) if is_store(path) else None
    slide_id = require_slide_id(slide_id or (slide_name(path) if store is None else store.slide.slide_id), path)
    final = feature_path(Path(out_dir), slide_id)
    icc = (config.icc or encoder.icc or "none") if store is None else store.icc
    with locked_folder(final), ExitStack() as stack:
        if final.exists() and (kept := _kept(final, recipe, overwrite)):
            return kept
        warn_of_colours(encoder.icc or icc, icc, path, "encoder", "features")
        demand = demand_of(encoder, config)
        if store is None:
            slide, sha256 = stack.enter_context(Slide(path, mpp=slide_mpp, icc=icc)), recipe.inputs["slide"]
            found = slide_source(slide, slide_id, sha256, demand, config, roi, measure=config.quality)
        else:
            min_tissue_of(store, config)  # warns of what a store cannot follow
            found = store_source(store, slide_id, demand, config, roi)
        backend, _ = encoder.chosen(config.backend, config.precision)
        with atomic_folder(final, recipe, made_with=_made_with(encoder)) as folder:
            settings = {**recipe.settings, "backend": backend} | ({} if icc == "none" else {"icc": icc})
            _write(folder, found, encoder, config, settings, progress or (lambda done, total: None))
    return _reported(final, FeatureStore(final), reused=False)


def _kept(final: Path, recipe: Recipe, overwrite: bool) -> EmbedReport | None:
    """The features that are there already and were made by that recipe; None where they are to be replaced."""
    found = state(final, recipe)
    if found.state == "done":
        log.info("%s: complete already", final)
        return _reported(final, FeatureStore(final), reused=True)
    require_own(final, MARK, "a feature store")
    if not overwrite:
        what = f"holds other features, or damaged ones: {found.why or 'it is incomplete'}"
        raise OutputError(final, what, "choose another --out, or pass --overwrite")
    return None


def demand_of(encoder: TileEncoder, config: EmbedConfig = EmbedConfig()) -> Demand:  # noqa: B008 - frozen
    """The tiles that an encoder asks for, and how they are read for it."""
    of = encoder.record
    side = max(of.input_px or of.tile_px, of.tile_px)
    return Demand(
        mpp=of.mpp,
        tile_px=of.tile_px,
        batch_size=config.batch_size or auto_batch(encoder.device, side),
        readers=config.readers or auto_readers(encoder.device.type != "cpu"),
    )


def sized(encoder: TileEncoder, config: EmbedConfig = EmbedConfig()) -> BatchSizer:  # noqa: B008 - frozen
    """What encodes batches, halved where they do not fit in memory."""
    backend, encode = encoder.chosen(config.backend, config.precision)
    return BatchSizer(encode, (encoder.record.sha256, str(encoder.device), backend, "features"))


def _write(
    folder: Path,
    source: Source,
    encoder: TileEncoder,
    config: EmbedConfig,
    settings: dict[str, Any],
    progress: Progress,
) -> None:
    """Fill the folder of a feature store."""
    done = np.zeros(len(source.tiles), np.bool_)
    with closing(source.batches):
        count = write_features(
            folder, encoder.record.dim, config.dtype, _features(source, encoder, config, done, progress)
        )
    tiles = replace(source.tiles, columns={**source.tiles.columns, **source.measured}).only(done)
    assert count == len(tiles)
    filtered = int(source.filtered.sum())
    left_out = source.left_out | {
        "filtered": source.left_out["filtered"] + filtered,
        "undecodable": source.left_out["undecodable"] + int((~done).sum()) - filtered,
    }
    attributes = FeatureAttributes(
        slide=source.slide,
        grid=tiles.grid,
        encoder=encoder.record,
        columns=tuple(tiles.columns),
        thumbnail_px0=source.thumbnail.downsample,
        left_out=left_out,
        settings=settings,
        software=software_versions(*_MAKERS),
    )
    write_feature_columns(folder, tiles, attributes, source.thumbnail)


def _features(
    source: Source, encoder: TileEncoder, config: EmbedConfig, done: BoolArray, progress: Progress
) -> Iterator[Float32Array]:
    """The features of the tiles, batch by batch, in their order; `done` (N,) says which tiles they are of."""
    encode = sized(encoder, config)
    total = len(source.tiles)
    for rows, pixels in source.batches:
        features = encode(pixels)
        finite = np.isfinite(features).all(1)
        if not finite.all():
            row = rows[~finite][0]
            where = f"{source.slide.slide_id}, tile at x {source.tiles.x0[row]}, y {source.tiles.y0[row]}"
            raise ModelError(where, "the encoder gives no finite features", "check its weights, or use --precision 32")
        done[rows] = True
        progress(int(rows[-1]) + 1, total)
        yield features
    if total and not done[-1]:  # the last tiles were passed over
        progress(total, total)


def _made_with(encoder: TileEncoder) -> dict[str, str]:
    return software_versions(*_MAKERS) | {"device": device_name(encoder.device)}


_MAKERS = ("torch", "onnxruntime", "timm", "numpy", "openslide-bin", "zarr")


def _reported(final: Path, store: FeatureStore, *, reused: bool) -> EmbedReport:
    return EmbedReport(store.slide_id, final, len(store), store.dim, reused)
