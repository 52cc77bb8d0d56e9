"""Where tiles come from: a slide, cut while it is read, or a store. Both give `Source`: tiles, and batches of pixels.

Threads read and decode ahead of the model (prefetch), through a bounded queue: a slide is never in memory as a whole.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from inference.config import CutConfig
from inference.readahead import Batch, Batches, regrouped
from tiling import Slide, TileStore, TilingConfig
from tiling.annotations.rasterize import area_fractions, read_polygons
from tiling.core.arrays import BoolArray, Float32Array
from tiling.core.errors import ConfigError, InputError, ModelError, SlideError
from tiling.core.threads import read_ahead, usable_cores
from tiling.grid import Frame, Raster, Tiles, same_scale
from tiling.plan import plan_tiles
from tiling.quality import METRICS, Measure, measurer, no_quality
from tiling.stores.query import parse_where, rows_where, tile_columns
from tiling.stores.store import NO_PROFILE, SlideFacts
from tiling.tile import read_tiles, slide_facts

log = logging.getLogger(__name__)

Rows = NDArray[np.intp]

_BATCHES_AHEAD = 2  # beside those that the readers are at


def read_region_of_interest(path: Path, frame: Frame) -> shapely.Geometry:
    """The union of all polygons of a file, on a slide of that frame. Raises InputError if it has no area."""
    region = shapely.union_all(list(read_polygons(path, frame).values()))
    if region.area == 0:
        raise InputError(path, "marks no area", "draw the region of interest as a polygon")
    return region


@dataclass(frozen=True)
class Demand:
    """The tiles that a network asks for, and how they are read for it."""

    mpp: float
    """Micrometres per pixel."""
    tile_px: int
    """Side, pixels."""
    batch_size: int
    readers: int
    """Threads."""


@dataclass(frozen=True)
class Source:
    """The tiles of a slide or store that are to be computed, and the batches that read them."""

    slide: SlideFacts
    tiles: Tiles
    thumbnail: Raster
    batches: Batches
    """Indices of tiles and their pixels; a tile that cannot be decoded, or is filtered, is passed over."""
    left_out: dict[str, int]
    """Tiles of the grid that are not among these; see `Prediction.left_out`."""
    filtered: BoolArray
    """Of these, the tiles that were filtered once they were read, (N,); known when `batches` are through."""
    measured: Mapping[str, Float32Array] = field(default_factory=dict)
    """Of a slide's tiles, quality metrics (N,) by name, where they were asked for; known when `batches` are through."""


def slide_source(
    slide: Slide,
    slide_id: str,
    sha256: str | None,
    demand: Demand,
    config: CutConfig,
    roi: Path | None,
    *,
    measure: bool = False,
) -> Source:
    """The tissue tiles of a slide, cut while it is read.

    Args:
        slide: The slide, open until the batches are through.
        slide_id: What the slide is called.
        sha256: The slide's hash, if it is known.
        demand: The tiles that are asked for, and the size of their batches.
        config: How the tiles are cut and filtered.
        roi: A file of polygons; tiles outside all of them are left out.
        measure: Whether their quality is measured, as tiling does.

    Returns:
        The tiles, and the batches that read them.

    Raises:
        ModelError: If the slide's scale does not fit the model.
        SlideError: If the slide cannot be read.
        InputError: If `roi` cannot be read.
        ConfigError: For settings that do not fit the slide.
    """
    if slide.lacks_profile:
        log.warning("%s: %s", slide.path, NO_PROFILE)
    mpp = demand.mpp
    region = None if roi is None else read_region_of_interest(roi, slide.frame)
    if slide.mpp > mpp * (1 + config.mpp_tolerance):
        fix = f"use a model of {slide.mpp:g} or coarser: specslide tile --mpp {slide.mpp:g}, then train on those stores"
        what = f"has {slide.mpp:g} micrometres a pixel, too coarse for the model's {mpp:g}"
        raise ModelError(slide.path, what, fix)
    tiling = TilingConfig(
        mpp=mpp,
        tile_px=demand.tile_px,
        overlap=config.overlap,
        min_tissue=config.min_tissue,
        mpp_tolerance=config.mpp_tolerance,
    )
    plan = plan_tiles(slide, tiling, threads=usable_cores())  # all of them: no network computes yet
    whole, plan = len(plan.tiles), plan.only(np.flatnonzero(_inside(region, plan.tiles)))
    left_out = {
        "no_tissue": plan.tiles.grid.rows * plan.tiles.grid.columns - whole,
        "filtered": 0,
        "outside_roi": whole - len(plan.tiles),
        "undecodable": 0,
    }
    where = None if config.where is None else parse_where(config.where)
    rate = measurer(tiling.quality, plan.thumbnail.values) if where is not None or measure else no_quality
    measured = _columns(rate, len(plan.tiles))
    filtered = np.zeros(len(plan.tiles), np.bool_)

    def read(rows: Rows) -> Batch:
        side, good = plan.tiles.grid.tile_px, list[int]()
        pixels = np.empty((len(rows), side, side, 3), np.uint8)
        for index, tile in read_tiles(slide, plan.tiles.only(rows), max_bad=1.0):
            pixels[len(good)] = tile
            good.append(index)
        rows, pixels = rows[good], pixels[: len(good)]
        for row, tile in zip(rows, pixels, strict=True) if measured else ():
            for name, value in rate(tile).items():
                measured[name][row] = value
        if where is None or not len(rows):
            return rows, pixels
        quality = {name: values[rows] for name, values in measured.items()}
        kept = where.mask(tile_columns(plan.tiles.only(rows)) | quality, len(rows))
        filtered[rows] = ~kept
        return rows[kept], pixels[kept]

    wanted = _slices(len(plan.tiles), demand.batch_size)
    batches = _read(read, wanted, demand.readers)
    return Source(
        slide=slide_facts(slide, slide_id, sha256),
        tiles=plan.tiles,
        thumbnail=plan.thumbnail,
        batches=regrouped(_few_bad(batches, wanted, filtered, config.max_bad_tiles, slide.path), demand.batch_size),
        left_out=left_out,
        filtered=filtered,
        measured=measured,
    )


