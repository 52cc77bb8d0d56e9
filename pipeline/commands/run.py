"""A whole study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.outcomes import show_study


def run(study: Annotated[Path, typer.Argument(help="The study's YAML file.")]) -> None:
    """Run a whole study: tile, train, heatmap, skipping what is done and unchanged.

    Example: `specslide run study.yaml`, with a file like

        manifest: slides.csv
        out: results
        tile: {mpp: 0.5, tile_px: 256}
        train: {epochs: 7, sd_lambda: 0.01}
        heatmap: {slides: test}
    """
    from pipeline.study import run as verb

    show_study(verb(study))
