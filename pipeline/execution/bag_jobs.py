"""The task run for each slide that a model of bags explains: embedded on the way, unless its features are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from inference.known_encoders import encoder_like
from pipeline.execution.embed_jobs import load_tile_encoder
from pipeline.execution.job import require_folder
from pipeline.execution.jobs import commit_of, heatmaps_on_devices, indexed, with_regions
from pipeline.execution.partition import Part
from pipeline.execution.pool import Outcome, Task, TileProgress
from pipeline.redaction import redacted_log
from pipeline.study.ledger import timed
from tiling.manifest import ManifestRow
from tiling.stores.features import is_feature_store
from training.models.info import read_bag_info

if TYPE_CHECKING:  # imported when needed
    import shapely

    from inference import HeatmapReport
    from inference.config import EmbedConfig, EncoderConfig, OutputConfig
    from pipeline.execution.dask_config import ClusterConfig
    from training.mil.model import BagModel

FEATURES = "features"
"""The folder of the feature stores that are made on the way, among the heatmaps."""
_WHOLE = Part()


@dataclass(frozen=True)
class BagJob:
    """One slide, tile store or feature store to explain; the model is the task's."""

    source: Path
    slide_id: str
    out: Path
    config: EmbedConfig
    encoder: EncoderConfig | None = None
    """What embeds a slide or tile store, and for `outputs.occlusion` its changed tiles."""
    features: Path | None = None
    """The source's feature store, which may be the source; None: it is embedded."""
    slide_mpp: float | None = None
    roi: Path | None = None
    truth: shapely.Geometry | None = None
    outputs: OutputConfig | None = None
    overwrite: bool = False
    ledger: Path | None = None
    """The study's folder, in whose ledger it is said."""


def bag_job(job: BagJob, progress: TileProgress, model: Path, device: str) -> HeatmapReport:
    """Explain the slide of one job, in a process that may have yet to load model and encoder; it does so once."""
    from inference.bag_heatmap import make_bag_heatmap
    from inference.config import OutputConfig

    with redacted_log(job.source, job.slide_id):
        features, outputs = job.features or _embedded(job, progress, device), job.outputs or OutputConfig()
        encode = None
        if outputs.occlusion and job.encoder is not None:
            encoder = load_tile_encoder(job.encoder, device)
            _, encode = encoder.chosen(job.config.backend, job.config.precision)
        work = partial(
            make_bag_heatmap, features, load_bag(model, device), job.out,
            source=None if features == job.source else job.source, slide_id=job.slide_id, slide_mpp=job.slide_mpp,
            truth=job.truth, outputs=outputs, encode=encode, overwrite=job.overwrite,
        )  # fmt: skip
        return timed(job.ledger, "bag-heatmap", f"{job.out.name}/{job.slide_id}", work)


def _embedded(job: BagJob, progress: TileProgress, device: str) -> Path:
    from inference import embed_slide

    assert job.encoder is not None
    return embed_slide(
        job.source, load_tile_encoder(job.encoder, device), job.out / FEATURES, job.config,
        slide_id=job.slide_id, slide_mpp=job.slide_mpp, roi=job.roi, overwrite=job.overwrite, progress=progress,
    ).store  # fmt: skip


def try_bag(folder: Path, encoder: EncoderConfig | None, device: str, out: Path | None) -> None:
    """Load a model of bags, and its encoder if slides are to be embedded, and make `out`.

    Raises ConfigError, ModelError, if the encoder is another one, and OutputError.
    """
    from inference.bag_heatmap import require_encoder

    loaded = load_bag(folder, device)
    if encoder is not None:
        require_encoder(loaded, load_tile_encoder(encoder, device).record, f"the encoder {encoder.encoder}")
    if out is not None:
        require_folder(out)


def load_bag(folder: Path, device: str = "auto") -> BagModel:
    """A model of bags; loaded once in each process. Raises ModelError, and ConfigError for a device not there."""
    return _loaded(folder.absolute(), commit_of(folder), device)


@cache
def _loaded(folder: Path, commit: bytes, device: str) -> BagModel:
    from training import load_bag_model, load_train_config
    from training.devices import device_of

    return load_bag_model(folder, device_of(load_train_config(None, {"device": device})))


def explain_all(
    jobs: Sequence[BagJob],
    model: Path,
    *,
    encoder: EncoderConfig | None = None,
    out: Path | None = None,
    device: str = "auto",
    cluster: ClusterConfig | None = None,
) -> list[Outcome[BagJob, HeatmapReport]]:
    """Heatmaps by the model of bags in a folder, shared out as `run_on_devices` says.

    Args:
        jobs: The slides, tile stores or feature stores.
        model: The folder of the model of bags.
        encoder: What embeds slides and tile stores; refused unless it is the model's.
        out: A folder to be made when model and encoder are known to fit.
        device: auto, cpu, cuda or mps.
        cluster: Where it is done; None: on this machine.

    Returns:
        What became of each job, in their order.

    Raises:
        SpecslideError: As `pipeline.execution.pool.run_slides`.
    """
    task: Task[BagJob, HeatmapReport] = partial(bag_job, model=model.absolute(), device=device)
    first = partial(try_bag, model.absolute(), encoder, device if cluster is None else "cpu", out)
    return heatmaps_on_devices(task, jobs, device=device, cluster=cluster, first=first)


def bag_heatmap_all(
    rows: Sequence[ManifestRow],
    model: Path,
    out: Path,
    config: EmbedConfig,
    *,
    encoder: str | None = None,
    weights: str | None = None,
    roi: Path | None = None,
    outputs: OutputConfig | None = None,
    part: Part = _WHOLE,
    overwrite: bool = False,
    device: str = "auto",
    cluster: ClusterConfig | None = None,
) -> tuple[list[HeatmapReport], dict[str, str]]:
    """Heatmaps of slides, tile stores or feature stores by a model of bags; `out/index.html` shows all results.

    Args:
        rows: Slides or stores by their ids, no two alike.
        model: The folder of the model of bags.
        out: Folder of the results; features that are made on the way lie in its `features`.
        config: How the tiles of slides are chosen and cut.
        encoder: Where the model's encoder lies, or what it is called; see `inference.known_encoders.encoder_like`.
        weights: The file of its weights.
        roi: The region of interest of a single slide, or a folder of those of each.
        outputs: Which further files are written.
        part: The share of the slides that is done here, where several jobs share them.
        overwrite: Replace results made otherwise, or damaged ones.
        device: auto, cpu, cuda or mps.
        cluster: Where it is done; None: on this machine.

    Returns:
        The heatmaps; and the reason for each slide that failed, by its id.

    Raises:
        ModelError: For an encoder that is not the model's, naming the difference.
        ConfigError: For an encoder that cannot be found, where slides are to be embedded.
        SpecslideError: As `pipeline.execution.jobs.heatmap_all`.
    """
    found, failed = with_regions(rows, roi, part)
    loading = None
    if not all(is_feature_store(row.slide_path) for row in rows):
        info = read_bag_info(model)
        loading = encoder_like(info.encoder, encoder, weights).anywhere()
        config = config.model_copy(update={"icc": config.icc or info.icc})
    jobs = [
        BagJob(
            row.slide_path, row.slide_id, out, config, loading,
            features=row.slide_path if is_feature_store(row.slide_path) else None,
            slide_mpp=row.mpp, roi=region, outputs=outputs, overwrite=overwrite,
        )
        for row, region in found
    ]  # fmt: skip
    outcomes = explain_all(jobs, model, encoder=loading, out=out, device=device, cluster=cluster)
    return indexed(out, rows, outcomes, failed)
