"""Philips TIFFs for tests: levels padded to whole tiles, whose own sizes follow from the XML of the first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

_SEQUENCE = "PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"
MPP = 0.25


def spacing(mpp: float) -> str:
    """An attribute that says micrometres a pixel, in mm as DICOM does."""
    text = f"{mpp / 1000:.9f}"
    return f'<Attribute Name="DICOM_PIXEL_SPACING">&quot;{text}&quot; &quot;{text}&quot;</Attribute>'


def description(downsamples: Sequence[int], mpp: float, barcode: str = "") -> str:
    """The XML of the first directory."""
    levels = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation">{spacing(mpp * times)}</DataObject>' for times in downsamples
    )
    return (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        f'<Attribute Name="PIM_DP_UFS_BARCODE">{barcode}</Attribute>'
        '<Attribute Name="PIM_DP_SCANNED_IMAGES"><Array><DataObject ObjectType="DPScannedImage">'
        f'<Attribute Name="PIM_DP_IMAGE_TYPE">WSI</Attribute>{spacing(mpp)}'
        f'<Attribute Name="{_SEQUENCE}"><Array>{levels}</Array></Attribute>'
        "</DataObject></Array></Attribute></DataObject>"
    )


def padded(level: NDArray[np.uint8], tile_px: int) -> NDArray[np.uint8]:
    """The level on a grey ground of whole tiles, and one row and column of tiles more, as some scanners leave them."""
    height, width = (-(-side // tile_px) * tile_px for side in level.shape[:2])
    whole = np.full((height + tile_px, width + tile_px, 3), 120, np.uint8)
    whole[: level.shape[0], : level.shape[1]] = level
    return whole


def write_philips(
    path: Path,
    level0: NDArray[np.uint8],
    downsamples: Sequence[int] = (1, 2, 4),
    *,
    tile_px: int = 256,
    chroma: tuple[int, int] = (2, 2),
    barcode: str = "",
    mpp: float = MPP,
) -> Path:
    """A slide of those levels; the finest fills its tiles and is a multiple of the downsamples, as OpenSlide needs."""
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for times in downsamples:
            level = np.ascontiguousarray(level0[::times, ::times])
            tiff.write(
                level if times == 1 else padded(level, tile_px), tile=(tile_px, tile_px), compression="jpeg",
                compressionargs={"level": 85}, photometric="ycbcr", subsampling=chroma, subfiletype=int(times > 1),
                description=description(downsamples, mpp, barcode) if times == 1 else None, metadata=None,
                software="Philips DP v1.0",
            )  # fmt: skip
    return path
