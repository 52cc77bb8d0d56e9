"""The table of formats whose tiles are decoded directly: what finds them. A new one is one module and one row."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from tiling.slides.jpeg_stream import NotUnderstoodError
from tiling.slides.tiled_dicom import dicom_levels
from tiling.slides.tiled_levels import Levels, LevelSize, TiledLevels
from tiling.slides.tiled_ndpi import ndpi_levels
from tiling.slides.tiled_tiff import tiff_levels

_log = logging.getLogger(__name__)

FindTiles = Callable[[Path, Sequence[LevelSize]], tuple[list[Path], Levels]]
"""The files of a slide, given the one it is opened by, and the tiles of its levels, which its general reader tells.

Raises NotUnderstoodError for what is not of its format, or not fully understood; OSError.
"""

DIRECT: dict[str, FindTiles] = {"TIFF": tiff_levels, "DICOM": dicom_levels, "NDPI": ndpi_levels}
"""What finds the tiles, by name; each is asked."""


def open_tiled_levels(
    path: Path, levels: Sequence[LevelSize], *, slide: Path | None = None, cache_bytes: int = 256 << 20
) -> TiledLevels | None:
    """What reads a slide by its tiles; None (the reasons are logged at debug level) if none of `DIRECT` understands it.

    Call `agrees_with` before trusting the pixels. Raises OSError if the file cannot be read.

    Args:
        path: The file that the slide is opened by.
        levels: The slide's levels as its general reader sees them.
        slide: What errors name, as the user gave it; None: the file.
        cache_bytes: Bounds the decoded tiles kept in memory; most slides need less.
    """
    for name, find_tiles in DIRECT.items():
        try:
            return TiledLevels(slide or path, *find_tiles(path, levels), cache_bytes)
        except NotUnderstoodError as reason:
            _log.debug("%s: not read as tiles of %s: %s", slide or path, name, reason)
    return None
