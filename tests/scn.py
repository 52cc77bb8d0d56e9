"""A small Leica SCN: a slide of which only a part was scanned, as OpenSlide's `bounds-*` say; MIRAX is like it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

_IMAGE = """<image name="{name}" uuid="urn:uuid:{name}"><creationDate>2020-01-01T00:00:00Z</creationDate>
<device model="Leica SCN400" version="1"/><pixels sizeX="{width}" sizeY="{height}">{dimensions}</pixels>
<view sizeX="{view[0]}" sizeY="{view[1]}" offsetX="{at[0]}" offsetY="{at[1]}"/>
<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings>
<numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource></illuminationSettings>
</scanSettings></image>"""
_DIMENSION = '<dimension sizeX="{}" sizeY="{}" r="{}" ifd="{}"/>'


def write_scn(
    path: Path, scanned: NDArray[np.uint8], *, corner0: tuple[int, int], size0: tuple[int, int], mpp: float = 0.5
) -> Path:
    """Write `scanned` (h, w, 3), lossless, in two levels, at `corner0` (x, y) of a slide of `size0` (width, height).

    All lengths are level-0 pixels; `scanned` has even sides.
    """
    nm = round(mpp * 1000)
    height, width = scanned.shape[:2]
    macro = np.full((64, 128, 3), 240, np.uint8)
    whole = {"view": (size0[0] * nm, size0[1] * nm), "at": (0, 0)}
    part = {"view": (width * nm, height * nm), "at": (corner0[0] * nm, corner0[1] * nm)}
    levels = _DIMENSION.format(width, height, 0, 1) + _DIMENSION.format(width // 2, height // 2, 1, 2)
    images = [
        _IMAGE.format(name="macro", width=128, height=64, dimensions=_DIMENSION.format(128, 64, 0, 0), **whole),
        _IMAGE.format(name="main", width=width, height=height, dimensions=levels, **part),
    ]
    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:0">'
        f'<collection name="c" uuid="urn:uuid:1" sizeX="{size0[0] * nm}" sizeY="{size0[1] * nm}"><barcode></barcode>'
        f"{''.join(images)}</collection></scn>"
    )
    layout: dict[str, Any] = {
        "tile": (64, 64), "photometric": "rgb", "compression": "zlib", "metadata": None,
        "resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER",
    }  # fmt: skip
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(macro, description=xml, **layout)
        tiff.write(scanned, **layout)
        half = scanned.reshape(height // 2, 2, width // 2, 2, 3).mean((1, 3)).round().astype(np.uint8)
        tiff.write(half, **layout)
    return path
