"""What each artefact of a study is made from, and whether the one that stands is made from that. Makes nothing.

stores/<slide_id>.zarr          the slide, its annotation, the section `tile`
training[/<run>]/model          the stores, their labels and splits, the section `train`
evaluation/tiles[/<run>]        the model, its test tiles and their groups
stress[/<run>]                  the models and their test tiles
heatmaps/<slide_id>             the store, the models, the slide's annotation
evaluation/slides               the heatmaps, the slides' labels and annotations
study.json, index.html          all of these
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely

from inference.config import PredictConfig
from inference.ensemble import Ensemble, make_ensemble
from inference.evaluation.evaluate_slides import slides_recipe
from inference.heatmap import heatmap_recipe
from pipeline.redaction import redact
from pipeline.study.config import StudyConfig
from pipeline.study.ledger import State
from tiling import TileStore
from tiling.annotations import label_image
from tiling.annotations.rasterize import read_polygons
from tiling.core.artefact import COMMIT, Recipe, folder_faults, state
from tiling.core.errors import SpecslideError
from tiling.core.files import sha256_json
from tiling.manifest import ManifestRow
from tiling.slides.slide import Slide, slide_files
from tiling.tile import reusable_store, tiling_inputs
from training import Samples, TileModel, TrainConfig, load_model, model_recipe, samples_from_stores
from training.data.samples import Split
from training.data.splits import SPLIT_NAMES
from training.devices import device_of
from training.evaluation.evaluate import evaluation_recipe
from training.evaluation.robustness import stress_recipe
from training.models.folder import read_info
from training.models.info import ModelInfo
from training.record import MACHINE_SETTINGS

STORES, TRAINING, TILES, STRESS, HEATMAPS, SLIDES = (
    "stores", "training", "evaluation/tiles", "stress", "heatmaps", "evaluation/slides",
)  # fmt: skip
SHOWN_DIFFERENCES = 4


class Standing(NamedTuple):
    """How an artefact stands."""

    state: State
    why: str = ""


DONE, TO_DO = Standing("done"), Standing("to do")


@dataclass(frozen=True)
class Training:
    """One training of a study: its name ("" for the only one), its settings, and what it learns from."""

    name: str
    config: TrainConfig
    samples: Samples
    split_of: Mapping[str, str] = field(default_factory=dict)
    """case_id -> split."""

    def tested(self) -> Split:
        """Its test tiles."""
        return self.samples.split_of("test")


@dataclass(frozen=True)
class Trained:
    """A training with its finished model."""

    training: Training
    model: TileModel


def within(part: str, name: str) -> str:
    """The folder of a training's part of the study: `training`, or `training/seed-0`."""
    return f"{part}/{name}" if name else part


def read_trainings(config: StudyConfig, leave_out: Sequence[str] | Mapping[str, str]) -> list[Training]:
    """The study's trainings over the stores there are, but for those slides. Raises as `samples_from_stores`."""
    found: list[Training] = []
    for name, settings in config.trainings().items():
        before = found[0].samples if found and config.repeats.seeds else None  # they share split and tiles
        samples = before or samples_from_stores(
            config.out / STORES, config.manifest, settings, leave_out=tuple(leave_out)
        )
        split_of = dict(zip(samples.case_id.tolist(), samples.split.tolist(), strict=True))
        found.append(Training(name, settings, samples, split_of))
    return found


def load_trained(training: Training, config: StudyConfig) -> Trained:
    """The training with its model on the device that judges and predicts. Raises ModelError."""
    return Trained(training, load_model(config.out / within(TRAINING, training.name) / "model", place_of(config)))


def place_of(config: StudyConfig) -> Any:
    """The device that judges and predicts."""
    return device_of(config.train.model_copy(update={"device": device_word(config)}))


def device_word(config: StudyConfig) -> str:
    """auto, cpu or cuda; ONNX Runtime computes on the CPU."""
    return "cpu" if config.heatmap.backend == "onnx" else config.train.device


# ------------------------------------------------------------------------------------------- stores and models


