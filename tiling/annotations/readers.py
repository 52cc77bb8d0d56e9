"""Files of polygons by the program that wrote them: `ANNOTATIONS`. What a file is, its content says, not its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tiling.annotations.asap import is_asap, read_asap
from tiling.annotations.drawing import Drawing
from tiling.annotations.geojson import is_geojson, read_geojson
from tiling.annotations.layers import is_layers, read_layers
from tiling.core.errors import InputError
from tiling.core.files import require_regular
from tiling.grid import Frame


class AnnotationReader(NamedTuple):
    """One format of annotations: how a file of it is recognised and read."""

    name: str
    """As people call it."""
    knows: Callable[[bytes], bool]
    """Whether a file of that content is of the format."""
    read: Callable[[Path, bytes], Drawing]
    """Reads it; the path is for errors. Raises InputError."""
    corner0: Callable[[Frame], tuple[int, int]]
    """Where its program counts from."""


ANNOTATIONS: tuple[AnnotationReader, ...] = (
    AnnotationReader("QuPath GeoJSON", is_geojson, read_geojson, lambda frame: frame.qupath0),
    AnnotationReader("ASAP XML", is_asap, read_asap, lambda frame: (0, 0)),
    AnnotationReader("ImageScope XML or HALO annotations", is_layers, read_layers, lambda frame: (0, 0)),
)


def read_drawing(path: Path, frame: Frame | None) -> Drawing:
    """The outlines of an annotation file, by whichever reader knows its content, on a slide of that frame.

    Without a frame they stay where their program has them. Raises InputError.
    """
    try:
        require_regular(path)
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(path, f"cannot be read ({reason})", "check the annotation's path") from error
    for reader in ANNOTATIONS:
        if reader.knows(data):
            drawing = reader.read(path, data)
            return drawing if frame is None else replace(drawing, corner0=reader.corner0(frame))
    raise InputError(path, "is no annotation that can be read", f"pass {', '.join(r.name for r in ANNOTATIONS)}")