def _columns(measure: Measure, count: int) -> dict[str, Float32Array]:
    """Empty columns (count,) for what a function measures of a tile, by name."""
    names = measure(np.full((64, 64, 3), 255, np.uint8))
    return {name: np.full(count, np.nan, np.float32) for name in names}


def require_columns_of_slides(where: str) -> None:
    """Raise ConfigError for a column that is not known of a slide: those of annotations are a store's."""
    none: Float32Array = np.empty(0, np.float32)
    try:
        parse_where(where).mask(dict.fromkeys((*METRICS, "x", "y", "tissue"), none), 0)
    except ConfigError as error:
        fix = f"{error.fix}; for annotation classes, tile the slide with --annotations and pass the store"
        raise ConfigError(error.where, error.what, fix) from None


def min_tissue_of(store: TileStore, config: CutConfig) -> float:
    """The minimum fraction of tissue that the tiles really have; warns of settings that a store cannot follow."""
    overlap = 1 - store.grid.stride_px0 / store.grid.tile_px0
    if config.overlap and abs(config.overlap - overlap) * store.grid.tile_px0 > 1:
        fix = f"pass the slide itself, or tile it with --overlap {config.overlap:g}"
        log.warning("%s: its tiles overlap by %.3g, not by %g: %s", store.path, overlap, config.overlap, fix)
    if config.icc not in (None, store.icc):
        fix = f"pass the slide itself, or tile it with --icc {config.icc}"
        log.warning("%s: its pixels were stored with --icc %s, not %s: %s", store.path, store.icc, config.icc, fix)
    tiled = float(store.attributes.config.get("min_tissue") or 0)
    if tiled > config.min_tissue:
        fix = f"pass the slide itself, or tile it with --min-tissue {config.min_tissue:g}"
        log.warning("%s: holds no tile with less than %g of tissue: %s", store.path, tiled, fix)
    return max(tiled, config.min_tissue)


def store_source(store: TileStore, slide_id: str, demand: Demand, config: CutConfig, roi: Path | None) -> Source:
    """The tiles of a store.

    Args:
        store: The store.
        slide_id: What the slide is called.
        demand: The tiles that are asked for, and the size of their batches.
        config: How the tiles are filtered.
        roi: A file of polygons; tiles outside all of them are left out.

    Returns:
        The tiles, and the batches that read them.

    Raises:
        ModelError: If the tiles' scale or side does not fit the model.
        StoreError: If the store cannot be read.
        InputError: If `roi` cannot be read.
        ConfigError: For a column in `config.where` that the store has not.
    """
    region = None if roi is None else read_region_of_interest(roi, store.slide.frame())
    mpp, tile_px = demand.mpp, demand.tile_px
    if not same_scale(store.grid.mpp, mpp) or store.grid.tile_px != tile_px:
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
    wanted = _slices(len(rows), demand.batch_size)
    return Source(
        slide=store.slide.model_copy(update={"slide_id": slide_id}),
        tiles=store.tiles.only(rows),
        thumbnail=store.thumbnail,
        batches=_read(lambda part: (part, store.read(rows[part])), wanted, demand.readers),
        left_out=left_out,
        filtered=np.zeros(len(rows), np.bool_),
    )


def _read(read: Callable[[Rows], Batch], wanted: Sequence[Rows], readers: int) -> Batches:
    """The batches of tiles with those indices, in order, read by threads ahead of their use."""
    return read_ahead((partial(read, rows) for rows in wanted), readers, readers + _BATCHES_AHEAD)


def _few_bad(batches: Batches, wanted: Sequence[Rows], filtered: BoolArray, max_bad: float, path: Path) -> Batches:
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


def _inside(region: shapely.Geometry | None, tiles: Tiles) -> BoolArray:
    """Which tiles lie in the region, at least in part, bool (N,); all of them without one."""
    return np.ones(len(tiles), np.bool_) if region is None else area_fractions(region, tiles) > 0


def _slices(count: int, size: int) -> list[Rows]:
    return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]
