"""Synthetic slides painted from their anatomy, as two stain densities that the Beer-Lambert law turns into colours.

The truth is not measured on the picture: the picture is painted from the truth. Cells and fibres have their size in
micrometres, whatever the scale of the slide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from shapely import Polygon, affinity, unary_union
from shapely.ops import substring

from pipeline.demo.anatomy import Anatomy, blob, largest
from pipeline.demo.canvas import F32, FULL_DENSITY, U8, Points, at, blit, fill, full, inside, noise, scatter, stamp, u8

Background = Literal["white", "grey", "pink"]
Pen = Literal["blue", "green", "black"]

_BACKGROUNDS: dict[Background, tuple[int, int, int]] = {
    "white": (245, 245, 244),
    "grey": (224, 225, 226),
    "pink": (243, 231, 236),
}
_PENS: dict[Pen, tuple[float, float, float]] = {  # optical density (natural logarithm) of the ink in R, G, B
    "blue": (2.3, 1.4, 0.35),
    "green": (2.2, 0.55, 1.3),
    "black": (2.4, 2.3, 2.1),
}
# Optical densities (natural logarithm) of the two stains in R, G, B, near Macenko's reference.
_HAEMATOXYLIN = np.array([0.62, 0.70, 0.35])
_EOSIN = np.array([0.14, 0.85, 0.45])


def paint(anatomy: Anatomy, *, seed: int, pen: Pen | None, background: Background) -> U8:
    """The picture of a synthetic slide: uint8 (height, width, 3), RGB. Pure.

    Args:
        anatomy: What lies where.
        seed: Of all that chance decides.
        pen: The colour of a pen mark, or None; it changes nothing else.
        background: The colour of the glass; it changes nothing else.

    Returns:
        The picture.
    """
    rng = np.random.default_rng([seed, 1])
    fields = _fields(anatomy, rng)
    haematoxylin, eosin = _ground(fields, rng, anatomy)
    _draw_fat(haematoxylin, eosin, anatomy, rng)
    glands = _draw_glands(haematoxylin, eosin, anatomy, rng)
    _draw_tumour_cells(haematoxylin, fields, anatomy, rng)
    um = 1 / anatomy.mpp
    taken = unary_union([t.buffer(4 * um) for t in anatomy.tumours] + glands + list(anatomy.fat))
    stroma = unary_union(anatomy.tissue).buffer(-16 * um).difference(taken)
    _draw_fibroblasts(haematoxylin, fields, anatomy.mpp, stroma, rng)
    _draw_lymphocytes(haematoxylin, fields, anatomy.mpp, stroma, rng)
    _draw_dust(haematoxylin, anatomy, rng)
    picture = _stain(haematoxylin, eosin, _BACKGROUNDS[background], rng)
    if pen is not None:
        _draw_pen(picture, anatomy, _PENS[pen], np.random.default_rng([seed, 2]))
    return _through_the_scanner(picture, np.random.default_rng([seed, 3]))


@dataclass(frozen=True)
class _Fields:
    """Smooth maps at half scale, float32 (h, w)."""

    tissue: F32  # 0 background .. 1 tissue
    nest: F32  # 0 elsewhere .. 1 in a nest of tumour cells, never outside the tumour polygons
    phase: F32  # stroma fibres are its contour lines


def _fields(anatomy: Anatomy, rng: np.random.Generator) -> _Fields:
    um = 0.5 / anatomy.mpp  # half-scale pixels per micrometre
    tissue = inside(anatomy.tissue, anatomy.size_px)
    tumour = inside(anatomy.tumours, anatomy.size_px)
    shape = tissue.shape
    rough = noise(rng, shape, 12 * um) + noise(rng, shape, 45 * um)
    edge = np.clip((tissue / um - 9 + 3 * rough) / 2, 0, 1)
    phase = 30 * noise(rng, shape, 240 * um) + 7 * noise(rng, shape, 60 * um) + 1.2 * noise(rng, shape, 14 * um)
    # Clefts between fibre bundles: thin white lines along them, here and there, and never in tumour.
    closed = 5 * noise(rng, shape, 130 * um) + 3 * noise(rng, shape, 25 * um) + 1.5
    cleft = 5 * np.abs(np.sin(phase / 2)) + np.maximum(closed, -0.5)
    cleft = np.clip(np.maximum(cleft, tumour), 0, 1)
    septum = np.abs(noise(rng, shape, 70 * um)) * 7
    nest = np.clip(septum - 0.5, 0, 1) * np.clip((tumour - 1) / (6 * um), 0, 1)
    return _Fields(tissue=edge * cleft, nest=nest, phase=phase)


def _ground(fields: _Fields, rng: np.random.Generator, anatomy: Anatomy) -> tuple[U8, U8]:
    """Stain densities without nuclei, uint8 at full scale: haematoxylin and eosin."""
    um = 0.5 / anatomy.mpp
    shape = fields.tissue.shape
    fine, coarse = noise(rng, shape, 2.5 * um), noise(rng, shape, 120 * um)
    bundles = 0.10 * np.sin(fields.phase) + 0.09 * np.sin(2.3 * fields.phase + 2 * coarse)
    fibres = (0.07 + 0.06 * coarse) * np.sin(5.3 * fields.phase + 1.5 * fine)
    stroma = 0.62 + bundles + fibres + 0.12 * fine + 0.13 * coarse
    cytoplasm = 0.50 + 0.10 * fine + 0.08 * coarse
    eosin = fields.tissue * (stroma + fields.nest * (cytoplasm - stroma))
    haematoxylin = fields.tissue * (0.07 + 0.03 * fine + fields.nest * (0.36 + 0.07 * fine + 0.06 * coarse))
    return full(haematoxylin, anatomy.size_px), full(eosin, anatomy.size_px)


def _draw_fat(haematoxylin: U8, eosin: U8, anatomy: Anatomy, rng: np.random.Generator) -> None:
    """Packed pale round cells."""
    um = 1 / anatomy.mpp
    for patch in anatomy.fat:
        for x, y in scatter(rng, patch.buffer(-24 * um), 50 * um, 0.14):
            cell = blob(rng, x, y, 24 * um * rng.uniform(0.8, 1.06), wobble=0.12)
            fill(haematoxylin, cell, 0.01)
            fill(eosin, cell, 0.04)


def _draw_glands(haematoxylin: U8, eosin: U8, anatomy: Anatomy, rng: np.random.Generator) -> list[Polygon]:
    """Benign glands: a lumen in a ring of epithelium with basal nuclei; returns the areas they fill."""
    um = 1 / anatomy.mpp
    nuclei = [stamp(rng, 3.6 * um, 2.3 * um, k * np.pi / 24, 1.35, 0.3) for k in range(24)]
    others = unary_union(anatomy.tumours + anatomy.fat).buffer(62 * um)
    free = unary_union(anatomy.tissue).buffer(-65 * um).difference(others)
    glands = []
    for x, y in scatter(rng, free, 150 * um, 0.35):
        if rng.uniform() < 0.3:
            continue
        radius = rng.uniform(24, 48) * um
        outline = blob(rng, x, y, radius, wobble=0.16)
        hollow = 1 - rng.uniform(13, 17) * um / radius
        lumen = affinity.scale(outline, hollow, hollow, origin=(x, y))
        fill(haematoxylin, outline, 0.28)
        fill(eosin, outline, 0.46)
        fill(haematoxylin, lumen, 0.02)
        fill(eosin, lumen, 0.06)
        ring = outline.buffer(-4.5 * um).exterior
        for place in np.arange(0, ring.length, 5.6 * um) + rng.uniform(-0.8, 0.8) * um:
            spot = ring.interpolate(place)
            angle = math.atan2(spot.y - y, spot.x - x) + rng.normal(0, 0.15)
            blit(haematoxylin, nuclei[round(angle / np.pi * 24) % 24], spot.x, spot.y)
        glands.append(outline)
    return glands


def _draw_tumour_cells(haematoxylin: U8, fields: _Fields, anatomy: Anatomy, rng: np.random.Generator) -> None:
    """Dense, large, pleomorphic nuclei in the nests, whole inside the tumour polygons."""
    um = 1 / anatomy.mpp
    bank = [_tumour_stamp(rng, um) for _ in range(64)]
    for tumour in anatomy.tumours:
        spots = scatter(rng, tumour.buffer(-9 * um), 10.5 * um, 0.34)
        for spot in spots[at(fields.nest, spots) > rng.uniform(0, 0.9, len(spots))]:
            blit(haematoxylin, bank[int(rng.integers(64))], *spot)


def _draw_fibroblasts(haematoxylin: U8, fields: _Fields, mpp: float, stroma: Any, rng: np.random.Generator) -> None:
    """Sparse thin nuclei along the fibres of the stroma."""
    um = 1 / mpp
    lengths, widths = rng.uniform(4, 6.5, 24) * um, rng.uniform(1.1, 1.7, 24) * um
    bank = [stamp(rng, a, b, k * np.pi / 24, 1.6, 0.2) for k, (a, b) in enumerate(zip(lengths, widths, strict=True))]
    spots = scatter(rng, stroma, 21 * um, 0.45)
    spots = spots[(at(fields.tissue, spots) > 0.95) & (rng.uniform(size=len(spots)) < 0.75)]
    along = _fibre_angle(fields.phase, spots) + rng.normal(0, 0.2, len(spots))
    for spot, k in zip(spots, np.rint(along / np.pi * 24).astype(int) % 24, strict=True):
        blit(haematoxylin, bank[k], *spot)


def _draw_lymphocytes(haematoxylin: U8, fields: _Fields, mpp: float, stroma: Any, rng: np.random.Generator) -> None:
    """A few clusters of small, round, dark nuclei: dense, and yet no tumour."""
    um = 1 / mpp
    bank = [stamp(rng, 2.7 * um, rng.uniform(2.3, 2.7) * um, 0, 2.0, 0.25) for _ in range(12)]
    for x, y in scatter(rng, stroma.buffer(-40 * um), 420 * um, 0.4):
        cluster = blob(rng, x, y, rng.uniform(25, 55) * um, wobble=0.5).intersection(stroma)
        spots = scatter(rng, cluster, 7 * um, 0.4)
        for spot in spots[(at(fields.tissue, spots) > 0.95) & (rng.uniform(size=len(spots)) < 0.7)]:
            blit(haematoxylin, bank[int(rng.integers(12))], *spot)


def _draw_dust(haematoxylin: U8, anatomy: Anatomy, rng: np.random.Generator) -> None:
    um = 1 / anatomy.mpp
    width, height = anatomy.size_px
    for _ in range(12):
        speck = blob(rng, rng.uniform(0, width), rng.uniform(0, height), rng.uniform(1, 5) * um, wobble=0.6)
        if not any(speck.intersects(t) for t in anatomy.tumours):
            fill(haematoxylin, speck, rng.uniform(0.2, 0.9))


def _stain(haematoxylin: U8, eosin: U8, background: tuple[int, int, int], rng: np.random.Generator) -> U8:
    """Beer-Lambert: densities uint8 (h, w) to RGB uint8 (h, w, 3), with this slide's own stain colours."""
    vectors = [v * rng.normal(1, 0.05, 3) * rng.uniform(0.88, 1.15) for v in (_HAEMATOXYLIN, _EOSIN)]
    density = np.arange(256)[:, None] / 255 * FULL_DENSITY
    light_h, light_e = (np.exp(-density * v) for v in vectors)
    table_h = np.rint(light_h * background).astype(np.uint8)
    table_e = np.rint(light_e * 255).astype(np.uint8)
    channels = [
        cv2.multiply(cv2.LUT(haematoxylin, table_h[:, c]), cv2.LUT(eosin, table_e[:, c]), scale=1 / 255)
        for c in range(3)
    ]
    return u8(cv2.merge(channels))


