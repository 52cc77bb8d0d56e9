"""A whole study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import console
from pipeline.commands.options import CheckOption, ClusterConfigFile, ClusterOption, WorkerMemory, cluster_of
from pipeline.commands.outcomes import show_plan, show_study


def run(
    study: Annotated[Path, typer.Argument(help="The study's YAML file.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and why; do nothing.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes for tiling, or of the cluster.")] = None,
    cluster: ClusterOption = None,
    cluster_config: ClusterConfigFile = None,
    worker_memory: WorkerMemory = None,
    check: CheckOption = False,
) -> None:
    """Run a whole study: tile, train, evaluate, stress, heatmaps, reports, skipping what is done and unchanged.

    Stopped or killed at any time, the same command goes on; a changed setting remakes what follows from it, and no
    more. The exit code is 0 if all went well, 1 if something failed, 75 if a signal stopped it.

    Examples: `specslide init`, then `specslide run study.yaml --dry-run` and `specslide run study.yaml`;
    `specslide run study.yaml --cluster local:4`; and a file like

        manifest: slides.csv
        out: results
        tile: {mpp: 0.5, tile_px: 256}
        train: {epochs: 7, sd_lambda: 0.01}
        repeats: {seeds: [0, 1, 2]}
        stress: {shifts: [all]}
        heatmap: {slides: test}
    """
    from pipeline.study.config import load_study

    config = load_study(study)
    asked = cluster_of(cluster, cluster_config, memory=worker_memory, workers=workers, study=config.cluster)
    config = config.model_copy(update={"cluster": asked, "workers": workers or config.workers})
    if check:
        return
    from pipeline.study.plan import plan
    from pipeline.study.run import run as verb

    if dry_run:
        show_plan(config.out, plan(config), whole=True)
        return
    report = verb(config, announce=lambda steps: show_plan(config.out, steps))
    if report.rank > 0:
        return
    show_study(report)
    console.say(f"how it stands: specslide status {config.out}")
