"""evaluation/slides: made from the heatmaps, and the labels and annotations of their slides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from inference.config import EvaluateSlidesConfig, SlideTestConfig
from pipeline.study.stages.heatmap import name_of, split_of
from pipeline.study.stages.stage import SLIDES, Artefact, Stage, Study, page_in, state_of
from tiling.core.artefact import Recipe, state
from tiling.core.errors import OutputError, SpecslideError

if TYPE_CHECKING:
    from tiling.core.pages import Section
    from tiling.manifest import ManifestRow


def _rows(study: Study) -> list[ManifestRow]:
    """The slides, with the splits that count, whose heatmaps are tested: labelled ones of the test split, and of the
    validation where a threshold is chosen on it.
    """
    wanted = ("test", "val") if study.config.evaluate.sensitivity is not None else ("test",)
    classes = study.trainings[0].samples.classes
    trainings = [training.split_of for training in study.trainings]
    rows = [row.model_copy(update={"split": split_of(row, trainings)}) for row in study.usable]
    return [row for row in rows if row.split in wanted and row.label in classes]


def _why_not(rows: Sequence[ManifestRow], positive: str, study: Study) -> str:
    """Why the heatmaps of those slides cannot be tested; "" if they can."""
    if len({row.label == positive for row in rows if row.split == "test"}) < 2:
        return "the labelled slides of the test split are not of both classes"
    chosen_on = [row for row in rows if row.split == "val" and row.label == positive]
    if study.config.evaluate.sensitivity is not None and not chosen_on:
        return "the split val has no positive slide to choose a threshold on"
    return ""


def _artefacts(study: Study) -> list[Artefact]:
    if not study.config.evaluate.slides or (not study.has_models and not any(row.label for row in study.usable)):
        return []
    if not study.has_models:
        return [Artefact(SLIDES)]
    rows = _rows(study)
    if why := _why_not(rows, study.trained[0].info.positive_class, study):
        return [Artefact(SLIDES, skip=why)]
    if not all(study.steps[name_of(row)].state == "done" for row in rows if name_of(row) in study.steps):
        return [Artefact(SLIDES)]
    return [
        Artefact(
            SLIDES,
            lambda: state_of(lambda: state(study.out / SLIDES, _recipe(rows, study))),
            lambda: _test(rows, study),
        )
    ]


def _settings(study: Study) -> EvaluateSlidesConfig:
    asked = study.config.evaluate.model_dump(include=set(SlideTestConfig.model_fields))
    return EvaluateSlidesConfig(split="test", annotation=study.config.tile.annotation, **asked)


def _recipe(rows: Sequence[ManifestRow], study: Study) -> Recipe:
    from inference.recipes import slides_recipe

    return slides_recipe(study.out / "heatmaps", rows, _settings(study))


def _test(rows: Sequence[ManifestRow], study: Study) -> None:
    from inference.evaluation.evaluate_slides import evaluate_slides

    evaluate_slides(
        study.out / "heatmaps", study.config.manifest, study.out / SLIDES, _settings(study), rows=rows,
        one_model=study.config.repeats.folds is None,
    )  # fmt: skip


def _make(study: Study, artefacts: Sequence[Artefact]) -> None:
    try:
        study.make(artefacts)
    except OutputError:
        raise
    except SpecslideError as error:  # of the manifest or its annotations: all else is there already
        study.fail(SLIDES, str(error))


def _sections(study: Study) -> list[Section]:
    from tiling.core.pages import Link, Picture, Section
    from training.evaluation.bootstrap import Interval

    folder = study.out / SLIDES
    if SLIDES not in study.steps or SLIDES in study.failed or SLIDES in study.skipped:
        return []
    found = json.loads((folder / "slides.json").read_bytes())
    rows = tuple((name, str(Interval(**score["auroc"]))) for name, score in found["scores"].items())
    count, split = len(found["slides"]), found["split"]
    text = f"How well a score of their heatmaps tells {count} slides of the split {split} apart."
    pictures = (Picture(folder / "slides.png", "slides, and lesions where they are known"),)
    links = (Link(page_in(folder, "slides"), "all figures"),)
    return [Section("Test slides", text, ("score", "AUROC (95% interval over cases)"), rows, pictures, links)]


SLIDE_TEST = Stage("slides", _artefacts, _make, _sections)
