"""The settings of a tiling job."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator

from tiling.quality import MetricSet
from tiling.stores.codec import TileCodec
from tiling.tissue import TissueConfig


class TilingConfig(BaseModel):
    """What decides the content of a store, beside the slide. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    mpp: Annotated[PositiveFloat, Field(le=1000)] = 0.5
    """Micrometres per pixel of the tiles."""
    tile_px: Annotated[PositiveInt, Field(le=8192)] = 256
    """Side of a tile, pixels."""
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of a tile that its neighbour shares, in [0, 1)."""
    min_tissue: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Least fraction of a tile that must be tissue; a tile without any tissue is never kept."""
    mpp_tolerance: Annotated[float, Field(ge=0, lt=0.5)] = 0.02
    """A pyramid level whose scale is that close is taken as it is, and the true mpp recorded."""
    codec: str = "jpeg:90"
    """`jpeg:Q` with quality Q from 1 to 100, `jpeg:Q:420`, `lossless`, or `source`, the slide's own streams copied."""
    max_bad_tiles: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Fraction of the tiles that may be left out because they cannot be decoded; above it the slide fails."""
    tissue: TissueConfig = TissueConfig()
    quality: Annotated[tuple[MetricSet, ...], Field(min_length=1)] = ("specslide",)
    """Which sets of quality columns: `specslide`, and `histoprep` from the extra; see tiling.quality."""

    @field_validator("codec")
    @classmethod
    def _known_codec(cls, name: str) -> str:
        TileCodec.parse(name)
        return name
