"""QuPath GeoJSON -> outlines by class, level-0 pixels."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import shapely.geometry

from tiling.annotations.classes import UNCLASSIFIED, column_name
from tiling.annotations.drawing import Drawing, Outline, valid
from tiling.core.errors import InputError

_AREAS = ("Polygon", "MultiPolygon", "GeometryCollection")
_LINES = ("Point", "MultiPoint", "LineString", "MultiLineString", "LinearRing")
_REGION = "region"  # QuPath's Region*: where to look, and so around all others


def is_geojson(data: bytes) -> bool:
    """Whether a file is meant as JSON."""
    return data.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n")[:1] in (b"{", b"[")  # UTF-16 too, which json reads


def read_geojson(path: Path, data: bytes) -> Drawing:
    """The polygons of a FeatureCollection, a bare feature or a list of features, as QuPath exports them.

    A feature's class is that of its classification, or else its name, or else "unclassified". QuPath's ignored classes,
    which end with an asterisk (`Ignore*`, `Artefact*`, but not `Region*`), are cut out of the others. Points and lines
    have no area. Raises InputError.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(path, "is not JSON", "export the annotations from QuPath as GeoJSON") from error
    outlines, without_area, notes = [], 0, set[str]()
    for number, feature in enumerate(_features(path, document), start=1):
        where = f"{path}, feature {number}"
        geometry = feature.get("geometry") if isinstance(feature, dict) else None
        if isinstance(geometry, dict) and geometry.get("type") in _LINES:
            without_area += 1
            continue
        name, by_name = _class_of(feature.get("properties") if isinstance(feature, dict) else None)
        outlines.append(Outline(column_name(name), partial(_area, where, geometry)))
        notes |= {"name"} if by_name else set()
    ignored = frozenset(name for name in {outline.name for outline in outlines} if _is_ignored(name))
    notes |= {"ignored"} if ignored else set()
    return Drawing(tuple(outlines), without_area, cut_out=ignored, notes=tuple(sorted(notes)))


def _features(path: Path, document: Any) -> Iterable[Any]:
    match document:
        case {"type": "FeatureCollection", "features": [*features]} | [*features]:
            return features
        case {"type": "Feature"}:
            return [document]
    raise InputError(path, "is not a GeoJSON FeatureCollection", "export the annotations from QuPath as GeoJSON")


def _area(where: str, geometry: Any) -> shapely.Geometry:
    try:
        with np.errstate(invalid="ignore"):  # NaN is refused below
            shape = shapely.geometry.shape(geometry)
            return valid(where, shape)
    except (
        LookupError, TypeError, AttributeError, ValueError, OverflowError, RecursionError, shapely.errors.ShapelyError,
    ) as error:  # fmt: skip
        raise InputError(where, "has no valid geometry", "draw it again in QuPath") from error


def _class_of(properties: Any) -> tuple[str, bool]:
    """A feature's class, and whether that is its name."""
    match properties:
        case {"classification": {"name": str(name)} | str(name)} if name.strip():
            return name, False
        case {"classification": {"names": [*names]}} if names and all(isinstance(n, str) for n in names):
            return ": ".join(names), False  # QuPath's derived classes
        case {"name": str(name)} if name.strip() and properties.get("objectType", "annotation") == "annotation":
            return name, True
    return UNCLASSIFIED, False


def _is_ignored(name: str) -> bool:
    own = name.rsplit(": ", 1)[-1].strip().casefold()  # of a derived class the last part counts
    return own.endswith("*") and own.rstrip("*") != _REGION
