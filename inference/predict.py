"""The verb: a slide or a store, and a model, become the probabilities of its tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

from tiling import Grid, Slide, TileStore, TilingConfig
from tiling.errors import ConfigError, ModelError
from tiling.slide import slide_name
from tiling.store import SlideFacts
from tiling.tile import plan_tiles, read_tiles, slide_facts
from tiling.where import parse_where, rows_where
from training import TileModel

UInt8Array = NDArray[np.uint8]
Progress = Callable[[int, int], None]
"""Called with (tiles done, tiles in all)."""


class PredictConfig(BaseModel):
    """What decides a prediction, beside the slide and the model. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    overlap: float = Field(0.0, ge=0, lt=1)
    """Fraction of a tile that its neighbour shares, in [0, 1); a store brings its own."""
    min_tissue: float = Field(0.5, ge=0, le=1)
    """Least fraction of a tile that must be tissue."""
    mpp_tolerance: float = Field(0.02, ge=0, lt=0.5)
    """How far a scale may be from the model's and be taken as it is."""
    max_bad_tiles: float = Field(0.01, ge=0, le=1)
    """Fraction of a slide's tiles that may be passed over because they cannot be decoded."""
    batch_size: PositiveInt = 64
    """Tiles that the model sees at once; changes the speed, not the result."""
    where: str | None = None
    """Which tiles of a store, by its columns: `focus > 20 and pen < 0.05`; see tiling.where."""

    @field_validator("where")
    @classmethod
    def _parses(cls, where: str | None) -> str | None:
        if where is not None:
            parse_where(where)
        return where


@dataclass(frozen=True)
class Prediction:
    """The tiles of one slide and what a model says of them; arrays over N tiles in reading order."""

    slide: SlideFacts
    grid: Grid
    x0: NDArray[np.int32]
    """Left edges, level-0 pixels (N,)."""
    y0: NDArray[np.int32]
    """Upper edges, level-0 pixels (N,)."""
    probabilities: NDArray[np.float32]
    """(N, C), calibrated; rows sum to 1."""
    classes: tuple[str, ...]
    positive: int
    """Index of the class the heatmap shows."""
    threshold: float
    """From this probability on, the positive class is called."""
    thumbnail: UInt8Array
    """(h, w, 3)."""
    thumbnail_px0: float
    """Level-0 pixels spanned by one pixel of the thumbnail."""
    provenance: dict[str, Any]
    """What it was made from and with."""


def predict_slide(
    source: Path | str,
    model: TileModel,
    config: PredictConfig = PredictConfig(),  # noqa: B008 - frozen
    *,
    slide_id: str | None = None,
    slide_mpp: float | None = None,
    progress: Progress | None = None,
) -> Prediction:
    """Predict every tissue tile of a slide, or of a tile store (a folder `*.zarr`).

    A slide finer than the model's scale is resampled while it is read, tile by tile: it is never in memory as a whole.
    `slide_mpp` (micrometres per level-0 pixel) overrides the file's own scale. Raises ModelError where scales do
    not fit and nothing can be resampled; SlideError, StoreError, and ConfigError for `config.where` with a slide.
    """
    path = Path(source)
    if config.where is not None and not is_store(path):
        raise ConfigError("where", "chooses by the columns of a tile store", f"tile {path.name} first, pass the store")
    with ExitStack() as stack:
        if is_store(path):
            tiles = _from_store(TileStore(path), model, config)
        else:
            slide = stack.enter_context(Slide(path, mpp=slide_mpp))
            tiles = _from_slide(slide, slide_id or slide_name(path), model, config)
        predicted, probabilities = _predict(tiles, model, progress or (lambda done, total: None))
    return Prediction(
        slide=tiles.slide,
        grid=tiles.grid,
        x0=tiles.x0[predicted],
        y0=tiles.y0[predicted],
        probabilities=probabilities,
        classes=model.info.classes,
        positive=model.info.positive,
        threshold=model.info.threshold,
        thumbnail=tiles.thumbnail,
        thumbnail_px0=tiles.thumbnail_px0,
        provenance=_provenance(model, tiles.settings),
    )


def is_store(path: Path) -> bool:
    """Whether a path is meant as a tile store rather than a slide."""
    try:
        return path.name.endswith(".zarr") or (path / "zarr.json").exists()
    except OSError:  # a folder that may not be read: whoever opens it says so
        return False


def prediction_settings(source: Path, config: PredictConfig) -> dict[str, Any]:
    """The settings that decide the prediction of that source; a store's tiles are chosen already."""
    deciding = (
        {"min_tissue", "where"} if is_store(source) else {"overlap", "min_tissue", "mpp_tolerance", "max_bad_tiles"}
    )
    return config.model_dump(include=deciding, exclude_none=True)


