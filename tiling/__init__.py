"""Slide -> tile store. Knows nothing of torch."""

from tiling.config import TilingConfig
from tiling.grid import Grid
from tiling.slides.slide import Slide
from tiling.stores.store import TileStore
from tiling.tile import TileReport, tile_slide
from tiling.tissue import TissueConfig

__all__ = ["Grid", "Slide", "TileReport", "TileStore", "TilingConfig", "TissueConfig", "tile_slide"]
