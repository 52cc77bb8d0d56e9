"""What a study's run would do, and why. Reads, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.study.config import StudyConfig
from pipeline.study.ledger import Step
from pipeline.study.stages.stage import Artefact, Stage, Study
from tiling.manifest import read_manifest

Visit = Callable[[Study, Stage, Sequence[Artefact]], None]


def plan(config: StudyConfig) -> list[Step]:
    """Every artefact of a study in the order of its making, with its state.

    What follows from something that is made first counts as changed where it is there: whether it can be kept after all
    is known only then. A slide is taken to be the same as long as its file is older than its store; the run itself
    looks at every byte. Raises SpecslideError for a wrong manifest.
    """
    return list(looked_at(config).steps.values())


def looked_at(config: StudyConfig) -> Study:
    """The study with the state of every artefact."""
    study = Study(config, read_manifest(config.manifest))
    walk(study, look)
    return study


def walk(study: Study, visit: Visit) -> None:
    """Visit the stages in their order, each with its artefacts: the one loop behind a plan and a run."""
    from pipeline.study.stages import STAGES

    for stage in STAGES:
        study.stage = stage.name
        visit(study, stage, stage.artefacts(study))


def look(study: Study, stage: Stage, artefacts: Sequence[Artefact]) -> None:
    """Note the state of some artefacts."""
    for artefact in artefacts:
        if not artefact.skip:
            found = study.follows(artefact.name) if artefact.state is None else artefact.state()
            study.steps[artefact.name] = Step(stage.name, artefact.name, *found)
