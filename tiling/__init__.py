"""Slide -> tile store. Knows nothing of torch."""

from typing import TYPE_CHECKING

from tiling.core.lazy import make_lazy

if TYPE_CHECKING:
    from tiling.config import TilingConfig, TissueConfig
    from tiling.grid import Grid
    from tiling.reports import TileReport
    from tiling.slides.slide import Slide
    from tiling.stores.features import FeatureStore
    from tiling.stores.store import TileStore
    from tiling.tile import tile_slide

__all__ = ["FeatureStore", "Grid", "Slide", "TileReport", "TileStore", "TilingConfig", "TissueConfig", "tile_slide"]

make_lazy(
    __name__,
    {
        "FeatureStore": "tiling.stores.features",
        "Grid": "tiling.grid",
        "Slide": "tiling.slides.slide",
        "TileReport": "tiling.reports",
        "TileStore": "tiling.stores.store",
        "TilingConfig": "tiling.config",
        "TissueConfig": "tiling.config",
        "tile_slide": "tiling.tile",
    },
)
