"""Slides and a model into heatmaps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inference.exports import formats_help
from pipeline.commands.options import (
    ClusterConfigFile,
    ClusterOption,
    ManifestOption,
    Overwrite,
    PartOption,
    SlideMpp,
    WorkerMemory,
    cluster_of,
    listed,
    rows_of,
)
from pipeline.commands.outcomes import heatmap_outcome, show_outcomes, told
from pipeline.execution.partition import Part


def heatmap(
    model: Annotated[
        list[Path], typer.Option(help="Model folder of a training run; several, each with its --model: their mean.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the results, one folder a slide.")],
    slides: Annotated[
        list[Path] | None, typer.Argument(help="Slides, or tile stores (*.zarr).", readable=False)
    ] = None,
    manifest: ManifestOption = None,
    overlap: Annotated[float, typer.Option(help="Fraction a tile shares with its neighbour, on slides.")] = 0.0,
    min_tissue: Annotated[float, typer.Option(help="Least fraction of a tile that is tissue.")] = 0.5,
    slide_mpp: SlideMpp = None,
    where: Annotated[
        str | None,
        typer.Option(help="Which tiles, by columns of a store or measured of a slide: `focus > 20 and pen < 0.05`."),
    ] = None,
    roi: Annotated[
        Path | None,
        typer.Option(help="Predict only within its polygons: GeoJSON or ASAP XML; or a folder of <slide_id>.geojson."),
    ] = None,
    tta: Annotated[bool, typer.Option("--tta", help="Mean over all 8 orientations of a tile, 8 times slower.")] = False,
    batch_size: Annotated[str, typer.Option(help="Tiles the model sees at once; halved if they do not fit.")] = "auto",
    readers: Annotated[int | None, typer.Option(help="Threads that read; default: 1, on a GPU up to 8.")] = None,
    backend: Annotated[str, typer.Option(help="torch; onnx: ONNX Runtime on the CPU; auto: the faster.")] = "torch",
    precision: Annotated[str, typer.Option(help="auto (bf16 where the GPU computes in it), 32, or bf16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    formats: Annotated[
        str | None,
        typer.Option(help=f"Further files, commas between. {formats_help()}."),
    ] = None,
    region_threshold: Annotated[
        float | None, typer.Option(help="Regions are where the probability is at least this; default: the model's.")
    ] = None,
    min_region_um2: Annotated[float, typer.Option(help="Leave out smaller regions, square micrometres.")] = 0.0,
    region_smoothing_um: Annotated[
        float | None, typer.Option(help="Radius that outlines are smoothed by; default: a quarter of a tile, 0: none.")
    ] = None,
    cluster: ClusterOption = None,
    cluster_config: ClusterConfigFile = None,
    worker_memory: WorkerMemory = None,
    part: PartOption = None,
    overwrite: Overwrite = False,
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
    from inference import PredictConfig
    from inference.config import OutputConfig
    from inference.predict import require_machine
    from pipeline.execution.jobs import heatmap_all, load_models
    from tiling.core.settings import checked
    from training import load_train_config

    settings = {
        "overlap": overlap, "min_tissue": min_tissue, "where": where, "tta": tta, "batch_size": batch_size,
        "readers": readers, "backend": backend, "precision": precision,
    }  # fmt: skip
    config = checked(PredictConfig, settings, "heatmap options")
    rows = rows_of(slides, manifest, slide_mpp)
    workers = cluster_of(cluster, cluster_config, memory=worker_memory)
    place = load_train_config(None, {"device": "cpu" if backend == "onnx" else device}).device
    asked = load_models(model, place if workers is None else "cpu")  # what does not fit is refused before any slide
    if workers is None:
        require_machine(asked, config)
    wanted = {
        "formats": listed(formats) or (), "region_threshold": region_threshold, "min_region_um2": min_region_um2,
        "region_smoothing_um": region_smoothing_um,
    }  # fmt: skip
    outputs = checked(OutputConfig, wanted, "heatmap options")
    reports, failed = heatmap_all(
        rows, model, out, config, roi=roi, outputs=outputs, part=part or Part(), overwrite=overwrite, device=place,
        cluster=workers,
    )  # fmt: skip
    row_of = {row.slide_id: row for row in rows}
    reasons = [(name, "", told(reason, row_of[name], manifest)) for name, reason in failed.items()]
    show_outcomes(f"heatmaps in {out}", [*map(heatmap_outcome, reports), *reasons], set(failed))
