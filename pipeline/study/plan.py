"""What a study's run would do, and why. Reads, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pipeline.study import artefacts as stages
from pipeline.study.artefacts import (
    DONE,
    HEATMAPS,
    SLIDES,
    STORES,
    STRESS,
    TILES,
    TO_DO,
    TRAINING,
    Standing,
    Trained,
    Training,
)
from pipeline.study.config import StudyConfig
from pipeline.study.ledger import Step, last_of, read_ledger
from pipeline.study.study_page import PAGE, STUDY, told_settings
from tiling.core.errors import SpecslideError
from tiling.manifest import ManifestRow, read_manifest

REPORTS = (STUDY, PAGE)


def plan(config: StudyConfig) -> list[Step]:
    """Every artefact of a study in the order of its making, and how it stands.

    What follows from something that is made first counts as changed where it is there: whether it can be kept after all
    is known only then. A slide is taken to be the same as long as its file is older than its store; the run itself
    looks at every byte. Raises SpecslideError for a wrong manifest.
    """
    rows = read_manifest(config.manifest)
    tiled = _tiled(rows, config)
    failed = {row.slide_id for row, step in zip(rows, tiled, strict=True) if step.state == "failed"}
    usable = [row for row in rows if row.slide_id not in failed]
    waits = any(step.state in ("to do", "changed") for step in tiled)
    trainings, problem = (None, "") if waits else _trainings(config, failed)
    steps = [*tiled, *_trained(config, trainings, problem)]
    ready = _ready(config, trainings, steps)
    steps += _evaluated(config, ready)
    steps += _heatmaps(usable, config, trainings, ready)
    steps += _slides(usable, config, ready, steps)
    whole = all(step.state in ("done", "failed") for step in steps)
    return steps + [Step("report", name, *_reported(config, name, whole=whole)) for name in REPORTS]


def failed_slides(config: StudyConfig) -> list[str]:
    """The slides whose tiling failed the last time, by the ledger."""
    events = last_of(read_ledger(config.out)).values()
    names = [event.name for event in events if event.stage == "tile" and event.event == "failed"]
    return sorted(name.removeprefix(f"{STORES}/").removesuffix(".zarr") for name in names)


def _reported(config: StudyConfig, name: str, *, whole: bool) -> Standing:
    """How study.json or the page stands, where all else is done or is not."""
    if not whole or not (config.out / name).exists():
        return TO_DO
    try:
        settings = json.loads((config.out / STUDY).read_bytes())["config"]
    except (OSError, ValueError, KeyError):
        return TO_DO
    return DONE if settings == told_settings(config) else Standing("changed", "the study's settings are others")


def _tiled(rows: Sequence[ManifestRow], config: StudyConfig) -> list[Step]:
    """The stores; one that failed the last time, and for which nothing has changed since, will probably again."""
    last = last_of(read_ledger(config.out))
    steps = []
    for row in rows:
        name = f"{STORES}/{row.slide_id}.zarr"
        step = Step("tile", name, *stages.store_standing(row, config))
        if step.state != "done" and name in last and last[name].event == "failed":
            step = Step("tile", name, "failed", f"{last[name].reason} (is tried again)")
        steps.append(step)
    return steps


def _trainings(config: StudyConfig, failed: set[str]) -> tuple[list[Training] | None, str]:
    """The trainings, or why there can be none."""
    try:
        return stages.read_trainings(config, sorted(failed)), ""
    except SpecslideError as error:
        return None, str(error)


def _trained(config: StudyConfig, trainings: Sequence[Training] | None, problem: str) -> list[Step]:
    by_name = {training.name: training for training in trainings or ()}
    steps = []
    for name, settings in config.trainings().items():
        standing = stages.model_standing(by_name.get(name), name, settings, config.out)
        if problem:
            standing = Standing("failed", problem)
        steps.append(Step("train", stages.within(TRAINING, name), *standing))
    return steps


def _ready(config: StudyConfig, trainings: Sequence[Training] | None, steps: Sequence[Step]) -> list[Trained] | None:
    """The models, if all are there and stay."""
    if trainings is None or any(step.state != "done" for step in steps if step.stage == "train"):
        return None
    return [stages.load_trained(training, config) for training in trainings]


def _evaluated(config: StudyConfig, ready: Sequence[Trained] | None) -> list[Step]:
    """The tests of models on tiles."""
    of = {one.training.name: one for one in ready or ()}
    names = list(config.trainings())
    steps = []
    if config.evaluate.tiles:
        for name in names:
            folder = stages.within(TILES, name)
            standing = _follows(config, folder)
            if name in of:
                if not len(of[name].training.tested()):
                    continue
                standing = stages.recorded_standing(config.out / folder, stages.tiles_recipe(of[name], config))
            steps.append(Step("evaluate", folder, *standing))
    if config.stress.shifts:
        for name, members in stages.stress_groups(config, names).items():
            folder = stages.within(STRESS, name)
            standing = _follows(config, folder)
            if ready is not None:
                group = [of[member] for member in members]
                if not len(group[0].training.tested()):
                    continue
                standing = stages.recorded_standing(config.out / folder, stages.stress_recipe(group, config))
            steps.append(Step("stress", folder, *standing))
    return steps


def _heatmaps(
    rows: Sequence[ManifestRow],
    config: StudyConfig,
    trainings: Sequence[Training] | None,
    ready: Sequence[Trained] | None,
) -> list[Step]:
    if trainings is None and config.heatmap.slides == "test" and not any(row.split for row in rows):
        return [Step("heatmap", f"{HEATMAPS}/...", "to do", "the test split is known once the slides are tiled")]
    chosen = stages.heatmap_rows(rows, trainings or (), config)

    def standing(row: ManifestRow) -> Standing:
        if ready is None:
            return _follows(config, f"{HEATMAPS}/{row.slide_id}")
        return stages.heatmap_standing(row, ready, config)

    return [Step("heatmap", f"{HEATMAPS}/{row.slide_id}", *standing(row)) for row in chosen]


def _slides(
    rows: Sequence[ManifestRow], config: StudyConfig, ready: Sequence[Trained] | None, steps: Sequence[Step]
) -> list[Step]:
    if not config.evaluate.slides or not any(row.label for row in rows):
        return []
    if ready is None:
        return [Step("slides", SLIDES, *_follows(config, SLIDES))]
    tested = stages.slide_rows(rows, [one.training for one in ready], config)
    needed = {f"{HEATMAPS}/{row.slide_id}" for row in tested}
    if any(step.state != "done" for step in steps if step.name in needed):
        return [Step("slides", SLIDES, *_follows(config, SLIDES))]
    if stages.why_not_slides(tested, ready[0].model.info.positive_class, config):
        return []
    standing = stages.slides_standing(tested, config)
    return [Step("slides", SLIDES, *standing)]


def _follows(config: StudyConfig, folder: str) -> Standing:
    """How an artefact stands whose inputs are made first."""
    return Standing("changed", "follows from what is made first") if (config.out / folder).exists() else TO_DO
