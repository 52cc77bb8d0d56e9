"""The verb: a slide or a store, and a model, become the probabilities of its tiles.

Threads read and decode ahead of the model, through a bounded queue: a slide is never in memory as a whole.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from inference.backends import Halving, Predict, auto_batch_size, choose_backend, uses_bf16
from inference.config import PredictConfig
from inference.ensemble import Ensemble, averaged, entropy, members, orientations
from inference.ood import comparable, ood_columns
from inference.readahead import Batch, Batches, read_ahead, regrouped
from tiling import Grid, Slide, TileStore, TilingConfig
from tiling.annotations.rasterize import annotation_hash, area_fractions, read_polygons
from tiling.core.errors import ConfigError, InputError, ModelError, SlideError
from tiling.grid import Tiles
from tiling.quality import METRICS, Measure, measurer
from tiling.slides.slide import slide_name
from tiling.stores.query import parse_where, rows_where, tile_columns
from tiling.stores.store import SlideFacts
from tiling.tile import Plan, plan_tiles, read_tiles, slide_facts
from training import TileModel

log = logging.getLogger(__name__)

UInt8Array = NDArray[np.uint8]
Floats = NDArray[np.float32]
Rows = NDArray[np.intp]
Progress = Callable[[int, int], None]
"""Called with (tiles done, tiles in all)."""

_MOST_READERS = 8
_BATCHES_AHEAD = 2  # beside those that the readers are at


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
    """From this probability on, the positive class is called; a value that float32 can hold, as they are."""
    thumbnail: UInt8Array
    """(h, w, 3)."""
    thumbnail_px0: float
    """Level-0 pixels spanned by one pixel of the thumbnail."""
    provenance: dict[str, Any]
    """What it was made from and with."""
    columns: Mapping[str, Floats] = field(default_factory=dict)
    """What else is known of each tile, float32 (N,) by name: `entropy` (nats), see inference.ensemble; `spread`, the
    standard deviation of the positive class's probability over models and orientations, where there are several; and
    where the models can tell, `ood_ratio` and `ood`, see inference.ood."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Tiles of the grid that were not predicted, by the first reason that holds: `no_tissue`, `filtered`,
    `outside_roi`, `undecodable`. Of a slide, tiles outside the region are not read, so `outside_roi` comes before
    `filtered`. Of a store, `no_tissue` is whatever it does not hold, so also the tiles at the slide's edge that the
    codec `source` leaves out."""
    ood_quantile: float | None = None
    """Of the validation tiles' distances to the training tiles, where `ood` begins; None: no model tells."""


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
    `slide_mpp` (micrometres per level-0 pixel) overrides the file's own scale, and `slide_sha256` is its hash if that
    is known; a store brings both, its overlap and its least tissue. `roi` is a GeoJSON or ASAP XML file; tiles outside
    all its polygons are left out. Raises ModelError where scales do not fit and nothing can be resampled, and for a
    model that gives no finite probability, naming the tile; SlideError, StoreError, InputError for `roi`, and
    ConfigError for a column in `config.where` that there is not and what this machine cannot do.
    """
    path = Path(source)
    if config.where is not None and not is_store(path):
        _require_columns_of_slides(config.where)
    region = None if roi is None else read_region_of_interest(roi)
    settings = prediction_settings(path, config, roi)
    asked = _Asked.of(model, config)
    with ExitStack() as stack:
        if is_store(path):
            store = TileStore(path)
            tiles = _from_store(store, slide_id or store.slide.slide_id, asked, config, region)
            settings |= {"store_sha256": store.sha256, "store_pixels_sha256": store.pixels_sha256}
            settings["min_tissue"] = _least_tissue(store, config)
        else:

            def opened() -> Slide:
                return stack.enter_context(Slide(path, mpp=slide_mpp))

            tiles = _from_slide(opened, slide_id or slide_name(path), slide_sha256, asked, config, region)
        predicted, probabilities, columns = _predict(tiles, asked, progress or (lambda done, total: None))
    first, filtered = asked.models[0].info, int(tiles.filtered.sum())
    undecodable = len(tiles.x0) - len(predicted) - filtered
    return Prediction(
        slide=tiles.slide,
        grid=tiles.grid,
        x0=tiles.x0[predicted],
        y0=tiles.y0[predicted],
        probabilities=probabilities,
        classes=first.classes,
        positive=first.positive,
        threshold=asked.threshold,
        thumbnail=tiles.thumbnail,
        thumbnail_px0=tiles.thumbnail_px0,
        provenance=_provenance(model, asked, settings),
        columns=columns,
        left_out={
            **tiles.left_out,
            "filtered": tiles.left_out["filtered"] + filtered,
            "undecodable": tiles.left_out["undecodable"] + undecodable,
        },
        ood_quantile=asked.ood_quantile,
    )


def require_machine(model: TileModel | Ensemble, config: PredictConfig) -> None:
    """Raise ConfigError or ModelError if this machine cannot compute as configured, before any slide is opened."""
    _Asked.of(model, config)


def is_store(path: Path) -> bool:
    """Whether a path is meant as a tile store rather than a slide."""
    try:
        return path.name.endswith(".zarr") or (path / "zarr.json").exists()
    except OSError:  # a folder that may not be read: whoever opens it says so
        return False


def prediction_settings(source: Path, config: PredictConfig, roi: Path | None = None) -> dict[str, Any]:
    """The settings that decide the prediction of that source; a store brings some of them.

    Raises InputError if the file `roi` cannot be read.
    """
    of_slides = set() if is_store(source) else {"overlap", "mpp_tolerance", "max_bad_tiles"}
    settings = config.model_dump(include={"min_tissue", "where"} | of_slides, exclude_none=True)
    settings |= config.model_dump(include={"tta", "backend", "precision"}, exclude_defaults=True)
    return settings | ({} if roi is None else {"roi_sha256": annotation_hash(roi)})


def read_region_of_interest(path: Path) -> shapely.Geometry:
    """The union of all polygons of a GeoJSON or ASAP XML file, level-0 pixels. Raises InputError if it has no area."""
    region = shapely.union_all(list(read_polygons(path).values()))
    if region.area == 0:
        raise InputError(path, "marks no area", "draw the region of interest as a polygon")
    return region


@dataclass(frozen=True)
class _Asked:
    """The models that are asked, and how."""

    models: tuple[TileModel, ...]
    predictors: tuple[Predict, ...]
    backends: tuple[str, ...]
    bf16: bool
    tta: bool
    batch_size: int
    readers: int

    @classmethod
    def of(cls, model: TileModel | Ensemble, config: PredictConfig) -> _Asked:
        models = comparable(members(model))
        backends, predictors = zip(*(choose_backend(m, config.backend, config.precision) for m in models), strict=True)
        cores = os.cpu_count() or 1
        on_gpu = any(m.device.type != "cpu" for m in models)
        return cls(
            models=models,
            predictors=tuple(
                Halving(predict, (m.sha256, str(m.device), backend))
                for m, predict, backend in zip(models, predictors, backends, strict=True)
            ),
            backends=backends,
            bf16=any(uses_bf16(m.device, config.precision) for m in models),
            tta=config.tta,
            batch_size=config.batch_size or min(auto_batch_size(m) for m in models),
            readers=config.readers or (max(1, min(_MOST_READERS, cores - 1)) if on_gpu else 1),
        )

    @property
    def threshold(self) -> float:
        """The mean of the models', rounded as probabilities are: a tile at it is so in every comparison."""
        return float(np.float32(np.mean([model.info.threshold for model in self.models])))

    @property
    def ood_quantile(self) -> float | None:
        """The smallest of the models', so that none of them promises less; None where they cannot tell."""
        known = [model.info.novelty.quantile for model in self.models if model.novelty and model.info.novelty]
        return min(known, default=None)

    def answers(self, tiles: UInt8Array) -> tuple[Floats, Floats | None]:
        """The mean over models and orientations (B, C), and the positive class's standard deviation (B,) over them.

        Of models with `novelty` (B, C + 1), as `inference.backends.Predict`.
        """
        views = list(orientations(tiles)) if self.tta else [tiles]  # views of one array, not copies
        answers = (predict(view) for predict in self.predictors for view in views)
        return averaged(answers, self.models[0].info.positive)


