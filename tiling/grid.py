"""Tiles and pictures over a slide: `Frame`, `Grid`, `Tiles` on it, and `Raster`. Pure geometry, in level-0 pixels.

A grid is made once in tiling, stored with the tiles, and only read afterwards.

All lengths along the slide are whole level-0 pixels, so that a tile's place is exact and the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tiling.core.arrays import AnyArray, BoolArray, Float32Array, Float64Array, Int32Array
from tiling.core.errors import ConfigError

SCALE_TOLERANCE = 0.05
"""How far two scales may be apart and still be one: a level within 2% of the scale asked for is taken as it is, so that
tiles asked for at one scale may be 4% apart."""


MAX_SIDE0: Final = 2**31 - 1
"""Of a slide, level-0 pixels: places are int32."""
MAX_TILE_PX: Final = 8192
Side0 = Annotated[int, Field(gt=0, le=MAX_SIDE0)]
TilePx = Annotated[int, Field(gt=0, le=MAX_TILE_PX)]
Mpp = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
Px0 = Annotated[float, Field(gt=0, le=MAX_SIDE0, allow_inf_nan=False)]
"""A length that need not be whole, level-0 pixels."""
_BAND_ROWS: Final = 1024  # of a picture that are summed at once


def same_scale(mpp: float, other: float) -> bool:
    """Whether two scales (mpp) are close enough for their tiles to be trained, tested and predicted together."""
    return max(mpp, other) <= min(mpp, other) * (1 + SCALE_TOLERANCE)


class Bounds(BaseModel):
    """A rectangle of a slide, level-0 pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    x0: int = Field(ge=-MAX_SIDE0, le=MAX_SIDE0)
    y0: int = Field(ge=-MAX_SIDE0, le=MAX_SIDE0)
    width0: Side0
    height0: Side0

    @property
    def corner(self) -> tuple[int, int]:
        """Its upper left corner (x0, y0)."""
        return self.x0, self.y0

    @property
    def opposite(self) -> tuple[int, int]:
        """Its lower right corner."""
        return self.x0 + self.width0, self.y0 + self.height0


@dataclass(frozen=True)
class Frame:
    """Where the coordinates of a slide begin and end, for each program its way.

    OpenSlide and ASAP count from the corner of the whole picture, as tile stores and tables do. Some files declare that
    only a part of it was scanned (`openslide.bounds-*`: MIRAX, SCN, BIF). QuPath shows that part alone and counts from
    its corner.
    """

    size0: tuple[int, int]
    """Width and height of the whole picture, level-0 pixels."""
    bounds: Bounds | None = None
    """The part that was scanned; None: all of it."""

    @property
    def qupath0(self) -> tuple[int, int]:
        """The origin (x0, y0) of QuPath's coordinates, level-0 pixels."""
        return (0, 0) if self.bounds is None else self.bounds.corner

    @property
    def scanned(self) -> Bounds:
        """The scanned part of the picture, level-0 pixels."""
        whole = Bounds(x0=0, y0=0, width0=self.size0[0], height0=self.size0[1])
        if self.bounds is None:
            return whole
        x0, y0 = (min(max(a, 0), n - 1) for a, n in zip(self.bounds.corner, self.size0, strict=True))
        x1, y1 = (min(max(b, 1), n) for b, n in zip(self.bounds.opposite, self.size0, strict=True))
        return Bounds(x0=x0, y0=y0, width0=max(1, x1 - x0), height0=max(1, y1 - y0))

    def touches(self, tiles: Tiles) -> BoolArray:
        """Which tiles reach into what was scanned, bool (N,)."""
        (x0, y0), (x1, y1), side = self.scanned.corner, self.scanned.opposite, tiles.side_px0
        return (tiles.x0 < x1) & (tiles.y0 < y1) & (tiles.x0 > x0 - side) & (tiles.y0 > y0 - side)

    def pixels(self, downsample: float, *, whole: bool = False) -> tuple[slice, slice]:
        """Rows and columns, of a picture over the slide, that reach into what was scanned; `whole`: that lie in it."""
        (x0, y0), (x1, y1) = self.scanned.corner, self.scanned.opposite
        rows, columns = (slice(int(a / downsample), math.ceil(b / downsample)) for a, b in ((y0, y1), (x0, x1)))
        if not whole:
            return rows, columns
        inner = [(math.ceil(a / downsample), int(b / downsample)) for a, b in ((y0, y1), (x0, x1))]
        rows, columns = (slice(a, b) if a < b else reach for (a, b), reach in zip(inner, (rows, columns), strict=True))
        return rows, columns


