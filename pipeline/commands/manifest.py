"""A manifest of slides, drafted from their folder and the tables of other tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import console
from pipeline.commands.options import found_slides, require_there
from tiling.core.errors import InputError, OutputError

if TYPE_CHECKING:
    from tiling.draft_manifest import Draft

_SHOWN = 20


def manifest(
    slides: Annotated[list[Path], typer.Argument(help="Slides, and folders with slides in them or below.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The manifest, a CSV file.")],
    table: Annotated[
        list[Path] | None,
        typer.Option(
            help="Table of slides or cases (CSV or Parquet), as CLAM, TRIDENT and STAMP have; may be repeated."
        ),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="The tables' column that holds the label, where it is not called so.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the manifest that is there.")] = False,
) -> None:
    """Draft the manifest of a folder of slides, with what other tools' tables say of them.

    Rows are matched to slides by path, by name with or without its ending, or by case; what columns and rows were taken
    for is shown, and what fits nothing is listed. What fits two slides is refused.

    Examples:

    `specslide manifest wsis --out slides.csv`

    `specslide manifest wsis --table clini.csv --table slide.csv --label isMSIH --out slides.csv`
    """
    from tiling.core.files import write_file
    from tiling.draft_manifest import draft_manifest
    from tiling.slides.files import is_slide

    if out.exists() and not overwrite:
        raise OutputError(out, "exists already", "choose another --out, or pass --overwrite")
    found = found_slides(slides)
    for unreadable, reason in found.unreadable.items():
        raise InputError(unreadable, reason, "make it readable, or name the others")
    require_there(*found.slides)
    for path in slides:
        if path in found.slides and path.is_dir() and not is_slide(path):  # what a search without a slide gives
            raise InputError(path, "holds no slide", "pass slides, or folders of them")
    draft = draft_manifest(found.slides, table or [], label=label)
    write_file(out, draft.csv(out.parent))
    _show(draft)
    cases = len({row["case_id"] for row in draft.rows})
    console.say(f"{out}: {len(draft.rows)} slides of {cases} cases")


def _show(draft: Draft) -> None:
    """Print every guess."""
    used = [(name, column, role) for name, column, role in draft.taken if role]
    if used:
        console.show_table("columns", ("table", "its column", "taken for"), used)
    for name in dict.fromkeys(name for name, _, _ in draft.taken):
        if unused := [column for of, column, role in draft.taken if of == name and not role]:
            console.say(f"{name}: not used are {_some(unused)}")
    if draft.matched:
        console.show_table("rows", ("table", "matched by", "rows"), draft.matched)
    for name in dict.fromkeys(name for name, _, _ in draft.taken):
        if rows := [f"{what} (row {number})" for of, number, what in draft.without_slide if of == name]:
            console.say(f"{name}: {len(rows)} rows fit no slide: {_some(rows)}")
        if without := [slide_id for of, slide_id in draft.without_row if of == name]:
            console.say(f"{name}: {len(without)} slides have no row: {_some(without)}")
    for path, slide_id in draft.renamed:
        console.say(f"{path}: is called {slide_id}")
    if draft.own_case:
        console.say(f"{draft.own_case} slides have no known case: each counts as a case of its own")
    labels = draft.labels()
    if draft.taken and not any(labels):
        console.say("no slide has a label: --label COLUMN names the tables' column of labels")
    if any(labels):
        console.say("labels: " + ", ".join(f"{name or 'none'} {count}" for name, count in sorted(labels.items())))


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
