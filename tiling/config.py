"""The settings of a tiling job."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from tiling.annotations.classes import ClassRules
from tiling.core.arrays import Icc
from tiling.grid import TilePx

MetricSet = Literal["specslide", "histoprep"]


class TissueConfig(BaseModel):
    """How the tissue mask is made."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    method: str = "local"
    """local: what differs in colour or its texture from the glass nearby (the default). specslide: stained against one
    glass colour (the default of 0.1). otsu: Otsu's threshold on the optical density. hsv: saturated pixels of a stain's
    hue. histoprep: HistoPrep's detection, from the extra. all: the whole slide. mask: the user's own file."""
    mask_mpp: Annotated[PositiveFloat, Field(le=1000)] = 8.0
    """Micrometres per mask pixel: fixed, so that the mask does not depend on the pyramid."""
    min_object_um2: NonNegativeFloat = 20_000.0
    """Smaller tissue pieces are dropped, square micrometres."""
    max_hole_um2: NonNegativeFloat = 20_000.0
    """Smaller holes are filled, square micrometres."""
    drop_ink: bool = False
    """Leave out tissue under pen ink too; by default it is kept, and the column `pen` says which tiles have ink."""

    @field_validator("method")
    @classmethod
    def _known_method(cls, name: str) -> str:
        from tiling.tissue import METHODS  # with OpenCV, which few settings need

        if name not in (*METHODS, "mask"):
            raise ValueError(f"unknown method {name!r}: use {', '.join(METHODS)} or mask")
        return name


class TilingConfig(BaseModel):
    """What decides the content of a store, beside the slide. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    mpp: Annotated[PositiveFloat, Field(le=1000)] | Literal["native"] = 0.5
    """Micrometres per pixel of the tiles. `native`: each slide's own scale."""
    coarser_ok: bool = False
    """Tile a slide that is coarser than `mpp` at its own scale; without it the slide fails, for nothing is enlarged."""
    tile_px: TilePx = 256
    """Side of a tile, pixels."""
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of a tile that its neighbour shares, in [0, 1)."""
    min_tissue: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Minimum fraction of a tile that must be tissue; a tile without any tissue is never kept."""
    mpp_tolerance: Annotated[float, Field(ge=0, lt=0.5)] = 0.02
    """A pyramid level whose scale is that close is taken as it is, and the true mpp recorded."""
    codec: str = "jpeg:90"
    """`jpeg:Q` with quality Q from 1 to 100, `jpeg:Q:420`, `lossless`, or `source`, the slide's own streams copied."""
    icc: Icc = "none"
    """Colours of the tiles: as they are in the slide's file, or in sRGB, by the ICC profile in that file."""
    max_bad_tiles: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Fraction of the tiles that may be left out because they cannot be decoded; above it the slide fails."""
    tissue: TissueConfig = TissueConfig()
    quality: Annotated[tuple[MetricSet, ...], Field(min_length=1)] = ("specslide",)
    """Which sets of quality columns: `specslide`, and `histoprep` from the extra; see tiling.quality."""
    annotation: ClassRules = ClassRules()
    """What counts where annotations of several classes overlap."""

    def mpp_of(self, slide_mpp: float) -> float:
        """Micrometres per pixel that the tiles of a slide of that scale are to have."""
        if self.mpp == "native":
            return slide_mpp
        return max(self.mpp, slide_mpp) if self.coarser_ok else self.mpp

    def for_slide(self, slide_mpp: float) -> Self:
        """The settings as they count for a slide of that scale: with `coarser_ok` only where it is needed, so that the
        stores of the other slides are the same with and without it.
        """
        needed = self.coarser_ok and self.mpp != "native" and self.mpp / slide_mpp < 1 - self.mpp_tolerance
        return self if needed == self.coarser_ok else self.model_copy(update={"coarser_ok": needed})

    @field_validator("mpp", mode="wrap")
    @classmethod
    def _scale(cls, value: object, check: ValidatorFunctionWrapHandler) -> object:
        try:
            return check(value)
        except ValidationError:  # of each kind that it might have been
            raise ValueError("it is micrometres per pixel, above 0 and up to 1000, or native") from None

    @field_validator("codec")
    @classmethod
    def _known_codec(cls, name: str) -> str:
        from tiling.stores.codec import TileCodec  # with zarr, which few settings need

        TileCodec.parse(name)
        return name

    @model_validator(mode="after")
    def _colours_of_copies(self) -> Self:
        if self.codec == "source" and self.icc != "none":
            raise PydanticCustomError("icc", "the codec source copies the slide's own tiles as they are")
        return self