class Grid(BaseModel):
    """Square tiles over a slide, in reading order (y, then x); together they cover it to its last pixel.

    Column c and row r start at `c * stride_px0`, `r * stride_px0`. A tile spans `tile_px0` level-0 pixels and is
    delivered at `tile_px`. Tiles at the right and lower edge may reach beyond the slide.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width0: Side0
    """Slide width, level-0 pixels."""
    height0: Side0
    """Slide height, level-0 pixels."""
    slide_mpp: Mpp
    """Micrometres per level-0 pixel."""
    tile_px: TilePx
    """Side of a delivered tile, pixels."""
    tile_px0: Side0
    """Side of a tile on the slide, level-0 pixels."""
    stride_px0: Side0
    """Distance of neighbouring tiles, level-0 pixels."""

    @property
    def size0(self) -> tuple[int, int]:
        """Width and height of the slide, level-0 pixels."""
        return self.width0, self.height0

    @property
    def mpp(self) -> float:
        """Micrometres per pixel of a delivered tile: the true one, not the one asked for."""
        return self.slide_mpp * self.tile_px0 / self.tile_px

    @property
    def columns(self) -> int:
        """Tiles in a row."""
        return _count(self.width0, self.tile_px0, self.stride_px0)

    @property
    def rows(self) -> int:
        """Tiles in a column."""
        return _count(self.height0, self.tile_px0, self.stride_px0)

    def corners(self) -> tuple[Int32Array, Int32Array]:
        """Top-left corners (x0, y0) of all tiles, two int32 (rows * columns,) arrays in reading order."""
        y0, x0 = np.divmod(np.arange(self.rows * self.columns), self.columns)
        return (x0 * self.stride_px0).astype(np.int32), (y0 * self.stride_px0).astype(np.int32)


@dataclass(frozen=True)
class Tiles:
    """N tiles on a grid, in reading order unless chosen otherwise."""

    grid: Grid
    x0: Int32Array
    """Left edges, level-0 pixels, (N,)."""
    y0: Int32Array
    """Upper edges, level-0 pixels, (N,)."""
    columns: Mapping[str, Float32Array] = field(default_factory=dict)
    """Values of each tile by name, (N,): `tissue`, quality metrics, and fractions as `annotation/<class>`."""

    @classmethod
    def all_of(cls, grid: Grid) -> Tiles:
        """Every tile of a grid."""
        return cls(grid, *grid.corners())

    def __len__(self) -> int:
        return len(self.x0)

    @property
    def side_px0(self) -> int:
        """Side of a tile on the slide, level-0 pixels."""
        return self.grid.tile_px0

    def places(self) -> list[tuple[int, int]]:
        """(x0, y0) of each tile."""
        return list(zip(self.x0.tolist(), self.y0.tolist(), strict=True))

    def only(self, rows: Sequence[int] | AnyArray) -> Tiles:
        """Some of the tiles, by their indices in that order, or by a mask bool (N,)."""
        index = np.asarray(rows) if len(rows) else np.zeros(0, np.intp)
        columns = {name: values[index] for name, values in self.columns.items()}
        return Tiles(self.grid, self.x0[index], self.y0[index], columns)


@dataclass(frozen=True)
class Raster:
    """A picture over a slide, from the slide's corner on."""

    values: AnyArray
    """(h, w), or (h, w, channels)."""
    downsample: float
    """Level-0 pixels along the side of a pixel."""


def fit_grid(
    size0: tuple[int, int],
    slide_mpp: float,
    downsamples: tuple[float, ...],
    *,
    mpp: float,
    tile_px: int,
    overlap: float = 0.0,
    mpp_tolerance: float = 0.02,
) -> Grid:
    """The grid of tiles of a given side and scale on a slide.

    A level within `mpp_tolerance` of the asked scale is taken as it is, and the grid's `mpp` says the true one;
    otherwise a tile's side is rounded to whole level-0 pixels.

    Args:
        size0: (width, height) of the slide, level-0 pixels.
        slide_mpp: Micrometres per level-0 pixel.
        downsamples: Level-0 pixels per pixel of each level of the slide.
        mpp: Micrometres per pixel of the tiles.
        tile_px: Side of a tile, pixels.
        overlap: Fraction of a tile's side that neighbours share, in [0, 1).
        mpp_tolerance: How far a level's scale may be from `mpp`, as a fraction of it.

    Returns:
        The grid, which covers the slide to its last pixel.

    Raises:
        ConfigError: For a scale finer than the slide's: pixels are never invented.
    """
    scale = mpp / slide_mpp
    near = [d for d in downsamples if abs(scale / d - 1) <= mpp_tolerance]
    if near:
        scale = min(near, key=lambda d: abs(scale / d - 1))
    elif scale < 1:
        raise ConfigError(
            "mpp",
            f"{mpp:g} is finer than the slide's own {slide_mpp:g}",
            f"pass --mpp {slide_mpp:g} or coarser",
        )
    unit = (int(scale) if scale.is_integer() else 1) if near else _unit(tile_px, scale, mpp_tolerance)
    tile_px0 = unit * max(1, round(tile_px * scale / unit))
    return Grid(
        width0=size0[0],
        height0=size0[1],
        slide_mpp=slide_mpp,
        tile_px=tile_px,
        tile_px0=tile_px0,
        stride_px0=unit * max(1, round(tile_px0 * (1 - overlap) / unit)),
    )


