"""What is told of a slide that was tiled. Needs no library of pictures: it comes back from other processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tiling.core.text import counted
from tiling.stores.summary import TissueSummary


@dataclass(frozen=True, repr=False)
class TileReport:
    """The result of tiling one slide."""

    slide_id: str
    store: Path
    tiles: int
    reused: bool
    """Whether the store was there already, complete and made the same way."""
    mpp: float
    """Micrometres per pixel of its tiles."""
    tissue: TissueSummary | None = None
    """What became of the slide's area; None if the store does not say."""
    doubts: tuple[str, ...] = ()
    """What a person should look at."""
    bad: tuple[tuple[int, int], ...] = ()
    """Corners (x0, y0), level-0 pixels, of the tiles left out because they cannot be decoded."""
    classes: tuple[str, ...] | None = None
    """Its annotation columns; None where no annotation was given."""
    annotated: int = 0
    """Tiles that lie under an annotation, at least in part."""

    def __repr__(self) -> str:
        return f"<TileReport {self.slide_id}: {counted(self.tiles, 'tile')} at {self.mpp:.4g} µm/px, in {self.store}>"
