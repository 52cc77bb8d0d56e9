"""A probability map as OME-Zarr (NGFF 0.5 on zarr v3): a pyramid of float32, with its place on the slide.

The specification: https://ngff.openmicroscopy.org/0.5/. Beside the tile store's, the one place that writes zarr.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.codecs

from inference.maps.slide_map import ProbabilityMap, pyramid
from tiling.core.versions import RESEARCH_USE

_CHUNK = 256
_COLOUR = "FFFFFF"


def write_omezarr(probabilities: ProbabilityMap, path: Path) -> None:
    """Write the map as the group `path`. Equal maps give equal bytes. Raises OSError."""
    levels = pyramid(probabilities.values)
    group = zarr.create_group(path, attributes={"ome": _metadata(probabilities, len(levels))})
    for number, level in enumerate(levels):
        array = group.create_array(
            str(number), shape=level.shape, dtype="float32", fill_value=np.nan, dimension_names=("y", "x"),
            chunks=tuple(min(_CHUNK, side) for side in level.shape),
            compressors=[zarr.codecs.ZstdCodec(level=5), zarr.codecs.Crc32cCodec()],
        )  # fmt: skip
        array[:] = level


def _metadata(probabilities: ProbabilityMap, levels: int) -> dict[str, Any]:
    return {
        "version": "0.5",
        "multiscales": [
            {
                "name": probabilities.name,
                "type": "mean",
                "axes": [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"],
                "datasets": [_dataset(probabilities, level) for level in range(levels)],
                "metadata": {"notice": RESEARCH_USE},
            }
        ],
        "omero": {
            "channels": [
                {
                    "label": probabilities.name,
                    "color": _COLOUR,
                    "active": True,
                    "window": {"min": 0, "max": 1, "start": 0, "end": 1},
                }
            ]
        },
    }


def _dataset(probabilities: ProbabilityMap, level: int) -> dict[str, Any]:
    """Where a level's pixels lie: `translation` is the centre of the first, see `ProbabilityMap.offset_um`."""
    size, (x, y) = probabilities.mpp * 2**level, probabilities.offset_um(level)
    return {
        "path": str(level),
        "coordinateTransformations": [
            {"type": "scale", "scale": [size, size]},
            {"type": "translation", "translation": [y, x]},
        ],
    }
