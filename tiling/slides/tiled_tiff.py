"""Where tiled TIFFs (SVS, plain and BigTIFF, OME-TIFF, Philips) keep their tiles, and how these are coded.

What is not fully understood is left to the general readers; so is JPEG 2000 in YCbCr.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import openslide
import tifffile

from tiling.core.tiff import TIFF_DAMAGE, open_tiff
from tiling.slides import lzw
from tiling.slides.jpeg_stream import TRANSFORM, NotUnderstoodError, stream_prefix
from tiling.slides.tile_coding import Coding, Jpeg2000Tiles, JpegTiles, LosslessTiles, Unpack
from tiling.slides.tiled_levels import Levels, LevelSize, TiledLevel

# OpenSlide shows these two as the TIFF stores them (None: it leaves the file to tifffile); it rearranges the others.
PLAIN_VENDORS = ("aperio", "generic-tiff", None)
PHILIPS = "philips"  # its levels are padded to whole tiles; OpenSlide cuts the padding off

_imagecodecs: Any = imagecodecs  # its stubs leave out arguments
_UNPACK: dict[int, Unpack] = {
    tifffile.COMPRESSION.NONE: lambda data, size: data,
    tifffile.COMPRESSION.LZW: lzw.unpack,
    tifffile.COMPRESSION.ADOBE_DEFLATE: lambda data, size: bytes(_imagecodecs.zlib_decode(data, out=size)),
    tifffile.COMPRESSION.ZSTD: lambda data, size: bytes(_imagecodecs.zstd_decode(data, out=size)),
    tifffile.COMPRESSION.DEFLATE: lambda data, size: bytes(_imagecodecs.zlib_decode(data, out=size)),
}


def tiff_levels(path: Path, levels: Sequence[LevelSize]) -> tuple[list[Path], Levels]:
    """The file, and of each level its one tiled page of exactly that size, or Philips's padded one in its place.

    Its pixels are three interleaved samples of 8 bits: JPEG as RGB or YCbCr, or RGB in a lossless compression.

    Args:
        path: The file.
        levels: The slide's levels, as its general reader sees them.

    Returns:
        The file, and its levels.

    Raises:
        NotUnderstoodError: For what is not fully understood.
        OSError: If the file cannot be read.
    """
    vendor = openslide.OpenSlide.detect_format(str(path))
    if vendor not in (*PLAIN_VENDORS, PHILIPS):
        raise NotUnderstoodError(f"a {vendor} slide is put together in its own way")
    try:
        with path.open("rb") as f, open_tiff(f) as tiff:
            pages = _padded_pages(tiff, levels) if vendor == PHILIPS else [_page_of(tiff, level) for level in levels]
            found = tuple(_tiled_level(page, level) for page, level in zip(pages, levels, strict=True))
    except TIFF_DAMAGE as error:  # its text may quote the file
        raise NotUnderstoodError(type(error).__name__) from error
    if vendor == "aperio" and any((level.counts == 0).any() for level in found):
        raise NotUnderstoodError("OpenSlide fills the missing tiles of an Aperio slide from other levels")
    return [path], found


def _page_of(tiff: tifffile.TiffFile, level: LevelSize) -> Any:
    """The only tiled page of exactly the level's size."""
    found = [
        p for p in _pages(tiff.pages) if p.is_tiled and (p.imagewidth, p.imagelength) == (level.width, level.height)
    ]
    if len(found) != 1:
        raise NotUnderstoodError(f"{len(found)} tiled pages of {level.width} x {level.height} px")
    return found[0]


def _padded_pages(tiff: tifffile.TiffFile, levels: Sequence[LevelSize]) -> list[Any]:
    """The tiled pages in their order, which are the levels with what fills up their tiles, and perhaps some more."""
    pages: Any = tiff.pages
    found = [page for page in pages if page.is_tiled]
    if len(found) != len(levels):
        raise NotUnderstoodError(f"{len(found)} tiled pages for {len(levels)} levels")
    for page, level in zip(found, levels, strict=True):
        if page.imagewidth < level.width or page.imagelength < level.height:
            raise NotUnderstoodError(f"a page smaller than its level of {level.width} x {level.height} px")
    return found


def _pages(pages: Any) -> Iterator[Any]:
    """The pages of a file, and one floor below them those of OME pyramids."""
    for page in pages:
        yield page
        yield from page.pages or ()


def _tiled_level(page: Any, level: LevelSize) -> TiledLevel:
    """Where a page keeps the tiles of a level, which is its upper left part.

    Raises NotUnderstoodError unless every property that matters is known.
    """
    must_be = {
        "bits per sample": (page.bitspersample, 8),
        "sample format": (page.sampleformat, tifffile.SAMPLEFORMAT.UINT),
        "samples per pixel": (page.samplesperpixel, 3),
        "planar configuration": (page.planarconfig, tifffile.PLANARCONFIG.CONTIG),
        "fill order": (page.fillorder, tifffile.FILLORDER.MSB2LSB),
        "depth": ((page.imagedepth, page.tiledepth), (1, 1)),
        "orientation": (int(page.tags.valueof("Orientation", default=1)), 1),
    }
    for name, (value, expected) in must_be.items():
        if value != expected:
            raise NotUnderstoodError(f"{name} {value}")
    unpack, jpeg2000 = _UNPACK.get(page.compression), page.compression == tifffile.COMPRESSION.APERIO_JP2000_RGB
    predictors = (1, 2) if page.compression not in (tifffile.COMPRESSION.JPEG, tifffile.COMPRESSION.NONE) else (1,)
    if unpack is None and not jpeg2000 and page.compression != tifffile.COMPRESSION.JPEG:
        raise NotUnderstoodError(f"compression {page.compression}")
    if page.photometric not in (TRANSFORM if unpack is None else (tifffile.PHOTOMETRIC.RGB,)):
        raise NotUnderstoodError(f"photometric interpretation {page.photometric}")
    if page.predictor not in predictors:
        raise NotUnderstoodError(f"predictor {page.predictor}")
    size = (page.tilewidth, page.tilelength)
    coding: Coding
    if unpack:
        coding = LosslessTiles(size, unpack, differences=page.predictor == tifffile.PREDICTOR.HORIZONTAL)
    elif jpeg2000:
        coding = Jpeg2000Tiles(size)
    else:
        coding = JpegTiles(stream_prefix(page.jpegtables, _coded_as(page)), size)
    down, across = (-(-side // of_tile) for side, of_tile in ((page.imagelength, size[1]), (page.imagewidth, size[0])))
    places = [np.asarray(values, np.int64) for values in (page.dataoffsets, page.databytecounts)]
    if any(len(values) != across * down for values in places):
        raise NotUnderstoodError(f"{len(places[0])} tiles, not {across * down}")
    inside = slice(-(-level.height // size[1])), slice(-(-level.width // size[0]))
    offsets, counts = (values.reshape(down, across)[inside].ravel() for values in places)
    return TiledLevel(level.width, level.height, *size, offsets, counts, coding)


def _coded_as(page: Any) -> int:
    """The photometric interpretation of the streams: the page's, as OpenSlide has it, but for one contradiction.

    Bio-Formats calls pages RGB whose streams are JFIF, which is YCbCr: tifffile believes the stream, OpenSlide the
    page; so in OME-TIFFs the pixels agree, and elsewhere `agrees_with` will tell.
    """
    return int(tifffile.PHOTOMETRIC.YCBCR if page.is_jfif else page.photometric)
