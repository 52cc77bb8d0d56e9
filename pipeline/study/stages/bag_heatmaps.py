"""bag-heatmaps/<slide_id>: made from a slide's features by the model of bags, of slides that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from pipeline.study.ledger import Step, append
from pipeline.study.stages.embed import name_of as features_of
from pipeline.study.stages.heatmap import pictures_of, split_of, truth_of
from pipeline.study.stages.stage import (
    BAG_HEATMAPS,
    BAGS,
    Artefact,
    Stage,
    Study,
    is_published,
    split_by_case,
    state_of,
)
from pipeline.study.stages.tile import name_of as store_of
from tiling.core.artefact import TO_DO, State
from tiling.core.errors import SpecslideError

if TYPE_CHECKING:
    from inference import HeatmapReport
    from tiling.core.pages import Section
    from tiling.manifest import ManifestRow


def name_of(row: ManifestRow) -> str:
    """The name of a slide's heatmap by the model of bags."""
    return f"{BAG_HEATMAPS}/{row.slide_id}"


def _artefacts(study: Study) -> list[Artefact]:
    if study.config.bags is None or BAGS in study.failed:
        return []
    rows = [row for row in study.usable if study.steps[features_of(row)].state != "failed"]
    learned = study.steps[BAGS].state == "done"
    if study.config.heatmap.slides == "test":
        if not learned and not any(row.split for row in rows):
            why = "the test split is known once the slides are embedded"
            return [Artefact(f"{BAG_HEATMAPS}/...", lambda: State("to do", why))]
        known = [split_by_case(study.bags)] if learned else []
        rows = [row for row in rows if split_of(row, known) == "test"]
    if not learned:
        return [Artefact(name_of(row)) for row in rows]
    return [Artefact(name_of(row), partial(state_of, partial(_look, row, study))) for row in rows]


def _look(row: ManifestRow, study: Study) -> State:
    from inference.recipes import bag_heatmap_recipe
    from tiling.core.artefact import content_hash, state
    from tiling.stores.features import FeatureStore
    from training.models.info import read_bag_info

    folder, model = study.out / name_of(row), study.out / BAGS / "model"
    if not is_published(folder):
        return TO_DO
    features, outputs = FeatureStore(study.out / features_of(row)), study.config.heatmap.outputs
    truth = truth_of(row, read_bag_info(model), study)
    return state(folder, bag_heatmap_recipe(features, content_hash(model), truth=truth, outputs=outputs))


def _make(study: Study, artefacts: Sequence[Artefact]) -> None:
    """The heatmaps of the slides that have features; those that fail are noted, and cost the slide nothing else."""
    from pipeline.execution.bag_jobs import BagJob, explain_all
    from pipeline.execution.job import require_folder
    from training.models.info import read_bag_info

    assert study.config.bags is not None
    names = {artefact.name for artefact in artefacts}
    rows = {name_of(row): row for row in study.usable if name_of(row) in names}
    append(study.out, "plan", steps=[Step(study.stage, name, "to do") for name in rows])
    require_folder(study.out / BAG_HEATMAPS)
    jobs, info = [], read_bag_info(study.out / BAGS / "model")
    for name, row in rows.items():
        try:
            truth = truth_of(row, info, study)
        except SpecslideError as error:
            study.fail(name, str(error), row)
            continue
        job = BagJob(
            study.out / store_of(row), row.slide_id, study.out / BAG_HEATMAPS, study.config.bags.features,
            study.config.bags.encoder,
            features=study.out / features_of(row), truth=truth, outputs=study.config.heatmap.outputs, overwrite=True,
            ledger=study.out,
        )  # fmt: skip
        jobs.append(job)
    model, device, cluster = study.out / BAGS / "model", study.config.train.device, study.config.cluster
    reports: list[HeatmapReport] = []
    for outcome in explain_all(jobs, model, device=device, cluster=cluster):
        name = f"{BAG_HEATMAPS}/{outcome.job.slide_id}"
        if outcome.result is None:
            study.fail(name, outcome.error or "", rows[name])
            continue
        reports.append(outcome.result)
        if not outcome.result.reused:
            study.made.append(name)
    study.results[BAG_HEATMAPS] = reports


def _sections(study: Study) -> list[Section]:
    from tiling.core.pages import Section

    reports: list[HeatmapReport] = study.results.get(BAG_HEATMAPS, [])
    text = (
        "Attention of the model of slides' labels, relative to the largest on the slide: how much a tile weighs, and "
        "no probability. A slide's probability is calibrated."
    )
    return [Section("Attention", text, pictures=pictures_of(reports))] if reports else []


BAG_HEATMAP = Stage("bag-heatmap", _artefacts, _make, _sections)
