"""study.yaml: the settings of a whole study. Unknown keys are refused, naming the key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from inference.config import EmbedConfig, EncoderConfig, OutputConfig, PredictTilesConfig, SlideTestConfig
from pipeline.execution.dask_config import ClusterConfig
from tiling import TilingConfig
from tiling.core.settings import checked, read_settings
from training.config import BagConfig, ShiftsConfig, TrainConfig
from training.selection.candidates import TuneConfig

_STRICT = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class RepeatsConfig(BaseModel):
    """Several trainings in place of one, each in a folder of its own: under several seeds, or a cross-validation."""

    model_config = _STRICT

    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = ()
    """One training under each seed, `training/seed-0` and so on, all on the split that `train.split_seed` or else
    `train.seed` decides."""
    folds: int | None = Field(None, ge=2, le=1000)
    """One training for each of so many folds, `training/fold-0` and so on: each case is tested once."""

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is named twice")
        return seeds

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.seeds and self.folds is not None:
            raise PydanticCustomError("folds", "it goes without seeds: name one of the two")
        return self


class EvaluateConfig(SlideTestConfig):
    """How models and heatmaps are tested on the test split."""

    tiles: bool = True
    """Test each model on the tiles of its test split."""
    slides: bool = True
    """Test the heatmaps against the slides' labels and lesions, where the manifest has them; those by the model of bags
    too, by the bag's probability whatever `score` is."""
    by: tuple[Literal["site", "scanner", "case"], ...] = ("site", "scanner")
    """Groups of tiles that get figures of their own, where the manifest fills the column."""


class StressConfig(ShiftsConfig):
    """Tests of models on shifted test tiles: off unless shifts are named."""

    shifts: tuple[str, ...] = ()
    """Which shifts, or `[all]`; none: no such test. It predicts the test tiles once a shift and strength."""
    resamples: int = Field(1000, ge=0, le=100_000)
    """Resamples of cases behind each interval."""


class HeatmapConfig(PredictTilesConfig):
    """The heatmaps of a study, which are made from its stores."""

    slides: Literal["test", "all"] = "test"
    """Which slides get one: those of the test split, or all. So it is of heatmaps by the model of bags."""
    model: Literal["ensemble", "best"] = "ensemble"
    """Where several models are trained: their mean, or the one with the lowest log loss on its validation split. In a
    cross-validation each slide is predicted by the model that has not seen its case."""
    outputs: OutputConfig = OutputConfig()
    """Further files of each heatmap."""


class BagsConfig(BaseModel):
    """Learning from slide labels alone: the features of each store, and a model of slides (or cases) over them."""

    model_config = _STRICT

    encoder: EncoderConfig = EncoderConfig()
    """What makes the features; its tiles are those of the section `tile` where it has none of its own."""
    features: EmbedConfig = EmbedConfig()
    """Which tiles have features, and how these are stored."""
    train: BagConfig = BagConfig()
    """How the model of bags is trained."""


class StudyConfig(BaseModel):
    """One study: which slides, what is done with them, and where the results go."""

    model_config = _STRICT

    manifest: Path
    """Table of the slides; relative to study.yaml."""
    out: Path
    """Folder of the results; relative to study.yaml."""
    tile: TilingConfig = TilingConfig()
    """How slides are tiled."""
    train: TrainConfig = TrainConfig()
    """How a model is trained."""
    repeats: RepeatsConfig = RepeatsConfig()
    """Several trainings in place of one: name seeds, or folds."""
    tune: TuneConfig | None = None
    """Several candidates in place of one training, in `training/tuned`, of which a rule takes one by validation alone.
    They set penalty, learning rate and augmentation in place of `train`. None: no tuning."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """How models and heatmaps are tested on the test split."""
    stress: StressConfig = StressConfig()
    """Tests on shifted tiles; off unless shifts are named."""
    heatmap: HeatmapConfig = HeatmapConfig()
    """What slides are predicted, and how."""
    bags: BagsConfig | None = None
    """Embeddings, a model that learns from them and a label per slide, and its heatmaps of attention, beside the tile
    classifier and its heatmaps; None: none of them."""
    workers: int | None = Field(None, ge=1)
    """Processes of this machine for tiling; None: one per core. Not used with a cluster."""
    cluster: ClusterConfig | None = None
    """Workers of a cluster for tiling and heatmaps, in place of processes of this machine: `{at: slurm, ...}`."""

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Self:
        if self.tile.tissue.method == "mask":
            raise PydanticCustomError("tile", "tissue.method mask needs files: use specslide tile --tissue, then train")
        if self.tune is not None and (self.repeats.seeds or self.repeats.folds is not None):
            raise PydanticCustomError("tune", "it goes without repeats: it has seeds of its own")
        if self.repeats.folds is not None and self.evaluate.sensitivity is not None:
            raise PydanticCustomError("evaluate", "sensitivity: a cross-validation leaves no split val to choose it on")
        if self.repeats.folds is not None and self.train.folds is not None:
            raise PydanticCustomError("repeats", "train.folds names one fold of a cross-validation: name one of them")
        if self.repeats.folds is not None and self.train.val_fraction + 1 / self.repeats.folds >= 1:
            raise PydanticCustomError("repeats", "with train.val_fraction a fold leaves no case to train on")
        if self.evaluate.sensitivity is not None and self.heatmap.slides != "all":
            raise PydanticCustomError("evaluate", "sensitivity needs heatmaps of the split val: heatmap.slides: all")
        return self

    def trainings(self) -> dict[str, TrainConfig]:
        """The settings of each training, by its name: `seed-0` ..., `fold-0` ..., `tuned`, or "" for the only one."""
        if self.tune is not None:
            return {"tuned": self.train}
        seeds, folds = self.repeats.seeds, self.repeats.folds
        if seeds:
            split_seed = self.train.data_seed
            return {
                f"seed-{seed}": self.train.model_copy(update={"seed": seed, "split_seed": split_seed}) for seed in seeds
            }
        if folds is not None:
            return {f"fold-{k}": self.train.model_copy(update={"folds": folds, "fold": k}) for k in range(folds)}
        return {"": self.train}


def load_study(path: Path) -> StudyConfig:
    """The study of a YAML file, its paths made relative to the working directory. Raises ConfigError naming the key."""
    config = checked(StudyConfig, read_settings(path), path)
    here = path.parent
    return config.model_copy(update={"manifest": here / config.manifest, "out": here / config.out})
