"""Classes of annotations: their geometries by name, and which names can be columns of a store."""

from __future__ import annotations

import shapely

from tiling.core.errors import InputError

UNCLASSIFIED = "unclassified"
MAX_PX0 = 1e9
"""Beyond any slide, level-0 pixels."""
_MAX_NAME_BYTES = 200  # a column is a folder

Geometries = dict[str, shapely.Geometry]


def require_column(where: str, name: str) -> str:
    """The name, if zarr can keep an array of that name in a folder. Raises InputError, naming `where` it stands."""
    taken = "/" in name or name.strip(".") == "" or name.startswith("__") or name == "zarr.json"
    if taken or not name.isprintable() or len(name.encode()) > _MAX_NAME_BYTES:
        raise InputError(where, f"has the class {name!r}, which cannot name a column", "rename the class")
    return name
