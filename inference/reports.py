"""What the verbs say of one slide's result; without torch, for processes that only gather results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inference.maps.scores import SlideScores
from tiling.core.text import counted


@dataclass(frozen=True, repr=False)
class HeatmapReport:
    """The result of making one slide's heatmap."""

    slide_id: str
    folder: Path
    tiles: int
    scores: SlideScores
    reused: bool
    """Whether the result was there already, made from the same slide, model and settings."""
    warning: str | None = None
    """What a person must know of the result before anything else: that it lies outside what the model has seen."""
    bag: float | None = None
    """The probability that a model of bags gives the slide as a whole; None without tiles, or of a model of tiles."""

    def __repr__(self) -> str:
        mean = "" if self.scores.mean is None else f" of mean probability {self.scores.mean:.3f}"
        return f"<HeatmapReport {self.slide_id}: {counted(self.tiles, 'tile')}{mean}, in {self.folder}>"


@dataclass(frozen=True, repr=False)
class EmbedReport:
    """The result of embedding one slide."""

    slide_id: str
    store: Path
    tiles: int
    dim: int
    """Length of a feature vector."""
    reused: bool
    """Whether the store was there already, made from the same tiles by the same encoder and settings."""

    def __repr__(self) -> str:
        return f"<EmbedReport {self.slide_id}: {counted(self.tiles, 'tile')}, {self.dim} features, in {self.store}>"
