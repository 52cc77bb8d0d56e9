"""Annotation files -> area fractions of tiles by class, or masks over a slide. Level-0 pixels throughout.

Files count from where their program does; what is made of them counts from the corner of the whole picture, as tiles
do.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import shapely

from tiling.annotations import label_image
from tiling.annotations.classes import ClassRules
from tiling.annotations.drawing import Geometries
from tiling.annotations.readers import read_drawing
from tiling.core.arrays import Float32Array
from tiling.core.errors import InputError
from tiling.core.files import require_regular, sha256_file, sha256_json
from tiling.grid import Frame, Raster, Tiles

log = logging.getLogger(__name__)

_DEFAULT = ClassRules()


def annotation_fractions(
    path: Path, tiles: Tiles, frame: Frame, rules: ClassRules = _DEFAULT
) -> dict[str, Float32Array]:
    """Fraction of each tile under each class of an annotation file, float32 (N,) in [0, 1] by class.

    What has no area or lies off the slide is left out, and the log says how much.

    Args:
        path: A file of one of the `ANNOTATIONS`, or a label image.
        tiles: N tiles of the slide.
        frame: Where the slide's coordinates begin and end.
        rules: What counts where areas of several classes overlap.

    Returns:
        The fractions by class, in the order of the names.

    Raises:
        InputError: If the file cannot be read as annotations of that slide.
    """
    if _is_picture(path):
        fractions = label_image.label_fractions(path, tiles, frame)  # of whose classes no two overlap
        return {name: values for name, values in fractions.items() if name not in (rules.cut_out or ())}
    drawing = read_drawing(path, frame)
    areas, off = drawing.areas(rules, frame.scanned)
    if off:
        width, height = frame.scanned.width0, frame.scanned.height0
        what = "they were drawn on another slide, level or frame" if off == len(drawing.outlines) else "see where"
        log.warning(
            "%s: %d of %d outlines lie off the slide, which is %d x %d px: %s",
            path, off, len(drawing.outlines), width, height, what,
        )  # fmt: skip
    elif not areas:
        log.warning("%s: marks no area (%d points or lines)", path, drawing.without_area)
    return {name: area_fractions(area, tiles) for name, area in areas.items()}


def annotation_hash(path: Path) -> str:
    """SHA-256 of all that decides the columns of an annotation file: the file, and what counts beside it.

    That are the names of a label image's classes, and what version 0.1.0 did not know of: where that read the file
    otherwise, a store of it is not the one that would be made now. Raises InputError.
    """
    try:
        require_regular(path)
        own, names = sha256_file(path), path.with_suffix(label_image.NAMES)
        if _is_picture(path):
            return sha256_json([own, sha256_file(names)]) if names.exists() else own
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(path, f"cannot be read ({reason})", "check the annotation's path") from error
    notes = read_drawing(path, None).notes
    return sha256_json([own, *notes]) if notes else own


def annotation_mask(path: Path, frame: Frame, over: Raster) -> Raster:
    """Where an annotation file marks anything, bool (h, w) on the pixels of `over`, a picture of a slide of that frame.

    A pixel is marked if its centre is. Raises InputError.
    """
    if not _is_picture(path):
        return rasterised(shapely.union_all(list(read_polygons(path, frame).values())), over)
    labels = label_image.read_label_image(path, frame)
    return label_image.sampled(labels.values != 0, labels.over, over)


def class_masks(path: Path, frame: Frame, over: Raster, rules: ClassRules = _DEFAULT) -> dict[str, Raster]:
    """Mask of each class of an annotation file, by name: bool (h, w), true where a pixel's centre is marked.

    Classes that a label image names and shows nowhere are left out, as are those of which no polygon is drawn.

    Args:
        path: A file of one of the `ANNOTATIONS`, or a label image.
        frame: Where the slide's coordinates begin and end.
        over: A picture of the slide, whose pixels the masks are on.
        rules: What counts where areas of several classes overlap.

    Returns:
        The masks by class.

    Raises:
        InputError: If the file cannot be read as annotations of that slide.
    """
    if not _is_picture(path):
        return {name: rasterised(area, over) for name, area in read_polygons(path, frame, rules).items()}
    labels = label_image.read_label_image(path, frame)
    masks = label_image.class_masks(path, labels).items()
    shown = {name: mask for name, mask in masks if mask.any() and name not in (rules.cut_out or ())}
    return {name: label_image.sampled(mask, labels.over, over) for name, mask in shown.items()}


def read_polygons(path: Path, frame: Frame | None, rules: ClassRules = _DEFAULT) -> Geometries:
    """The area of each class of a file of polygons, on a slide of that frame.

    Without a frame it stays where the file's program has it. Raises InputError.
    """
    if _is_picture(path):
        fix = "draw them in QuPath (GeoJSON), ASAP (XML), ImageScope or HALO"
        raise InputError(path, "is a picture, and polygons are needed here", fix)
    return read_drawing(path, frame).areas(rules)[0]


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in label_image.SUFFIXES


def rasterised(geometry: shapely.Geometry, over: Raster) -> Raster:
    """The pixels of a picture whose centre lies in a valid polygon or multipolygon, bool (h, w).

    Even-odd: an edge flips, in each row it crosses, all pixels to its right.
    """
    height, width = over.values.shape[:2]
    flips = np.zeros((height, width + 1), np.int32)
    for ring in _rings(geometry):
        x, y = (shapely.get_coordinates(ring) / over.downsample - 0.5).T  # pixel centres are whole numbers
        first, last = np.sort(np.ceil(np.stack([y[:-1], y[1:]]).clip(0, height)).astype(int), axis=0)
        count = last - first  # of the rows that each edge crosses: from its upper end on, without its lower end
        edge = np.repeat(np.arange(len(count)), count)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count - first, count)
        across = x[edge] + (row - y[edge]) * (x[edge + 1] - x[edge]) / (y[edge + 1] - y[edge])
        np.add.at(flips, (row, np.ceil(across).clip(0, width).astype(int)), 1)
    return Raster(np.asarray(flips.cumsum(1)[:, :width] % 2 == 1), over.downsample)


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
