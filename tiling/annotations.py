"""QuPath GeoJSON -> polygons by class -> area fractions of tiles. Level-0 pixels throughout."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import shapely.geometry
from numpy.typing import NDArray

from tiling.errors import InputError

UNCLASSIFIED = "unclassified"
_FARTHEST_PX = 1e9
_LONGEST_NAME = 200  # bytes; a column is a folder


def read_geojson(path: Path) -> dict[str, shapely.Geometry]:
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


def area_fractions(
    geometry: shapely.Geometry, x0: NDArray[np.int32], y0: NDArray[np.int32], size0: int
) -> NDArray[np.float32]:
    """Fraction of each square (corner x0, y0, side size0; level-0 pixels) that the geometry covers, float32 (N,)."""
    squares = shapely.box(x0, y0, x0.astype(np.int64) + size0, y0.astype(np.int64) + size0)
    fractions = np.zeros(len(squares), np.float32)
    shapely.prepare(geometry)
    inside = shapely.contains_properly(geometry, squares)
    fractions[inside] = 1.0
    cut = np.flatnonzero(shapely.intersects(geometry, squares) & ~inside)
    fractions[cut] = shapely.area(shapely.intersection(geometry, squares[cut])) / float(size0) ** 2
    return np.clip(fractions, 0.0, 1.0)


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
        usable = bool((np.abs(shapely.get_coordinates(geometry)) <= _FARTHEST_PX).all())  # False for NaN too
    except (
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
        IndexError,
        shapely.errors.ShapelyError,
    ) as error:
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
    if not _names_column(name):
        raise InputError(where, f"has the class {name!r}, which cannot name a column", "rename the class in QuPath")
    return name


def _names_column(name: str) -> bool:
    """Whether zarr can keep an array of that name beside others, in a folder."""
    taken = "/" in name or name.strip(".") == "" or name.startswith("__") or name == "zarr.json"
    return not taken and name.isprintable() and len(name.encode()) <= _LONGEST_NAME
