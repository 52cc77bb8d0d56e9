"""How far a study is, or what a folder of stores or heatmaps holds: read from the disk, whoever is writing there.

Nothing is changed, and no slide, pixel or model is read: it is quick, and works beside a run and after a kill.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inference.report.cohort import failed_before
from pipeline.study.ledger import LEDGER, Event, Step, last_of, read_ledger
from tiling.core.artefact import COMMIT, PROVENANCE
from tiling.core.errors import InputError
from tiling.core.files import is_locked

Progress = Literal["done", "failed", "left", "running"]


@dataclass(frozen=True)
class Item:
    """One artefact, and its state."""

    stage: str
    name: str
    progress: Progress
    why: str = ""


@dataclass(frozen=True)
class Status:
    """The state of a study's folder, or of one with stores or heatmaps."""

    items: tuple[Item, ...]
    running: bool
    """Whether a process is at work on it now."""
    last: Event | None
    """What was last said in the ledger of a study's whole run: start, end, stopped or failed."""

    @property
    def complete(self) -> bool:
        """Whether everything that was planned is done."""
        return bool(self.items) and all(item.progress == "done" for item in self.items)

    def counts(self) -> list[tuple[str, dict[str, int]]]:
        """The number of artefacts in each state, by stage, in the stages' order."""
        found: dict[str, dict[str, int]] = {}
        for item in self.items:
            of_stage = found.setdefault(item.stage, dict.fromkeys(("done", "failed", "running", "left"), 0))
            of_stage[item.progress] += 1
        return list(found.items())


def read_status(folder: Path) -> Status:
    """The status of a study's folder, or of one with stores or heatmaps. Raises InputError for any other."""
    if not folder.is_dir():
        raise InputError(folder, "is not a folder", "pass the folder that a study's results go to")
    events = read_ledger(folder)
    if events or (folder / LEDGER).exists():
        return _of_study(folder, events)
    items = tuple(_plain(folder))
    known = {item.name for item in items}
    failed = {name: why for name, why in failed_before(folder).items() if name not in known}
    items += tuple(Item("heatmap", name, "failed", why) for name, why in failed.items())
    if not items:
        what = "holds no study, store or heatmap"
        raise InputError(folder, what, "pass the folder `out` of a study, or one of stores or heatmaps")
    return Status(items, any(item.progress == "running" for item in items), None)


def _of_study(folder: Path, events: Sequence[Event]) -> Status:
    starts = [number for number, event in enumerate(events) if event.event == "start"]
    run = events[starts[-1] if starts else 0 :]
    running = is_locked(folder / "study")
    last = last_of(run)
    steps = [step for step in _planned(run) if step.name not in last or last[step.name].event != "skipped"]
    items = tuple(_item(folder, step, last.get(step.name), running) for step in steps)
    whole = [event for event in run if not event.name and event.event != "plan"]
    return Status(items, running, whole[-1] if whole else None)


def _planned(run: Sequence[Event]) -> list[Step]:
    """What the run planned; a later plan of some stages replaces what an earlier one knew of them."""
    steps: list[Step] = []
    for event in run:
        if event.event == "plan":
            stages = {step.stage for step in event.steps}
            place = next((n for n, step in enumerate(steps) if step.stage in stages), len(steps))
            kept = [step for step in steps if step.stage not in stages]
            steps = [*kept[:place], *event.steps, *kept[place:]]
    return steps


def _item(folder: Path, step: Step, last: Event | None, running: bool) -> Item:
    """How a planned artefact stands by what happened to it in this run, and by whether it is there."""
    happened = last.event if last is not None else ""
    there = _is_there(folder / step.name)
    if happened == "failed" and last is not None:
        return Item(step.stage, step.name, "failed", last.reason)
    if happened in ("made", "kept") or (not happened and step.state == "done"):
        return Item(step.stage, step.name, "done") if there else Item(step.stage, step.name, "left", "was removed")
    if happened == "begun":
        return Item(step.stage, step.name, "running" if running else "left", "" if running else "was interrupted")
    if step.state == "failed" and not running:
        return Item(step.stage, step.name, "failed", step.why)
    return Item(step.stage, step.name, "left", step.why)


def _is_there(path: Path) -> bool:
    """Whether an artefact is there whole: a published folder, a training's, one with a record, or a file."""
    try:
        return any((path / name).is_file() for name in ("", COMMIT, f"model/{COMMIT}", PROVENANCE))
    except OSError:  # a name that is no file's: a torn line
        return False


def _plain(folder: Path) -> Iterable[Item]:
    """The stores and heatmaps in a folder, and those that somebody is making or was."""
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        name = place.name
        if name.startswith(".") and name.endswith(".partial"):
            final = folder / name.removeprefix(".").removesuffix(".partial")
            busy = is_locked(final)
            yield Item(_kind(final), final.name, "running" if busy else "left", "" if busy else "was interrupted")
        elif (place / COMMIT).is_file() and ((place / "zarr.json").is_file() or (place / "slide.json").is_file()):
            yield Item(_kind(place), name, "done")
        elif name.endswith(".zarr"):
            yield Item("tile", name, "left", "is not whole")


def _kind(path: Path) -> str:
    return "tile" if path.suffix == ".zarr" else "heatmap"
