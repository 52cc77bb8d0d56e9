"""QuPath GeoJSON, ASAP XML, label images -> area fractions of tiles by class, or a mask. Level-0 pixels throughout."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np
import shapely
import shapely.geometry

from tiling.annotations import label_image
from tiling.core.arrays import BoolArray, Float32Array
from tiling.core.errors import InputError
from tiling.core.files import sha256_file, sha256_json
from tiling.grid import Tiles

UNCLASSIFIED = "unclassified"
_MAX_PX0 = 1e9
_MAX_NAME_BYTES = 200  # a column is a folder
_CAMELYON16 = {"_0", "_1", "_2"}
"""Groups of CAMELYON16's files: _0 and _1 are tumour, _2 is what is not, cut out of the others."""
_EXCLUSIONS = {"exclude", "exclusion", "hole", "holes"}
_ASAP_AREAS = {"Polygon", "Spline", "Rectangle"}

Geometries = dict[str, shapely.Geometry]


def annotation_fractions(path: Path, tiles: Tiles) -> dict[str, Float32Array]:
    """Fraction of each tile under each class of an annotation file, float32 (N,). Raises InputError."""
    if path.suffix.lower() in label_image.SUFFIXES:
        fractions = label_image.label_fractions(path, tiles)
    else:
        fractions = {name: area_fractions(shape, tiles) for name, shape in read_polygons(path).items()}
    for name in fractions:
        require_column(str(path), name)
    return fractions


def annotation_hash(path: Path) -> str:
    """SHA-256 of an annotation file, and of the class names that come with a label image. Raises InputError."""
    try:
        own = sha256_file(path)
        names = path.with_suffix(label_image.NAMES)
        named = path.suffix.lower() in label_image.SUFFIXES and names.exists()
        return sha256_json([own, sha256_file(names)]) if named else own
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "check the annotation's path") from error


def annotation_mask(path: Path, size0: tuple[int, int], px0: float, shape: tuple[int, int]) -> BoolArray:
    """Where an annotation file marks anything, bool of `shape` (h, w); a pixel spans `px0` level-0 pixels.

    A pixel is marked if its centre is. Raises InputError.
    """
    if path.suffix.lower() not in label_image.SUFFIXES:
        return rasterised(shapely.union_all(list(read_polygons(path).values())), px0, shape)
    return label_image.sampled(label_image.read_label_image(path, size0) != 0, size0, px0, shape)


def class_masks(path: Path, size0: tuple[int, int], px0: float, shape: tuple[int, int]) -> dict[str, BoolArray]:
    """Where an annotation file marks each class, bool of `shape` (h, w) by name; a pixel spans `px0` level-0 pixels.

    A pixel is marked if its centre is. Classes that a label image names and shows nowhere are left out, as are those of
    which no polygon is drawn. Raises InputError.
    """
    if path.suffix.lower() not in label_image.SUFFIXES:
        return {name: rasterised(geometry, px0, shape) for name, geometry in read_polygons(path).items()}
    shown = {name: mask for name, mask in label_image.class_masks(path, size0).items() if mask.any()}
    return {name: label_image.sampled(mask, size0, px0, shape) for name, mask in shown.items()}


def read_polygons(path: Path) -> Geometries:
    """The union of the polygons of each class of a GeoJSON or ASAP XML file. Raises InputError."""
    if path.suffix.lower() in label_image.SUFFIXES:
        fix = "draw them in QuPath (GeoJSON) or ASAP (XML)"
        raise InputError(path, "is a picture, and polygons are needed here", fix)
    return read_asap(path) if path.suffix.lower() == ".xml" else read_geojson(path)


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
        if not (np.abs(points) <= _MAX_PX0).all():
            raise InputError(self._where(), "has coordinates that lie on no slide", "draw it again in ASAP")
        self._shapes.append((name, shapely.make_valid(shapely.Polygon(points))))

    def _where(self) -> str:
        return f"{self._path}, annotation {self._number}"


def rasterised(geometry: shapely.Geometry, px0: float, shape: tuple[int, int]) -> BoolArray:
    """The pixels whose centre lies in a valid polygon or multipolygon, bool of `shape` (h, w).

    A pixel spans `px0` level-0 pixels. Even-odd: every edge flips, in each row it crosses, all pixels right of it.
    """
    height, width = shape
    flips = np.zeros((height, width + 1), np.int32)
    for ring in _rings(geometry):
        x, y = (shapely.get_coordinates(ring) / px0 - 0.5).T  # pixel centres are whole numbers
        first, last = np.sort(np.ceil(np.stack([y[:-1], y[1:]]).clip(0, height)).astype(int), axis=0)
        count = last - first  # of the rows that each edge crosses: from its upper end on, without its lower end
        edge = np.repeat(np.arange(len(count)), count)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count - first, count)
        across = x[edge] + (row - y[edge]) * (x[edge + 1] - x[edge]) / (y[edge + 1] - y[edge])
        np.add.at(flips, (row, np.ceil(across).clip(0, width).astype(int)), 1)
    return np.asarray(flips.cumsum(1)[:, :width] % 2 == 1)


def _rings(geometry: shapely.Geometry) -> list[shapely.Geometry]:
    parts = shapely.get_parts(shapely.get_parts(geometry))  # a collection of multipolygons at most
    polygons = [part for part in parts if part.geom_type == "Polygon"]
    return list(shapely.get_rings(polygons))


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


def area_fractions(geometry: shapely.Geometry, tiles: Tiles) -> Float32Array:
    """Fraction of each tile that the geometry covers, float32 (N,)."""
    side, x0, y0 = tiles.side_px0, tiles.x0.astype(np.int64), tiles.y0.astype(np.int64)
    squares = shapely.box(x0, y0, x0 + side, y0 + side)
    fractions = np.zeros(len(squares), np.float32)
    shapely.prepare(geometry)
    inside = shapely.contains_properly(geometry, squares)
    fractions[inside] = 1.0
    cut = np.flatnonzero(shapely.intersects(geometry, squares) & ~inside)
    fractions[cut] = shapely.area(shapely.intersection(geometry, squares[cut])) / float(side) ** 2
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
        usable = bool((np.abs(shapely.get_coordinates(geometry)) <= _MAX_PX0).all())  # False for NaN too
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


def require_column(where: str, name: str) -> str:
    """The name, if zarr can keep an array of that name in a folder. Raises InputError, naming `where` it stands."""
    taken = "/" in name or name.strip(".") == "" or name.startswith("__") or name == "zarr.json"
    if taken or not name.isprintable() or len(name.encode()) > _MAX_NAME_BYTES:
        raise InputError(where, f"has the class {name!r}, which cannot name a column", "rename the class")
    return name
