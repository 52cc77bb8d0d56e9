"""Pictures as tiled pyramidal TIFFs that OpenSlide opens, the same bytes for the same pixels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from tiling.core.errors import ConfigError
from tiling.core.files import write_file

U8 = NDArray[np.uint8]


def write_pyramid(
    path: Path,
    level0: U8,
    *,
    mpp: float | None,
    levels: int = 1,
    tile_px: int = 256,
    compression: Literal["jpeg", "none"] = "jpeg",
    quality: int = 85,
    subsampling: tuple[int, int] = (2, 2),
    description: str | None = None,
) -> None:
    """Write a picture as a tiled pyramidal TIFF that OpenSlide opens, whole or not at all.

    Each further level is the one before, exactly halved by area; an odd last row or column is dropped. The file carries
    no date and no software name: same pixels, same bytes.

    Args:
        path: The file.
        level0: uint8 (height, width, 3), RGB.
        mpp: Micrometres per pixel, for the resolution tags; None: there are none.
        levels: Number of levels.
        tile_px: Side of the tiles, pixels, a multiple of 16.
        compression: "jpeg": the tiles are YCbCr JPEGs; or "none".
        quality: Of the JPEGs, 1 to 100.
        subsampling: Of their chroma, such as (1, 1) or (2, 2).
        description: The text of the tag ImageDescription.

    Raises:
        ConfigError: If a level would be empty.
        OutputError: If the file cannot be written.
    """
    if min(level0.shape[:2]) >> (levels - 1) < 1:
        raise ConfigError("levels", f"{levels} are too many for {level0.shape[1]} x {level0.shape[0]} pixels")
    layout: dict[str, Any] = {"tile": (tile_px, tile_px), "photometric": "rgb", "metadata": None, "software": False}
    if compression == "jpeg":
        layout |= {"compression": "jpeg", "compressionargs": {"level": quality}, "subsampling": subsampling}
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as tiff:
        pixels = level0
        for level in range(levels):
            layout |= {} if mpp is None else _resolution(mpp * 2**level)
            tiff.write(pixels, subfiletype=int(level > 0), description=None if level else description, **layout)
            pixels = _halved(pixels) if level < levels - 1 else pixels
    write_file(path, file.getvalue())


def _resolution(mpp: float) -> dict[str, Any]:
    return {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}


def _halved(pixels: U8) -> U8:
    h, w = pixels.shape[0] // 2, pixels.shape[1] // 2
    return np.asarray(cv2.resize(pixels[: 2 * h, : 2 * w], (w, h), interpolation=cv2.INTER_AREA), np.uint8)