@dataclass(frozen=True)
class _Tiles:
    slide: SlideFacts
    grid: Grid
    x0: NDArray[np.int32]
    y0: NDArray[np.int32]
    thumbnail: UInt8Array
    thumbnail_px0: float
    batches: Batches
    """Indices of tiles and their pixels; a tile that cannot be decoded, or is filtered, is passed over."""
    left_out: dict[str, int]
    """Tiles of the grid that are not among these; see `Prediction.left_out`."""
    filtered: NDArray[np.bool_]
    """Of these, the tiles that were filtered once they were read, (N,); known when `batches` are through."""


def _from_slide(
    opened: Callable[[], Slide],
    slide_id: str,
    sha256: str | None,
    asked: _Asked,
    config: PredictConfig,
    region: shapely.Geometry | None,
) -> _Tiles:
    model = asked.models[0]
    slide, mpp = opened(), model_mpp(model)
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
    whole, plan = len(plan.tiles), plan.only(np.flatnonzero(_inside(region, plan.tiles)))
    left_out = {
        "no_tissue": plan.tiles.grid.rows * plan.tiles.grid.columns - whole,
        "filtered": 0,
        "outside_roi": whole - len(plan.tiles),
        "undecodable": 0,
    }
    handles = _Handles(slide, opened)
    keeps = (
        None if config.where is None else _Filter(config.where, plan, measurer(tiling.quality, plan.thumbnail.values))
    )
    filtered = np.zeros(len(plan.tiles), np.bool_)

    def read(rows: Rows) -> Batch:
        with handles.borrowed() as handle:
            found = list(read_tiles(handle, plan.tiles.only(rows), max_bad=1.0))
        side, good = plan.tiles.grid.tile_px, [index for index, _ in found]
        pixels = np.array([tile for _, tile in found], np.uint8).reshape(len(found), side, side, 3)
        rows = rows[good]
        if keeps is None or not len(rows):
            return rows, pixels
        kept = keeps(rows, pixels)
        filtered[rows] = ~kept
        return rows[kept], pixels[kept]

    wanted = _slices(len(plan.tiles), asked.batch_size)
    batches = _read(read, wanted, asked.readers)
    return _Tiles(
        slide=slide_facts(slide, slide_id, sha256),
        grid=plan.tiles.grid,
        x0=plan.tiles.x0,
        y0=plan.tiles.y0,
        thumbnail=plan.thumbnail.values,
        thumbnail_px0=plan.thumbnail.downsample,
        batches=regrouped(_few_bad(batches, wanted, filtered, config.max_bad_tiles, slide.path), asked.batch_size),
        left_out=left_out,
        filtered=filtered,
    )