def store_standing(row: ManifestRow, config: StudyConfig) -> Standing:
    """Of its bytes only the metadata are looked at; a slide is hashed only if it is younger than the store."""
    path = config.out / STORES / f"{row.slide_id}.zarr"
    if not (path / COMMIT).exists():
        return TO_DO
    try:
        inputs = tiling_inputs(config.tile, row.mpp, row.annotation)
        reusable_store(path, _slide_hash(row, path), inputs)
    except SpecslideError as error:
        return Standing("changed", error.what)
    except OSError as error:
        return Standing("changed", f"the slide cannot be read ({error.strerror})")
    return DONE if path.with_suffix(".png").exists() else Standing("to do", "its preview is missing")


def _slide_hash(row: ManifestRow, store: Path) -> str:
    """The slide's hash, or what the store says of it if no file of the slide is younger.

    Raises OSError for a slide, and StoreError for a damaged store.
    """
    youngest = max(path.stat().st_mtime_ns for path in slide_files(row.slide_path))
    if youngest > (store / COMMIT).stat().st_mtime_ns:
        with Slide(row.slide_path, mpp=row.mpp) as slide:
            return slide.sha256()
    return TileStore(store).slide.sha256


def model_standing(training: Training | None, name: str, settings: TrainConfig, out: Path) -> Standing:
    """`training` is None where the stores are not all there yet: then the settings alone can tell."""
    folder = out / within(TRAINING, name) / "model"
    if not (folder / COMMIT).exists():
        return TO_DO
    try:
        info = read_info(folder)
    except SpecslideError as error:
        return Standing("changed", error.what)
    now = settings.model_dump(mode="json", exclude={*MACHINE_SETTINGS, "weights"})
    if differing := differences(info.training, now):
        return Standing("changed", differing)
    if training is None:
        return Standing("changed", "stores are made first")
    if info.hashes.get("data") != training.samples.identity():
        return Standing("changed", "the tiles, their labels or their splits are others")
    if info.hashes.get("training") != model_recipe(training.samples, settings).sha256:
        return Standing("changed", "the weights it starts from are others")
    if faults := folder_faults(folder):
        return Standing("changed", f"is damaged: {redact(faults[0], out)}")
    return DONE


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs, in words; "" if nothing does. A setting that was not known before counts as it is."""
    names = sorted(name for name in now if name in before and before[name] != now[name])
    more = f" and {len(names) - SHOWN_DIFFERENCES} more" if len(names) > SHOWN_DIFFERENCES else ""
    return ", ".join(f"{n} was {_said(before[n])}, is {_said(now[n])}" for n in names[:SHOWN_DIFFERENCES]) + more


def _said(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else sha256_json(value)[:12] if isinstance(value, dict | list) else text[:37] + "..."


# -------------------------------------------------------------------------- what is tested, with a record of its own


def tiles_recipe(trained: Trained, config: StudyConfig) -> Recipe:
    """What the evaluation of a model on its test tiles is made from."""
    training = trained.training
    return evaluation_recipe(
        {"model": trained.model.sha256}, training.tested(), by=groups_of(training, config),
        resamples=config.evaluate.resamples,
    )  # fmt: skip


def groups_of(training: Training, config: StudyConfig) -> tuple[str, ...]:
    """The columns to group test tiles by: those asked for that somebody filled."""
    tested = training.tested()
    return tuple(name for name in config.evaluate.by if (tested.column(name) != "").any())


def stress_of(trained: Sequence[Trained], config: StudyConfig) -> Recipe:
    """What a stress test of models on the same tiles is made from."""
    settings = config.stress
    return stress_recipe(
        {name_of(one.training): one.model.sha256 for one in trained}, trained[0].training.tested(),
        metric=settings.metric, shifts=settings.shifts, steps=settings.strengths, resamples=settings.resamples,
    )  # fmt: skip


def slides_settings(config: StudyConfig) -> dict[str, Any]:
    """How the heatmaps are tested."""
    return {"split": "test", **config.evaluate.model_dump(exclude={"tiles", "slides", "by"})}


def slides_standing(rows: Sequence[ManifestRow], config: StudyConfig) -> Standing:
    """How the evaluation of those slides' heatmaps stands. Raises SpecslideError for one that is not there."""
    recipe = slides_recipe(config.out / HEATMAPS, rows, **slides_settings(config))
    return Standing(*state(config.out / SLIDES, recipe))


def name_of(training: Training) -> str:
    """What a model is called in figures."""
    return training.name or "model"


