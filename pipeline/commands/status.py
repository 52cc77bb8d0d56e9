"""How far a study is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import console

_SHOWN = 20


def status(
    folder: Annotated[Path, typer.Argument(help="A study's folder `out`, or one of stores or heatmaps.")],
) -> None:
    """What of a study is done, failed (and why) and left; also while it runs, and after it was killed.

    The exit code is 0 if everything is done, 1 if something failed or is left.

    Example: `specslide status results`
    """
    from pipeline.study.status import read_status

    found = read_status(folder)
    columns = ("stage", "done", "failed", "running", "left")
    rows = [(stage, *counts.values()) for stage, counts in found.counts()]
    state = "a process is at work on it" if found.running else "nobody is at work on it"
    console.show_table(f"{folder}: {state}", columns, rows)
    for progress, limit in (("failed", None), ("running", None), ("left", _SHOWN)):
        items = [(item.name, item.why) for item in found.items if item.progress == progress]
        if items:
            more = f", {limit} of {len(items)}" if limit is not None and len(items) > limit else ""
            console.show_table(f"{progress}{more}", ("artefact", "reason"), items[:limit])
    if found.last is not None:
        took = "" if found.last.seconds is None else f" after {found.last.seconds:,.0f} s"
        reason = f": {found.last.reason}" if found.last.reason else ""
        console.say(f"last run: {found.last.event}{took}, {found.last.time}{reason}")
    if not found.complete:
        raise typer.Exit(1)
