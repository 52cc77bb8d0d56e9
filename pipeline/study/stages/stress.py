"""stress[/<run>]: made from the models and their test tiles, shifted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.meter import progress_of
from pipeline.study.stages.evaluate import NO_TEST
from pipeline.study.stages.stage import STRESS, Artefact, Stage, Study, Trained, within
from tiling.core.artefact import state
from training.config import ShiftsConfig

if TYPE_CHECKING:
    from tiling.core.pages import Section


def _groups(study: Study) -> dict[str, tuple[str, ...]]:
    """The names of the trainings of each stress test, by its own. Trainings under several seeds share their test tiles,
    and one picture.
    """
    names = list(study.config.trainings())
    return {name: (name,) for name in names} if study.config.repeats.folds is not None else {"": tuple(names)}


def _artefacts(study: Study) -> list[Artefact]:
    if not study.config.stress.shifts:
        return []
    if not study.has_models:
        return [Artefact(within(STRESS, name)) for name in _groups(study)]
    of = {one.training.name: one for one in study.trained}
    return [
        _artefact(within(STRESS, name), [of[m] for m in members], study) for name, members in _groups(study).items()
    ]


def _artefact(name: str, models: Sequence[Trained], study: Study) -> Artefact:
    from training.recipes import stress_recipe

    tested, settings = models[0].training.tested(), study.config.stress
    if not len(tested):
        return Artefact(name, skip=NO_TEST)
    how, resamples = ShiftsConfig(**settings.model_dump(exclude={"resamples"})), settings.resamples
    recipe = stress_recipe({one.title: one.sha256 for one in models}, tested, how, resamples=resamples)

    def make() -> None:
        from inference.backends import quickest
        from training import load_model
        from training.evaluation.robustness import stress

        with progress_of("stress", "tiles") as progress:
            count = len(tested) * how.predictions
            loaded = {one.title: quickest(load_model(one.folder, study.place()), count) for one in models}
            stress(loaded, tested, study.out / name, how, resamples=resamples, progress=progress)

    return Artefact(name, lambda: state(study.out / name, recipe), make)


def _sections(study: Study) -> list[Section]:
    from tiling.core.pages import Link, Picture, Section

    folders = [study.out / a.name for a in _artefacts(study) if not a.skip]
    if not folders:
        return []
    named = {folder: folder.name if len(folders) > 1 else "" for folder in folders}
    text = "How far the models stand what another scanner or laboratory changes: test tiles, shifted."
    pictures = tuple(Picture(f / "stress.png", f"shifted tiles{named[f] and ': ' + named[f]}") for f in folders)
    links = tuple(Link(f / "stress.csv", f"all figures{named[f] and ' of ' + named[f]}") for f in folders)
    return [Section("Shifted tiles", text, pictures=pictures, links=links)]


STRESS_TEST = Stage("stress", _artefacts, sections=_sections)
