"""The verb `run`: a study from its slides to its heatmaps, skipping what is done and unchanged.

Results in the study's folder, beside those that pipeline.study.artefacts lists: `study.json` with what was done and
what was not, `index.html` that shows it, and `ledger.jsonl` with the times.
"""

from __future__ import annotations

import logging
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import pyarrow.parquet
from rich.progress import Progress, TaskID

from inference.evaluation.evaluate_slides import evaluate_slides
from inference.exports import TABLE
from inference.heatmap import HeatmapReport
from pipeline.console import progress_bar
from pipeline.execution.jobs import HeatmapJob, predict_all, require_folder, tile_all
from pipeline.execution.pool import Outcome, default_workers
from pipeline.redaction import files_of, redact
from pipeline.study import artefacts as stages
from pipeline.study import plan as planning
from pipeline.study.artefacts import HEATMAPS, SLIDES, STORES, STRESS, TILES, TRAINING, Trained, Training
from pipeline.study.config import StudyConfig, load_study
from pipeline.study.ledger import Step, append, timed
from pipeline.study.study_page import PAGE, STUDY, StudyReport, write_study
from tiling import TileStore
from tiling.core.artefact import DONE, Recipe, locked_folder, state
from tiling.core.errors import ConfigError, OutputError, SpecslideError, StoppedError
from tiling.core.files import is_locked, output_error
from tiling.core.signals import STOPPING
from tiling.manifest import ManifestRow, read_manifest
from training import evaluate_models, train
from training.devices import is_own_child, launching, processes_of
from training.evaluation.metrics import auroc
from training.evaluation.robustness import stress

log = logging.getLogger(__name__)

Announce = Callable[[Sequence[Step]], None]


def run(study: StudyConfig | Path | str, *, announce: Announce | None = None) -> StudyReport:
    """Bring a study up to date: tile, train, evaluate, stress, heatmaps, reports. What is there and unchanged is kept.

    `announce` is told the plan before anything is done; None: what will be remade goes to the log. A slide that fails
    is reported with its reason and never stops the others. SIGTERM, SIGUSR1 and Ctrl-C raise StoppedError, and the same
    call goes on; so it does after a kill, to the very same artefacts. Raises SpecslideError where nothing can go on: a
    wrong configuration or manifest, a folder that another process is running, a disk that is full, or no model to be
    had from the slides that are left.
    """
    config = study if isinstance(study, StudyConfig) else load_study(Path(study))
    rows = read_manifest(config.manifest)
    if is_own_child():
        return _train_beside(config)
    _require_one_process(config)
    require_folder(config.out)
    with _held(config.out), _stoppable(config.out), _told(config):
        steps = planning.plan(config)
        append(config.out, "plan", steps=[_untold(step, config) for step in steps])
        (announce or _log_plan)(steps)
        return _Run(config, rows).report()


