"""What stain normalisation makes of each tile: the targets that model.json holds. Knows nothing of torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Three = tuple[float, float, float]
Method = Literal["macenko", "reinhard"]


class MacenkoTarget(BaseModel):
    """The target of Macenko's stain normalisation; M. Macenko et al., ISBI 2009."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: Literal["macenko"] = "macenko"
    haematoxylin: Three
    """Natural optical density of red, green and blue, of length 1."""
    eosin: Three
    """Likewise."""
    amounts: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
    """99th percentile of each stain's amount over a tile's pixels."""


class ReinhardTarget(BaseModel):
    """The target of Reinhard's stain normalisation; E. Reinhard et al., IEEE CG&A 2001, in CIE L*a*b*."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: Literal["reinhard"] = "reinhard"
    mean: Three
    """Mean of L*, a* and b* over a tile's pixels."""
    std: Three
    """Their standard deviations."""


StainTarget = Annotated[MacenkoTarget | ReinhardTarget, Field(discriminator="method")]
