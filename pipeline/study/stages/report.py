"""study.json and index.html: what a study tells of itself, sealed with the recipe of all that it made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.study.stages.heatmap import tile_auroc
from pipeline.study.stages.stage import BAG_HEATMAPS, Artefact, Stage, Study, is_published
from tiling.core.artefact import DONE, TO_DO, Recipe, State, content_hash, seal, state
from tiling.core.files import canonical_json, write_changed
from tiling.core.versions import RESEARCH_USE, software_versions

if TYPE_CHECKING:
    from tiling.core.pages import Section

STUDY, PAGE = "study.json", "index.html"


def _artefacts(study: Study) -> list[Artefact]:
    return [Artefact(name, partial(_look, study, name)) for name in (STUDY, PAGE)]


def _look(study: Study, name: str) -> State:
    """How study.json or the page stands, where all else is done or is not."""
    others = [step for step in study.steps.values() if step.stage != "report"]
    if not all(step.state in ("done", "failed") for step in others) or not (study.out / name).exists():
        return TO_DO
    try:
        settings = json.loads((study.out / STUDY).read_bytes())["config"]
    except (OSError, ValueError, KeyError):
        return TO_DO
    return DONE if settings == deciding_settings(study) else State("changed", "the study's settings are others")


def deciding_settings(study: Study) -> dict[str, Any]:
    """The settings that study.json names: those that decide results; the models say how they were trained."""
    machine = {"manifest": True, "out": True, "workers": True, "cluster": True, "train": True}
    machine |= {} if study.config.bags is not None else {"bags": True}  # studies without are as they were before it
    return study.config.model_dump(mode="json", exclude=machine | {"heatmap": {"batch_size", "readers"}})


def _make(study: Study, artefacts: Sequence[Artefact]) -> None:
    """Write both, unless they say just that already."""
    from tiling.core.pages import write_page

    trained = {one.folder.parent.name: one.info for one in study.trained}
    heatmaps, of_bags = study.results.get("heatmap", []), study.results.get(BAG_HEATMAPS, [])
    record = {
        "config": deciding_settings(study),
        "slides": {r.slide_id: {"tiles": r.tiles, "scores": asdict(r.scores)} for r in heatmaps},
        "failed": study.failed,
        "skipped": study.skipped,
        "heatmap_tile_auroc": tile_auroc(study),
        "models": {name: {"training": info.training, "hashes": info.hashes} for name, info in trained.items()},
        "software": software_versions(),
        "notice": RESEARCH_USE,
    }
    if of_bags:
        record["bags"] = {r.slide_id: {"tiles": r.tiles, "probability": r.bag} for r in of_bags}
    write_changed(study.out / STUDY, canonical_json(record))
    write_page(study.out / PAGE, f"specslide: {study.out.resolve().name}", page_sections(study))
    folders = {name: study.out / name for name in study.steps if name not in (STUDY, PAGE)}
    folders = {name: folder / "model" if is_published(folder / "model") else folder for name, folder in folders.items()}
    inputs = {name: content_hash(folder) for name, folder in sorted(folders.items()) if is_published(folder)}
    recipe = Recipe("study", inputs, deciding_settings(study))
    if state(study.out, recipe) != DONE:
        seal(study.out, recipe, (STUDY, PAGE))
    study.make([Artefact(name) for name in (STUDY, PAGE)])


def page_sections(study: Study) -> list[Section]:
    """The sections of the study's page: heatmaps, what failed or was left out, then the other stages, last first."""
    from pipeline.study.stages import STAGES
    from tiling.core.pages import Section

    notes = {"Not analysed": (("slide", "reason"), study.failed), "Left out": (("part", "reason"), study.skipped)}
    heatmaps, others = [[s for s in reversed(STAGES) if (s.name == "heatmap") == first] for first in (True, False)]
    shown = [section for stage in (*heatmaps, *others) for section in stage.sections(study)]
    noted = [Section(name, columns=head, rows=tuple(of.items())) for name, (head, of) in notes.items() if of]
    return [*shown[:1], *noted, *shown[1:]]


REPORT = Stage("report", _artefacts, _make)
