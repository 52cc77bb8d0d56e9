"""Where Hamamatsu's NDPI keeps its pixels: a level is one JPEG, whose restart markers part it into short, wide strips.

The directory lists where those begin. A level that OpenSlide makes of a finer one's JPEG, at 1/2, 1/4 or 1/8 of its
size, is read from that JPEG as well. What has no such list is left to OpenSlide.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import openslide

from tiling.core.tiff import TIFF_DAMAGE, open_tiff
from tiling.slides.jpeg_stream import NotUnderstoodError, ScaleDenom
from tiling.slides.tile_coding import RestartTiles
from tiling.slides.tiled_levels import Levels, LevelSize, TiledLevel

_LENS, _FOCAL_PLANE = 65421, 65424
_TILE_PX = 128  # height of the tiles that strips are put together to, pixels of the level
_MARKER = 2  # bytes


def ndpi_levels(path: Path, levels: Sequence[LevelSize]) -> tuple[list[Path], Levels]:
    """The file, and of each level the strips of its JPEG.

    Args:
        path: The file.
        levels: The slide's levels, as its general reader sees them.

    Returns:
        The file, and its levels; None for one that is not parted into strips.

    Raises:
        NotUnderstoodError: For what is no NDPI, or has no level of strips.
        OSError: If the file cannot be read.
    """
    vendor = openslide.OpenSlide.detect_format(str(path))
    if vendor != "hamamatsu":
        raise NotUnderstoodError(f"a {vendor} slide")
    try:
        with path.open("rb") as f, open_tiff(f) as tiff:
            pages = [page for page in (page.aspage() for page in tiff.pages) if _shows_the_slide(page)]
            found = tuple(_level(pages, level.width, level.height) for level in levels)
    except TIFF_DAMAGE as error:  # its text may quote the file
        raise NotUnderstoodError(type(error).__name__) from error
    if not any(found):
        raise NotUnderstoodError("no level of strips")
    return [path], found


def _shows_the_slide(page: Any) -> bool:
    """Whether a page is a level of the slide, of the focal plane that OpenSlide reads; not the macro image or map."""
    return bool(page.tags.valueof(_LENS, default=0) > 0 and page.tags.valueof(_FOCAL_PLANE, default=0) == 0)


def _level(pages: Sequence[Any], width: int, height: int) -> TiledLevel | None:
    """The level of that size: the coarsest page that is it, or 2, 4 or 8 times as large; None without strips."""
    denoms: tuple[ScaleDenom, ...] = get_args(ScaleDenom)
    for shrunk in denoms:
        for page in pages:
            if (page.imagewidth // shrunk, page.imagelength // shrunk) == (width, height):
                try:
                    return _strips(page, width, height, shrunk)
                except NotUnderstoodError:
                    return None
    return None


def _strips(page: Any, width: int, height: int, shrunk: ScaleDenom) -> TiledLevel:
    """The strips of a page, those below each other as tiles. Raises NotUnderstoodError if it has none."""
    strip_w, strip_h = page.tilewidth, page.tilelength
    if page.jpegheader is None or page.imagewidth % strip_w or page.imagelength % strip_h:
        raise NotUnderstoodError("a JPEG without strips")  # or with some that OpenSlide leaves out at the lower edge
    across, down = page.imagewidth // strip_w, page.imagelength // strip_h
    offsets = np.asarray(page.dataoffsets, np.int64)
    counts = np.asarray(page.databytecounts, np.int64)
    start = page.tags.valueof("StripOffsets")[0]
    if len(offsets) != across * down or offsets[0] - start != len(page.jpegheader) or (counts <= _MARKER).any():
        raise NotUnderstoodError("a list of strips that does not fit the JPEG")
    if strip_h > 8:  # with chroma that is widened downwards, where rows look at the next strip; OpenSlide fails on it
        raise NotUnderstoodError("chroma that is coarser downwards")
    pieces = _TILE_PX * shrunk // strip_h
    rows = -(-down // pieces)

    def in_tiles(of_strips: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
        padded = np.zeros((rows * pieces, across), np.int64)
        padded[:down] = of_strips.reshape(down, across)
        return padded.reshape(rows, pieces, across).transpose(0, 2, 1).reshape(rows * across, pieces)

    # With the marker before a strip: it shows that the list is right.
    return TiledLevel(
        width, height, strip_w // shrunk, pieces * strip_h // shrunk, in_tiles(offsets - _MARKER),
        in_tiles(counts + _MARKER), RestartTiles(page.jpegheader, (strip_w, strip_h), shrunk), shrunk=shrunk,
    )  # fmt: skip