def _unit(tile_px: int, scale: float, mpp_tolerance: float) -> int:
    """What side and stride of a tile are multiples of, level-0 pixels.

    The largest power of two not above the scale, so that every tile begins and ends at whole pixels of the level, or of
    the reduced JPEG, that it is read from; 1 where that would change the scale by more than the tolerance.
    """
    unit = 1 << max(0, math.frexp(scale)[1] - 1)
    side = unit * round(tile_px * scale / unit)
    return unit if abs(side / (tile_px * scale) - 1) <= mpp_tolerance else 1


def box_mean(raster: Raster, tiles: Tiles) -> Float32Array:
    """Mean of a mask or map (h, w) over each tile, float32 (N,); it counts as 0 outside.

    Exact also for edges inside a pixel: the integral of a piecewise constant picture is bilinear between its pixel
    corners.
    """
    side, downsample = tiles.side_px0, raster.downsample
    sums = box_sums(
        raster.values,
        tiles.x0 / downsample,
        tiles.y0 / downsample,
        (tiles.x0 + side) / downsample,
        (tiles.y0 + side) / downsample,
    )
    return np.clip(sums * (downsample * downsample / side**2), 0.0, None).astype(np.float32)


def box_sums(
    values: AnyArray, left: Float64Array, top: Float64Array, right: Float64Array, lower: Float64Array
) -> Float64Array:
    """Sum of a picture's values over N rectangles, float64 (N,); pixels that are cut count by the part inside.

    Args:
        values: The picture, (h, w); 0 outside.
        left: Left edges (N,), in pixels of the picture and parts of them.
        top: Upper edges (N,).
        right: Right edges (N,).
        lower: Lower edges (N,).

    Returns:
        The sums (N,).
    """
    sums = np.empty(len(top))
    band = np.floor(top / _BAND_ROWS).astype(np.intp)
    for number in np.unique(band):  # for memory: a band's integral image, not the whole picture's
        here = np.flatnonzero(band == number)
        first = min(max(0, int(number) * _BAND_ROWS), len(values) - 1)
        integral = _integral(values[first : max(first + 1, math.ceil(lower[here].max()))])
        at, below, x, beside = top[here] - first, lower[here] - first, left[here], right[here]
        sums[here] = (
            _bilinear(integral, below, beside)
            - _bilinear(integral, at, beside)
            - _bilinear(integral, below, x)
            + _bilinear(integral, at, x)
        )
    return sums


def _integral(values: AnyArray) -> AnyArray:
    """Sum of what lies above and left of each corner of the pixels, (h + 1, w + 1)."""
    if values.dtype == np.bool_:
        from cv2 import integral  # slow to import, and few who need a grid need it

        return np.asarray(integral(values.view(np.uint8)))  # int32: it holds 2**31 pixels
    corners = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
    sums = corners[1:, 1:]
    np.cumsum(np.cumsum(values, 0, out=sums), 1, out=sums)
    return corners


def _bilinear(values: AnyArray, y: Float64Array, x: Float64Array) -> Float64Array:
    """`values` between its grid points; constant outside."""
    y, x = np.clip(y, 0, values.shape[0] - 1), np.clip(x, 0, values.shape[1] - 1)
    r, c = np.minimum(y.astype(int), values.shape[0] - 2), np.minimum(x.astype(int), values.shape[1] - 2)
    fy, fx = y - r, x - c
    upper = values[r, c] * (1 - fx) + values[r, c + 1] * fx
    lower = values[r + 1, c] * (1 - fx) + values[r + 1, c + 1] * fx
    return np.asarray(upper * (1 - fy) + lower * fy)


def _count(length0: int, tile_px0: int, stride_px0: int) -> int:
    return 1 + max(0, math.ceil((length0 - tile_px0) / stride_px0))
