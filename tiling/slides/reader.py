"""What reads slides: the protocol `SlideReader`. tiling.slides.readers lists them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL.ImageCms import ImageCmsProfile

from tiling.core.arrays import UInt8Array
from tiling.core.errors import SlideError
from tiling.grid import Bounds


@dataclass(frozen=True)
class Level:
    """One pyramid level: its size in its own pixels and how many level-0 pixels one of them spans."""

    width: int
    height: int
    downsample: float
    """Of a reader, as it counts; of a `Slide`, exact: see `exact_downsamples`."""


class SlideReader(Protocol):
    """A slide reader: facts of a slide and one way to read pixels; a new slide format is one class like it."""

    vendor: str
    levels: tuple[Level, ...]
    mpp_xy: tuple[float, float] | None
    """Micrometres per level-0 pixel along x and y; None if the file does not say."""
    objective_power: float | None
    bounds: Bounds | None
    """The part that was scanned, as the file declares it; None: it does not."""
    compression: str | None
    """How level 0 is compressed; None: as its TIFF tags say."""
    plane: str | None
    """Which of several pictures, focal planes or time points in the file is read; None if there is one only."""

    def read(self, x0: int, y0: int, level: int, width: int, height: int) -> UInt8Array:
        """Pixels of a rectangle of one level, uint8 (height, width, 3), RGB; white beyond the level.

        Args:
            x0: Left edge, level-0 pixels.
            y0: Upper edge, level-0 pixels.
            level: Index into `levels`.
            width: Width in pixels of the level.
            height: Height in pixels of the level.

        Returns:
            The pixels.

        Raises:
            SlideError: If they cannot be decoded.
        """

    def icc_profile(self) -> ImageCmsProfile | None:
        """The colour profile of the pixels, which `read` does not apply; None: the file has none.

        Raises ImageCms.PyCMSError, OSError, for a damaged one.
        """

    def close(self) -> None:
        """Release the file."""


Opener = Callable[[Path, Path], SlideReader | None]
"""Opens a slide (path given by the user, file to begin with), or gives None for what is not of its format.

Raises OSError, UnsupportedSlideError for a slide of its format that it cannot read, SlideError for a damaged one.
"""


def exact_downsamples(levels: Sequence[Level]) -> tuple[tuple[float, float], ...]:
    """Level-0 pixels per pixel of each level, across and down.

    Files tell the sizes of levels, rounded to whole pixels, and readers divide them: over a slide of 20,000 px such a
    ratio leads several pixels of the level astray. So a whole number that is the downsample of both sides, but for
    rounding, is taken for what is meant: the reader's own, a power of two, or the nearest. Without one, a downsample
    that does not come of the sizes is the file's own statement; else each axis has its ratio.
    """
    return tuple(_exact(levels[0], level) for level in levels)


def _exact(first: Level, level: Level) -> tuple[float, float]:
    ratios = first.width / level.width, first.height / level.height
    # Rounding, up or down, changes the size of a level by less than one pixel.
    min_whole = max(first.width / (level.width + 1), first.height / (level.height + 1))
    max_whole = min(
        n / (m - 1) if m > 1 else math.inf for n, m in ((first.width, level.width), (first.height, level.height))
    )
    stated, power = level.downsample, 2.0 ** math.ceil(math.log2(min_whole)) if min_whole > 1 else 1.0
    nearest = float(round(ratios[first.width < first.height]))  # the longer side's, which rounding changes less
    for whole in (stated, power, nearest):
        if whole.is_integer() and min_whole < whole < max_whole:
            return whole, whole
    derived = min(ratios) * (1 - 1e-6) <= stated <= max(ratios) * (1 + 1e-6)
    return ratios if derived else (stated, stated)


Part = Callable[[int, int, tuple[slice, slice]], UInt8Array]
"""Gives a part (rows, columns) of the segment at (column, row) of a level, uint8 (h, w, 3)."""


def read_segments(
    level: tuple[int, int], segment: tuple[int, int], corner: tuple[int, int], size: tuple[int, int], part: Part
) -> UInt8Array:
    """A rectangle of a level that is stored in segments (tiles, strips, chunks); white beyond the level.

    Args:
        level: Width and height of the level, its pixels.
        segment: Width and height of its segments; those at the right and lower edge may reach beyond it.
        corner: x and y of the rectangle, pixels of the level; may be negative.
        size: Width and height of the rectangle.
        part: Gives the pixels of a segment.

    Returns:
        uint8 (height, width, 3).
    """
    (left, top), (width, height) = corner, size
    out = np.full((height, width, 3), 255, np.uint8)
    xa, xb = max(left, 0), min(left + width, level[0])
    ya, yb = max(top, 0), min(top + height, level[1])
    if xa >= xb or ya >= yb:
        return out
    rows = range(ya // segment[1], (yb - 1) // segment[1] + 1)
    columns = range(xa // segment[0], (xb - 1) // segment[0] + 1)
    for row, column in itertools.product(rows, columns):
        sx, sy = column * segment[0], row * segment[1]
        x, y = max(sx, xa), max(sy, ya)
        right, lower = min(sx + segment[0], xb), min(sy + segment[1], yb)
        inside = (slice(y - sy, lower - sy), slice(x - sx, right - sx))
        out[y - top : lower - top, x - left : right - left] = part(column, row, inside)
    return out


def unreadable(path: Path, error: OSError | ValueError) -> SlideError:
    """The SlideError that tells a person what an OSError at a slide's path means."""
    reason = getattr(error, "strerror", None) or error
    return SlideError(path, f"cannot be read ({reason})", "check the path and its permissions")


def damaged(path: Path, error: Exception) -> SlideError:
    """The SlideError for a slide that a library fails on. Its text is left out, for it may quote the file."""
    return SlideError(path, f"is damaged or incomplete ({type(error).__name__})", "copy or scan the slide again")


def number_of(text: str | None) -> float | None:
    """A finite positive number, or None for anything else a header may hold."""
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