@dataclass(frozen=True)
class _Filter:
    """Which tiles of a slide an expression keeps: their columns are measured as those of a store are."""

    where: str
    plan: Plan
    measure: Measure

    def __call__(self, rows: Rows, pixels: UInt8Array) -> NDArray[np.bool_]:
        """Bool (n,) of the tiles of those rows, with those pixels (n, T, T, 3), n at least 1."""
        tiles, measured = self.plan.tiles.only(rows), [self.measure(tile) for tile in pixels]
        quality = {name: np.array([row[name] for row in measured], np.float32) for name in measured[0]}
        return parse_where(self.where).mask(tile_columns(tiles) | quality, len(rows))


def _require_columns_of_slides(where: str) -> None:
    """Raise ConfigError for a column that is not known of a slide: those of annotations are a store's."""
    none: Floats = np.empty(0, np.float32)
    try:
        parse_where(where).mask(dict.fromkeys((*METRICS, "x", "y", "tissue"), none), 0)
    except ConfigError as error:
        fix = f"{error.fix}; for annotation classes, tile the slide with --annotations and pass the store"
        raise ConfigError(error.where, error.what, fix) from None


def _least_tissue(store: TileStore, config: PredictConfig) -> float:
    """The least fraction of tissue that the tiles really have; settings that a store cannot follow are told."""
    overlap = 1 - store.grid.stride_px0 / store.grid.tile_px0
    if config.overlap and abs(config.overlap - overlap) * store.grid.tile_px0 > 1:
        fix = f"pass the slide itself, or tile it with --overlap {config.overlap:g}"
        log.warning("%s: its tiles overlap by %.3g, not by %g: %s", store.path, overlap, config.overlap, fix)
    tiled = float(store.attributes.config.get("min_tissue") or 0)
    if tiled > config.min_tissue:
        fix = f"pass the slide itself, or tile it with --min-tissue {config.min_tissue:g}"
        log.warning("%s: holds no tile with less than %g of tissue: %s", store.path, tiled, fix)
    return max(tiled, config.min_tissue)


def _from_store(
    store: TileStore, slide_id: str, asked: _Asked, config: PredictConfig, region: shapely.Geometry | None
) -> _Tiles:
    model = asked.models[0]
    mpp, tile_px = model_mpp(model), model.info.tile_px
    fits = abs(store.grid.mpp / mpp - 1) <= config.mpp_tolerance and store.grid.tile_px == tile_px
    if not fits:
        what = (
            f"has tiles of {store.grid.tile_px} px at {store.grid.mpp:g} micrometres a pixel, not {tile_px} at {mpp:g}"
        )
        fix = f"pass the slide itself, which is resampled, or tile it with --mpp {mpp:g} --tile-px {tile_px}"
        raise ModelError(store.path, what, fix)
    tissue = store.tiles.columns["tissue"] >= config.min_tissue
    chosen = tissue & rows_where(store, config.where)
    rows = np.flatnonzero(chosen & _inside(region, store.tiles))
    bad = len(store.attributes.bad_tiles)
    left_out = {
        "no_tissue": store.grid.rows * store.grid.columns - bad - int(tissue.sum()),
        "filtered": int(tissue.sum() - chosen.sum()),
        "outside_roi": int(chosen.sum()) - len(rows),
        "undecodable": bad,
    }
    wanted = _slices(len(rows), asked.batch_size)
    return _Tiles(
        slide=store.slide.model_copy(update={"slide_id": slide_id}),
        grid=store.grid,
        x0=store.tiles.x0[rows],
        y0=store.tiles.y0[rows],
        thumbnail=store.thumbnail.values,
        thumbnail_px0=store.thumbnail.downsample,
        batches=_read(lambda part: (part, store.read(rows[part])), wanted, asked.readers),
        left_out=left_out,
        filtered=np.zeros(len(rows), np.bool_),
    )


