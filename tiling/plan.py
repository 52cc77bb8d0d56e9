"""A slide -> the tiles that it is made of: those with enough tissue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from tiling.annotations.rasterize import annotation_mask
from tiling.config import TilingConfig
from tiling.core.arrays import AnyArray, UInt8Array
from tiling.core.errors import ConfigError, SlideError
from tiling.grid import Grid, Raster, Tiles, box_mean, fit_grid
from tiling.overview import FINER, Overview, spread_within, texture_of
from tiling.slides.slide import Slide
from tiling.stores.summary import TissueSummary
from tiling.tissue import Found, find_tissue, given_tissue

_THUMBNAIL_PX = 2048  # about the longest side of the stored thumbnail, where the mask is coarser
_MAX_MASK_PX = 1 << 28  # at 8 micrometres a pixel, 13 cm squared


@dataclass(frozen=True)
class Plan:
    """Which tiles a slide is made of, with their `tissue` and `pen`; tissue mask and thumbnail behind."""

    tiles: Tiles
    mask: Raster
    cut: Raster
    """What the mask leaves out, uint8 (h, w): see `tiling.stores.store.TileStore.cut`."""
    thumbnail: Raster
    summary: TissueSummary

    def only(self, rows: Sequence[int] | AnyArray) -> Plan:
        """The plan with those of its tiles, in their order."""
        return replace(self, tiles=self.tiles.only(rows))


@dataclass(frozen=True)
class _Look:
    """A slide in small, (h, w), its thumbnail, a whole number of times finer, and which parts cannot be decoded."""

    overview: Overview
    thumbnail: UInt8Array
    unreadable: tuple[tuple[slice, slice], ...]


def plan_tiles(slide: Slide, config: TilingConfig, tissue_file: Path | None = None, *, threads: int = 1) -> Plan:
    """Decide which tiles a slide is made of: those with at least `min_tissue` tissue; it is looked at by `threads`.

    Raises SlideError, ConfigError, InputError for the `tissue_file`.
    """
    if (config.tissue.method == "mask") != (tissue_file is not None):
        fix = "pass both, or neither: --tissue FILE does"
        raise ConfigError("tissue", "the method mask and a file with the mask belong together", fix)
    # The grid covers the whole picture, whatever was scanned of it: so places in stores and tables are OpenSlide's.
    grid = fitted_grid(slide, config)
    mask_px0 = max(1.0, config.tissue.mask_mpp / slide.mpp)
    width, height = math.ceil(slide.width / mask_px0), math.ceil(slide.height / mask_px0)
    if width * height > _MAX_MASK_PX:
        what = f"has {slide.width} x {slide.height} px at {slide.mpp:g} micrometres, more than any glass slide holds"
        raise SlideError(slide.path, what, "check its scale and pass --slide-mpp, or copy the slide again")
    look = _look(slide, mask_px0, (width, height), threads)
    # Around what was scanned there is no slide: nothing there is looked at, or counts as glass. Where tissue is
    # detected, a pixel that is partly beyond the edge, and so partly white, is taken for what its neighbour is.
    mpp, reach = mask_px0 * slide.mpp, slide.frame.pixels(mask_px0)
    if tissue_file is None:
        scanned = slide.frame.pixels(mask_px0, whole=True)
        found = find_tissue(look.overview.part(scanned), mpp, config.tissue)
    else:
        scanned = reach
        given = annotation_mask(tissue_file, slide.frame, Raster(look.overview.picture, mask_px0))
        drawn = np.asarray(given.values[scanned], np.bool_)
        found = given_tissue(drawn, look.overview.part(scanned), mpp, config.tissue)
    mask, cut, ink = (_over(part, scanned, reach, (height, width)) for part in (found.tissue, found.cut, found.ink))
    # Nobody knows what a damaged part holds: where tissue is detected it counts as such, so that its tiles are tried,
    # counted and named.
    for part in look.unreadable if tissue_file is None else ():
        mask[part] = True
    where = Raster(mask, mask_px0)
    every = Tiles.all_of(grid)
    tissue = box_mean(where, every)
    chosen = (tissue > 0) & (tissue >= config.min_tissue) & slide.frame.touches(every)
    columns = {"tissue": tissue, "pen": np.minimum(box_mean(Raster(ink, mask_px0), every), 1)}
    kept = replace(every, columns=columns).only(chosen)
    thumbnail = Raster(slide.coloured(look.thumbnail), mask_px0 * width / look.thumbnail.shape[1])
    return Plan(kept, where, Raster(cut, mask_px0), thumbnail, _summary(found, where, kept, mpp))


def fitted_grid(slide: Slide, config: TilingConfig) -> Grid:
    """The grid of tiles that the settings ask for on that slide. Raises ConfigError, naming the slide."""
    try:
        return fit_grid(
            (slide.width, slide.height),
            slide.mpp,
            tuple(level.downsample for level in slide.levels),
            mpp=config.mpp_of(slide.mpp),
            tile_px=config.tile_px,
            overlap=config.overlap,
            mpp_tolerance=config.mpp_tolerance,
        )
    except ConfigError as error:
        fix = f"{error.fix}, --mpp native for each slide's own scale, or --coarser-ok for that of coarser ones"
        raise ConfigError(f"{slide.path}: {error.where}", error.what, fix) from None


def _look(slide: Slide, mask_px0: float, size: tuple[int, int], threads: int) -> _Look:
    """The slide at `size` (width, height), pixels of `mask_px0` level-0 pixels a side, by one read of a finer scale.

    Only the thumbnail is held at a finer scale: whatever the slide's size, memory is that of the result.
    """
    width, height = size
    thumbnail_times = max(1, min(int(mask_px0), _THUMBNAIL_PX // max(size)) // FINER * FINER)
    times = max(thumbnail_times, FINER) if mask_px0 >= FINER else 1
    thumbnail = np.full((height * thumbnail_times, width * thumbnail_times, 3), 255, np.uint8)
    spread, unreadable = np.zeros((height, width), np.uint8), list[tuple[slice, slice]]()
    size0 = (round(width * mask_px0), round(height * mask_px0))
    finer = (width * times, height * times)
    for rows, columns, pixels in slide.overview(size0, finer, unit=times, threads=threads):
        own = _coarser(rows, columns, times)
        if pixels is None:
            unreadable.append(own)
            continue
        thumbnail[_coarser(rows, columns, times // thumbnail_times)] = _reduced(pixels, times // thumbnail_times)
        if times >= FINER:
            spread[own] = spread_within(_reduced(pixels, times // FINER))
    picture = _reduced(thumbnail, thumbnail_times)
    return _Look(Overview(picture, texture_of(picture, spread)), thumbnail, tuple(unreadable))


def _coarser(rows: slice, columns: slice, times: int) -> tuple[slice, slice]:
    return (
        slice(rows.start // times, rows.stop // times),
        slice(columns.start // times, columns.stop // times),
    )


def _reduced(picture: UInt8Array, times: int) -> UInt8Array:
    """An RGB picture at 1 / `times` of its scale, by area."""
    if times == 1:
        return picture
    size = (picture.shape[1] // times, picture.shape[0] // times)
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def _over(part: AnyArray, where: tuple[slice, slice], reach: tuple[slice, slice], shape: tuple[int, int]) -> AnyArray:
    """The part of a picture of that shape, (h, w); the rows and columns up to `reach` as those beside them, then 0."""
    whole = np.zeros(shape, part.dtype)
    margins = [(own.start - to.start, to.stop - own.stop) for own, to in zip(where, reach, strict=True)]
    whole[reach] = np.pad(part, margins, mode="edge")
    return whole


def _summary(found: Found, where: Raster, kept: Tiles, mpp: float) -> TissueSummary:
    px_mm2 = (mpp / 1000) ** 2
    unseen = where.values.copy()
    edges = [
        np.rint(at / where.downsample).astype(np.intp)
        for at0 in (kept.y0, kept.x0)
        for at in (at0, at0 + kept.side_px0)
    ]
    for top, lower, left, right in np.transpose(edges).tolist():
        unseen[top:lower, left:right] = False
    return TissueSummary(
        scanned_mm2=found.tissue.size * px_mm2,
        tissue_mm2=np.count_nonzero(found.tissue) * px_mm2,
        ink_mm2=np.count_nonzero(found.ink & ~found.tissue) * px_mm2,
        inked_mm2=np.count_nonzero(found.ink & found.tissue) * px_mm2,
        too_small_mm2=np.count_nonzero(found.too_small) * px_mm2,
        notable_mm2=found.notable_px * px_mm2,
        below_min_tissue_mm2=np.count_nonzero(unseen) * px_mm2,
    )
