"""The verb `run`: a study from its slides to its heatmaps, skipping what is done and unchanged.

The stages are in pipeline.study.stages; beside what they make, `ledger.jsonl` in the study's folder has the times.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from pipeline.redaction import redact
from pipeline.study.config import StudyConfig, load_study
from pipeline.study.ledger import Step, append
from pipeline.study.plan import looked_at, walk
from pipeline.study.stages.stage import BAG_HEATMAPS, BAG_SLIDES, SLIDES, TRAINING, Artefact, Stage, Study, within
from tiling.core.artefact import DONE, locked_folder
from tiling.core.errors import ConfigError, OutputError, SpecslideError, StoppedError
from tiling.core.files import is_locked
from tiling.core.signals import STOPPING
from tiling.manifest import read_manifest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inference import HeatmapReport
    from tiling.core.pages import Section

log = logging.getLogger(__name__)

Announce = Callable[[Sequence[Step]], None]


@dataclass(frozen=True)
class StudyReport:
    """The result of a study."""

    out: Path
    models: tuple[Path, ...]
    """The model folders, in the order of the trainings."""
    heatmaps: tuple[HeatmapReport, ...]
    """Those of the tile classifiers."""
    failed: Mapping[str, str]
    """slide_id, or the folder of what could not be made of all slides -> reason, redacted."""
    test_auroc: float | None
    """AUROC of all tiles of the heatmaps against their annotations; None without both."""
    trained: tuple[bool, ...]
    """Of each model whether it was made now."""
    tests: tuple[Path, ...] = ()
    """Folders of the evaluations of models on tiles."""
    stress: tuple[Path, ...] = ()
    """Folders of the stress tests."""
    slides: Path | None = None
    """Folder of the evaluation of the heatmaps."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """What was asked for and cannot be: artefact -> reason."""
    rank: int = 0
    """Which of several processes that train together this is; only the first, 0, knows of the study."""
    bag_heatmaps: tuple[HeatmapReport, ...] = ()
    """Those of the model of bags."""
    bag_slides: Path | None = None
    """Folder of their evaluation."""
    sections: tuple[Section, ...] = ()
    """What the study's page shows."""

    @property
    def model(self) -> Path:
        """The model folder, of several trainings the first one's."""
        return self.models[0]


def run(study: StudyConfig | Path | str, *, announce: Announce | None = None) -> StudyReport:
    """Bring a study up to date: tile, train, evaluate, stress, heatmaps, reports. What is there and unchanged is kept.

    `announce` gets the plan before anything is done; None: what will be remade goes to the log. A slide that fails
    is reported with its reason and never stops the others. SIGTERM, SIGUSR1 and Ctrl-C raise StoppedError, and the same
    call goes on; so it does after a kill, to the very same artefacts. Raises SpecslideError where nothing can go on: a
    wrong configuration or manifest, a folder that another process is running, a disk that is full, or no model to be
    had from the slides that are left.

    Example:
        >>> run("study.yaml").out.as_posix()
        'results'
    """
    from pipeline.execution.job import require_folder
    from training.processes import is_own_child

    config = study if isinstance(study, StudyConfig) else load_study(Path(study))
    rows = read_manifest(config.manifest)
    if is_own_child():
        return _train_beside(config)
    _require_one_process(config)
    require_folder(config.out)
    with _held(config.out), _stoppable(config.out), _logged(config):
        steps = list(looked_at(config).steps.values())
        append(config.out, "plan", steps=[_redacted(step, config) for step in steps])
        (announce or _log_plan)(steps)
        work = Study(config, rows)
        walk(work, make)
        return _report(work)


def make(study: Study, stage: Stage, artefacts: Sequence[Artefact]) -> None:
    """Make the artefacts of a stage that are not done, and note what became of them."""
    wanted = [artefact for artefact in artefacts if not artefact.skip]
    for artefact in artefacts:
        if artefact.skip:
            study.skip(artefact)
    if wanted:
        stage.make(study, wanted)
    for artefact in wanted:
        study.steps.setdefault(artefact.name, Step(stage.name, artefact.name, "done"))


