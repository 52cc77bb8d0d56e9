"""Lesions, detections and the FROC curve, against shapes of known size, hand-made cases and counting by brute force."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.evaluation.froc import (
    ISOLATED_UM,
    MASK_MPP,
    RATES,
    WIDENED_UM,
    Detections,
    Hits,
    Lesions,
    blank_mask,
    challenge_score,
    detect,
    froc_curve,
    froc_score,
    hits_of,
    lesions_in,
    major_axis,
    resampled_sensitivities,
    sensitivities,
)
from tiling.annotations.rasterize import rasterised
from tiling.core.arrays import Int32Array
from tiling.grid import Grid, Raster, Tiles

MPP = 0.5


def lesions_of(geometry: shapely.Geometry, size0: tuple[int, int], mpp: float) -> Lesions:
    """The lesions that polygons (level-0 pixels) draw on a slide of `size0` (width, height) and `mpp`."""
    grid = Grid(width0=size0[0], height0=size0[1], slide_mpp=mpp, tile_px=64, tile_px0=64, stride_px0=64)
    return lesions_in(rasterised(geometry, blank_mask(grid)), mpp)


def tiles_at(x0: Int32Array, y0: Int32Array, side: int = 64, mpp: float = MPP) -> Tiles:
    grid = Grid(width0=10_000, height0=10_000, slide_mpp=mpp, tile_px=side, tile_px0=side, stride_px0=side)
    return Tiles(grid, x0, y0)


def disc(x_um: float, y_um: float, across_um: float) -> shapely.Geometry:
    """A disc in level-0 pixels of 0.5 µm."""
    return shapely.Point(x_um / MPP, y_um / MPP).buffer(across_um / 2 / MPP, quad_segs=64)


def drawn(*shapes: shapely.Geometry, size_um: int = 3000) -> Lesions:
    side = int(size_um / MPP)
    return lesions_of(shapely.union_all(shapes), (side, side), MPP)


def at(*places_um: tuple[float, float, float]) -> Detections:
    """Detections of (probability, x, y), micrometres."""
    p, x, y = np.array(places_um, np.float64).reshape(-1, 3).T
    return Detections(p, x / MPP, y / MPP)


# ------------------------------------------------------------------------------------------------------- lesions


def test_a_lesion_is_widened_by_five_cells() -> None:
    lesions = drawn(disc(1500, 1500, 600))
    area_um2 = (lesions.mask.values == 1).sum() * MASK_MPP**2
    assert area_um2 == pytest.approx(np.pi * (300 + WIDENED_UM) ** 2, rel=0.04)
    assert lesions.mask.downsample * MPP == pytest.approx(MASK_MPP)
    assert lesions.counted.tolist() == [True]


@pytest.mark.parametrize(("gap_um", "count"), [(40, 1), (60, 1), (90, 2), (300, 2)])
def test_lesions_closer_than_the_widening_are_one(gap_um: float, count: int) -> None:
    shapes = [shapely.box(200, 200, 1400, 1400), shapely.box(1400 + gap_um / MPP, 200, 2600 + gap_um / MPP, 1400)]
    assert drawn(*shapes).mask.values.max() == count


@pytest.mark.parametrize(
    ("drawn", "count"),
    [
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], 1),
        ([[1, 0, 1], [0, 0, 0], [1, 0, 1]], 4),
        ([[1, 1, 1], [1, 0, 1], [1, 1, 1]], 1),
        ([[0, 0], [0, 0]], 0),
    ],
)
def test_what_touches_at_a_corner_is_one_lesion(drawn: list[list[int]], count: int) -> None:
    """On a slide so coarse that nothing is widened."""
    lesions = lesions_in(Raster(np.array(drawn, np.bool_), 1.0), 60.0)
    assert lesions.mask.values.max() == len(lesions.counted) == count


def test_holes_are_filled() -> None:
    ring = shapely.difference(disc(1500, 1500, 1200), disc(1500, 1500, 800))
    lesions = drawn(ring)
    assert lesions.mask.values.max() == 1
    assert hits_of(at((0.9, 1500, 1500)), lesions).found.tolist() == [0.9]


@pytest.mark.parametrize(("across_um", "counted"), [(150, False), (190, False), (215, True), (400, True)])
def test_isolated_tumour_cells_do_not_count(across_um: float, counted: bool) -> None:
    """Shorter than 200 µm as drawn, 275 µm as widened."""
    assert drawn(disc(1000, 1000, across_um)).counted.tolist() == [counted]


def test_the_long_axis_of_an_ellipse_and_a_line() -> None:
    y, x = np.mgrid[-50:51, -50:51]
    assert major_axis((x / 40) ** 2 + (y / 15) ** 2 <= 1) == pytest.approx(80, rel=0.01)
    assert major_axis(np.ones((1, 1), np.bool_)) == 0
    # The variance of n points on a line is (n^2 - 1) / 12.
    assert major_axis(np.ones((1, 9), np.bool_)) == pytest.approx(4 * np.sqrt(80 / 12))


def test_no_lesion_on_a_coarse_slide_and_nothing_drawn() -> None:
    nothing = lesions_of(shapely.MultiPolygon(), (100, 80), 12.0)
    assert nothing.mask.values.shape == (80, 100)
    assert len(nothing.counted) == 0
    assert hits_of(at((0.5, 10, 10)), nothing).false.tolist() == [0.5]


# ---------------------------------------------------------------------------------------------------- detections


def find(
    values: Sequence[Sequence[float]], separation_um: float = 0, side: int = 64
) -> list[tuple[float, float, float]]:
    """Detections on a full grid of tiles at 1 µm a pixel: (probability, column, row)."""
    p = np.array(values, np.float32)
    y, x = np.indices(p.shape)
    tiles = tiles_at((x.ravel() * side).astype(np.int32), (y.ravel() * side).astype(np.int32), side, mpp=1.0)
    found = detect(p.ravel(), tiles, separation_um=separation_um)
    columns, rows = found.x0 / side - 0.5, found.y0 / side - 0.5
    return [(round(a, 4), float(b), float(c)) for a, b, c in zip(found.probability, columns, rows, strict=True)]


def test_neighbours_are_one_detection() -> None:
    assert find([[0.1, 0.9, 0.2], [0.3, 0.8, 0.1]]) == [(0.9, 1, 0)]
    assert find([[0.9, 0.1, 0.8]]) == [(0.9, 0, 0), (0.8, 2, 0)]
    assert find([[0.9, 0.1, 0.8, 0.1, 0.7]], separation_um=64 * 2.5) == [(0.9, 0, 0), (0.7, 4, 0)]


def test_of_equals_the_first_is_taken() -> None:
    assert find([[0.5, 0.5, 0.5, 0.5]]) == [(0.5, 0, 0), (0.5, 2, 0)]


def test_no_tile_no_detection() -> None:
    none = np.zeros(0, np.int32)
    assert len(detect(np.zeros(0, np.float32), tiles_at(none, none)).probability) == 0


@given(st.integers(0, 10_000), st.integers(1, 40), st.floats(0, 300))
@settings(deadline=None, max_examples=40)
def test_detections_against_brute_force(seed: int, count: int, separation_um: float) -> None:
    random = np.random.default_rng(seed)
    places = np.unique(random.integers(0, 12, (count, 2)), axis=0).astype(np.int32) * 32
    p = random.integers(0, 6, len(places)) / 5
    found = detect(p, tiles_at(places[:, 0], places[:, 1]), separation_um=separation_um)
    left, expected = list(range(len(places))), []
    while left:
        best = max(left, key=lambda i: (p[i], -i))
        expected.append((p[best], *(places[best] + 32.0)))
        radius = max(separation_um / MPP, 96)
        left = [i for i in left if np.hypot(*(places[i] - places[best]).astype(float)) > radius]
    squares = shapely.box(found.x0 - 32, found.y0 - 32, found.x0 + 32, found.y0 + 32)
    assert not any(a.intersects(b) for a, b in itertools.combinations(squares, 2)), "tiles that touch are one detection"
    assert list(zip(found.probability, found.x0, found.y0, strict=True)) == expected


# ---------------------------------------------------------------------------------------------------------- hits


def test_what_a_detection_is_worth() -> None:
    lesions = drawn(disc(500, 500, 400), disc(1500, 1500, 400), disc(2500, 500, 100))
    assert sorted(lesions.counted.tolist()) == [False, True, True]
    hits = hits_of(at((0.9, 500, 500), (0.8, 550, 500), (0.7, 2500, 500), (0.6, 1000, 2500), (0.3, 500, 730)), lesions)
    assert hits.found.tolist() == [0.9, 0.0], "the best of two; isolated cells are neither right nor wrong"
    assert hits.false.tolist() == [0.6], "730 is outside as drawn, 30 µm away, and inside as widened"


def test_on_a_slide_without_lesions_all_are_false() -> None:
    hits = hits_of(at((0.9, 500, 500), (0.1, 2, 2)), None)
    assert (hits.false.tolist(), hits.found.tolist()) == ([0.9, 0.1], [])


def test_a_tile_beyond_the_slides_edge_is_at_its_edge() -> None:
    lesions = drawn(disc(2900, 1500, 600))
    assert hits_of(at((0.9, 3050, 1500)), lesions).found.tolist() == [0.9]


# --------------------------------------------------------------------------------------------------------- curve


def hits(false: Sequence[float], found: Sequence[float]) -> Hits:
    return Hits(np.array(false, np.float64), np.array(found, np.float64))


def test_a_curve_by_hand() -> None:
    """Two slides; lesions found at 0.9 and 0.4, one never; false positives at 0.8, 0.4 and 0.1."""
    curve = froc_curve([hits([0.8, 0.1], [0.9, 0.4, 0.0]), hits([0.4], [])])
    assert curve.threshold.tolist() == [np.inf, 0.9, 0.8, 0.4, 0.1]
    assert curve.false_positives.tolist() == [0, 0, 0.5, 1, 1.5]
    assert curve.sensitivity == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert sensitivities(curve) == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3])
    assert froc_score(curve) == pytest.approx((2 * 1 / 3 + 4 * 2 / 3) / 6)
    # The challenge's script: the first points with at least 1/4, 1/2, 1 false positives, then the last one.
    assert challenge_score(curve) == pytest.approx((1 / 3 + 1 / 3 + 2 / 3 + 3 * 2 / 3) / 6)


def test_a_curve_that_jumps_over_a_rate() -> None:
    """One slide, ten false positives with one probability: nothing is found at less than ten a slide."""
    curve = froc_curve([hits([0.5] * 10, [0.5])])
    assert froc_score(curve) == 0
    assert challenge_score(curve) == 1, "what the script reads; no threshold gives it at eight"


def test_perfect_hopeless_and_empty() -> None:
    assert froc_score(froc_curve([hits([], [0.9, 0.8])])) == 1
    assert froc_score(froc_curve([hits([0.9], [0.0])])) == 0
    assert froc_score(froc_curve([hits([], [0.0])])) == 0
    assert np.isnan(froc_curve([hits([0.5], [])]).sensitivity).all()


def brute_force(slides: Sequence[Hits]) -> list[float]:
    """The sensitivity at each rate: the best over all thresholds with at most that many false positives."""
    false = [p for slide in slides for p in slide.false]
    found = [p for slide in slides for p in slide.found]
    best = []
    for rate in RATES:
        values = [0.0]
        for threshold in {p for p in false + found if p > 0}:
            if sum(p >= threshold for p in false) / len(slides) <= rate:
                values.append(sum(p >= threshold for p in found) / len(found))
        best.append(max(values))
    return best


def script_score(slides: Sequence[Hits]) -> float:
    """The score as the challenge's script computes it, rebuilt from its description: rising thresholds, the last point
    (0, 0), read backwards at the first point with at least the rate."""
    false = np.array([p for slide in slides for p in slide.false])
    found = np.array([p for slide in slides for p in slide.found])
    thresholds = sorted({*false.tolist(), *found.tolist()} - {0.0})
    points = [((false >= t).sum() / len(slides), (found >= t).sum() / len(found)) for t in thresholds] + [(0.0, 0.0)]
    points = points[::-1]
    read = [next((s for f, s in points if f >= rate), points[-1][1]) for rate in RATES]
    return float(np.mean(read))


probabilities = st.lists(st.integers(0, 8).map(lambda n: n / 8), max_size=30)
cohorts = st.lists(st.tuples(probabilities, probabilities), min_size=1, max_size=5)


@given(cohorts)
@settings(deadline=None)
def test_curves_against_brute_force(cohort: list[tuple[list[float], list[float]]]) -> None:
    slides = [hits(false, found) for false, found in cohort]
    curve = froc_curve(slides)
    assert (np.diff(curve.false_positives) >= 0).all()
    if not any(len(slide.found) for slide in slides):
        assert np.isnan(froc_score(curve))
        return
    assert sensitivities(curve).tolist() == pytest.approx(brute_force(slides))
    assert challenge_score(curve) == pytest.approx(script_score(slides))


@given(cohorts, st.integers(0, 1000))
@settings(deadline=None)
def test_a_weight_is_so_many_copies_of_a_slide(cohort: list[tuple[list[float], list[float]]], seed: int) -> None:
    slides = [hits(false, found) for false, found in cohort]
    weights = np.random.default_rng(seed).integers(0, 4, (3, len(slides))).astype(float)
    weights[:, 0] += 1
    for row, values in zip(weights, resampled_sensitivities(slides, weights), strict=True):
        copies = [slide for slide, times in zip(slides, row, strict=True) for _ in range(int(times))]
        assert values.tolist() == pytest.approx(sensitivities(froc_curve(copies)).tolist(), nan_ok=True)


def test_the_constants_are_the_challenges() -> None:
    assert (RATES, WIDENED_UM, ISOLATED_UM) == ((1 / 4, 1 / 2, 1, 2, 4, 8), 75 / 2, 200 + 75)
