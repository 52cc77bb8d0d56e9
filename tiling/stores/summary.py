"""What became of a slide's area, and what is doubtful about it. Pure."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

_NEARLY_ALL: Final = 0.95
_MUCH: Final = 0.1  # of what the mask could have held
_MOSTLY: Final = 0.5  # of the tissue
_MANY: Final = 0.25  # of the tissue, in tiles that are not kept


Area = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class TissueSummary(BaseModel):
    """How a slide's area divides into tissue and what is left out, square millimetres."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scanned_mm2: Area
    tissue_mm2: Area
    """Under the mask."""
    ink_mm2: Area
    """Pen ink outside the mask."""
    inked_mm2: Area = 0.0
    """Under the mask, and looks like pen ink."""
    too_small_mm2: Area
    """Looked like tissue, in pieces below `min_object_um2`: left out."""
    notable_mm2: Area
    """Dark or textured, outside the mask: neither ink nor too small."""
    below_min_tissue_mm2: Area
    """Tissue in places that hold less than `min_tissue`, so that no tile shows it."""

    def left_out(self) -> dict[str, float]:
        """Area left out, by reason, square millimetres; reasons without area are not named."""
        areas = {
            "pen ink": self.ink_mm2,
            "too small": self.too_small_mm2,
            "in tiles below min-tissue": self.below_min_tissue_mm2,
        }
        return {why: area for why, area in areas.items() if area >= 0.005}

    def text(self) -> str:
        """One line: the tissue's area, and what was left out with its share of the tissue."""
        cut = [f"{why} {area:.2f} mm²" + (f" ({area / self.tissue_mm2:.0%} of it)" if self.tissue_mm2 else "")
               for why, area in self.left_out().items()]  # fmt: skip
        return f"tissue {self.tissue_mm2:.2f} mm²" + (f", left out: {', '.join(cut)}" if cut else "")

    def doubts(self) -> list[str]:
        """Warnings about a detected tissue mask, each with the option that helps."""
        if not self.tissue_mm2:
            return [
                "no tissue was found: look at the preview; --tissue local finds any dye, --min-object-um2 0 keeps "
                "small pieces, --tissue all takes the whole slide (a fluorescence slide has no stained tissue)"
            ]
        seen, found = self.tissue_mm2 + self.too_small_mm2 + self.notable_mm2, []
        if self.tissue_mm2 > _NEARLY_ALL * self.scanned_mm2:
            share = self.tissue_mm2 / self.scanned_mm2
            found.append(f"nearly all of the slide ({share:.0%}) counts as tissue: look at the preview")
        if self.inked_mm2 > _MOSTLY * self.tissue_mm2:
            share = self.inked_mm2 / self.tissue_mm2
            found.append(
                f"much of the tissue ({share:.0%}) has the colour of pen ink: look at the preview; --drop-ink leaves "
                "it out"
            )
        if self.notable_mm2 > _MUCH * seen:
            share = self.notable_mm2 / seen
            found.append(
                f"much that is dark or textured ({self.notable_mm2:.2f} mm², {share:.0%}) lies outside the mask: look "
                "at the preview; another --tissue, or a mask of your own, may fit"
            )
        if self.too_small_mm2 > _MUCH * seen:
            found.append(f"small pieces were left out ({self.too_small_mm2:.2f} mm²): --min-object-um2 0 keeps them")
        if self.below_min_tissue_mm2 > _MANY * self.tissue_mm2:
            share = self.below_min_tissue_mm2 / self.tissue_mm2
            found.append(f"no tile shows {share:.0%} of the tissue: a lower --min-tissue does")
        return found