@dataclass(frozen=True)
class _Tiles:
    slide: SlideFacts
    grid: Grid
    x0: NDArray[np.int32]
    y0: NDArray[np.int32]
    thumbnail: UInt8Array
    thumbnail_px0: float
    batches: Iterator[tuple[NDArray[np.intp], UInt8Array]]
    """Indices of tiles and their pixels; a tile that cannot be decoded is passed over."""
    settings: dict[str, Any]


def _from_slide(slide: Slide, slide_id: str, model: TileModel, config: PredictConfig) -> _Tiles:
    mpp = model_mpp(model)
    if slide.mpp > mpp * (1 + config.mpp_tolerance):
        fix = f"use a model of {slide.mpp:g} or coarser: specslide tile --mpp {slide.mpp:g}, then train on those stores"
        what = f"has {slide.mpp:g} micrometres a pixel, too coarse for the model's {mpp:g}"
        raise ModelError(slide.path, what, fix)
    tiling = TilingConfig(
        mpp=mpp,
        tile_px=model.info.tile_px,
        overlap=config.overlap,
        min_tissue=config.min_tissue,
        mpp_tolerance=config.mpp_tolerance,
    )
    plan = plan_tiles(slide, tiling)
    pixels = read_tiles(slide, plan.grid, plan.x0, plan.y0, config.max_bad_tiles)
    return _Tiles(
        slide=slide_facts(slide, slide_id),
        grid=plan.grid,
        x0=plan.x0,
        y0=plan.y0,
        thumbnail=plan.thumbnail,
        thumbnail_px0=plan.thumbnail_px0,
        batches=_batched(pixels, config.batch_size),
        settings=prediction_settings(slide.path, config),
    )


def _from_store(store: TileStore, model: TileModel, config: PredictConfig) -> _Tiles:
    mpp, tile_px = model_mpp(model), model.info.tile_px
    fits = abs(store.grid.mpp / mpp - 1) <= config.mpp_tolerance and store.grid.tile_px == tile_px
    if not fits:
        what = (
            f"has tiles of {store.grid.tile_px} px at {store.grid.mpp:g} micrometres a pixel, not {tile_px} at {mpp:g}"
        )
        fix = f"pass the slide itself, which is resampled, or tile it with --mpp {mpp:g} --tile-px {tile_px}"
        raise ModelError(store.path, what, fix)
    rows = np.flatnonzero((store.tissue >= config.min_tissue) & rows_where(store, config.where))
    return _Tiles(
        slide=store.slide,
        grid=store.grid,
        x0=store.x[rows],
        y0=store.y[rows],
        thumbnail=store.thumbnail,
        thumbnail_px0=store.attributes.thumbnail_px0,
        batches=((np.arange(i, i + len(part)), store.read(part)) for i, part in _slices(rows, config.batch_size)),
        settings=prediction_settings(store.path, config) | {"store_sha256": store.content_hash},
    )


def model_mpp(model: TileModel) -> float:
    """Micrometres per pixel of the model's tiles. Raises ModelError if it was trained on images of unknown scale."""
    if model.info.mpp is None:
        fix = "train it again and pass --mpp with the scale of its images"
        raise ModelError(
            "the model", "does not say at what scale it was trained, so it cannot be laid over slides", fix
        )
    return model.info.mpp


def _predict(tiles: _Tiles, model: TileModel, progress: Progress) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Indices of the tiles predicted, (N,), and their probabilities, (N, C)."""
    total = len(tiles.x0)
    predicted = np.zeros(total, np.bool_)
    probabilities = np.empty((total, len(model.info.classes)), np.float32)
    for rows, pixels in tiles.batches:
        probabilities[rows] = model.predict(pixels)
        predicted[rows] = True
        progress(int(rows[-1]) + 1, total)
    done = np.flatnonzero(predicted)
    finite = np.isfinite(probabilities[done]).all(1)
    if not finite.all():
        row = done[~finite][0]
        where = f"{tiles.slide.slide_id}, tile at x {tiles.x0[row]}, y {tiles.y0[row]}"
        raise ModelError(where, "the model gives no finite probability", "check the model's training")
    return done, probabilities[done]


def _provenance(model: TileModel, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_sha256": model.sha256,
        "weights_sha256": model.info.hashes["weights.safetensors"],
        "backbone": model.info.backbone,
        "model_mpp": model.info.mpp,
        "model_tile_px": model.info.tile_px,
        "settings": settings,
    }


def _batched(tiles: Iterator[tuple[int, UInt8Array]], size: int) -> Iterator[tuple[NDArray[np.intp], UInt8Array]]:
    while batch := list(islice(tiles, size)):
        yield np.array([index for index, _ in batch]), np.stack([tile for _, tile in batch])


def _slices(rows: NDArray[np.intp], size: int) -> Iterator[tuple[int, NDArray[np.intp]]]:
    return ((start, rows[start : start + size]) for start in range(0, len(rows), size))