@dataclass
class _Run:
    """A run under way."""

    config: StudyConfig
    rows: Sequence[ManifestRow]

    def __post_init__(self) -> None:
        self.failed: dict[str, str] = {}  # reasons as others may read them
        self.skipped: dict[str, str] = {}

    def report(self) -> StudyReport:
        """All stages, in their order."""
        config, out = self.config, self.config.out
        self.tile()
        usable = [row for row in self.rows if row.slide_id not in self.failed]
        trainings = stages.read_trainings(config, self.failed)
        made = [self.train(training) for training in trainings]
        trained = [stages.load_trained(training, config) for training in trainings]
        tests = self.evaluate(trained)
        stressed = self.stress(trained)
        heatmaps = self.heatmaps(usable, trained)
        slides = self.slides(usable, trained)
        report = StudyReport(
            out=out,
            tiled=tuple(row.slide_id for row in usable),
            models=tuple(out / stages.within(TRAINING, training.name) / "model" for training in trainings),
            heatmaps=tuple(heatmaps),
            failed=self.failed,
            test_auroc=_tile_auroc(heatmaps, self.rows, trained, config),
            trained=tuple(made),
            tests=tests,
            stress=stressed,
            slides=slides,
            skipped=self.skipped,
        )
        write_study(report, config)
        for name in (STUDY, PAGE):
            append(out, "made", "report", name)
        return report

    def tile(self) -> None:
        """The stores; slides that fail are noted."""
        config = self.config
        outcomes = tile_all(
            self.rows, config.out / STORES, config.tile, workers=config.workers or default_workers(), overwrite=True,
            cluster=config.cluster, ledger=config.out,
        )  # fmt: skip
        for outcome in outcomes:
            if outcome.error is not None:
                self.fail("tile", f"{STORES}/{outcome.job.slide_id}.zarr", outcome.job.row, outcome.error)

    def train(self, training: Training) -> bool:
        """The model of a training; whether it was made now."""
        config, name = self.config, stages.within(TRAINING, training.name)
        folder = config.out / name
        standing = stages.model_standing(training, training.name, training.config, config.out)

        def make() -> _Made:
            if standing == stages.DONE:
                log.info("%s: complete already", folder / "model")
                _tidy(folder)
                return _Made(reused=True)
            with launching():
                train(training.samples, folder, training.config)
            return _Made()

        return not timed(config.out, "train", name, make).reused

    def evaluate(self, trained: Sequence[Trained]) -> tuple[Path, ...]:
        """Each model on the tiles of its test split; the folders of the figures."""
        config, found = self.config, []
        for one in trained if config.evaluate.tiles else ():
            name, chosen = stages.within(TILES, one.training.name), one.training.tested()
            if not len(chosen):
                self.skip("evaluate", name, "there is no test split")
                continue

            def make(folder: Path, one: Trained = one) -> None:
                by = stages.groups_of(one.training, config)
                with progress_bar("tiles") as bar:
                    shown = bar.add_task("evaluation", total=None, tiles="")
                    evaluate_models(
                        [one.model], one.training.tested(), folder, by=by,
                        resamples=config.evaluate.resamples, progress=_shown(bar, shown),
                    )  # fmt: skip

            found.append(self.recorded("evaluate", name, stages.tiles_recipe(one, config), make))
        return tuple(found)

    def stress(self, trained: Sequence[Trained]) -> tuple[Path, ...]:
        """The models on shifted test tiles; the folders of the figures."""
        config, found = self.config, []
        of = {one.training.name: one for one in trained}
        groups = stages.stress_groups(config, list(of)) if config.stress.shifts else {}
        for group, members in groups.items():
            name, ones = stages.within(STRESS, group), [of[member] for member in members]
            if not len(ones[0].training.tested()):
                self.skip("stress", name, "there is no test split")
                continue

            def make(folder: Path, ones: Sequence[Trained] = ones) -> None:
                settings = config.stress
                with progress_bar("tiles") as bar:
                    shown = bar.add_task("stress", total=None, tiles="")
                    stress(
                        {stages.name_of(one.training): one.model for one in ones},
                        ones[0].training.tested(), folder, metric=settings.metric,
                        shifts=settings.shifts, steps=settings.strengths, resamples=settings.resamples,
                        progress=_shown(bar, shown),
                    )  # fmt: skip

            found.append(self.recorded("stress", name, stages.stress_of(ones, config), make))
        return tuple(found)

    def heatmaps(self, usable: Sequence[ManifestRow], trained: Sequence[Trained]) -> list[HeatmapReport]:
        """The heatmaps of the slides that get one; those that fail are noted."""
        config, out = self.config, self.config.out
        trainings = [one.training for one in trained]
        rows = stages.heatmap_rows(usable, trainings, config)
        if not rows:
            self.skip("heatmap", f"{HEATMAPS}/...", "no slide is in the test split")
        append(out, "plan", steps=[Step("heatmap", f"{HEATMAPS}/{row.slide_id}", "to do") for row in rows])
        require_folder(out / HEATMAPS)
        jobs: dict[tuple[str, ...], list[HeatmapJob]] = {}
        row_of = {row.slide_id: row for row in rows}
        for row in rows:
            try:
                truth = stages.truth_of(row, trained[0].model.info)
            except SpecslideError as error:
                self.fail("heatmap", f"{HEATMAPS}/{row.slide_id}", row, str(error))
                continue
            chosen = tuple(one.training.name for one in stages.judges(row, trained, config))
            store, settings = out / STORES / f"{row.slide_id}.zarr", stages.predict_settings(config)
            job = HeatmapJob(
                store, row.slide_id, out / HEATMAPS, settings,
                truth=truth, outputs=config.heatmap.outputs, overwrite=True, ledger=out,
            )  # fmt: skip
            jobs.setdefault(chosen, []).append(job)
        reports = {}
        for names, of_models in jobs.items():
            for outcome in self.predict(of_models, [one for one in trained if one.training.name in names]):
                if outcome.result is not None:
                    reports[outcome.job.slide_id] = outcome.result
                else:
                    row = row_of[outcome.job.slide_id]
                    self.fail("heatmap", f"{HEATMAPS}/{row.slide_id}", row, outcome.error or "")
        return [reports[row.slide_id] for row in rows if row.slide_id in reports]

    def predict(
        self, jobs: Sequence[HeatmapJob], chosen: Sequence[Trained]
    ) -> Sequence[Outcome[HeatmapJob, HeatmapReport]]:
        """Heatmaps by those models: loaded ones in this process, or their folders where other processes work."""
        config = self.config
        if config.cluster is None and stages.place_of(config).type == "cpu":
            return predict_all(jobs, stages.as_one(chosen))
        folders = [config.out / stages.within(TRAINING, one.training.name) / "model" for one in chosen]
        return predict_all(jobs, folders, device=stages.device_word(config), cluster=config.cluster)

    def slides(self, usable: Sequence[ManifestRow], trained: Sequence[Trained]) -> Path | None:
        """The heatmaps against what is known of their slides; the folder of the figures, None if nothing is."""
        config, out = self.config, self.config.out
        if not config.evaluate.slides:
            return None
        there = [row for row in usable if row.slide_id not in self.failed]
        rows = stages.slide_rows(there, [one.training for one in trained], config)
        if why := stages.why_not_slides(rows, trained[0].model.info.positive_class, config):
            self.skip("slides", SLIDES, why)
            return None

        def work() -> _Made:
            if stages.slides_standing(rows, config) == stages.DONE:
                return _Made(reused=True)
            evaluate_slides(
                out / HEATMAPS, config.manifest, out / SLIDES, rows=rows, one_model=config.repeats.folds is None,
                **stages.slides_settings(config),
            )  # fmt: skip
            return _Made()

        try:
            timed(out, "slides", SLIDES, work)
            return out / SLIDES
        except OutputError:
            raise
        except SpecslideError as error:  # of the manifest or its annotations: all else is there already
            self.failed[SLIDES] = redact(str(error), config.manifest.parent, out)
            append(out, "failed", "slides", SLIDES, reason=self.failed[SLIDES])
            return None

    def recorded(self, stage: str, name: str, recipe: Recipe, make: Callable[[Path], None]) -> Path:
        """An artefact, kept if it was made by that recipe."""
        folder = self.config.out / name

        def work() -> _Made:
            if state(folder, recipe) == DONE:
                return _Made(reused=True)
            make(folder)
            return _Made()

        timed(self.config.out, stage, name, work)
        return folder

    def skip(self, stage: str, name: str, why: str) -> None:
        """Note a part that this study has no use for, with the reason."""
        append(self.config.out, "skipped", stage, name, reason=why)
        self.skipped[name] = why

    def fail(self, stage: str, name: str, row: ManifestRow, reason: str) -> None:
        """Note a slide that failed, with its reason."""
        told = redact(reason, self.config.manifest.parent, self.config.out, names=files_of(row))
        log.warning("%s: failed: %s", row.slide_id, told)
        append(self.config.out, "failed", stage, name, reason=told)
        self.failed[row.slide_id] = told


