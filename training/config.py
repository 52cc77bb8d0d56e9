"""The settings of a training run: one frozen record, read from YAML and refused with the name of a bad key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tiling.core.settings import load_settings
from tiling.stores.query import parse_where
from training.augmentations import AUGMENTATIONS


class LearningConfig(BaseModel):
    """What shapes any model, apart from its network and the data."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    # the loss and its optimiser
    class_weights: Literal["none", "balanced"] = "none"
    """"balanced": each class weighs alike, by its tiles in the training split; see training.losses."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing: the share of each label that is spread evenly over all classes."""
    sd_lambda: float = Field(0.01, ge=0, allow_inf_nan=False)
    """Weight of spectral decoupling; 0 leaves plain cross-entropy. See training.losses."""
    sd_reduction: Literal["sum", "mean"] = "sum"
    """What sd_lambda multiplies: "sum" is lambda/2 * the square summed over classes, "mean" is lambda' * its mean."""
    sd_gamma: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] | None = Field(None, min_length=2)
    """One number per class, to which spectral decoupling draws its logit: ||logits - gamma||^2. None: 0."""
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    """AdamW's decoupled weight decay; never applied to biases and norms."""
    l2: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Classic L2 regularisation, in the loss: l2/2 * the squared norm of all weights but biases and norms. Unlike
    `weight_decay` its gradient goes through AdamW's scaling; see training.losses."""
    learning_rate: float = Field(1e-3, gt=0, le=10)
    """Peak of AdamW's learning rate, reached after the warm-up and followed by a cosine down to 0; of bags 3e-4
    by default."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of all steps in which the learning rate rises."""
    clip_norm: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Gradient clipping: the largest Euclidean norm of all gradients together; longer ones are shortened to it."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Decay per step of an exponential moving average (EMA) of the weights, which is then validated and saved."""
    epochs: int = Field(7, ge=1, le=10_000)
    """Epochs: passes over the training tiles; of bags 40 by default."""
    patience: int | None = Field(None, ge=1)
    """Early stopping: end after so many epochs in a row without a better validation log loss. None: never."""
    batch_size: int = Field(64, ge=1, le=65_536)
    """Batch size: tiles per step, over all processes together; bags per step, by default 16 of them."""
    accumulate: int = Field(1, ge=1, le=65_536)
    """Gradient accumulation: in so many parts a process computes its share of a batch, for less memory and the same
    step."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Random seed of the split, the weights of a new head, the order of tiles and the augmentation."""
    split_seed: int | None = Field(None, ge=0, lt=2**32)
    """Decides the split, and which tiles max_tiles_per_slide draws, in place of `seed`: trainings under several seeds
    can so share them. None: the seed."""

    # the data
    group: Literal["case", "site"] = "case"
    """What is split as a whole: a case with all its slides, or a site with all its cases. Splits that the data brings
    are checked for it too."""
    val_fraction: float = Field(0.15, gt=0, lt=1)
    """Share of the cases (or sites) for validation, where the data brings no split of its own."""
    test_fraction: float = Field(0.2, ge=0, lt=1)
    """Share of the cases (or sites) for testing, where the data brings no split of its own; 0 does without a test. Not
    used with `folds`."""
    folds: int | None = Field(None, ge=2, le=1000)
    """Cross-validation: the cases (or sites) are dealt into so many folds, by seed alone, and one of them is the test.
    Of the others, `val_fraction` of all cases validate. Over all rounds each case is tested once, by a model that was
    neither trained on it nor chosen by it. None: one split by `test_fraction`."""
    fold: int = Field(0, ge=0)
    """Which of the folds is the test, from 0; a run is one round, so train once for each."""
    classes: tuple[str, ...] | None = Field(None, min_length=2)
    """Names of the classes in their order. None: those of the data, `negative_class` first, then by name."""
    positive_class: str | None = None
    """The class that heatmaps show and whose probability is thresholded. None: the last of the classes that is not
    called normal, benign, negative or the like."""
    negative_class: str = "benign"
    """With labels from annotations: the class of tiles under no annotation, and the manifest's label of slides that
    need none because all their tissue is of this class."""
    max_tiles_per_slide: int | None = Field(None, ge=1)
    """At most this many tiles of a slide, drawn at random under the seed. None: all."""
    balance: tuple[Literal["class", "slide", "case", "site"], ...] = ()
    """What training tiles are drawn evenly over, in any combination: each class equally often, in it each site, in that
    each case, in that each slide. Empty: each tile once per epoch. See training.data.samplers."""
    tiles_per_epoch: int | None = Field(None, ge=1, le=1_000_000_000)
    """Training tiles, or bags, drawn per epoch. None: as many as there are."""
    where: str | None = None
    """Which tiles of the stores, by their columns: `blur < 1.2 and black < 0.1`; see tiling.stores.query. None: all."""

    # the model that is kept
    half_weights: bool = False
    """Keep the network's matrices as 16-bit numbers, half as large; they are rounded before anything is measured."""
    tissue: str | None = Field(None, max_length=200)
    """What the model is for, in words: tissue, stain and finding. Its card and `specslide models` say it."""
    licence: str | None = Field(None, max_length=200)
    """Under which licence the model is handed on. Its card and `specslide models` say it."""
    limits: str | None = Field(None, max_length=2000)
    """What its card, and each report by it, say of the model's limits, beside what holds for any model."""

    # the machine
    workers: int | None = Field(None, ge=0, le=256)
    """Loader processes for each process that trains; 0 loads them in that one itself. None: 0 on a CPU, which computes
    far longer on a tile than it takes to decode it; on a GPU all cores but one, at most 16."""
    threads: int | None = Field(None, ge=1, le=1024)
    """Threads torch computes with on a CPU. None: as torch and OMP_NUM_THREADS decide."""
    devices: int | None = Field(None, ge=1, le=1024)
    """Processes per node, each on a GPU or, without any, on the CPU. None: as torchrun or srun say, else 1."""
    nodes: int | None = Field(None, ge=1, le=65_536)
    """Machines that train together. None: as torchrun or srun say, else 1."""
    compile: bool = False
    """Compile the backbone with torch.compile; worth it for long trainings only."""
    checkpoint_minutes: float = Field(10.0, gt=0, allow_inf_nan=False)
    """Minutes between checkpoints: a run that is killed goes on from the last one."""
    checkpoint_steps: int | None = Field(None, ge=1)
    """Steps between checkpoints, beside those by the clock; None: by the clock alone."""
    loggers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()
    """Where the log goes beside log/metrics.csv; each is an extra to install, and works offline."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """"auto": a GPU of CUDA if there is one, else the CPU; "mps": the GPU of an Apple computer, untested."""
    precision: Literal["auto", "32", "bf16"] = "auto"
    """Mixed precision: "bf16", "32" for none, or "auto": bf16 on a GPU that supports it, else 32 bits."""
    bootstrap_resamples: int = Field(1000, ge=0, le=100_000)
    """Resamples of cases behind each interval."""

    @property
    def data_seed(self) -> int:
        """What decides the split and the draw of tiles."""
        return self.seed if self.split_seed is None else self.split_seed

    @field_validator("where")
    @classmethod
    def _parses(cls, where: str | None) -> str | None:
        if where is not None:
            parse_where(where)
        return where

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1:
            raise PydanticCustomError("val_fraction", "with test_fraction it leaves no case to train on")
        if self.folds is None and self.fold:
            raise PydanticCustomError("fold", "it needs folds, the number of them")
        if self.folds is not None and self.fold >= self.folds:
            raise PydanticCustomError("fold", "the folds count from 0, so it must be less than folds")
        if self.folds is not None and self.val_fraction + 1 / self.folds >= 1:
            raise PydanticCustomError("val_fraction", "with a fold for testing it leaves no case to train on")
        if len(set(self.balance)) < len(self.balance):
            raise PydanticCustomError("balance", "a level is named twice")
        if self.classes and len(set(self.classes)) < len(self.classes):
            raise PydanticCustomError("classes", "a class is named twice")
        if self.classes and self.sd_gamma and len(self.sd_gamma) != len(self.classes):
            raise PydanticCustomError("sd_gamma", "it needs one number for each of the classes")
        if self.accumulate > self.batch_size:
            raise PydanticCustomError("accumulate", "it is more than batch_size, so that some parts are empty")
        return self


class TrainConfig(LearningConfig):
    """Everything that shapes a tile classifier, apart from the data. The defaults are the tested recipe."""

    # the network
    backbone: str = "tf_efficientnet_lite0"
    """timm name of the backbone, or `hf-hub:owner/name` where a network is."""
    weights: str = "auto"
    """Where training starts: "packaged" (ImageNet weights that come with specslide, for tf_efficientnet_lite0), "none"
    (random), a path to a .safetensors or .pth file with timm's names, `hf-hub:owner/name`, or "auto": those of an
    `hf-hub:` backbone, else packaged where there are any."""
    input_px: int | None = Field(None, ge=16, le=4096)
    """Side of the picture the backbone sees, pixels. None: the tile's side or the backbone's own, whichever is smaller,
    rounded up to a multiple of 32 and at least 96."""

    consistency: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Weight of consistency regularisation: half of it times the squared distance between a tile's logits and those of
    a copy shifted as another scanner or laboratory might, in each step in one of the ways of `stress`. It costs time:
    each tile is computed twice. 0: none. See training.losses."""
    fit: Literal["stretch", "pad", "crop"] = "stretch"
    """Of pictures that are no squares: "stretch" changes their proportions, "pad" puts black beside the shorter side,
    and "crop" takes the middle. Tiles of stores are squares."""
    freeze: bool = False
    """Train the head alone (a linear probe); all norms stay as the weights bring them."""
    layer_decay: float | None = Field(None, gt=0, le=1)
    """Layer-wise learning rate decay: the factor from one of timm's layers to the one before it. None: 1."""
    augment: str = "light"
    """Augmentation of each training tile: "none"; "light": flips, right angles, small crops, mild changes of colour;
    "stain": those, and more or less of each stain; "strong": 2 to 4 operations of StrongAugment; or another row of
    training.augmentations.AUGMENTATIONS."""
    stain_norm: Literal["none", "macenko", "reinhard"] = "none"
    """Make each tile's staining that of the typical training tile, in training and in prediction; needs the extra
    specslide[stain]. See training.models.stain."""
    select: Literal["log_loss", "stress"] = "log_loss"
    """What the best epoch and early stopping go by on validation: "log_loss", or "stress": the mean balanced accuracy
    over validation and copies of it that are shifted as another scanner or laboratory might, so that training does not
    follow a shortcut that validation shares. It predicts validation once more for each copy, every epoch."""
    select_shifts: tuple[str, ...] = Field(("all",), validate_default=True)
    """With `select: stress`, the shifts: some of sharpness, brightness, contrast, saturation, hue, gamma, stain, jpeg,
    noise, resolution; or all. Each is of half its strength, in both directions where it has two."""

    # the data
    label_from: Literal["auto", "annotation", "slide"] = "auto"
    """Where a stored tile's label comes from: the fractions of it under annotations, or its slide's label in the
    manifest. "auto": annotations if any store has them."""
    annotation_threshold: float = Field(0.5, gt=0, le=1)
    """A tile is of a class if at least this fraction of it is annotated as that class."""
    negative_max_fraction: float = Field(0.0, ge=0, lt=1)
    """A tile is clearly negative if no annotated fraction exceeds this. Tiles between the two count as negative in
    validation and test, which so hold all that a heatmap shows, and are not trained on."""

    @field_validator("augment")
    @classmethod
    def _known_augmentation(cls, augment: str) -> str:
        if augment not in AUGMENTATIONS:
            raise ValueError(f"use one of {', '.join(AUGMENTATIONS)}")
        return augment

    @field_validator("select_shifts")
    @classmethod
    def _known_shifts(cls, shifts: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if info.data.get("select") == "stress":
            return known_shifts(shifts)
        if shifts != ("all",):
            raise ValueError("it needs select stress")
        return shifts

    @model_validator(mode="after")
    def _network_fits_together(self) -> Self:
        if self.freeze and self.layer_decay is not None:
            raise PydanticCustomError("layer_decay", "with freeze there is no layer but the head to train")
        return self


HeadName = Literal["mean", "max", "top-k", "attention", "gated", "transformer"]


class BagConfig(LearningConfig):
    """Everything that shapes a model of bags (multiple-instance learning), apart from the data.

    A bag is the features of a slide's tiles, or of a case's; one number of them, such as `batch_size`, counts bags.
    """

    head: HeadName = "gated"
    """How a bag's tiles become its logits: their mean, the largest logit of any, the mean of the k largest, attention
    (ABMIL), gated attention, or a set transformer; see training.mil.heads."""
    bag: Literal["slide", "case", "case-mean"] = "slide"
    """What a bag is, where cases have several slides: "slide": each slide is one; "case": a case's slides together;
    "case-mean": a case, whose logits are the mean of its slides'."""
    bag_tiles: int = Field(1024, ge=1, le=1_000_000)
    """At most so many of a bag's tiles are trained on in an epoch, drawn anew in each, for memory. Bags are validated
    and tested whole."""
    head_dim: int = Field(128, ge=4, le=4096, multiple_of=4)
    """Numbers that a tile's features are embedded in, inside the head."""
    dropout: float = Field(0.25, ge=0, lt=1)
    """Share of the embedded numbers that dropout leaves out, in training."""
    top_k: int = Field(5, ge=1, le=10_000)
    """Of the head `top-k`: a class's logit is the mean of the so many largest of a bag's tiles."""
    learning_rate: float = Field(3e-4, gt=0, le=10)
    """Peak of AdamW's learning rate, reached after the warm-up and followed by a cosine down to 0."""
    epochs: int = Field(40, ge=1, le=10_000)
    """Epochs: passes over the training bags."""
    batch_size: int = Field(16, ge=1, le=65_536)
    """Batch size: bags per step, over all processes together."""

    # what a network of pixels is asked for, and one of features has not
    freeze: ClassVar[bool] = False
    layer_decay: ClassVar[float | None] = None
    augment: ClassVar[str] = "none"
    consistency: ClassVar[float] = 0.0
    select: ClassVar[str] = "log_loss"
    select_shifts: ClassVar[tuple[str, ...]] = ()


AnyConfig = TrainConfig | BagConfig


class ShiftsConfig(BaseModel):
    """How models are tested on tiles that are shifted as another scanner or laboratory would."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    metric: Literal["balanced_accuracy", "auroc"] = "balanced_accuracy"
    """What is measured; balanced accuracy is at the model's own threshold."""
    shifts: tuple[str, ...] = Field(("all",), validate_default=True)
    """Some of sharpness, brightness, contrast, saturation, hue, gamma, stain, jpeg, noise, resolution; or all."""
    strengths: int = Field(4, ge=1, le=100)
    """Strengths to each side of a shift."""

    @property
    def predictions(self) -> int:
        """Of each sample, at least."""
        return len(self.shifts) * self.strengths

    @field_validator("shifts")
    @classmethod
    def _known_shifts(cls, shifts: tuple[str, ...]) -> tuple[str, ...]:
        return known_shifts(shifts)


def known_shifts(shifts: tuple[str, ...]) -> tuple[str, ...]:
    """The shifts by name, all of them for `("all",)`. Raises ValueError for an unknown one, and one named twice."""
    from training.evaluation.perturbations import SHIFTS  # with OpenCV, which few settings need

    if shifts == ("all",):
        return tuple(SHIFTS)
    if len(set(shifts)) < len(shifts) or not set(shifts) <= SHIFTS.keys():
        raise ValueError(f"shifts are some of {', '.join(SHIFTS)}, each once, or all of them as [all]")
    return shifts


Config = TypeVar("Config", bound=LearningConfig)


def load_train_config(path: Path | None = None, overrides: Mapping[str, object] | None = None) -> TrainConfig:
    """The configuration of a YAML file (None: the defaults), with the overrides in place of its values.

    Overrides that are None are ignored, as options nobody passed. Raises ConfigError naming the file and the key.
    """
    return load_config(TrainConfig, path, overrides)


def load_config(kind: type[Config], path: Path | None, overrides: Mapping[str, object] | None) -> Config:
    """The same for either kind of configuration."""
    return load_settings(kind, path, overrides, "training configuration")
