"""QuPath GeoJSON -> polygons by class, level-0 pixels."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import shapely.geometry

from tiling.annotations.classes import MAX_PX0, UNCLASSIFIED, Geometries, require_column
from tiling.core.errors import InputError


def read_geojson(path: Path) -> Geometries:
    """The union of the polygons of each class, by class name, level-0 pixels.

    Takes a FeatureCollection, a bare feature or a list of features, as QuPath exports them; a feature without
    classification counts as "unclassified"; points and lines have no area and are left out. Raises InputError
    naming the feature.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "check the path") from error
    except (ValueError, RecursionError) as error:
        raise InputError(path, "is not JSON", "export the annotations from QuPath as GeoJSON") from error
    polygons = defaultdict(list)
    for number, feature in enumerate(_features(path, document), start=1):
        where = f"{path}, feature {number}"
        geometry = _geometry(where, feature)
        if geometry is not None:
            polygons[_class_name(where, feature)].append(geometry)
    return {name: shapely.union_all(parts) for name, parts in sorted(polygons.items())}


def _features(path: Path, document: Any) -> list[Any]:
    match document:
        case {"type": "FeatureCollection", "features": [*features]} | [*features]:
            return list(features)
        case {"type": "Feature"}:
            return [document]
    raise InputError(path, "is not a GeoJSON FeatureCollection", "export the annotations from QuPath as GeoJSON")


def _geometry(where: str, feature: Any) -> shapely.Geometry | None:
    try:
        with np.errstate(invalid="ignore"):  # NaN is refused below
            geometry = shapely.geometry.shape(feature["geometry"])
        usable = bool((np.abs(shapely.get_coordinates(geometry)) <= MAX_PX0).all())  # False for NaN too
    except (LookupError, TypeError, AttributeError, ValueError, shapely.errors.ShapelyError) as error:
        raise InputError(where, "has no valid geometry", "draw it again in QuPath") from error
    if not usable:
        raise InputError(where, "has coordinates that lie on no slide", "draw it again in QuPath")
    if geometry.geom_type not in ("Polygon", "MultiPolygon", "GeometryCollection"):
        return None
    return shapely.make_valid(geometry)


def _class_name(where: str, feature: dict[str, Any]) -> str:
    match feature.get("properties"):
        case {"classification": {"name": str(name)}} if name.strip():
            pass
        case {"classification": {"names": [*names]}} if names and all(isinstance(n, str) for n in names):
            name = ": ".join(names)  # QuPath's derived classes
        case _:
            return UNCLASSIFIED
    return require_column(where, name)
