"""Slides and a model into heatmaps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inference.config import CutConfig, EmbedConfig, OutputConfig, PredictConfig
from pipeline.commands.options import (
    CheckOption,
    ClusterConfigFile,
    ClusterOption,
    EncoderOfBags,
    ManifestOption,
    Overwrite,
    PartOption,
    SlideMpp,
    WeightsOfBags,
    WorkerMemory,
    are_bag_models,
    cluster_of,
    model_folders,
    require_any,
    slides_of,
)
from pipeline.commands.outcomes import failed_outcomes, heatmap_outcome, refused_outcomes, show_outcomes
from pipeline.commands.settings import Settings, options_of, settings_of
from pipeline.execution.partition import Part
from tiling.core.errors import ConfigError
from training.config import load_train_config


@options_of(
    PredictConfig,
    OutputConfig,
    common=(
        "overlap", "min_tissue", "where", "tta", "readers", "backend", "precision", "formats", "region_threshold",
        "min_region_um2", "region_smoothing_um", "occlusion",
    ),
)  # fmt: skip
def heatmap(
    model: Annotated[
        list[Path],
        typer.Option(help="Folder of a model, or its name (`specslide models`). Repeated: the mean of several models."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results, one folder per slide.")],
    settings: Settings,
    slides: Annotated[
        list[Path] | None,
        typer.Argument(help="Slides, stores of tiles or (for a model of bags) features, folders.", readable=False),
    ] = None,
    manifest: ManifestOption = None,
    slide_mpp: SlideMpp = None,
    roi: Annotated[
        Path | None,
        typer.Option(help="Predict only within its polygons: GeoJSON or ASAP XML; or a folder of <slide_id>.geojson."),
    ] = None,
    encoder: EncoderOfBags = None,
    weights: WeightsOfBags = None,
    batch_size: Annotated[str, typer.Option(help="Tiles the model sees at once; halved if they do not fit.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    cluster: ClusterOption = None,
    cluster_config: ClusterConfigFile = None,
    worker_memory: WorkerMemory = None,
    part: PartOption = None,
    overwrite: Overwrite = False,
    check: CheckOption = False,
) -> None:
    """Heatmaps of slides, or of stores: predictions, overlay picture, QuPath objects and scores.

    Stopped at any time, the same command goes on. Several GPUs get a process each. A model of bags (`train --bags`)
    embeds slides and tile stores first, into OUT/features.

    Examples:

    `specslide heatmap slide.svs --model breast-idc --out heatmaps`, by the model that comes with the package

    `specslide heatmap slide.svs --model run/model --out heatmaps`

    `specslide heatmap stores/*.zarr --model run/model --out heatmaps`

    `specslide heatmap --manifest slides.csv --model run/model --out heatmaps`, where results are called by `slide_id`

    `specslide heatmap slide.svs --model a/model --model b/model --overlap 0.5 --tta --roi roi.geojson --out heatmaps`

    `specslide heatmap features --model bags/model --out heatmaps`, by a model of bags: the map is its attention

    `specslide heatmap slide.svs --model run/model --out heatmaps --formats geojson,ometiff --min-region-um2 1e5`

    `specslide heatmap slide.svs --model run/model --out heatmaps --occlusion`, where the report also shows on which
    parts of its tiles the model depends (`pip install 'specslide[occlusion]'`)

    `specslide heatmap stores/*.zarr --model run/model --out heatmaps --cluster slurm --cluster-config cluster.yaml`,
    with a file like

        workers: 8
        queue: {cores: 8, memory: 32GB, walltime: "04:00:00"}
        gpu_queue: {processes: 1, queue: gpu, job_extra_directives: ["--gres=gpu:1"]}
    """
    config = settings_of(PredictConfig, settings | {"batch_size": batch_size}, "heatmap options")
    outputs = settings_of(OutputConfig, settings, "heatmap options")
    bags = are_bag_models(model)
    rows, refused = slides_of(slides, manifest, slide_mpp, stores=not bags, features=bags)
    workers = cluster_of(cluster, cluster_config, memory=worker_memory)
    place = load_train_config(None, {"device": config.device_of(device)}).device
    if check:
        return
    model = model_folders(model)
    require_any(rows, manifest)
    share = part or Part()
    if bags:
        from pipeline.execution.bag_jobs import bag_heatmap_all

        reports, failed = bag_heatmap_all(
            rows, one_bag_model(model, config), out, embedded_as(config), encoder=encoder, weights=weights, roi=roi,
            outputs=outputs, part=share, overwrite=overwrite, device=place, cluster=workers,
        )  # fmt: skip
    else:
        from pipeline.execution.jobs import heatmap_all

        reports, failed = heatmap_all(
            rows, model, out, config, roi=roi, outputs=outputs, part=share, overwrite=overwrite, device=place,
            cluster=workers,
        )  # fmt: skip
    made, reasons = map(heatmap_outcome, reports), failed_outcomes(failed, rows, manifest)
    show_outcomes(f"heatmaps in {out}", [*made, *reasons, *refused_outcomes(refused, share)])


def embedded_as(config: PredictConfig) -> EmbedConfig:
    """How the tiles of a slide are chosen and cut for its features, as for a prediction."""
    return EmbedConfig(**config.model_dump(include=set(CutConfig.model_fields)))


def one_bag_model(models: list[Path], config: PredictConfig) -> Path:
    """The one model of bags. Raises ConfigError for several, and for what only tile classifiers do."""
    if len(models) > 1:
        raise ConfigError("model", "a model of bags makes heatmaps by itself", "pass one --model")
    if config.tta:
        raise ConfigError("tta", "is for tile classifiers", "leave it out")
    return models[0]
