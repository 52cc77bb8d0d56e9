"""The tasks run for each slide of a cohort: picklable jobs around the verbs of tiling and inference."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from inference.recipes import is_store
from inference.report.cohort import write_cohort_index
from pipeline.execution.dask_config import ClusterConfig
from pipeline.execution.partition import Part
from pipeline.execution.pool import Outcome, Result, Task, TileProgress, bytes_of, run_slides, threads_for_slide
from pipeline.redaction import files_of, redact, redacted_log
from pipeline.study.ledger import timed
from tiling import TileReport, TilingConfig, tile_slide
from tiling.annotations.find import find_annotations
from tiling.core.artefact import COMMIT
from tiling.core.errors import ConfigError, InputError, OutputError
from tiling.core.files import output_error
from tiling.manifest import ManifestRow

if TYPE_CHECKING:  # imported when needed: workers that tile must not wait for torch
    import shapely
    from _typeshed import DataclassInstance

    from inference import Ensemble, HeatmapReport, PredictConfig
    from inference.config import OutputConfig
    from training import TileModel

_WHOLE = Part()


@dataclass(frozen=True)
class TileJob:
    """One slide to tile."""

    row: ManifestRow
    out: Path
    config: TilingConfig
    overwrite: bool = False
    tissue_file: Path | None = None
    """The user's tissue mask, for the method `mask`."""
    ledger: Path | None = None
    """The study's folder, in whose ledger it is said."""
    threads: int | None = None
    """Threads that read, measure and encode its tiles; None: as many as the other slides leave cores for."""

    @property
    def slide_id(self) -> str:
        """The slide's id."""
        return self.row.slide_id


def tile_job(job: TileJob, progress: TileProgress) -> TileReport:
    """Tile the slide of one job."""
    work = partial(
        tile_slide, job.row.slide_path, job.out, job.config,
        slide_id=job.row.slide_id, slide_mpp=job.row.mpp, annotation=job.row.annotation,
        tissue_file=job.tissue_file, overwrite=job.overwrite, progress=progress,
        threads=job.threads or threads_for_slide,
    )  # fmt: skip
    with redacted_log(job.row.slide_path, job.slide_id):
        return timed(job.ledger, "tile", f"{job.out.name}/{job.slide_id}.zarr", work)


def tile_all(
    rows: Sequence[ManifestRow],
    out: Path,
    config: TilingConfig,
    *,
    workers: int,
    overwrite: bool = False,
    tissue_files: Mapping[str, Path] = MappingProxyType({}),
    cluster: ClusterConfig | None = None,
    ledger: Path | None = None,
    threads: int | None = None,
) -> list[Outcome[TileJob, TileReport]]:
    """Tile the slides in parallel processes, or on a cluster.

    Args:
        rows: The slides.
        out: The folder of the stores.
        config: How they are tiled.
        workers: Processes of this machine at most; 0: this process itself does it.
        overwrite: Whether stores made otherwise are replaced.
        tissue_files: The users' tissue masks by slide_id, for the method `mask`.
        cluster: Where it is done, in place of processes of this machine.
        ledger: The folder of a study.
        threads: For each slide; None: the cores are shared among the slides that are worked on, on a cluster one.

    Returns:
        What became of each slide, in their order.

    Raises:
        OutputError: If the folder `out` cannot be made or written.
        SpecslideError: As `pipeline.execution.pool.run_slides`.
    """
    require_folder(out)
    each = threads or (None if cluster is None else 1)
    jobs = [TileJob(row, out, config, overwrite, tissue_files.get(row.slide_id), ledger, each) for row in rows]
    sizes = [bytes_of(row.slide_path) for row in rows]
    sent = jobs if cluster is None else [anywhere(job) for job in jobs]
    outcomes = run_slides(tile_job, sent, workers=workers, title="tiling", sizes=sizes, cluster=cluster)
    return [
        replace(o, job=job, result=o.result and replace(o.result, store=out / o.result.store.name))
        for job, o in zip(jobs, outcomes, strict=True)
    ]


def require_folder(folder: Path) -> None:
    """Make the folder for results now rather than fail once for each slide. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(folder, "cannot be written (Permission denied)", "choose an output folder you may write to")


@dataclass(frozen=True)
class HeatmapJob:
    """One slide or store to make a heatmap of; the model is the task's."""

    source: Path
    slide_id: str
    out: Path
    config: PredictConfig
    slide_mpp: float | None = None
    roi: Path | None = None
    truth: shapely.Geometry | None = None
    outputs: OutputConfig | None = None
    overwrite: bool = False
    ledger: Path | None = None
    """The study's folder, in whose ledger it is said."""


def heatmap_job(job: HeatmapJob, progress: TileProgress, model: TileModel | Ensemble) -> HeatmapReport:
    """Make the heatmap of one job."""
    from inference import make_heatmap
    from inference.config import OutputConfig

    work = partial(
        make_heatmap, job.source, model, job.out, job.config,
        slide_id=job.slide_id, slide_mpp=job.slide_mpp, roi=job.roi, truth=job.truth,
        outputs=job.outputs or OutputConfig(), overwrite=job.overwrite, progress=progress,
    )  # fmt: skip
    with redacted_log(job.source, job.slide_id):
        return timed(job.ledger, "heatmap", f"{job.out.name}/{job.slide_id}", work)


