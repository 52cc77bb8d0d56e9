"""Deep zoom: which part of a slide each tile of the viewer shows. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

TILE_PX = 256
"""Side of a tile of the viewer, pixels."""


class Square(NamedTuple):
    """A square of a slide, level-0 pixels."""

    x0: int
    y0: int
    side0: int


@dataclass(frozen=True)
class Zooms:
    """The zoom levels of a slide: at the last one a pixel is a level-0 pixel, at each one before twice as many."""

    size0: tuple[int, int]
    """(width, height) of the slide, level-0 pixels."""

    @property
    def last(self) -> int:
        """The number of the finest level; at level 0 the slide fits into one tile."""
        return max(0, math.ceil(math.log2(max(self.size0) / TILE_PX)))

    def square(self, zoom: int, column: int, row: int) -> Square | None:
        """What a tile shows; None if there is no such tile. It may reach beyond the slide to the right and below."""
        if not (0 <= zoom <= self.last and column >= 0 and row >= 0):
            return None
        side0 = TILE_PX << (self.last - zoom)
        x0, y0 = column * side0, row * side0
        return Square(x0, y0, side0) if x0 < self.size0[0] and y0 < self.size0[1] else None

    def tiles(self, zoom: int) -> list[tuple[int, int]]:
        """(column, row) of every tile of a level, in reading order."""
        side0 = TILE_PX << (self.last - zoom)
        columns, rows = (math.ceil(length0 / side0) for length0 in self.size0)
        return [(column, row) for row in range(rows) for column in range(columns)]
