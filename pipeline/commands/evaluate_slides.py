"""Heatmaps tested against what is known of slides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inference.config import EvaluateSlidesConfig
from pipeline import console
from pipeline.commands.options import require_there
from pipeline.commands.settings import Settings, options_of, settings_of


@options_of(EvaluateSlidesConfig, names={"lesion_classes": "lesions"})
def evaluate_slides(
    results: Annotated[Path, typer.Argument(help="Folder of heatmaps, one folder per slide.")],
    manifest: Annotated[Path, typer.Option(help="Table of the slides: slide_path, slide_id, label, annotation ...")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the figures and the picture.")],
    settings: Settings,
) -> None:
    """How well heatmaps find positive slides and their lesions: AUROC, operating points, FROC as in CAMELYON16.

    A slide is positive if its label is the class that the heatmaps show. DIR gets slides.json, slides.html and .md, and
    slides.png; intervals are over cases, figures also by site and scanner where the manifest names them. Of heatmaps by
    a model of bags the score is the bag's probability, and attention is compared with annotations.

    Examples:

    `specslide evaluate-slides heatmaps --manifest slides.csv --out test`

    `specslide evaluate-slides heatmaps --manifest camelyon.csv --lesions _0,_1 --sensitivity 0.95 --out test`
    """
    require_there(results, manifest)
    config = settings_of(EvaluateSlidesConfig, settings, "evaluate-slides options")
    from inference.evaluation.evaluate_slides import evaluate_slides as verb

    found = verb(results, manifest, out, config)
    at = next(iter(found.scores.values())).sensitivity_at_specificity
    rows = [(name, group.auroc, *group.sensitivity_at_specificity.values()) for name, group in found.scores.items()]
    count = len(found.slides)
    columns = ("score", "AUROC", *(f"sensitivity at specificity {value}" for value in at))
    console.show_table(f"{count} slides of the split {found.split}, in {out}", columns, rows)
    if found.attention is not None:
        console.say(f"Attention against annotations: AUROC {found.attention.auroc} on {found.attention.slides} slides")
    for froc in (found.froc, found.tiles_froc):
        if froc is not None:
            console.say(f"FROC score of the {froc.of}: {froc.score}, {froc.lesions} lesions on {froc.slides} slides")
