"""The settings of a prediction and of a heatmap's files. Knows nothing of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator

from inference.exports import formats, formats_help
from tiling.annotations.classes import ClassRules
from tiling.core.arrays import FeatureType, Icc
from tiling.stores.query import parse_where

Backend = Literal["torch", "onnx", "auto"]
Precision = Literal["auto", "32", "bf16"]
SEPARATION_UM = 150.0
"""Two detections on a heatmap are at least this far apart, micrometres."""


class ChooseConfig(BaseModel):
    """Which tiles are computed, and how they are shown to a network. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    min_tissue: float = Field(0.5, ge=0, le=1)
    """Minimum fraction of a tile that must be tissue."""
    where: str | None = None
    """Which tiles, by the columns of a store, which are measured of a slide: `blur < 1.2 and black < 0.1`; see
    tiling.stores.query."""
    batch_size: PositiveInt | None = None
    """Tiles that the model sees at once, halved where they do not fit in memory; changes the speed, not the result.
    None, or "auto": as the device and the size of the model's input call for."""
    readers: PositiveInt | None = None
    """Threads that read and decode; changes the speed, not the result. None: 1, for a model on a GPU up to 8."""
    precision: Precision = "auto"
    """bf16, 32 bits, or auto: bf16 where the hardware computes in it."""
    backend: Backend = "auto"
    """What computes: torch; onnx, ONNX Runtime on a CPU; or auto: onnx for a model on a CPU where it can and where that
    pays, else torch. They agree to 1e-4."""

    @field_validator("where")
    @classmethod
    def _parses(cls, where: str | None) -> str | None:
        if where is not None:
            parse_where(where)
        return where

    @field_validator("batch_size", mode="before")
    @classmethod
    def _found(cls, batch_size: object) -> object:
        return None if batch_size == "auto" else batch_size

    def device_of(self, asked: str) -> str:
        """The device that computes where one is asked for: ONNX Runtime computes on the CPU."""
        return "cpu" if self.backend == "onnx" else asked


class CutConfig(ChooseConfig):
    """How the tiles of a slide, too, are cut while it is read."""

    overlap: float = Field(0.0, ge=0, lt=1)
    """Fraction of a tile that its neighbour shares, in [0, 1); a store brings its own."""
    mpp_tolerance: float = Field(0.02, ge=0, lt=0.5)
    """How far a slide's scale may be from the model's without being resampled, a fraction."""
    icc: Icc | None = None
    """Colours of a slide's pixels: none, as they are in its file, or srgb, by the ICC profile in it; a store brings its
    own. None: those of the tiles that the model was trained on."""
    max_bad_tiles: float = Field(0.01, ge=0, le=1)
    """Fraction of a slide's tiles that may be passed over because they cannot be decoded."""


class PredictTilesConfig(ChooseConfig):
    """What decides a prediction of tiles that are there, beside the tiles and the model."""

    tta: bool = False
    """Test-time augmentation: the mean over all eight orientations of each tile, at eight times the cost."""


class PredictConfig(PredictTilesConfig, CutConfig):
    """What decides a prediction of a slide, too, whose tiles are cut while it is read."""


class EmbedConfig(CutConfig):
    """What decides the features of a slide or store, beside it and the encoder."""

    dtype: FeatureType = "float16"
    """Type the features are stored as: float16, or float32 at twice the size."""
    quality: bool = True
    """Measure the quality of a slide's tiles, as `specslide tile` does; a store brings its own columns."""


class EncoderConfig(BaseModel):
    """Which encoder makes the features, and what its tiles are where it does not say. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    encoder: str = "tf_efficientnet_lite0"
    """A known encoder (uni, uni2-h, conch, virchow, virchow2, h-optimus-0, prov-gigapath, phikon-v2), one of timm's
    names, hf-hub:OWNER/NAME, a model folder of specslide's, or a TorchScript (.pt, .ts) or ONNX file."""
    weights: str = "auto"
    """Weights of a known or timm's encoder: a .safetensors or .pth file, packaged, or hf-hub:OWNER/NAME."""
    mpp: PositiveFloat | None = None
    """Micrometres per pixel of its tiles. None: the encoder's own, or 0.5 where it has none."""
    tile_px: PositiveInt | None = None
    """Side of its tiles, pixels. None: the encoder's own, or 256 where it has none."""
    input_px: PositiveInt | None = None
    """Side of the picture that the network sees. None: the encoder's own."""
    mean: tuple[float, ...] = ()
    """Normalisation of a TorchScript or ONNX file: mean of each channel in [0, 1]. None: ImageNet's."""
    std: tuple[float, ...] = ()
    """The same, standard deviation of each channel."""

    @field_validator("mean", "std")
    @classmethod
    def _of_each_channel(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(values) not in (0, 3):
            raise ValueError("there are three channels")
        return values

    def anywhere(self) -> EncoderConfig:
        """The same with absolute paths, for a worker that starts in another folder."""
        paths = {name: Path(getattr(self, name)) for name in ("encoder", "weights")}
        return self.model_copy(update={name: str(path.absolute()) for name, path in paths.items() if path.exists()})


class OutputConfig(BaseModel):
    """What is written of a prediction. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    formats: tuple[str, ...] = Field((), description=f"Further files. {formats_help()}.")
    region_threshold: float | None = Field(None, ge=0, le=1)
    """Regions are where the probability is at least this; None: the model's threshold."""
    min_region_um2: float = Field(0.0, ge=0)
    """Regions of a smaller area, square micrometres, are left out."""
    region_smoothing_um: float | None = Field(None, ge=0)
    """Radius by which outlines are smoothed, micrometres; None: a quarter of a tile's side, 0: not at all."""
    occlusion: bool = False
    """The report also shows on which parts of its tiles the model depends: where blurring changes the probability."""

    @field_validator("formats")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in names if name not in formats()]:
            raise ValueError(f"{unknown[0]!r} is none of {', '.join(formats())}")
        return tuple(name for name in formats() if name in names)


class SlideTestConfig(BaseModel):
    """How heatmaps are tested against what is known of their slides. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    score: str | None = None
    """Score of a slide that groups and threshold are about. None: bag_probability of heatmaps by a model of bags, of
    others top5_mean."""
    sensitivity: float | None = Field(None, gt=0, le=1)
    """Choose a threshold of `score` with this sensitivity on the slides of the split val, which need heatmaps too (in a
    study: `heatmap.slides: all`)."""
    lesion_classes: tuple[str, ...] = ()
    """The annotations' classes that are lesions; none: the class that the heatmaps show."""
    separation_um: float = Field(SEPARATION_UM, ge=0)
    """Minimum distance between two detections on a heatmap, micrometres."""
    resamples: int = Field(1000, ge=0, le=100_000)
    """Resamples of cases behind each interval."""


class EvaluateSlidesConfig(SlideTestConfig):
    """The settings of `evaluate_slides`: of which slides, too, and by which resamples."""

    split: str | None = None
    """Slides to test, by the manifest. None: test where there are such, else all."""
    seed: int = Field(0, ge=0)
    """Decides the resamples."""
    annotation: ClassRules = ClassRules()
    """What counts where annotations of several classes overlap."""
