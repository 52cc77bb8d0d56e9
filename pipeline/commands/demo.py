"""A study of made-up slides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import console
from pipeline.commands.outcomes import heatmap_outcome, show_outcomes, show_study


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of all that the demo makes.")],
    slide: Annotated[Path | None, typer.Option(help="CMU-1-Small-Region.svs, if it cannot be fetched.")] = None,
    seed: Annotated[int, typer.Option(help="Decides the synthetic slides and the training.")] = 0,
    slide_labels: Annotated[
        bool, typer.Option("--slide-labels", help="From a label per slide alone: features, a model of bags, attention.")
    ] = False,
) -> None:
    """Make a cohort of synthetic slides, run a study over it, and make a real slide's heatmap; minutes on two cores.

    With --slide-labels no annotation is read, and no network needed.

    Examples:

    `specslide demo --out demo-out`

    `specslide demo --slide-labels --out demo-labels`
    """
    if slide_labels:
        show_slide_labels(out, seed)
        return
    from pipeline.demo.demo import run_demo

    report = run_demo(out, slide=slide, seed=seed, say=console.say)
    show_study(report.study)
    for made in (report.real, report.by_real_model):
        _, what, note = heatmap_outcome(made)
        console.say(f"real slide: {what}, in {made.folder}, {note}")
    console.say(f"all of it on one page: {report.page}")
    console.say(f"its slides in the browser: specslide view {out} --manifest {out / 'cohort' / 'manifest.csv'}")


def show_slide_labels(out: Path, seed: int) -> None:
    """Run the demo of slide labels, and print what it made."""
    from pipeline.demo.slide_labels import run_slide_labels
    from training.evaluation.metrics import METRIC_NAMES

    report = run_slide_labels(out, seed=seed, say=console.say)
    found = report.tested.models[0].overall.metrics
    rows = [(label, found[name]) for name, label in METRIC_NAMES.items()]
    console.show_table(f"held-out slides, by {report.model}", ("metric", "value (95% interval over cases)"), rows)
    show_outcomes(f"heatmaps in {out / 'heatmaps'}", [heatmap_outcome(heatmap) for heatmap in report.heatmaps])
