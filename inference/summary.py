"""`slide.json`: what a heatmap says of its slide, read and written here alone. Torch is not needed for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, field_validator

from inference.maps.scores import SlideScores
from tiling.core.errors import InputError
from tiling.core.files import canonical_json
from tiling.core.settings import first_fault
from tiling.core.versions import RESEARCH_USE
from tiling.grid import Grid
from tiling.stores.store import SlideFacts

SUMMARY = "slide.json"
VERSION = 3
"""Of what a heatmap's folder holds, and how it is computed. 3: its recipe is in commit.json. Earlier ones are read."""


class OutOfDistribution(BaseModel):
    """How much of a slide lies outside what the model has seen."""

    model_config = ConfigDict(frozen=True, extra="ignore", from_attributes=True, allow_inf_nan=False)

    tiles: NonNegativeInt = 0
    share: float | None = Field(ge=0, le=1)
    """Of the analysed tiles, from 0 to 1; None of no tiles."""
    quantile: float | None = None
    """Of the validation tiles' distances, where it begins."""
    warning: str | None
    """What a person must know before anything else; None where few tiles are outside."""


class BagScore(BaseModel):
    """What a model of bags says of a slide as a whole, and what the map beside it shows."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    probability: float | None = Field(ge=0, le=1)
    """Of the positive class, calibrated; None for a slide without tiles."""
    map: Literal["attention relative to the largest"] = "attention relative to the largest"
    """What the map shows; no probability."""


class HeatmapSummary(BaseModel):
    """One slide's heatmap in numbers, and what it was made from."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    format: Literal["specslide-heatmap"] = "specslide-heatmap"
    version: int = VERSION
    slide: SlideFacts
    grid: Grid
    tiles: NonNegativeInt
    """Tiles analysed."""
    classes: tuple[str, ...]
    positive_class: str
    threshold: float = Field(ge=0, le=1)
    scores: SlideScores
    """Of the tiles' probabilities: of a bag's, those that each tile alone has."""
    bag: BagScore | None = None
    """Of a model of bags; None: of tiles."""
    out_of_distribution: OutOfDistribution | None = None
    """None where the model cannot tell."""
    made_from: dict[str, Any]
    device: str = ""
    software: dict[str, str] = {}
    notice: str = RESEARCH_USE

    @field_validator("made_from")
    @classmethod
    def _names_its_model(cls, made_from: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(made_from.get("model_sha256"), str):
            raise ValueError("it names no model")
        return made_from

    @property
    def model_name(self) -> str:
        """What the model is called: by its name, if it has one, or its network's."""
        return str(self.made_from.get("model") or self.made_from.get("backbone", "model"))

    @property
    def limits(self) -> list[str]:
        """What the models' makers say of their limits."""
        return limits_of(self.made_from)

    @property
    def warning(self) -> str | None:
        """The warning to be read before the result, if there is one."""
        return None if self.out_of_distribution is None else self.out_of_distribution.warning

    def numbers(self) -> Mapping[str, float | None]:
        """The scores by name."""
        whole = {} if self.bag is None else {"bag_probability": self.bag.probability}
        return whole | {name: getattr(self.scores, name) for name in SlideScores.__dataclass_fields__}

    @property
    def suspicion(self) -> float | None:
        """The score that slides are listed by; None for one without tiles."""
        return self.scores.top5_mean if self.bag is None else self.bag.probability

    def write(self, folder: Path) -> None:
        """Write the file into a heatmap's folder. Raises OSError."""
        record = self.model_dump(mode="json", exclude={"bag"} if self.bag is None else set())
        (folder / SUMMARY).write_text(canonical_json(record), encoding="utf-8")


def limits_of(made_from: Mapping[str, Any]) -> list[str]:
    """What the makers of the models that a prediction was made by say of their limits, each once."""
    models = [made_from, *(one for one in made_from.get("models", ()) if isinstance(one, Mapping))]
    return list(dict.fromkeys(str(one["limits"]) for one in models if one.get("limits")))


def heatmap_folders(paths: Iterable[Path]) -> list[Path]:
    """Those of heatmaps among paths: a folder that is none stands for those in it, by name, if there are any."""
    found: list[Path] = []
    for path in paths:
        within = [] if (path / SUMMARY).exists() else sorted(summary.parent for summary in path.glob(f"*/{SUMMARY}"))
        found += within or [path]
    return found


def read_summary(folder: Path) -> HeatmapSummary:
    """The summary of the heatmap in a folder. Raises InputError if there is none, or it cannot be read."""
    try:
        return HeatmapSummary.model_validate_json((folder / SUMMARY).read_bytes())
    except OSError as error:
        what = f"holds no heatmap ({error.strerror})"
        raise InputError(folder, what, "pass the folder that specslide heatmap wrote") from None
    except ValidationError as error:
        what = f"is no heatmap's result: its {SUMMARY} is another or damaged ({first_fault(error)})"
        raise InputError(folder, what, "pass the folder that specslide heatmap wrote, or make it again") from None
