"""What was done when: `ledger.jsonl` in a study's folder, a line of JSON an event, only ever appended to.

It is the one file of a study with wall-clock times in it, so that all others are the same bytes however a study came
about. Each event is one write at the file's end: several processes may write it, and of one that is killed at most the
last line is torn, which readers pass over. It names slides by their ids; no path and no machine is in it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tiling.core.files import output_error
from tiling.core.platforms import pread

LEDGER = "ledger.jsonl"

State = Literal["done", "to do", "changed", "failed"]
Happening = Literal["start", "plan", "begun", "made", "kept", "failed", "skipped", "stopped", "end"]
"""A run starts, plans, begins and makes or keeps artefacts or fails to, and comes to its end or is stopped. Skipped is
what was planned and turned out to have no place in the study."""


class Step(NamedTuple):
    """One artefact of a study: what makes it, its name (relative to the study's folder), and how it stands."""

    stage: str
    name: str
    state: State
    """"changed": it is there, and made otherwise than it would be now."""
    why: str = ""


class Event(BaseModel):
    """One line of the ledger."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    time: str
    """UTC, ISO 8601."""
    event: Happening
    stage: str = ""
    name: str = ""
    """The artefact's, relative to the study's folder."""
    seconds: float | None = None
    """What it took."""
    reason: str = ""
    steps: tuple[Step, ...] = ()
    """Of a plan."""


class Made(Protocol):
    """The report of a verb on an artefact."""

    @property
    def reused(self) -> bool:
        """Whether it was there already."""


Report = TypeVar("Report", bound=Made)


def append(
    folder: Path,
    event: Happening,
    stage: str = "",
    name: str = "",
    *,
    seconds: float | None = None,
    reason: str = "",
    steps: Iterable[Step] = (),
) -> None:
    """Add an event to the ledger of a study's folder, in one write.

    Args:
        folder: The study's folder.
        event: What happened.
        stage: The stage it belongs to.
        name: The artefact's, relative to the folder.
        seconds: What it took.
        reason: Why it failed or stopped.
        steps: Of a plan, its artefacts.

    Raises:
        OutputError: If the ledger cannot be written.
    """
    known: dict[str, Any] = {"stage": stage, "name": name, "reason": reason, "steps": [list(step) for step in steps]}
    if seconds is not None:
        known["seconds"] = round(seconds, 3)
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    record = {"time": now, "event": event} | {key: value for key, value in known.items() if value not in ("", [])}
    line = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    path = folder / LEDGER
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(fd).st_size
            torn = size > 0 and pread(fd, 1, size - 1) != b"\n"  # by a kill: what follows begins a line of its own
            os.write(fd, b"\n" + line if torn else line)
        finally:
            os.close(fd)
    except OSError as error:
        raise output_error(path, error) from error


def read_ledger(folder: Path) -> list[Event]:
    """The events of a study's folder in their order; [] without a ledger. Torn lines are passed over."""
    try:
        lines = (folder / LEDGER).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [event for line in lines if line and (event := _event(line)) is not None]


def timed(folder: Path | None, stage: str, name: str, make: Callable[[], Report]) -> Report:
    """Make an artefact, and write into a ledger when that began and how long it took.

    Of what fails, only that it was begun is written: the reason is written by whoever catches the error.

    Args:
        folder: The study's folder; None: nothing is written.
        stage: The stage it belongs to.
        name: The artefact's, relative to the folder.
        make: Makes it.

    Returns:
        What `make` returns.

    Raises:
        OutputError: If the ledger cannot be written; and what `make` raises.
    """
    if folder is None:
        return make()
    append(folder, "begun", stage, name)
    start = time.perf_counter()
    made = make()
    append(folder, "kept" if made.reused else "made", stage, name, seconds=time.perf_counter() - start)
    return made


def last_of(events: Iterable[Event]) -> Mapping[str, Event]:
    """The last event of each artefact, by its name."""
    return {event.name: event for event in events if event.name}


def _event(line: bytes) -> Event | None:
    try:
        return Event.model_validate_json(line)
    except ValidationError:
        return None
