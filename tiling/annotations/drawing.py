"""What one annotation file holds: outlines by class, and from them the area of each class. Pure, level-0 pixels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import shapely
from numpy.typing import ArrayLike
from shapely.affinity import translate

from tiling.annotations.classes import ClassRules
from tiling.core.arrays import Float64Array
from tiling.core.errors import InputError
from tiling.grid import Bounds

MAX_PX0 = 1e9
"""Beyond any slide, level-0 pixels."""
_MAX_CROSSINGS = 20_000  # of an outline with itself: half a second; a scribble of 400 random points
_PAIRS_AT_ONCE = 500_000

Geometries = dict[str, shapely.Geometry]
"""Areas by class."""


class Outline(NamedTuple):
    """One area as it was drawn."""

    name: str
    """Its class, as `column_name` has it."""
    area: Callable[[], shapely.Geometry]
    """Makes the valid geometry. Raises InputError, naming the outline."""
    hole: bool = False
    """Whether it is cut out of its class."""


@dataclass(frozen=True)
class Drawing:
    """The outlines of one file."""

    outlines: tuple[Outline, ...]
    without_area: int = 0
    """Points, lines and the like, which were passed over."""
    order: tuple[str, ...] = ()
    """Classes that are cut out of those before them, unless the user says otherwise."""
    cut_out: frozenset[str] = frozenset()
    """Classes that are cut out of all others, unless the user says otherwise."""
    notes: tuple[str, ...] = ()
    """What of the file version 0.1.0 read otherwise; see `annotation_hash`."""
    corner0: tuple[int, int] = (0, 0)
    """Where the outlines' program counts from, level-0 pixels of the whole picture."""

    def areas(self, rules: ClassRules, within: Bounds | None = None) -> tuple[Geometries, int]:
        """The area of each class, with holes and cut-outs taken away, in order of the names.

        They count from the corner of the whole picture. The outlines that lie off what is `within` are left out, and
        their number is the second value; 0 without it. Raises InputError.
        """
        drawn = [(outline, self._placed(outline.area())) for outline in self.outlines]
        if within is not None:
            slide = shapely.box(*within.corner, *within.opposite)
            on = [(outline, area) for outline, area in drawn if area.is_empty or shapely.intersects(slide, area)]
            drawn, off = on, len(drawn) - len(on)
        else:
            off = 0
        cut_out = self.cut_out if rules.cut_out is None else rules.cut_out
        order = self.order if rules.order is None else rules.order
        return _cut(drawn, cut_out, order), off

    def _placed(self, area: shapely.Geometry) -> shapely.Geometry:
        return area if self.corner0 == (0, 0) else translate(area, *self.corner0)


def _cut(
    drawn: Iterable[tuple[Outline, shapely.Geometry]], cut_out: Collection[str], order: Sequence[str]
) -> Geometries:
    areas, holes = defaultdict[str, list[shapely.Geometry]](list), defaultdict[str, list[shapely.Geometry]](list)
    for outline, area in drawn:
        (holes if outline.hole else areas)[outline.name].append(area)
    whole = {name: _without(shapely.union_all(parts), holes[name]) for name, parts in sorted(areas.items())}
    away = [area for name, area in whole.items() if name in cut_out]
    above = {name: [whole[upper] for upper in order[place + 1 :] if upper in whole] for place, name in enumerate(order)}
    return {name: _without(area, [*away, *above.get(name, ())]) for name, area in whole.items() if name not in cut_out}


def _without(area: shapely.Geometry, holes: Sequence[shapely.Geometry]) -> shapely.Geometry:
    return shapely.difference(area, shapely.union_all(holes)) if holes else area


def polygon(where: str, points: ArrayLike) -> shapely.Geometry:
    """The valid area within points (N, 2). Raises InputError as `valid` does, naming `where` they stand."""
    _require_on_slide(where, np.asarray(points, np.float64))
    return valid(where, shapely.Polygon(points))


def ellipse(where: str, points: ArrayLike) -> shapely.Geometry:
    """The ellipse in the upright rectangle around points (N, 2). Raises InputError, naming `where` they stand."""
    (x0, y0), (x1, y1) = np.min(points, axis=0), np.max(points, axis=0)
    angle = np.linspace(0, 2 * np.pi, 256, endpoint=False)
    x, y = np.cos(angle) * (x1 - x0) / 2, np.sin(angle) * (y1 - y0) / 2
    return polygon(where, np.stack([x + (x0 + x1) / 2, y + (y0 + y1) / 2], 1))


def valid(where: str, geometry: shapely.Geometry) -> shapely.Geometry:
    """A polygon, multipolygon or collection of them as one valid geometry; points and lines in it have no area.

    What an outline surrounds an even number of times is outside. Raises InputError, naming `where` it stands, for
    coordinates beyond any slide, NaN among them, and for one that crosses itself more than 20,000 times.
    """
    _require_on_slide(where, shapely.get_coordinates(geometry))
    if geometry.geom_type == "GeometryCollection":
        parts = [part for part in shapely.get_parts(geometry) if not part.geom_type.endswith(("Point", "String"))]
        return shapely.union_all([valid(where, part) for part in parts])
    if shapely.is_valid(geometry):
        return geometry
    rings = shapely.get_rings(shapely.get_parts(shapely.remove_repeated_points(geometry)))
    if _crosses_more_than(rings, _MAX_CROSSINGS):
        what = f"crosses itself more than {_MAX_CROSSINGS:,} times"
        raise InputError(where, what, "draw it again, or pass a label image")
    # As `make_valid` does, in a time that grows with the crossings and not with their cube.
    faces = shapely.get_parts(shapely.polygonize(shapely.get_parts(shapely.node(shapely.multilinestrings(rings)))))
    inside = shapely.get_coordinates(shapely.point_on_surface(faces))
    shapely.prepare(geometry)
    return shapely.coverage_union_all(faces[shapely.contains_xy(geometry, inside)])


def _require_on_slide(where: str, points: Float64Array) -> None:
    if not (np.abs(points) <= MAX_PX0).all():  # false for NaN too
        raise InputError(where, "has coordinates that lie on no slide", "draw it again")


def _crosses_more_than(rings: Sequence[shapely.Geometry], limit: int) -> bool:
    """Whether edges of the rings meet more often than that, beside those that follow each other."""
    ends = [shapely.get_coordinates(ring) for ring in rings]
    edges = shapely.linestrings(np.concatenate([np.stack([xy[:-1], xy[1:]], 1) for xy in ends]))
    tree, pairs = shapely.STRtree(edges), 0
    step = max(1, _PAIRS_AT_ONCE // len(edges))
    for first in range(0, len(edges), step):
        pairs += tree.query(edges[first : first + step], predicate="intersects").shape[1]
        if pairs > 3 * len(edges) + 2 * limit:  # each meets itself and its two neighbours, and a crossing counts twice
            return True
    return False
