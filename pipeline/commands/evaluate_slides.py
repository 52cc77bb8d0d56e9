"""Heatmaps tested against what is known of slides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import console
from pipeline.commands.options import require_there
from pipeline.commands.settings import listed


def evaluate_slides(
    results: Annotated[Path, typer.Argument(help="Folder of heatmaps, one folder a slide.")],
    manifest: Annotated[Path, typer.Option(help="Table of the slides: slide_path, slide_id, label, annotation ...")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the figures and the picture.")],
    split: Annotated[
        str | None, typer.Option(help="Slides to test, by the manifest; default: test where there are such, else all.")
    ] = None,
    score: Annotated[str, typer.Option(help="Score of a slide that groups and threshold are about.")] = "top5_mean",
    sensitivity: Annotated[
        float | None, typer.Option(help="Choose a threshold with this sensitivity on the slides of the split val.")
    ] = None,
    lesions: Annotated[
        str | None, typer.Option(help="Annotated classes that are lesions, commas between; default: the model's.")
    ] = None,
    separation_um: Annotated[float, typer.Option(min=0, help="Min distance between detections.")] = 150.0,
    resamples: Annotated[int, typer.Option(min=0, max=100_000, help="Resamples of cases behind each interval.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Decides the resamples.")] = 0,
) -> None:
    """How well heatmaps find positive slides and their lesions: AUROC, operating points, FROC as in CAMELYON16.

    A slide is positive if its label is the class that the heatmaps show. DIR gets slides.json, slides.md and
    slides.png; intervals are over cases, figures also by site and scanner where the manifest names them.

    Examples:

    `specslide evaluate-slides heatmaps --manifest slides.csv --out test`

    `specslide evaluate-slides heatmaps --manifest camelyon.csv --lesions _0,_1 --sensitivity 0.95 --out test`
    """
    require_there(results, manifest)
    from inference.evaluation.evaluate_slides import evaluate_slides as verb

    found = verb(
        results, manifest, out, split=split, score=score, sensitivity=sensitivity,
        lesion_classes=listed(lesions) or (), separation_um=separation_um, resamples=resamples, seed=seed,
    )  # fmt: skip
    at = next(iter(found.scores.values())).sensitivity_at_specificity
    rows = [(name, group.auroc, *group.sensitivity_at_specificity.values()) for name, group in found.scores.items()]
    count = len(found.slides)
    columns = ("score", "AUROC", *(f"sensitivity at specificity {value}" for value in at))
    console.show_table(f"{count} slides of the split {found.split}, in {out}", columns, rows)
    if found.froc is not None:
        console.say(f"FROC score: {found.froc.score}, {found.froc.lesions} lesions on {found.froc.slides} slides")
