"""evaluation/tiles[/<run>]: made from the model, its test tiles and their groups."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.meter import progress_of
from pipeline.study.stages.stage import TILES, Artefact, Stage, Study, Trained, page_in, within
from tiling.core.artefact import state

if TYPE_CHECKING:
    from tiling.core.pages import Section

NO_TEST = "there is no test split"


def _artefacts(study: Study) -> list[Artefact]:
    if not study.config.evaluate.tiles:
        return []
    if not study.has_models:
        return [Artefact(within(TILES, name)) for name in study.config.trainings()]
    return [_artefact(one, study) for one in study.trained]


def _artefact(one: Trained, study: Study) -> Artefact:
    from training.recipes import evaluation_recipe

    name, tested, resamples = within(TILES, one.training.name), one.training.tested(), study.config.evaluate.resamples
    if not len(tested):
        return Artefact(name, skip=NO_TEST)
    by = [column for column in study.config.evaluate.by if (tested.column(column) != "").any()]  # somebody filled it
    recipe = evaluation_recipe({"model": one.sha256}, tested, by=by, resamples=resamples)

    def make() -> None:
        from inference.backends import quickest
        from training import evaluate_models, load_model

        with progress_of("evaluation", "tiles") as progress:
            model = quickest(load_model(one.folder, study.place()), len(tested))
            evaluate_models([model], tested, study.out / name, by=by, resamples=resamples, progress=progress)

    return Artefact(name, lambda: state(study.out / name, recipe), make)


def _sections(study: Study) -> list[Section]:
    from tiling.core.pages import Link, Picture, Section

    folders = [study.out / a.name for a in _artefacts(study) if not a.skip]
    if not folders:
        return []
    named = {folder: f"{folder.name}: " if len(folders) > 1 else "" for folder in folders}
    pictures = tuple(Picture(p, f"{named[f]}{_shown_in(p)}") for f in folders for p in sorted(f.glob("*.png")))
    links = tuple(Link(page_in(f, "evaluation"), f"all figures{' of ' + f.name if named[f] else ''}") for f in folders)
    return [Section("Test tiles", "What the models say of tiles they have not seen.", (), (), pictures, links)]


def _shown_in(picture: Path) -> str:
    """What a picture of an evaluation shows, by its name `model_performance.png`."""
    part = picture.stem.removeprefix("model_")
    return {"performance": "performance", "gallery": "tiles most surely right and wrong"}.get(part, f"by {part}")


EVALUATE = Stage("evaluate", _artefacts, sections=_sections)
