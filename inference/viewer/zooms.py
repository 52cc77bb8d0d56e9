"""Deep zoom: which part of a slide each tile of the viewer shows. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

TILE_PX = 256
"""Side of a tile of the viewer, pixels, where no tiles of the slide's own say another."""
_LARGEST_PX = 512


class Square(NamedTuple):
    """A square of a slide, level-0 pixels."""

    x0: int
    y0: int
    side0: int


def tile_px_for(native: tuple[int, int] | None) -> int:
    """Side of the viewer's tiles, pixels: that of the slide's own, a multiple or a part, so that each is decoded once.

    Args:
        native: (width, height) of the slide's own tiles, multiples of 16 px; None where it has none.
    """
    if native is None or native[0] != native[1]:
        return TILE_PX
    side = native[0]
    while side > _LARGEST_PX:
        side //= 2
    return side * max(1, TILE_PX // side)


@dataclass(frozen=True)
class Zooms:
    """The zoom levels of a slide: at the last one a pixel is a level-0 pixel, at each one before twice as many."""

    size0: tuple[int, int]
    """(width, height) of the slide, level-0 pixels."""
    tile_px: int = TILE_PX
    """Side of a tile."""

    @property
    def last(self) -> int:
        """The number of the finest level; at level 0 the slide fits into one tile."""
        return (math.ceil(max(self.size0) / self.tile_px) - 1).bit_length()

    def square(self, zoom: int, column: int, row: int) -> Square | None:
        """What a tile shows; None if there is no such tile. It may reach beyond the slide to the right and below."""
        if not (0 <= zoom <= self.last and column >= 0 and row >= 0):
            return None
        side0 = self.tile_px << (self.last - zoom)
        x0, y0 = column * side0, row * side0
        return Square(x0, y0, side0) if x0 < self.size0[0] and y0 < self.size0[1] else None

    def tiles(self, zoom: int) -> list[tuple[int, int]]:
        """(column, row) of every tile of a level, in reading order."""
        side0 = self.tile_px << (self.last - zoom)
        columns, rows = (math.ceil(length0 / side0) for length0 in self.size0)
        return [(column, row) for row in range(rows) for column in range(columns)]
