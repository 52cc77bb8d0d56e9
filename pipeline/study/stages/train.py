"""training[/<run>]/model: made from the stores, their labels and splits, by the section `train`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import mean, stdev
from typing import TYPE_CHECKING

from pipeline.study.stages.stage import TRAINING, Artefact, Stage, Study, Training, is_published, state_of, within
from tiling.core.artefact import TO_DO, State
from tiling.core.errors import SpecslideError

if TYPE_CHECKING:
    from tiling.core.pages import Section
    from training import ModelInfo
    from training.evaluation.bootstrap import Interval


def _artefacts(study: Study) -> list[Artefact]:
    if not study.has_stores:
        return [Artefact(within(TRAINING, name)) for name in study.config.trainings()]
    try:
        trainings = study.trainings
    except SpecslideError as error:
        why = str(error)
        return [Artefact(within(TRAINING, name), lambda: State("failed", why)) for name in study.config.trainings()]
    return [
        Artefact(within(TRAINING, one.name), partial(model_state, one, study), partial(_train, one, study))
        for one in trainings
    ]


def model_state(training: Training, study: Study) -> State:
    """The state of a training's model."""
    from training import model_state as state
    from training.selection.attempts import tune_state

    folder, tuning = study.out / within(TRAINING, training.name), study.config.tune
    if not is_published(folder / "model"):
        return TO_DO
    if tuning is not None:
        return state_of(lambda: tune_state(folder, training.samples, tuning, training.config))
    return state_of(lambda: state(folder / "model", training.samples, training.config))


def _train(training: Training, study: Study) -> None:
    from training import train, tune
    from training.processes import launching

    folder = study.out / within(TRAINING, training.name)
    if study.config.tune is not None:
        tune(training.samples, folder, study.config.tune, training.config, overwrite=True)
        return
    with launching():
        train(training.samples, folder, training.config, overwrite=True)


def _make(study: Study, artefacts: Sequence[Artefact]) -> None:
    _ = study.trainings  # raises what there is to learn from is not
    study.make(artefacts)
    for one in study.trainings:
        if (study.out / within(TRAINING, one.name) / "checkpoints").exists():
            _train(one, study)  # killed when its model was there: only the rest is done


def _sections(study: Study) -> list[Section]:
    infos = {one.folder.parent.name: one.info for one in study.trained}
    return [_models_section(study, infos), _data_section(infos)]


def _models_section(study: Study, infos: Mapping[str, ModelInfo]) -> Section:
    from tiling.core.pages import Link, Picture, Section
    from training.evaluation.metrics import METRIC_NAMES

    first = next(iter(infos.values()))
    rows = [
        (name, split, *(metric_text(metrics.get(metric)) for metric in METRIC_NAMES))
        for split in sorted({split for info in infos.values() for split in info.metrics})
        for name, info in infos.items()
        if (metrics := info.metrics.get(split)) is not None
    ]
    if whole := over_trainings(list(infos.values())):
        rows.insert(0, (f"mean of {len(infos)}", "test", *(whole.get(metric, "undefined") for metric in METRIC_NAMES)))
    runs = [one.folder.parent for one in study.trained]
    pictures = {"learning_curve.png": "learning curve of", "tune.png": "validation against shifted validation:"}
    pages = {"model/README.md": "model card of", "tune.md": "candidates of"}
    spread = ", of the mean the standard deviation over trainings" if whole else ""
    return Section(
        "Model" if len(infos) == 1 else "Models",
        f"{first.backbone}, {first.training['epochs']} epochs, sd_lambda {first.training['sd_lambda']}. "
        f"In brackets the 95% interval over cases{spread}.",
        ("training", "split", *METRIC_NAMES.values()),
        tuple(rows),
        tuple(
            Picture(run / name, f"{title} {run.name}")
            for run in runs
            for name, title in pictures.items()
            if (run / name).exists()  # it is beside the model, and no part of it
        ),
        tuple(
            Link(run / name, f"{title} {run.name}")
            for run in runs
            for name, title in pages.items()
            if (run / name).exists()
        ),
    )


def over_trainings(infos: Sequence[ModelInfo], split: str = "test") -> dict[str, str]:
    """Mean and standard deviation (n - 1) of each metric over several models' values on a split, in words.

    Only metrics that all of them have are named.
    """
    from training.evaluation.metrics import METRIC_NAMES

    found = {}
    for name in METRIC_NAMES:
        metrics = [info.metrics.get(split, {}).get(name) for info in infos]
        values = [metric.value for metric in metrics if metric is not None and metric.value is not None]
        if len(values) == len(infos) > 1:
            found[name] = f"{mean(values):.3f} ± {stdev(values):.3f}"
    return found


def metric_text(metric: Interval | None) -> str:
    """A metric with its interval, for the page."""
    return "undefined" if metric is None else str(metric).replace(" (no interval)", "")


def _data_section(infos: Mapping[str, ModelInfo]) -> Section:
    """What was learned from: once, where all trainings share it."""
    from tiling.core.pages import Section

    shared = len({info.hashes.get("data") for info in infos.values()}) == 1
    rows = [
        ("all" if shared else name, split, s.cases, s.slides, f"{s.tiles:,}")
        for name, info in list(infos.items())[: 1 if shared else None]
        for split, s in info.data.items()
    ]
    return Section("Data", columns=("training", "split", "cases", "slides", "tiles"), rows=tuple(rows))


TRAIN = Stage("train", _artefacts, _make, _sections)