def _report(study: Study) -> StudyReport:
    from pipeline.study.stages.heatmap import tile_auroc
    from pipeline.study.stages.report import page_sections

    def folders(stage: str) -> tuple[Path, ...]:
        return tuple(study.out / step.name for step in study.steps.values() if step.stage == stage)

    def tested(name: str) -> Path | None:
        return study.out / name if name in study.steps and name not in study.failed else None

    return StudyReport(
        out=study.out,
        models=tuple(one.folder for one in study.trained),
        heatmaps=tuple(study.results.get("heatmap", ())),
        bag_heatmaps=tuple(study.results.get(BAG_HEATMAPS, ())),
        failed=study.failed,
        test_auroc=tile_auroc(study),
        trained=tuple(within(TRAINING, one.training.name) in study.made for one in study.trained),
        tests=folders("evaluate"),
        stress=folders("stress"),
        slides=tested(SLIDES),
        bag_slides=tested(BAG_SLIDES),
        skipped=study.skipped,
        sections=tuple(page_sections(study)),
    )


def _train_beside(config: StudyConfig) -> StudyReport:
    """Take part in the training that the first process of several has come to: it starts the others for each anew."""
    from pipeline.study.stages.train import model_state
    from training import train

    study = looked_at(config)
    for training in study.trainings:
        if model_state(training, study) != DONE:
            out = config.out / within(TRAINING, training.name)
            result = train(training.samples, out, training.config, overwrite=True)
            return StudyReport(config.out, (result.model,), (), {}, None, (True,), rank=result.rank)
    raise ConfigError("train.devices", "a process has nothing to train", "run the study again")


def _require_one_process(config: StudyConfig) -> None:
    """Raise ConfigError where torchrun or srun have started several processes: a study is led by one."""
    from training.processes import processes_of

    found = processes_of(config.train.model_copy(update={"devices": None, "nodes": None}))
    if found.devices * found.nodes > 1:
        fix = "start it once and set train.devices, or train with specslide train"
        raise ConfigError("specslide run", f"was started {found.devices * found.nodes} times at once", fix)


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """Hold the study's folder: of two runs at once the second is refused. A killed run blocks nobody."""
    study = out / "study"
    if is_locked(study):
        fix = f"wait for it to end, or see how far it is: specslide status {out}"
        raise OutputError(out, "is being run by another process", fix)
    with locked_folder(study):
        yield


@contextmanager
def _stoppable(out: Path) -> Iterator[None]:
    """Raise StoppedError on a signal that asks to stop; a training, which saves its state first, does so itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    asked: list[signal.Signals] = []

    def stop(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(asked[0] if asked else number).name
        raise StoppedError(out, f"stopped by {name}", "run the same command again to go on")

    def interrupted(number: int, frame: FrameType | None) -> None:
        asked.append(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # which a training heeds

    before = {number: signal.signal(number, stop) for number in STOPPING}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _logged(config: StudyConfig) -> Iterator[None]:
    """Write in the ledger when the run begins, and how it ends."""
    append(config.out, "start")
    start = time.perf_counter()
    try:
        yield
    except StoppedError as error:
        append(config.out, "stopped", seconds=time.perf_counter() - start, reason=error.what)
        raise
    except Exception as error:  # is raised again; of a bug the ledger says no more than its kind
        known = isinstance(error, SpecslideError)
        reason = redact(str(error), config.manifest.parent, config.out) if known else type(error).__name__
        append(config.out, "failed", seconds=time.perf_counter() - start, reason=reason)
        raise
    append(config.out, "end", seconds=time.perf_counter() - start)


def _log_plan(steps: Sequence[Step]) -> None:
    for step in steps:
        if step.state == "changed":
            log.warning("%s is made again: %s", step.name, step.why)


def _redacted(step: Step, config: StudyConfig) -> Step:
    return step._replace(why=redact(step.why, config.manifest.parent, config.out))
