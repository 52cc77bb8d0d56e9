"""Brush and canvas of the synthetic slides: smooth noise, polygons filled with stain, nuclei pressed into it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from shapely import Polygon, contains_xy, prepare

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
Points = NDArray[np.int64]

FULL_DENSITY = 2.8  # stain density that 255 stands for in the canvases


def noise(rng: np.random.Generator, shape: tuple[int, ...], cell: float) -> F32:
    """Smooth noise of standard deviation about 0.5 and features of about `cell` pixels: float32 of `shape`."""
    cell = max(cell, 1.0)
    h, w = (math.ceil(n / cell) + 3 for n in shape)
    coarse = rng.standard_normal((h, w), np.float32)
    big = cv2.resize(coarse, (round(w * cell), round(h * cell)), interpolation=cv2.INTER_CUBIC)
    return np.asarray(0.6 * big[: shape[0], : shape[1]], np.float32)


def inside(polygons: Sequence[Polygon], size_px: tuple[int, int]) -> F32:
    """Distance to the outside of the polygons, in half-scale pixels: float32 (height // 2, width // 2)."""
    mask = np.zeros((size_px[1] // 2 + 2, size_px[0] // 2 + 2), np.uint8)  # beyond the slide is outside
    for polygon in polygons:
        fill(mask, polygon, FULL_DENSITY, scale=0.5, origin=1)
    return np.asarray(cv2.distanceTransform((mask > 250).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1], np.float32)


def full(half: NDArray[Any], size_px: tuple[int, int], unit: float = FULL_DENSITY) -> U8:
    """A half-scale map with values 0 to `unit`, as a full-scale uint8 canvas."""
    scaled = np.clip(half * (255 / unit), 0, 255).astype(np.uint8)
    return u8(cv2.resize(scaled, size_px, interpolation=cv2.INTER_LINEAR))


def fill(canvas: U8, polygon: Polygon, density: float, *, scale: float = 1.0, origin: int = 0) -> None:
    """Fill a polygon with a density; edges are smooth.

    Args:
        canvas: uint8 (h, w), painted in place.
        polygon: In level-0 pixels.
        density: 0 to FULL_DENSITY.
        scale: Canvas pixels per level-0 pixel.
        origin: Where the slide's corner is on the canvas, in x and y, canvas pixels.
    """
    # Level-0 (0, 0) is the corner of the first pixel, OpenCV's is its centre; 4 bits of sub-pixel.
    points = np.rint(((np.asarray(polygon.exterior.coords) * scale) - 0.5 + origin) * 16).astype(np.int32)
    cv2.fillPoly(canvas, [points], round(density / FULL_DENSITY * 255), lineType=cv2.LINE_AA, shift=4)


def scatter(rng: np.random.Generator, shape: Any, spacing: float, jitter: float) -> Points:
    """Points on a jittered hexagonal grid inside a shape.

    Args:
        rng: Where chance comes from.
        shape: A shapely geometry in level-0 pixels.
        spacing: Of the grid, level-0 pixels.
        jitter: Standard deviation of the points' shifts, in halves of the spacing.

    Returns:
        int64 (N, 2), x and y in level-0 pixels.
    """
    if shape.is_empty:
        return np.empty((0, 2), np.int64)
    prepare(shape)
    x0, y0, x1, y1 = shape.bounds
    x, y = np.meshgrid(np.arange(x0, x1, spacing), np.arange(y0, y1, spacing * 0.87))
    x[1::2] += spacing / 2  # hexagonal: no rows to see
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    points += rng.normal(0, jitter * spacing / 2, points.shape)
    inside = contains_xy(shape, points[:, 0], points[:, 1])
    return np.asarray(points[inside], np.int64)


def stamp(rng: np.random.Generator, a: float, b: float, angle: float, density: float, chromatin: float) -> U8:
    """One nucleus: an uneven ellipse with mottled chromatin and a darker rim.

    Args:
        rng: Where chance comes from.
        a: One semi-axis, pixels.
        b: The other semi-axis, pixels.
        angle: Of the axis `a` to x, radians.
        density: Of the stain, 0 to FULL_DENSITY.
        chromatin: How strongly it is mottled; 0: not.

    Returns:
        The picture of its stain, uint8 (2n + 1, 2n + 1).
    """
    n = math.ceil(max(a, b) * 1.25) + 1
    y, x = np.mgrid[-n : n + 1, -n : n + 1].astype(np.float32)
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    theta = np.arctan2(v / b, u / a)
    uneven = 1 + 0.07 * np.cos(2 * theta + rng.uniform(0, 6.3)) + 0.06 * np.cos(3 * theta + rng.uniform(0, 6.3))
    rho = np.hypot(u / a, v / b) / uneven
    body = np.clip((1 - rho) * min(a, b) / 1.6 + 0.5, 0, 1)
    rim = np.exp(-(((rho - 0.82) / 0.2) ** 2))
    mottle = noise(rng, x.shape, max(2.0, b / 2.5)) + noise(rng, x.shape, 1.5)
    inked = body * density * (0.85 + chromatin * (0.4 * rim + mottle))
    return u8(np.clip(inked / FULL_DENSITY * 255, 0, 255))


def blit(canvas: U8, stamp: U8, x: float, y: float) -> None:
    """Paint a stamp where it is darker than what is there; it is cut at the canvas's edge.

    Args:
        canvas: uint8 (h, w), painted in place.
        stamp: uint8 (2n + 1, 2n + 1).
        x: Where its centre goes, canvas pixels.
        y: Where its centre goes, canvas pixels.
    """
    n = stamp.shape[0] // 2
    x0, y0 = int(x) - n, int(y) - n
    top, left = max(0, -y0), max(0, -x0)
    part = canvas[max(0, y0) : max(0, y0 + 2 * n + 1), max(0, x0) : max(0, x0 + 2 * n + 1)]
    np.maximum(part, stamp[top : top + part.shape[0], left : left + part.shape[1]], out=part)


def at(half: F32, points: Points) -> F32:
    """Values of a half-scale map at level-0 points (N, 2)."""
    h, w = half.shape
    return np.asarray(half[np.clip(points[:, 1] // 2, 0, h - 1), np.clip(points[:, 0] // 2, 0, w - 1)], np.float32)


def u8(array: Any) -> U8:
    """A uint8 array, typed, of what OpenCV returns."""
    return np.asarray(array, np.uint8)
