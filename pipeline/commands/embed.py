"""Slides and an encoder into feature stores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inference.config import EmbedConfig, EncoderConfig
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
    slides_of,
)
from pipeline.commands.outcomes import failed_outcomes, refused_outcomes, show_outcomes
from pipeline.commands.settings import Settings, options_of, settings_of
from pipeline.execution.partition import Part
from tiling.core.text import counted
from training.config import load_train_config


@options_of(
    EncoderConfig,
    EmbedConfig,
    common=(
        "encoder", "weights", "mpp", "tile_px", "overlap", "min_tissue", "where", "dtype", "readers", "backend",
        "precision",
    ),
)  # fmt: skip
def embed(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the feature stores.")],
    settings: Settings,
    slides: Annotated[
        list[Path] | None, typer.Argument(help="Slides, tile stores (*.zarr), and folders of them.", readable=False)
    ] = None,
    manifest: ManifestOption = None,
    slide_mpp: SlideMpp = None,
    roi: Annotated[
        Path | None,
        typer.Option(help="Embed only within its polygons: GeoJSON or ASAP XML; or a folder of <slide_id>.geojson."),
    ] = None,
    batch_size: Annotated[str, typer.Option(help="Tiles the model sees at once; halved if they do not fit.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    cluster: ClusterOption = None,
    cluster_config: ClusterConfigFile = None,
    worker_memory: WorkerMemory = None,
    part: PartOption = None,
    overwrite: Overwrite = False,
    check: CheckOption = False,
) -> None:
    """Features of the tiles of slides, or of stores, by an encoder: a vector per tile, for learning from slide labels.

    A slide is read once, and no pixel is stored. Stopped at any time, the same command goes on; features of another
    encoder or other tiles are refused, naming the difference. Several GPUs get a process each.

    Examples:

    `specslide embed slides --out features`, by ImageNet's EfficientNet-Lite0, whose weights come with the package

    `specslide embed slides --encoder uni2-h --weights uni2-h/pytorch_model.bin --out features`

    `specslide embed stores/*.zarr --encoder run/model --out features`, by the last features of a trained model

    `specslide embed slides --encoder encoder.onnx --mpp 0.5 --tile-px 224 --out features`

    `specslide embed --manifest slides.csv --encoder vit_small_patch16_224 --weights vit.safetensors --out features`
    """
    encoder = settings_of(EncoderConfig, settings, "embed options")
    config = settings_of(EmbedConfig, settings | {"batch_size": batch_size}, "embed options")
    rows, refused = slides_of(slides, manifest, slide_mpp, stores=True)
    workers = cluster_of(cluster, cluster_config, memory=worker_memory)
    place = load_train_config(None, {"device": config.device_of(device)}).device
    if check:
        return
    require_any(rows, manifest)
    from pipeline.execution.embed_jobs import embed_all

    share = part or Part()
    reports, failed = embed_all(
        rows, encoder, out, config, roi=roi, part=share, overwrite=overwrite, device=place, cluster=workers
    )
    made = [
        (r.slide_id, f"{counted(r.tiles, 'tile')}, {r.dim} features", "kept" if r.reused else "made") for r in reports
    ]
    reasons = failed_outcomes(failed, rows, manifest)
    show_outcomes(f"features in {out}", [*made, *reasons, *refused_outcomes(refused, share)])