@dataclass(frozen=True)
class _Made:
    reused: bool = False


def _shown(bar: Progress, task: TaskID) -> Callable[[int, int], None]:
    return lambda done, total: bar.update(task, completed=done, total=total)


def _train_beside(config: StudyConfig) -> StudyReport:
    """Take part in the training that the first process of several has come to: it starts the others for each anew."""
    failed = planning.failed_slides(config)
    for training in stages.read_trainings(config, failed):
        if stages.model_standing(training, training.name, training.config, config.out) != stages.DONE:
            result = train(training.samples, config.out / stages.within(TRAINING, training.name), training.config)
            return StudyReport(config.out, (result.model,), (), {}, None, (True,), rank=result.rank)
    raise ConfigError("train.devices", "a process has nothing to train", "run the study again")


def _require_one_process(config: StudyConfig) -> None:
    """Raise ConfigError where torchrun or srun have started several processes: a study is led by one."""
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
def _told(config: StudyConfig) -> Iterator[None]:
    """Say in the ledger when the run begins, and how it ends."""
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


def _untold(step: Step, config: StudyConfig) -> Step:
    return step._replace(why=redact(step.why, config.manifest.parent, config.out))


def _tidy(folder: Path) -> None:
    """Remove what a training left that was killed after its model was there. Raises OutputError."""
    with locked_folder(folder / "run"), locked_folder(folder / "model"):
        try:
            if (folder / "checkpoints").exists():
                shutil.rmtree(folder / "checkpoints")
        except OSError as error:
            raise output_error(folder, error) from error


def _tile_auroc(
    heatmaps: Sequence[HeatmapReport], rows: Sequence[ManifestRow], trained: Sequence[Trained], config: StudyConfig
) -> float | None:
    """AUROC of every predicted tile of the slides whose every tile is known: positive if at least half of it is
    annotated so. Known are annotated slides, and those that need no annotation, being negative.
    """
    positive = trained[0].model.info.positive_class
    known = {row.slide_id for row in rows if row.annotation is not None or row.label == config.train.negative_class}
    scores: list[float] = []
    labels: list[bool] = []
    for report in heatmaps:
        if report.slide_id in known:
            of_slide = _scored_tiles(report, TileStore(config.out / STORES / f"{report.slide_id}.zarr"), positive)
            scores += [score for score, _ in of_slide]
            labels += [label for _, label in of_slide]
    if len(set(labels)) < 2:
        return None
    return float(auroc(np.stack([1 - np.array(scores), np.array(scores)], 1), np.array(labels, np.int64)))


def _scored_tiles(report: HeatmapReport, store: TileStore, positive: str) -> list[tuple[float, bool]]:
    table = pyarrow.parquet.read_table(report.folder / TABLE)
    fractions = store.annotations.get(positive, np.zeros(len(store), np.float32)).tolist()
    fraction_at = dict(zip(store.tiles.places(), fractions, strict=True))
    places = zip(table["minx"].to_pylist(), table["miny"].to_pylist(), strict=True)
    known = [fraction_at[place] >= 0.5 for place in places]
    return list(zip(table[f"prob_{positive}"].to_pylist(), known, strict=True))