def stress_groups(config: StudyConfig, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The stress tests of a study: the names of the trainings of each, by its own. Trainings under several seeds share
    their test tiles, and one picture.
    """
    return {name: (name,) for name in names} if config.repeats.folds is not None else {"": tuple(names)}


# ----------------------------------------------------------------------------------------------------- heatmaps


def split_of(row: ManifestRow, trainings: Sequence[Training]) -> str:
    """A slide's split. Of a cross-validation, where each case is tested once, that is test; so it is of a slide that
    no training has seen and whose row names none.
    """
    splits = {training.split_of[row.case_id] for training in trainings if row.case_id in training.split_of}
    if "test" in splits:
        return "test"
    return next(iter(sorted(splits)), SPLIT_NAMES.get((row.split or "test").lower(), "test"))


def heatmap_rows(rows: Sequence[ManifestRow], trainings: Sequence[Training], config: StudyConfig) -> list[ManifestRow]:
    """The slides that get a heatmap."""
    if config.heatmap.slides == "all":
        return list(rows)
    return [row for row in rows if split_of(row, trainings) == "test"]


def judges(row: ManifestRow, trained: Sequence[Trained], config: StudyConfig) -> list[Trained]:
    """The models that make a slide's heatmap: those that have not seen its case, and of these as configured."""
    tested = [one for one in trained if one.training.split_of.get(row.case_id) == "test"]
    chosen = tested if config.repeats.folds is not None and tested else list(trained)
    return [min(chosen, key=_log_loss)] if config.heatmap.model == "best" else chosen


def _log_loss(one: Trained) -> float:
    metric = one.model.info.metrics.get("val", {}).get("log_loss")
    return np.inf if metric is None or metric.value is None else metric.value


def as_one(chosen: Sequence[Trained]) -> TileModel | Ensemble:
    """The models as one."""
    return make_ensemble([one.model for one in chosen])


def predict_settings(config: StudyConfig) -> PredictConfig:
    """How tiles are predicted."""
    return PredictConfig(**config.heatmap.model_dump(exclude={"slides", "model", "outputs"}))


def truth_of(row: ManifestRow, info: ModelInfo) -> shapely.Geometry | None:
    """What the slide's annotation says of the model's positive class; of a label image, which has no outlines, None.

    Raises InputError.
    """
    if row.annotation is None or row.annotation.suffix.lower() in label_image.SUFFIXES:
        return None
    return read_polygons(row.annotation).get(info.positive_class)


def heatmap_standing(row: ManifestRow, trained: Sequence[Trained], config: StudyConfig) -> Standing:
    """How a slide's heatmap stands, where its store and the models do."""
    folder, store = config.out / HEATMAPS / row.slide_id, config.out / STORES / f"{row.slide_id}.zarr"
    if not (folder / COMMIT).exists():
        return TO_DO
    model = as_one(judges(row, trained, config))
    try:
        truth = truth_of(row, trained[0].model.info)
        recipe = heatmap_recipe(store, model, predict_settings(config), truth=truth, outputs=config.heatmap.outputs)
    except SpecslideError as error:
        return Standing("changed", error.what)
    return Standing(*state(folder, recipe))


def slide_rows(rows: Sequence[ManifestRow], trainings: Sequence[Training], config: StudyConfig) -> list[ManifestRow]:
    """The slides, with the splits that count, whose heatmaps are tested: labelled ones of the test split, and of the
    validation where a threshold is chosen on it.
    """
    wanted = ("test", "val") if config.evaluate.sensitivity is not None else ("test",)
    classes = trainings[0].samples.classes
    split = [row.model_copy(update={"split": split_of(row, trainings)}) for row in rows]
    return [row for row in split if row.split in wanted and row.label in classes]


def why_not_slides(rows: Sequence[ManifestRow], positive: str, config: StudyConfig) -> str:
    """Why the heatmaps of those `slide_rows` cannot be tested; "" if they can."""
    tested = [row for row in rows if row.split == "test"]
    if len({row.label == positive for row in tested}) < 2:
        return "the labelled slides of the test split are not of both classes"
    if config.evaluate.sensitivity is not None and not any(r.split == "val" and r.label == positive for r in rows):
        return "the split val has no positive slide to choose a threshold on"
    return ""
