"""What lies where on a synthetic slide: a handful of shapely polygons in level-0 pixels. Pure; paints nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from shapely import Point, Polygon, box, set_precision, unary_union

from tiling.core.errors import ConfigError

_PLACES = {  # centre x, centre y, radius of each piece of tissue, as fractions of the slide
    1: ((0.50, 0.50, 0.34),),
    2: ((0.29, 0.34, 0.23), (0.70, 0.64, 0.24)),
    3: ((0.28, 0.27, 0.19), (0.73, 0.36, 0.20), (0.40, 0.75, 0.18)),
}


@dataclass(frozen=True)
class Anatomy:
    """The anatomy of a synthetic slide: shapely polygons in level-0 pixels. Tumours lie inside tissue."""

    size_px: tuple[int, int]
    mpp: float
    tissue: tuple[Polygon, ...]
    tumours: tuple[Polygon, ...]
    fat: tuple[Polygon, ...]


def plan_anatomy(rng: np.random.Generator, *, size_px: tuple[int, int], mpp: float, tumour: bool) -> Anatomy:
    """Draw the polygons of a slide: 1 to 3 pieces of tissue, in them 1 to 3 tumours (or none), and some fat. Pure.

    Args:
        rng: Where chance comes from.
        size_px: (width, height) of the slide.
        mpp: Micrometres per pixel.
        tumour: Whether there are tumours.

    Returns:
        The polygons, level-0 pixels.

    Raises:
        ConfigError: If the slide is less than 256 micrometres wide or high.
    """
    width, height = size_px
    if min(size_px) * mpp < 256:
        raise ConfigError("size_px", f"{width} x {height} is too small for tissue at {mpp} um/px", "make it larger")
    side = min(size_px)
    tissue = tuple(
        blob(rng, x * width, y * height, r * side, wobble=0.38).intersection(box(0, 0, width, height))
        for x, y, r in _PLACES[int(rng.integers(1, 4))]
    )
    # Room for the rough edge of the tissue: a tumour never leaves it.
    cores = [largest(piece.buffer(-max(20 / mpp, 0.015 * side))) for piece in tissue]
    tumours = _tumours(rng, cores, side) if tumour else ()
    away = unary_union(tumours).buffer(60 / mpp)
    fat = []
    for core in cores:
        x, y = _point_inside(rng, core)
        patch = blob(rng, x, y, side * rng.uniform(0.05, 0.09), wobble=0.5).intersection(core).difference(away)
        fat += polygons(patch)
    return Anatomy(size_px, mpp, tissue, tumours, tuple(fat))


def _tumours(rng: np.random.Generator, cores: Sequence[Polygon], side: int) -> tuple[Polygon, ...]:
    blobs = []
    for _ in range(rng.integers(1, 4)):
        core = cores[int(rng.integers(len(cores)))]
        x, y = _point_inside(rng, core)
        outline = blob(rng, x, y, side * rng.uniform(0.10, 0.17), wobble=0.45)
        blobs.append(Polygon(largest(outline.intersection(core)).exterior))
    # Whole pixels, as drawn by hand; what touches is one region.
    whole = set_precision(unary_union(blobs), 1.0)
    return tuple(Polygon(p.exterior) for p in polygons(whole) if p.area > 0.002 * side**2)


def blob(rng: np.random.Generator, x: float, y: float, radius: float, *, wobble: float) -> Polygon:
    """A smooth star-shaped outline: a circle with a few random waves on its radius.

    Args:
        rng: Where chance comes from.
        x: Centre, pixels.
        y: Centre, pixels.
        radius: Of the circle, pixels.
        wobble: Height of the waves, as a fraction of the radius.

    Returns:
        The outline.
    """
    angle = np.linspace(0, 2 * np.pi, 160, endpoint=False)
    waves = sum(
        rng.normal() / order * np.cos(order * angle + rng.uniform(0, 2 * np.pi)) for order in (2, 3, 4, 5, 7, 9)
    )
    r = radius * np.clip(1 + wobble * waves, 0.45, 1.4)
    return Polygon(np.stack([x + r * np.cos(angle), y + r * np.sin(angle)], axis=1))


def _point_inside(rng: np.random.Generator, polygon: Polygon) -> tuple[float, float]:
    x0, y0, x1, y1 = polygon.bounds
    while True:
        x, y = rng.uniform(x0, x1), rng.uniform(y0, y1)
        if polygon.contains(Point(x, y)):
            return x, y


def largest(shape: Any) -> Polygon:
    """The polygon with the largest area."""
    return max(polygons(shape), key=lambda p: float(p.area))


def polygons(shape: Any) -> list[Polygon]:
    """The polygons of any shapely geometry, without lines, points and empty parts."""
    parts = getattr(shape, "geoms", [shape])
    return [p for p in parts if isinstance(p, Polygon) and not p.is_empty]
