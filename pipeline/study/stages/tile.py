"""stores/<slide_id>.zarr: made from the slide and its annotation, by the section `tile`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.study.ledger import last_of, read_ledger
from pipeline.study.stages.stage import STORES, Artefact, Stage, Study, is_published, state_of
from tiling.core.artefact import COMMIT, DONE, TO_DO, Recipe, State
from tiling.core.errors import SpecslideError

if TYPE_CHECKING:
    from tiling.core.pages import Section
    from tiling.manifest import ManifestRow
    from tiling.stores.store import SlideFacts


def name_of(row: ManifestRow) -> str:
    """The name of a slide's store in the study."""
    return f"{STORES}/{row.slide_id}.zarr"


def _artefacts(study: Study) -> list[Artefact]:
    return [Artefact(name_of(row), partial(store_state, row, study)) for row in study.rows]


def store_state(row: ManifestRow, study: Study) -> State:
    """The state of a slide's store.

    Of its bytes only the metadata are looked at, and a slide is hashed only if it is younger than the store. A slide
    that failed the last time, and for which nothing has changed since, will probably again.
    """
    found = state_of(lambda: _look(row, study))
    last = last_of(read_ledger(study.out)).get(name_of(row))
    if found != DONE and last is not None and last.event == "failed":
        study.failed.setdefault(row.slide_id, last.reason)
        return State("failed", f"{last.reason} (is tried again)")
    return found


def _look(row: ManifestRow, study: Study) -> State:
    from tiling.core.artefact import state
    from tiling.stores.store import TileStore

    path = study.out / name_of(row)
    if not is_published(path):
        return TO_DO
    store = TileStore(path)
    store.slide.frame()  # raises for a store that does not know it
    found = state(path, _recipe(row, study, store.slide), before=store.recipe, only=())
    if found == DONE and not path.with_suffix(".png").exists():
        return State("to do", "its preview is missing")
    return found


def _recipe(row: ManifestRow, study: Study, known: SlideFacts) -> Recipe:
    """What the slide's store is to be made from; its hash is as `known` if no file of it is younger.

    The slide is not opened here, where a damaged one could end the study.
    """
    from tiling.slides.files import slide_files, slide_sha256
    from tiling.stores.store import store_recipe
    from tiling.tile import tiling_inputs

    youngest = max(path.stat().st_mtime_ns for path in slide_files(row.slide_path))
    if youngest > (study.out / name_of(row) / COMMIT).stat().st_mtime_ns:
        known = known.model_copy(update={"sha256": slide_sha256(row.slide_path)})
    config = study.config.tile.for_slide(row.mpp or known.mpp)
    return store_recipe(known.sha256, tiling_inputs(config, row.mpp, row.annotation))


def _make(study: Study, artefacts: Sequence[Artefact]) -> None:
    """All stores in parallel; where only the annotation is another, the store gets its labels and keeps its pixels."""
    from pipeline.execution.pool import default_workers
    from pipeline.execution.tile_jobs import tile_all

    study.failed.clear()  # what the last run could not do is tried again
    for row in study.rows:
        _relabel(row, study)
    outcomes = tile_all(
        study.rows, study.out / STORES, study.config.tile, workers=study.config.workers or default_workers(),
        overwrite=True, cluster=study.config.cluster, ledger=study.out,
    )  # fmt: skip
    for outcome in outcomes:
        if outcome.error is not None:
            study.fail_slide(name_of(outcome.job.row), outcome.job.row, outcome.error)


def _relabel(row: ManifestRow, study: Study) -> None:
    from tiling.stores.label import label_store
    from tiling.stores.store import TileStore

    path = study.out / name_of(row)
    if row.annotation is None or not is_published(path):
        return
    try:
        store = TileStore(path)
        before = store.recipe
        now = _recipe(row, study, store.slide)
        others = [{**recipe.inputs, "annotation": None} for recipe in (before, now)]
        same = others[0] == others[1] and _pixels(before) == _pixels(now)
        if same and (before.inputs != now.inputs or before.settings != now.settings):
            label_store(path, row.annotation, study.config.tile.annotation)
    except (SpecslideError, OSError):
        return  # tiling the slide says what is wrong with it


def _pixels(recipe: Recipe) -> dict[str, Any]:
    """The settings that decide more of a store than its labels."""
    return {name: value for name, value in recipe.plain()["settings"].items() if name != "annotation"}


def _sections(study: Study) -> list[Section]:
    from tiling.core.pages import Picture, Section

    previews = [study.out / STORES / f"{slide_id}.png" for slide_id in sorted(row.slide_id for row in study.usable)]
    text = "Mask outlined in blue, kept tiles in orange."
    return [Section("Tiling", text, pictures=tuple(Picture(path, path.stem) for path in previews if path.exists()))]


TILE = Stage("tile", _artefacts, _make, _sections)