def _draw_pen(picture: U8, anatomy: Anatomy, ink: tuple[float, float, float], rng: np.random.Generator) -> None:
    """A thick stroke along part of a piece of tissue, over the background and the tissue's edge, never over tumour."""
    side = min(anatomy.size_px)
    # A smooth line just outside all tissue, thick enough to cover its edge and too thin to reach a tumour.
    around = largest(unary_union(anatomy.tissue).buffer(0.05 * side).buffer(-0.046 * side)).exterior
    start = rng.uniform(0, 0.55)
    stroke = substring(around, start, start + rng.uniform(0.25, 0.4), normalized=True)
    width, height = anatomy.size_px
    mask = np.zeros((height // 2, width // 2), np.uint8)
    points = np.rint(np.asarray(stroke.coords) / 2).astype(np.int32)
    cv2.polylines(mask, [points], False, 255, thickness=max(3, round(0.011 * side)), lineType=cv2.LINE_AA)
    wet = u8(cv2.blur(mask, (5, 5))).astype(np.float32) / 255
    wet *= np.clip(0.85 + 0.10 * noise(rng, mask.shape, side / 100) + 0.05 * noise(rng, mask.shape, 3), 0, 1)
    density = full(wet, anatomy.size_px, unit=1.0)
    for c in range(3):
        light = np.rint(np.exp(-np.arange(256) / 255 * ink[c]) * 255).astype(np.uint8)
        picture[..., c] = cv2.multiply(picture[..., c], cv2.LUT(density, light), scale=1 / 255)


def _through_the_scanner(picture: U8, rng: np.random.Generator) -> U8:
    """The optics' blur and the sensor's noise (one noise tile, repeated: nobody sees it)."""
    soft = u8(cv2.GaussianBlur(picture, (3, 3), 0.6))
    noise = np.rint(rng.normal(0, 1.8, (512, 512, 3))).astype(np.int16)
    for y in range(0, soft.shape[0], 512):
        for x in range(0, soft.shape[1], 512):
            part = soft[y : y + 512, x : x + 512]
            part[:] = np.clip(part + noise[: part.shape[0], : part.shape[1]], 0, 255)
    return soft


def _tumour_stamp(rng: np.random.Generator, um: float) -> U8:
    a = rng.uniform(3.6, 6.2) * um
    density = rng.choice((0.95, 1.3, 1.6, 2.0), p=(0.2, 0.4, 0.28, 0.12))
    return stamp(rng, a, a * rng.uniform(0.55, 0.95), rng.uniform(0, np.pi), density, 0.4)


def _fibre_angle(phase: F32, points: Points) -> NDArray[np.float64]:
    """Direction of the contour line of `phase` at each level-0 point, in radians."""
    across, down = np.array([4, 0]), np.array([0, 4])
    gradient_x = at(phase, points + across) - at(phase, points - across)
    gradient_y = at(phase, points + down) - at(phase, points - down)
    return np.asarray(np.arctan2(gradient_y, gradient_x) + np.pi / 2, np.float64)
