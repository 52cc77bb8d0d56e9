"""Aperio ImageScope XML and Indica HALO annotations -> outlines by layer, level-0 pixels.

HALO took the structure over from ImageScope: layers, called Annotation, hold regions of vertices, of which those with
`NegativeROA` are holes. Only the names of vertices and the types of regions differ.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import shapely

from tiling.annotations.classes import UNCLASSIFIED, column_name
from tiling.annotations.drawing import Drawing, Outline, ellipse, polygon
from tiling.annotations.xml_events import Attributes, number, read_events, root_tag
from tiling.core.errors import InputError

Points = list[tuple[float, float]]

_ROOT = "Annotations"
_VERTICES = ("Vertex", "V")  # ImageScope's and HALO's


def _rectangle(where: str, points: Points) -> shapely.Geometry:
    """HALO gives two corners of a rectangle, ImageScope all."""
    if len(points) == 2:
        (x0, y0), (x1, y1) = points
        points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    return polygon(where, points)


_AREAS: dict[str, Callable[[str, Points], shapely.Geometry]] = {
    "0": polygon, "Polygon": polygon, "1": _rectangle, "Rectangle": _rectangle, "2": ellipse, "Ellipse": ellipse,
}  # fmt: skip
"""By the type of a region, ImageScope's and HALO's; arrows (3), rulers (4, Ruler) and pins have no area."""


def is_layers(data: bytes) -> bool:
    """Whether a file is a document of ImageScope or HALO."""
    return root_tag(data) == _ROOT


def read_layers(path: Path, data: bytes) -> Drawing:
    """The polygons, rectangles and ellipses of an ImageScope XML or HALO .annotations file.

    The class of a region is its layer's name, in ImageScope or else the layer's description, or else "unclassified".
    Negative regions are cut out of their layer. Arrows, rulers and pins have no area. Raises InputError.
    """
    shapes = _Regions(path)
    read_events(path, data, shapes.start, shapes.end)
    return Drawing(tuple(shapes.outlines), shapes.without_area)


class _Regions:
    """Collects the regions of a document."""

    def __init__(self, path: Path) -> None:
        self._path, self._number = path, 0
        self._layer = ""
        self._open: Attributes | None = None
        self._points: Points = []
        self._regions: list[tuple[Callable[[], shapely.Geometry], bool]] = []  # of the layer, whose name may follow
        self.outlines: list[Outline] = []
        self.without_area = 0

    def start(self, tag: str, attributes: Attributes) -> None:
        if tag == "Annotation":
            self._layer, self._regions = attributes.get("Name", "").strip(), []
        elif tag == "Attribute" and self._open is None and attributes.get("Name") == "Description":
            self._layer = self._layer or attributes.get("Value", "").strip()
        elif tag == "Region":
            self._number += 1
            self._open, self._points = attributes, []
        elif tag in _VERTICES and self._open is not None:
            try:
                self._points.append((number(attributes["X"]), number(attributes["Y"])))
            except (KeyError, ValueError):
                raise InputError(self._where(), "has a point without coordinates", "draw it again") from None

    def end(self, tag: str) -> None:
        if tag == "Region" and self._open is not None:
            attributes, self._open = self._open, None
            area = _AREAS.get(attributes.get("Type", "0"))
            if area is None or len(self._points) < (3 if area is polygon else 2):
                self.without_area += 1
            else:
                negative = attributes.get("NegativeROA", "0").lower() in ("1", "true")
                self._regions.append((partial(area, self._where(), self._points), negative))
        elif tag == "Annotation":
            name = column_name(self._layer) if self._layer else UNCLASSIFIED
            self.outlines += [Outline(name, area, negative) for area, negative in self._regions]

    def _where(self) -> str:
        return f"{self._path}, region {self._number}"
