"""evaluation/slides, evaluation/bag-slides: made from the heatmaps, and the labels and annotations of their slides.

The former of the tile classifiers' heatmaps, the latter of those by the model of bags.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from inference.config import EvaluateSlidesConfig, SlideTestConfig
from pipeline.study.stages.heatmap import split_of
from pipeline.study.stages.stage import (
    BAG_HEATMAPS,
    BAG_SLIDES,
    BAGS,
    HEATMAPS,
    SLIDES,
    Artefact,
    Stage,
    Study,
    page_in,
    split_by_case,
    state_of,
)
from tiling.core.artefact import Recipe, state
from tiling.core.errors import OutputError, SpecslideError

if TYPE_CHECKING:
    from tiling.core.pages import Section
    from tiling.manifest import ManifestRow
    from training.models.info import ModelRecord


class _Models(NamedTuple):
    """The models behind heatmaps: one of them, and the split of each case in each training."""

    info: ModelRecord
    splits: list[Mapping[str, str]]


@dataclass(frozen=True)
class _Kind:
    """One kind of heatmaps that is tested."""

    heatmaps: str
    """Their folder."""
    out: str
    """The folder of the figures."""
    title: str
    wanted: Callable[[Study], bool]
    models: Callable[[Study], _Models | None]
    """None until they are trained."""
    score: str | None = None
    """The score of a slide; None: as configured."""

    def name_of(self, row: ManifestRow) -> str:
        """The name of a slide's heatmap in the study."""
        return f"{self.heatmaps}/{row.slide_id}"


def _tile_models(study: Study) -> _Models | None:
    if not study.has_models:
        return None
    return _Models(study.trained[0].info, [training.split_of for training in study.trainings])


def _bag_model(study: Study) -> _Models | None:
    from training.models.info import read_bag_info

    if study.steps[BAGS].state != "done":
        return None
    return _Models(read_bag_info(study.out / BAGS / "model"), [split_by_case(study.bags)])


def _has_bags(study: Study) -> bool:
    return study.config.bags is not None and BAGS not in study.failed


OF_TILES = _Kind(HEATMAPS, SLIDES, "Test slides", lambda study: True, _tile_models)
OF_BAGS = _Kind(
    BAG_HEATMAPS, BAG_SLIDES, "Test slides of the model of bags", _has_bags, _bag_model, "bag_probability",
)  # fmt: skip


def _rows(kind: _Kind, models: _Models, study: Study) -> list[ManifestRow]:
    """The slides, with the splits that count, whose heatmaps are tested: labelled ones of the test split, and of the
    validation where a threshold is chosen on it. Those whose heatmap failed are left out.
    """
    wanted = ("test", "val") if study.config.evaluate.sensitivity is not None else ("test",)
    rows = [row.model_copy(update={"split": split_of(row, models.splits)}) for row in study.usable]
    there = {name for name, step in study.steps.items() if step.state != "failed"}
    rows = [row for row in rows if kind.name_of(row) in there]
    return [row for row in rows if row.split in wanted and row.label in models.info.classes]


def _why_not(rows: Sequence[ManifestRow], positive: str, study: Study) -> str:
    """Why the heatmaps of those slides cannot be tested; "" if they can."""
    if len({row.label == positive for row in rows if row.split == "test"}) < 2:
        return "the labelled slides of the test split are not of both classes"
    chosen_on = [row for row in rows if row.split == "val" and row.label == positive]
    if study.config.evaluate.sensitivity is not None and not chosen_on:
        return "the split val has no positive slide to choose a threshold on"
    return ""


def _artefacts(kind: _Kind, study: Study) -> list[Artefact]:
    if not study.config.evaluate.slides or not kind.wanted(study):
        return []
    if (models := kind.models(study)) is None:
        return [Artefact(kind.out)] if any(row.label for row in study.usable) else []
    rows = _rows(kind, models, study)
    if why := _why_not(rows, models.info.positive_class, study):
        return [Artefact(kind.out, skip=why)]
    if not all(study.steps[kind.name_of(row)].state == "done" for row in rows):
        return [Artefact(kind.out)]
    return [
        Artefact(
            kind.out,
            lambda: state_of(lambda: state(study.out / kind.out, _recipe(kind, rows, study))),
            lambda: _test(kind, rows, study),
        )
    ]


def _settings(kind: _Kind, study: Study) -> EvaluateSlidesConfig:
    asked = study.config.evaluate.model_dump(include=set(SlideTestConfig.model_fields))
    asked["score"] = kind.score or asked["score"]
    return EvaluateSlidesConfig(split="test", annotation=study.config.tile.annotation, **asked)


def _recipe(kind: _Kind, rows: Sequence[ManifestRow], study: Study) -> Recipe:
    from inference.recipes import slides_recipe

    return slides_recipe(study.out / kind.heatmaps, rows, _settings(kind, study))


def _test(kind: _Kind, rows: Sequence[ManifestRow], study: Study) -> None:
    from inference.evaluation.evaluate_slides import evaluate_slides

    evaluate_slides(
        study.out / kind.heatmaps, study.config.manifest, study.out / kind.out, _settings(kind, study), rows=rows,
        one_model=kind is OF_BAGS or study.config.repeats.folds is None,
    )  # fmt: skip


def _make(kind: _Kind, study: Study, artefacts: Sequence[Artefact]) -> None:
    try:
        study.make(artefacts)
    except OutputError:
        raise
    except SpecslideError as error:  # of the manifest or its annotations: all else is there already
        study.fail(kind.out, str(error))


def _sections(kind: _Kind, study: Study) -> list[Section]:
    from tiling.core.pages import Link, Picture, Section
    from training.evaluation.bootstrap import Interval

    folder = study.out / kind.out
    if kind.out not in study.steps or kind.out in study.failed or kind.out in study.skipped:
        return []
    found = json.loads((folder / "slides.json").read_bytes())
    rows = tuple((name, str(Interval(**score["auroc"]))) for name, score in found["scores"].items())
    count, split = len(found["slides"]), found["split"]
    text = f"How well a score of their heatmaps tells {count} slides of the split {split} apart."
    pictures = (Picture(folder / "slides.png", "slides, and lesions where they are known"),)
    links = (Link(page_in(folder, "slides"), "all figures"),)
    return [Section(kind.title, text, ("score", "AUROC (95% interval over cases)"), rows, pictures, links)]


def _stage(name: str, kind: _Kind) -> Stage:
    return Stage(name, partial(_artefacts, kind), partial(_make, kind), partial(_sections, kind))


SLIDE_TEST, BAG_SLIDE_TEST = _stage("slides", OF_TILES), _stage("bag-slides", OF_BAGS)
