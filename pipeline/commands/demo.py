"""A study of made-up slides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import console
from pipeline.commands.outcomes import heatmap_outcome, show_study


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of all that the demo makes.")],
    slide: Annotated[Path | None, typer.Option(help="CMU-1-Small-Region.svs, if it cannot be fetched.")] = None,
    seed: Annotated[int, typer.Option(help="Decides the synthetic slides and the training.")] = 0,
) -> None:
    """Make a cohort of synthetic slides, run a study over it, and make a real slide's heatmap; minutes on two cores.

    Example: `specslide demo --out demo-out`
    """
    from pipeline.demo.demo import run_demo

    report = run_demo(out, slide=slide, seed=seed, say=console.say)
    show_study(report.study)
    _, what, note = heatmap_outcome(report.real)
    console.say(f"real slide: {what}, in {report.real.folder}, {note}")
    console.say(f"all of it on one page: {report.page}")
