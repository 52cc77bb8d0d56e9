"""ASAP XML -> polygons by class, level-0 pixels."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from xml.parsers import expat

import numpy as np
import shapely

from tiling.annotations.classes import MAX_PX0, UNCLASSIFIED, Geometries, require_column
from tiling.core.errors import InputError

_CAMELYON16 = {"_0", "_1", "_2"}
"""Groups of CAMELYON16's files: _0 and _1 are tumour, _2 is what is not, cut out of the others."""
_EXCLUSIONS = {"exclude", "exclusion", "hole", "holes"}
_ASAP_AREAS = {"Polygon", "Spline", "Rectangle"}


def read_asap(path: Path) -> Geometries:
    """The union of the polygons of each group of an ASAP XML file, by its name, level-0 pixels.

    Polygons, rectangles and splines count (a spline as the polygon through its points); dots and measurements have
    no area. ASAP draws no holes: what lies in a group called exclude, exclusion, hole or holes is cut out of all other
    groups, and in CAMELYON16's files (groups _0, _1, _2) what lies in _2. An annotation without group counts as
    "unclassified". A document type, and so any entity, is refused. Raises InputError.
    """
    try:
        shapes = _AsapShapes(path).read(path.read_bytes())
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "check the path") from error
    except expat.ExpatError as error:
        raise InputError(path, f"is not XML ({error})", "save the annotations in ASAP again") from error
    parts = defaultdict(list)
    for name, shape in shapes:
        parts[name].append(shape)
    groups = {name: shapely.union_all(shape) for name, shape in sorted(parts.items())}
    named = set(groups) - {UNCLASSIFIED}
    excluded = {"_2"} if named and named <= _CAMELYON16 else {name for name in named if name.lower() in _EXCLUSIONS}
    hole = shapely.union_all([groups[name] for name in sorted(excluded)])
    return {name: shapely.difference(shape, hole) for name, shape in groups.items() if name not in excluded}


class _AsapShapes:
    """Collects the annotations of an ASAP document while expat reads it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = 0
        self._points: list[tuple[float, float]] = []
        self._open: dict[str, str] | None = None
        self._root: str | None = None
        self._shapes: list[tuple[str, shapely.Geometry]] = []

    def read(self, data: bytes) -> list[tuple[str, shapely.Geometry]]:
        parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.Parse(data, True)
        return self._shapes

    def _refuse(self, *_: object) -> None:
        raise InputError(self._path, "has a document type, which ASAP never writes", "save it in ASAP again")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if self._root is None and tag != "ASAP_Annotations":
            raise InputError(self._path, f"is not ASAP's ({tag})", "pass the XML file that ASAP saves")
        self._root = tag
        if tag == "Annotation":
            self._number += 1
            self._open, self._points = attributes, []
        elif tag == "Coordinate" and self._open is not None:
            try:
                self._points.append((float(attributes["X"]), float(attributes["Y"])))
            except (KeyError, ValueError):
                raise InputError(self._where(), "has a point without coordinates", "draw it again in ASAP") from None

    def _end(self, tag: str) -> None:
        if tag != "Annotation" or self._open is None:
            return
        attributes, self._open = self._open, None
        if attributes.get("Type", "Polygon") not in _ASAP_AREAS or len(self._points) < 3:
            return
        name = attributes.get("PartOfGroup", "None").strip()
        name = UNCLASSIFIED if name in ("", "None") else name
        require_column(self._where(), name)
        points = np.array(self._points)
        if not (np.abs(points) <= MAX_PX0).all():
            raise InputError(self._where(), "has coordinates that lie on no slide", "draw it again in ASAP")
        self._shapes.append((name, shapely.make_valid(shapely.Polygon(points))))

    def _where(self) -> str:
        return f"{self._path}, annotation {self._number}"