def heatmap_job_elsewhere(
    job: HeatmapJob, progress: TileProgress, models: tuple[Path, ...], device: str
) -> HeatmapReport:
    """Make the heatmap of one job in a process that has yet to load the models; it does so once.

    Args:
        job: The slide or store.
        progress: Called with (tiles done, tiles in all).
        models: The folders of one model or several.
        device: auto, cpu or cuda.

    Returns:
        What became of the slide.

    Raises:
        SpecslideError: As `inference.make_heatmap` and `load_models`.
    """
    return heatmap_job(job, progress, load_models(models, device))


def load_models(folders: Sequence[Path], device: str = "auto") -> TileModel | Ensemble:
    """A model, or several as an ensemble, from their folders; loaded once in each process.

    Raises ModelError, and ConfigError for a device (auto, cpu or cuda) that is not there.
    """
    places = tuple(Path(folder).absolute() for folder in folders)
    return _loaded(places, tuple(map(commit_of, places)), device)


def commit_of(folder: Path) -> bytes:
    """What tells whether a folder still holds the same model; b"" if nothing can be read."""
    try:
        return (folder / COMMIT).read_bytes()
    except OSError:
        return b""


@cache
def _loaded(folders: tuple[Path, ...], commits: tuple[bytes, ...], device: str) -> TileModel | Ensemble:
    from inference import load_model, make_ensemble
    from training import load_train_config
    from training.devices import device_of

    place = device_of(load_train_config(None, {"device": device}))
    return make_ensemble([load_model(folder, place) for folder in folders])


