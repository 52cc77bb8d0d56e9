"""config.json of a WSInfer model, by the wsinfer-zoo schema, spec 1.0: what its TorchScript takes and gives.

Knows nothing of torch.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tiling.core.arrays import Icc
from tiling.core.errors import ModelError
from tiling.core.files import read_json, sha256_file
from tiling.core.settings import first_fault
from tiling.grid import Mpp, TilePx
from training.models.backbone_args import MAX_INPUT_PX
from training.models.info import Level, Spread

SCRIPT, CONFIG = "torchscript_model.pt", "config.json"
"""The names that WSInfer's programs look for."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


class _Resize(BaseModel):
    size: int | tuple[int, int]

    @property
    def side(self) -> int | None:
        """The side of a square; None for another shape."""
        sides = {self.size} if isinstance(self.size, int) else set(self.size)
        return sides.pop() if len(sides) == 1 else None


class _Normalize(BaseModel):
    mean: tuple[Level, Level, Level]
    std: tuple[Spread, Spread, Spread]


class _Step(BaseModel):
    name: Literal["Resize", "ToTensor", "Normalize"]
    arguments: dict[str, Any] = {}


class ZooConfig(BaseModel):
    """The settings of a WSInfer model. What the schema does not know is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    spec_version: Literal["1.0"]
    architecture: str = Field(max_length=128)
    num_classes: int = Field(ge=2, le=1000)
    class_names: tuple[str, ...]
    patch_size_pixels: TilePx
    spacing_um_px: Mpp
    transform: tuple[_Step, ...]
    icc: Icc = "none"
    """The colours of the tiles it was trained on. Exports of specslide say them; others: the file's own."""

    @model_validator(mode="after")
    def _can_be_followed(self) -> Self:
        if len(self.class_names) != self.num_classes:
            raise ValueError(f"class_names has {len(self.class_names)} names and num_classes is {self.num_classes}")
        if len(set(self.class_names)) < self.num_classes:
            raise ValueError("class_names has a name twice")
        order = ("Resize", "ToTensor", "Normalize")
        names = [step.name for step in self.transform]
        if names != [name for name in order if name in names] or "ToTensor" not in names:
            raise ValueError(f"transform is {', '.join(names)}, and should be {', '.join(order)}, in that order")
        if not 0 < (self.input_px or 0) <= MAX_INPUT_PX:
            raise ValueError("transform resizes to no square that can be computed")
        self.normalisation()
        return self

    @property
    def input_px(self) -> int | None:
        """Side of the picture the network sees, pixels; None if it is no square."""
        found = self._arguments("Resize")
        return self.patch_size_pixels if found is None else _Resize.model_validate(found).side

    def normalisation(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Mean and standard deviation by channel, of pixels in [0, 1]. Raises ValueError for others."""
        found = self._arguments("Normalize")
        if found is None:
            return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        known = _Normalize.model_validate(found)
        return known.mean, known.std

    def _arguments(self, name: str) -> dict[str, Any] | None:
        return next((step.arguments for step in self.transform if step.name == name), None)


def is_zoo_folder(folder: Path) -> bool:
    """Whether a folder holds a model as WSInfer's programs read it."""
    return (folder / CONFIG).is_file() and (folder / SCRIPT).is_file()


def read_zoo_config(folder: Path) -> ZooConfig:
    """The settings of the WSInfer model in a folder. Raises ModelError."""
    path = folder / CONFIG
    try:
        return ZooConfig.model_validate(read_json(path))
    except OSError as error:
        raise ModelError(path, f"cannot be read ({error.strerror})", "make it readable") from None
    except ValueError as error:
        reason = first_fault(error) if isinstance(error, ValidationError) else str(error)
        what = f"is no configuration by the wsinfer-zoo schema 1.0 that can be followed ({reason})"
        raise ModelError(path, what, "correct it, or use another model") from None


def require_hub_file(path: Path) -> None:
    """Raise ModelError unless a large file in the hub's cache is the one its name, a SHA-256, says."""
    name = path.resolve().name
    if _SHA256.fullmatch(name) and sha256_file(path) != name:
        raise ModelError(path, "is not the file that the hub named: it was damaged or changed", "delete it")