class _Handles:
    """A slide's open handles, one for each thread that reads: none is used by two at once."""

    def __init__(self, first: Slide, opened: Callable[[], Slide]) -> None:
        self._idle: SimpleQueue[Slide] = SimpleQueue()
        self._idle.put(first)
        self._opened = opened

    @contextmanager
    def borrowed(self) -> Iterator[Slide]:
        try:
            slide = self._idle.get_nowait()
        except Empty:
            slide = self._opened()
        try:
            yield slide
        finally:
            self._idle.put(slide)


def _read(read: Callable[[Rows], Batch], wanted: Sequence[Rows], readers: int) -> Batches:
    """The batches of tiles with those indices, in order, read by threads ahead of their use."""
    return read_ahead((partial(read, rows) for rows in wanted), readers, readers + _BATCHES_AHEAD)


def _few_bad(
    batches: Batches, wanted: Sequence[Rows], filtered: NDArray[np.bool_], max_bad: float, path: Path
) -> Batches:
    """The batches themselves. Raises SlideError when more than the fraction `max_bad` of all tiles is missing.

    Tiles that are `filtered`, bool (N,), are not missing.
    """
    bad, total = 0, sum(map(len, wanted))
    with closing(batches):
        for rows, batch in zip(wanted, batches, strict=True):
            bad += len(rows) - len(batch[0]) - int(filtered[rows].sum())
            if bad > max_bad * total:
                what = f"has too many tiles that cannot be decoded, {bad} of the first {rows[-1] + 1}"
                raise SlideError(
                    path, what, "copy or scan the slide again, or tile it with --max-bad-tiles and pass the store"
                )
            yield batch


def _inside(region: shapely.Geometry | None, tiles: Tiles) -> NDArray[np.bool_]:
    """Which tiles lie in the region, at least in part, bool (N,); all of them without one."""
    return np.ones(len(tiles), np.bool_) if region is None else area_fractions(region, tiles) > 0


def model_mpp(model: TileModel) -> float:
    """Micrometres per pixel of the model's tiles. Raises ModelError if it was trained on images of unknown scale."""
    if model.info.mpp is None:
        fix = "train it again and pass --mpp with the scale of its images"
        raise ModelError(
            "the model", "does not say at what scale it was trained, so it cannot be laid over slides", fix
        )
    return model.info.mpp


def _predict(tiles: _Tiles, asked: _Asked, progress: Progress) -> tuple[Rows, Floats, dict[str, Floats]]:
    """Indices of the tiles predicted, (N,), their probabilities, (N, C), and `Prediction.columns`."""
    total, classes, tells = len(tiles.x0), len(asked.models[0].info.classes), asked.ood_quantile is not None
    predicted = np.zeros(total, np.bool_)
    answers = np.empty((total, classes + tells), np.float32)
    spread = np.zeros(total, np.float32) if asked.tta or asked.models[1:] else None
    with closing(tiles.batches):
        for rows, pixels in tiles.batches:
            answers[rows], deviation = asked.answers(pixels)
            finite = np.isfinite(answers[rows]).all(1)
            if not finite.all():
                row = rows[~finite][0]
                where = f"{tiles.slide.slide_id}, tile at x {tiles.x0[row]}, y {tiles.y0[row]}"
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


def _provenance(model: TileModel | Ensemble, asked: _Asked, settings: dict[str, Any]) -> dict[str, Any]:
    facts: list[dict[str, Any]] = [
        {
            "model_sha256": m.sha256,
            "weights_sha256": m.info.hashes["weights.safetensors"],
            "backbone": m.info.backbone,
            "model_mpp": m.info.mpp,
            "model_tile_px": m.info.tile_px,
        }
        for m in asked.models
    ]
    made = facts[0]
    if len(facts) > 1:
        names = " + ".join(sorted({str(fact["backbone"]) for fact in facts}))
        made = made | {"model_sha256": model.sha256, "backbone": f"{len(facts)} models, {names}", "models": facts}
        del made["weights_sha256"]
    used = {"backend": "onnx"} if "onnx" in asked.backends else {}
    return made | used | ({"precision": "bf16"} if asked.bf16 else {}) | {"settings": settings}


def _slices(count: int, size: int) -> list[Rows]:
    return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]