class _OfSource(Protocol):
    """A job that reads one slide or store, of which something is made in the folder `out`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def source(self) -> Path: ...
    @property
    def slide_id(self) -> str: ...
    @property
    def out(self) -> Path: ...


AnyJob = TypeVar("AnyJob", bound="DataclassInstance")
NetworkJob = TypeVar("NetworkJob", bound=_OfSource)


def predict_all(
    jobs: Sequence[HeatmapJob],
    models: TileModel | Ensemble | Sequence[Path],
    *,
    device: str = "auto",
    cluster: ClusterConfig | None = None,
) -> list[Outcome[HeatmapJob, HeatmapReport]]:
    """Make heatmaps with one model or several: in this process, on all GPUs of this machine, or on a cluster.

    How it is shared out: `run_on_devices`.

    Args:
        jobs: The slides or stores.
        models: A loaded model, for this process alone; or the folders of models, which each process loads for itself.
        device: auto, cpu or cuda.
        cluster: Where it is done; None: on this machine.

    Returns:
        What became of each job, in their order.

    Raises:
        ConfigError: For a loaded model on a cluster.
        SpecslideError: As `pipeline.execution.pool.run_slides`.
    """
    if not isinstance(models, Sequence):
        if cluster is not None:
            raise ConfigError("cluster", "a model that is loaded cannot be sent to workers", "pass its folder")
        here, sizes = partial(heatmap_job, model=models), [bytes_of(job.source) for job in jobs]
        return run_slides(here, jobs, workers=0, title="heatmaps", sizes=sizes)
    folders = tuple(Path(folder).absolute() for folder in models)
    task: Task[HeatmapJob, HeatmapReport] = partial(heatmap_job_elsewhere, models=folders, device=device)
    return heatmaps_on_devices(task, jobs, device=device, cluster=cluster)


def heatmaps_on_devices(
    task: Task[NetworkJob, HeatmapReport], jobs: Sequence[NetworkJob], *, device: str, cluster: ClusterConfig | None
) -> list[Outcome[NetworkJob, HeatmapReport]]:
    """Heatmaps, as `run_on_devices` shares them out; jobs and folders are named as they were given."""
    outcomes = run_on_devices(task, jobs, title="heatmaps", device=device, cluster=cluster)
    return [
        replace(o, job=job, result=o.result and replace(o.result, folder=job.out / job.slide_id))
        for job, o in zip(jobs, outcomes, strict=True)
    ]


def run_on_devices(
    task: Task[NetworkJob, Result],
    jobs: Sequence[NetworkJob],
    *,
    title: str,
    device: str,
    cluster: ClusterConfig | None,
) -> list[Outcome[NetworkJob, Result]]:
    """Run what a network computes of slides: in this process, on all GPUs of this machine, or on a cluster.

    On a CPU, and with one GPU, they follow each other in one process: torch uses all cores there already, and more
    would only share them. It is this one for stores, and for a single slide. Several slides get one that can be lost,
    for a damaged slide may crash the library that reads it; the rest go on in a fresh one. With several GPUs each has a
    process.

    Args:
        task: What is done for a job; each process loads the network for itself.
        jobs: The slides or stores.
        title: What the progress is called.
        device: auto, cpu or cuda.
        cluster: Where it is done; None: on this machine.

    Returns:
        What became of each job, in their order; on a cluster the jobs have absolute paths.

    Raises:
        SpecslideError: As `pipeline.execution.pool.run_slides`.
    """
    devices = [] if device == "cpu" else gpus()
    sizes = [bytes_of(job.source) for job in jobs]
    if cluster is None:
        slides = sum(not is_store(job.source) for job in jobs)
        workers = len(devices) if len(devices) > 1 else int(slides > 1)
        return run_slides(task, jobs, workers=workers, title=title, sizes=sizes, devices=devices)
    if cluster.kind != "local" and device != "cpu":
        devices = ["those of the workers"]
    sent = [anywhere(job) for job in jobs]
    return run_slides(task, sent, workers=0, title=title, sizes=sizes, cluster=cluster, devices=devices)


def heatmap_all(
    rows: Sequence[ManifestRow],
    models: TileModel | Ensemble | Sequence[Path],
    out: Path,
    config: PredictConfig,
    *,
    roi: Path | None = None,
    outputs: OutputConfig | None = None,
    part: Part = _WHOLE,
    overwrite: bool = False,
    device: str = "auto",
    cluster: ClusterConfig | None = None,
) -> tuple[list[HeatmapReport], dict[str, str]]:
    """Heatmaps of slides or stores, as `predict_all` makes them; `out/index.html` shows all results in the folder.

    Args:
        rows: Slides or stores by their ids, no two alike; a row may give its slide's `mpp`.
        models: As for `predict_all`.
        out: Folder of the results.
        config: How the tiles are predicted.
        roi: The region of interest of a single slide, or a folder of those of each.
        outputs: Which further files are written.
        part: The share of the slides that is done here, where several jobs share them.
        overwrite: Replace results made otherwise, or damaged ones.
        device: auto, cpu or cuda.
        cluster: Where it is done; None: on this machine.

    Returns:
        The heatmaps; and the reason for each slide that failed, by its id.

    Raises:
        InputError: For one region for several slides.
        OutputError: If the folder `out` cannot be made or written.
        SpecslideError: As `predict_all`.
    """
    found, failed = with_regions(rows, roi, part)
    require_folder(out)
    jobs = [
        HeatmapJob(row.slide_path, row.slide_id, out, config, row.mpp, region, None, outputs, overwrite)
        for row, region in found
    ]
    return indexed(out, rows, predict_all(jobs, models, device=device, cluster=cluster), failed)


def indexed(
    out: Path,
    rows: Sequence[ManifestRow],
    outcomes: Sequence[Outcome[NetworkJob, HeatmapReport]],
    failed: Mapping[str, str],
) -> tuple[list[HeatmapReport], dict[str, str]]:
    """Heatmaps, and the reason for each slide that failed, by its id; both are shown by `out/index.html`.

    Args:
        out: The folder of the heatmaps.
        rows: The slides.
        outcomes: What became of those that were tried.
        failed: Why others were not.

    Returns:
        The heatmaps; and the reasons.

    Raises:
        OutputError: If the index cannot be written.
    """
    reasons = {**failed, **{o.job.slide_id: o.error for o in outcomes if o.error is not None}}
    files = {row.slide_id: files_of(row) for row in rows}
    write_cohort_index(out, {name: redact(text, names=files[name]) for name, text in reasons.items()})
    return [outcome.result for outcome in outcomes if outcome.result is not None], reasons


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return named[:count] if len(named) >= count > 0 and named[0] else [str(number) for number in range(count)]


def anywhere(job: AnyJob) -> AnyJob:
    """The same job with absolute paths, for a worker that starts in another folder."""
    values = {field.name: getattr(job, field.name) for field in fields(job)}
    changed: dict[str, Any] = {name: path.absolute() for name, path in values.items() if isinstance(path, Path)}
    if isinstance(job, TileJob):
        paths = {name: path.absolute() for name, path in job.row if isinstance(path, Path)}
        changed["row"] = job.row.model_copy(update=paths)
    return replace(job, **changed)


def with_regions(
    rows: Sequence[ManifestRow], roi: Path | None, part: Part
) -> tuple[list[tuple[ManifestRow, Path | None]], dict[str, str]]:
    """A job's share of the slides, each with its region of interest; and why some have none, by slide_id.

    Raises InputError for one region for several slides.
    """
    if roi is not None and len(rows) > 1 and not roi.is_dir():
        raise InputError(roi, f"is one region for {len(rows)} slides", "pass a folder of them, named by slide_id")
    regions, found, missing = _regions(roi, rows), [], {}
    for row in part.of(rows):  # after the check, which is about all of them
        region = regions.get(row.slide_id)
        if roi is not None and region is None:
            error = InputError(roi, f"holds no region of {row.slide_id}", f"add {row.slide_id}.geojson")
            missing[row.slide_id] = str(error)
        else:
            found.append((row, region))
    return found, missing


def _regions(roi: Path | None, rows: Sequence[ManifestRow]) -> Mapping[str, Path]:
    """The regions of interest of the slides, by slide_id: of a folder those that it holds."""
    if roi is None:
        return {}
    if not roi.is_dir():
        return {row.slide_id: roi for row in rows}
    return find_annotations(roi, {row.slide_id: row.slide_path for row in rows}).of
