"""Slides and a model into heatmaps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inference.config import OutputConfig, PredictConfig
from pipeline.commands.options import (
    CheckOption,
    ClusterConfigFile,
    ClusterOption,
    ManifestOption,
    Overwrite,
    PartOption,
    SlideMpp,
    WorkerMemory,
    cluster_of,
    require_any,
    require_models,
    slides_of,
)
from pipeline.commands.outcomes import heatmap_outcome, reason_for_user, refused_outcomes, show_outcomes
from pipeline.commands.settings import Settings, options_of, settings_of
from pipeline.execution.partition import Part
from training.config import load_train_config


@options_of(
    PredictConfig,
    OutputConfig,
    common=(
        "overlap", "min_tissue", "where", "tta", "readers", "backend", "precision", "formats", "region_threshold",
        "min_region_um2", "region_smoothing_um",
    ),
)  # fmt: skip
def heatmap(
    model: Annotated[
        list[Path], typer.Option(help="Model folder of a training run; several, each with its --model: their mean.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results, one folder a slide.")],
    settings: Settings,
    slides: Annotated[
        list[Path] | None, typer.Argument(help="Slides, tile stores (*.zarr), and folders of them.", readable=False)
    ] = None,
    manifest: ManifestOption = None,
    slide_mpp: SlideMpp = None,
    roi: Annotated[
        Path | None,
        typer.Option(help="Predict only within its polygons: GeoJSON or ASAP XML; or a folder of <slide_id>.geojson."),
    ] = None,
    batch_size: Annotated[str, typer.Option(help="Tiles the model sees at once; halved if they do not fit.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    cluster: ClusterOption = None,
    cluster_config: ClusterConfigFile = None,
    worker_memory: WorkerMemory = None,
    part: PartOption = None,
    overwrite: Overwrite = False,
    check: CheckOption = False,
) -> None:
    """Heatmaps of slides, or of stores: predictions, overlay picture, QuPath objects and scores.

    Stopped at any time, the same command goes on. Several GPUs get a process each.

    Examples:

    `specslide heatmap slide.svs --model run/model --out heatmaps`

    `specslide heatmap stores/*.zarr --model run/model --out heatmaps`

    `specslide heatmap --manifest slides.csv --model run/model --out heatmaps`, where results are called by `slide_id`

    `specslide heatmap slide.svs --model a/model --model b/model --overlap 0.5 --tta --roi roi.geojson --out heatmaps`

    `specslide heatmap slide.svs --model run/model --out heatmaps --formats geojson,ometiff --min-region-um2 1e5`

    `specslide heatmap stores/*.zarr --model run/model --out heatmaps --cluster slurm --cluster-config cluster.yaml`,
    with a file like

        workers: 8
        queue: {cores: 8, memory: 32GB, walltime: "04:00:00"}
        gpu_queue: {processes: 1, queue: gpu, job_extra_directives: ["--gres=gpu:1"]}
    """
    config = settings_of(PredictConfig, settings | {"batch_size": batch_size}, "heatmap options")
    outputs = settings_of(OutputConfig, settings, "heatmap options")
    rows, refused = slides_of(slides, manifest, slide_mpp, stores=True)
    workers = cluster_of(cluster, cluster_config, memory=worker_memory)
    place = load_train_config(None, {"device": "cpu" if config.backend == "onnx" else device}).device
    if check:
        return
    require_models(model)
    require_any(rows, manifest)
    from inference.predict import require_machine
    from pipeline.execution.jobs import heatmap_all, load_models

    asked = load_models(model, place if workers is None else "cpu")  # what does not fit is refused before any slide
    if workers is None:
        require_machine(asked, config)
    share = part or Part()
    reports, failed = heatmap_all(
        rows, model, out, config, roi=roi, outputs=outputs, part=share, overwrite=overwrite, device=place,
        cluster=workers,
    )  # fmt: skip
    row_of = {row.slide_id: row for row in rows}
    reasons = [(name, "", reason_for_user(reason, row_of[name], manifest)) for name, reason in failed.items()]
    made = map(heatmap_outcome, reports)
    show_outcomes(f"heatmaps in {out}", [*made, *reasons, *refused_outcomes(refused, share)])
