"""bags/model: made from the features and the slides' labels, by the section `bags`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pipeline.study.stages.stage import BAGS, Artefact, Stage, Study, is_published, state_of
from pipeline.study.stages.train import metric_text
from tiling.core.artefact import TO_DO, State
from tiling.core.errors import SpecslideError

if TYPE_CHECKING:
    from tiling.core.pages import Section


def _artefacts(study: Study) -> list[Artefact]:
    if study.config.bags is None:
        return []
    if not all(step.state in ("done", "failed") for step in study.steps.values() if step.stage == "embed"):
        return [Artefact(BAGS)]
    return [Artefact(BAGS, partial(state_of, partial(_look, study)), partial(_train, study))]


def _look(study: Study) -> State:
    from training import model_state

    folder = study.out / BAGS / "model"
    if study.config.bags is None or not is_published(folder):
        return TO_DO
    return model_state(folder, study.bags, study.config.bags.train)


def _train(study: Study) -> None:
    """Train; where slides' labels cannot be learned from, that is noted, and costs the study nothing else."""
    from training import train
    from training.processes import launching

    assert study.config.bags is not None
    try:
        with launching():
            train(study.bags, study.out / BAGS, study.config.bags.train, overwrite=True)
    except SpecslideError as error:
        study.fail(BAGS, str(error))


def _sections(study: Study) -> list[Section]:
    from tiling.core.pages import Link, Picture, Section
    from training.evaluation.metrics import METRIC_NAMES
    from training.models.info import read_bag_info

    folder = study.out / BAGS
    if study.config.bags is None or not is_published(folder / "model"):
        return []
    info = read_bag_info(folder / "model")
    rows = [(split, *(metric_text(of.get(name)) for name in METRIC_NAMES)) for split, of in info.metrics.items()]
    return [
        Section(
            "Slides by their labels alone",
            f"Multiple-instance learning ({info.network}), a label a {info.bag.split('-')[0]}. "
            "In brackets the 95% interval over cases.",
            ("split", *METRIC_NAMES.values()),
            tuple(rows),
            tuple(Picture(path, path.stem.replace("_", " ")) for path in sorted((folder / "pictures").glob("*.png"))),
            (Link(folder / "model" / "README.md", "model card"),),
        )
    ]


LEARN_BAGS = Stage("bags", _artefacts, sections=_sections)
