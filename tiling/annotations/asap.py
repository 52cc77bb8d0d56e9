"""ASAP XML -> outlines by group, level-0 pixels."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tiling.annotations.classes import UNCLASSIFIED, column_name
from tiling.annotations.drawing import Drawing, Outline, polygon
from tiling.annotations.xml_events import Attributes, number, read_events, root_tag
from tiling.core.errors import InputError

_ROOT = "ASAP_Annotations"
_AREAS = ("Polygon", "Spline", "Rectangle")
_EXCLUSIONS = ("exclude", "exclusion", "hole", "holes")
_CAMELYON16 = {"_0", "_1", "_2"}
"""Groups of CAMELYON16's files: _0 and _1 are tumour, _2 is what is not, cut out of the others."""
_CAMELYON17 = ("metastases", "normal")
"""Groups of CAMELYON17's files: normal tissue within metastases is cut out of them."""


def is_asap(data: bytes) -> bool:
    """Whether a file is an ASAP document."""
    return root_tag(data) == _ROOT


def read_asap(path: Path, data: bytes) -> Drawing:
    """The polygons, rectangles and splines of an ASAP XML file, a spline as the polygon through its points.

    The class of an annotation is its group, "unclassified" without one; its points follow each other by their `Order`.
    ASAP draws no holes: what lies in a group called exclude, exclusion, hole or holes is cut out of all other groups,
    in CAMELYON16's files (groups _0, _1, _2) what lies in _2, and in CAMELYON17's `normal` out of `metastases`. Dots
    and measurements have no area. Raises InputError.
    """
    shapes = _Shapes(path)
    read_events(path, data, shapes.start, shapes.end)
    named = {outline.name for outline in shapes.outlines} - {UNCLASSIFIED}
    excluded = {"_2"} if named and named <= _CAMELYON16 else {name for name in named if name.lower() in _EXCLUSIONS}
    order = _CAMELYON17 if named == set(_CAMELYON17) else ()
    notes = (["normal"] if order else []) + (["order"] if shapes.out_of_turn else [])
    return Drawing(tuple(shapes.outlines), shapes.without_area, order, frozenset(excluded), tuple(notes))


class _Shapes:
    """Collects the annotations of an ASAP document."""

    def __init__(self, path: Path) -> None:
        self._path, self._number = path, 0
        self._open: Attributes | None = None
        self._points: list[tuple[float, float, float]] = []  # order, x, y
        self.outlines: list[Outline] = []
        self.without_area = 0
        self.out_of_turn = False

    def start(self, tag: str, attributes: Attributes) -> None:
        if tag == "Annotation":
            self._number += 1
            self._open, self._points = attributes, []
        elif tag == "Coordinate" and self._open is not None:
            try:
                order = number(attributes.get("Order", "0"))
                self._points.append((order, number(attributes["X"]), number(attributes["Y"])))
            except (KeyError, ValueError):
                raise InputError(self._where(), "has a point without coordinates", "draw it again in ASAP") from None

    def end(self, tag: str) -> None:
        if tag != "Annotation" or self._open is None:
            return
        attributes, self._open = self._open, None
        if attributes.get("Type", "Polygon") not in _AREAS or len(self._points) < 3:
            self.without_area += 1
            return
        name = attributes.get("PartOfGroup", "None").strip()
        ordered = sorted(self._points, key=lambda point: point[0])  # stable: those of one order stay as they are
        self.out_of_turn |= ordered != self._points
        points = [(x, y) for _, x, y in ordered]
        name = UNCLASSIFIED if name in ("", "None") else column_name(name)
        self.outlines.append(Outline(name, partial(polygon, self._where(), points)))

    def _where(self) -> str:
        return f"{self._path}, annotation {self._number}"
