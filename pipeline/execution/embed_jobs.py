"""The task run for each slide that is embedded: a picklable job around the verb of inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.execution.job import require_folder
from pipeline.execution.jobs import run_on_devices, with_regions
from pipeline.execution.partition import Part
from pipeline.execution.pool import Task, TileProgress
from pipeline.redaction import redacted_log
from tiling.manifest import ManifestRow

if TYPE_CHECKING:  # imported when needed
    from inference import EmbedReport, TileEncoder
    from inference.config import EmbedConfig, EncoderConfig
    from pipeline.execution.dask_config import ClusterConfig

_WHOLE = Part()


@dataclass(frozen=True)
class EmbedJob:
    """One slide or store to embed; the encoder is the task's."""

    source: Path
    slide_id: str
    out: Path
    config: EmbedConfig
    slide_mpp: float | None = None
    roi: Path | None = None
    overwrite: bool = False


def embed_job(job: EmbedJob, progress: TileProgress, encoder: EncoderConfig, device: str) -> EmbedReport:
    """Embed the slide of one job, in a process that may have yet to load the encoder; it does so once."""
    from inference import embed_slide

    with redacted_log(job.source, job.slide_id):
        return embed_slide(
            job.source, load_tile_encoder(encoder, device), job.out, job.config, slide_id=job.slide_id,
            slide_mpp=job.slide_mpp, roi=job.roi, overwrite=job.overwrite, progress=progress,
        )  # fmt: skip


def try_encoder(config: EncoderConfig, device: str, how: EmbedConfig | None, out: Path) -> str:
    """Load an encoder, see whether this machine computes as asked, if it is the one that will, and make `out`.

    Returns which encoder it is. Raises ConfigError, ModelError, OutputError for what is refused before any slide.
    """
    loaded = load_tile_encoder(config, device)
    if how is not None:
        loaded.chosen(how.backend, how.precision)
    require_folder(out)
    record = loaded.record
    return f"{record.name}: tiles of {record.tile_px} px at {record.mpp:g} micrometres a pixel"


def load_tile_encoder(config: EncoderConfig, device: str = "auto") -> TileEncoder:
    """An encoder; loaded once in each process.

    Raises ConfigError, ModelError as `inference.load_encoder`, and ConfigError for a device that is not there.
    """
    return _encoder(config, device)


@cache
def _encoder(config: EncoderConfig, device: str) -> TileEncoder:
    from inference import load_encoder
    from training import load_train_config
    from training.devices import device_of

    return load_encoder(config, device_of(load_train_config(None, {"device": device})))


def embed_all(
    rows: Sequence[ManifestRow],
    encoder: EncoderConfig,
    out: Path,
    config: EmbedConfig,
    *,
    roi: Path | None = None,
    part: Part = _WHOLE,
    overwrite: bool = False,
    device: str = "auto",
    cluster: ClusterConfig | None = None,
) -> tuple[list[EmbedReport], dict[str, str]]:
    """Features of slides or stores; shared out as `run_on_devices` says.

    Args:
        rows: Slides or stores by their ids, no two alike; a row may give its slide's `mpp`.
        encoder: What makes the features.
        out: Folder of the feature stores.
        config: How the tiles are chosen, and the features stored.
        roi: The region of interest of a single slide, or a folder of those of each.
        part: The share of the slides that is done here, where several jobs share them.
        overwrite: Replace features made otherwise, or damaged ones.
        device: auto, cpu, cuda or mps.
        cluster: Where it is done; None: on this machine.

    Returns:
        What became of the slides; and the reason for each that failed, by its id.

    Raises:
        InputError: For one region for several slides.
        OutputError: If the folder `out` cannot be made or written.
        SpecslideError: As `run_on_devices`.
    """
    found, failed = with_regions(rows, roi, part)
    jobs = [EmbedJob(r.slide_path, r.slide_id, out, config, r.mpp, region, overwrite) for r, region in found]
    own = encoder.anywhere()
    task: Task[EmbedJob, EmbedReport] = partial(embed_job, encoder=own, device=device)
    place, how = (device, config) if cluster is None else ("cpu", None)
    first = partial(try_encoder, own, place, how, out)
    outcomes = run_on_devices(task, jobs, title="features", device=device, cluster=cluster, first=first)
    failed |= {o.job.slide_id: o.error for o in outcomes if o.error is not None}
    made = [replace(o.result, store=out / o.result.store.name) for o in outcomes if o.result is not None]
    return made, failed
