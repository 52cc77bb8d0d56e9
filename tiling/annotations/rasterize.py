"""QuPath GeoJSON, ASAP XML, label images -> area fractions of tiles by class, or a mask. Level-0 pixels throughout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import shapely

from tiling.annotations import label_image
from tiling.annotations.asap import read_asap
from tiling.annotations.classes import Geometries, require_column
from tiling.annotations.geojson import read_geojson
from tiling.core.arrays import BoolArray, Float32Array
from tiling.core.errors import InputError
from tiling.core.files import sha256_file, sha256_json
from tiling.grid import Tiles


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


def annotation_mask(path: Path, size0: tuple[int, int], downsample: float, shape: tuple[int, int]) -> BoolArray:
    """Where an annotation file marks anything, bool of `shape` (h, w); a pixel spans `downsample` level-0 pixels.

    A pixel is marked if its centre is. Raises InputError.
    """
    if path.suffix.lower() not in label_image.SUFFIXES:
        return rasterised(shapely.union_all(list(read_polygons(path).values())), downsample, shape)
    return label_image.sampled(label_image.read_label_image(path, size0) != 0, size0, downsample, shape)


def class_masks(path: Path, size0: tuple[int, int], downsample: float, shape: tuple[int, int]) -> dict[str, BoolArray]:
    """Where an annotation file marks each class, bool of `shape` (h, w) by name.

    A pixel spans `downsample` level-0 pixels, and is marked if its centre is. Classes that a label image
    names and shows nowhere are left out, as are those of which no polygon is drawn. Raises InputError.
    """
    if path.suffix.lower() not in label_image.SUFFIXES:
        return {name: rasterised(geometry, downsample, shape) for name, geometry in read_polygons(path).items()}
    shown = {name: mask for name, mask in label_image.class_masks(path, size0).items() if mask.any()}
    return {name: label_image.sampled(mask, size0, downsample, shape) for name, mask in shown.items()}


def read_polygons(path: Path) -> Geometries:
    """The union of the polygons of each class of a GeoJSON or ASAP XML file. Raises InputError."""
    if path.suffix.lower() in label_image.SUFFIXES:
        fix = "draw them in QuPath (GeoJSON) or ASAP (XML)"
        raise InputError(path, "is a picture, and polygons are needed here", fix)
    return read_asap(path) if path.suffix.lower() == ".xml" else read_geojson(path)


def rasterised(geometry: shapely.Geometry, downsample: float, shape: tuple[int, int]) -> BoolArray:
    """The pixels whose centre lies in a valid polygon or multipolygon, bool of `shape` (h, w).

    A pixel spans `downsample` level-0 pixels. Even-odd: an edge flips, in each row it crosses, all pixels to its right.
    """
    height, width = shape
    flips = np.zeros((height, width + 1), np.int32)
    for ring in _rings(geometry):
        x, y = (shapely.get_coordinates(ring) / downsample - 0.5).T  # pixel centres are whole numbers
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
