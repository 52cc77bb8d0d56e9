"""A probability map as OME-TIFF: float32, a pyramid of tiles compressed with deflate, with its place on the slide.

Float32 rather than uint8: a threshold means the same there as in the tables, and NaN says where nothing was predicted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import tifffile

from inference.maps.slide_map import ProbabilityMap, pyramid
from tiling.core.versions import RESEARCH_USE

_TILE = (256, 256)
_SOFTWARE = "specslide"
_ABOUT = "Between 0 and 1; NaN where nothing was predicted."


def write_ometiff(probabilities: ProbabilityMap, path: Path, identity: str) -> None:
    """Write the map. Equal maps and identities give equal bytes. Raises OSError.

    `identity` is what the file's UUID is made of; else it would be made of the machine's address and the time.
    """
    levels = pyramid(probabilities.values)
    options: dict[str, Any] = {
        "tile": _TILE,
        "compression": "zlib",
        "photometric": "minisblack",
        "software": "specslide",
    }
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(levels[0], subifds=len(levels) - 1, metadata=_metadata(probabilities, identity), **options)
        for level in levels[1:]:
            tiff.write(level, subfiletype=1, metadata=None, **options)


def _metadata(probabilities: ProbabilityMap, identity: str) -> dict[str, Any]:
    size, (x, y) = probabilities.mpp, probabilities.offset_um()
    return {
        "axes": "YX",
        "UUID": str(uuid5(NAMESPACE_URL, f"{_SOFTWARE}:{identity}")),
        "Creator": _SOFTWARE,
        "Name": probabilities.name,
        "Description": f"{_ABOUT} {RESEARCH_USE}",
        "PhysicalSizeX": size,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": size,
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": [probabilities.name]},
        "Plane": {
            "PositionX": [x],
            "PositionXUnit": ["µm"],
            "PositionY": [y],
            "PositionYUnit": ["µm"],
        },
    }
