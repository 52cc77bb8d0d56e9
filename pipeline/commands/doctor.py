"""Whether all is well here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import console


def doctor(
    slides: Annotated[
        list[Path] | None, typer.Argument(help="Slides whose readers are compared, pixel by pixel.", readable=False)
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where results would lie: its disk is tried.")] = Path(),
) -> None:
    """What decides whether and how fast specslide runs here: versions, cores, GPU, disk, and what reads a slide.

    The page holds nothing private, no path and no name of a slide: paste it into a bug report. The exit code is 1 if
    specslide cannot work so.

    Examples:

    `specslide doctor`

    `specslide doctor slide.svs --out results`
    """
    from pipeline.doctor import examine

    found = list(examine(out, slides or ()))
    console.show_table("specslide doctor", ("what", "found", "to do"), [(f.name, f.value, f.advice) for f in found])
    if any(finding.broken for finding in found):
        raise typer.Exit(1)
