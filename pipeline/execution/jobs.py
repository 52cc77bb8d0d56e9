"""The task run for each slide that is predicted, and how what a network computes is shared out among processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from inference.recipes import is_store
from inference.report.cohort import write_cohort_index
from pipeline.execution.devices import gpus
from pipeline.execution.job import anywhere, require_folder
from pipeline.execution.partition import Part
from pipeline.execution.pool import Outcome, Preparation, Result, Task, TileProgress, bytes_of, run_slides
from pipeline.redaction import files_of, redact, redacted_log
from pipeline.study.ledger import timed
from tiling.annotations.find import find_annotations
from tiling.core.artefact import COMMIT
from tiling.core.errors import ConfigError, InputError
from tiling.manifest import ManifestRow

if TYPE_CHECKING:  # imported when needed: torch takes seconds
    import shapely

    from inference import Ensemble, HeatmapReport, PredictConfig
    from inference.config import OutputConfig
    from pipeline.execution.dask_config import ClusterConfig
    from training import TileModel

_WHOLE = Part()


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
        device: auto, cpu, cuda or mps.

    Returns:
        What became of the slide.

    Raises:
        SpecslideError: As `inference.make_heatmap` and `load_models`.
    """
    return heatmap_job(job, progress, load_models(models, device))


def try_models(models: tuple[Path, ...], device: str, config: PredictConfig | None, out: Path | None) -> None:
    """Load the models, see whether this machine can compute as configured, if it is the one that will, and make `out`.

    Raises ConfigError, ModelError, OutputError for what is refused before any slide is opened.
    """
    from inference.predict import require_machine

    loaded = load_models(models, device)
    if config is not None:
        require_machine(loaded, config)
    if out is not None:
        require_folder(out)


def load_models(folders: Sequence[Path], device: str = "auto") -> TileModel | Ensemble:
    """A model, or several as an ensemble, from their folders; loaded once in each process.

    Raises ModelError, and ConfigError for a device (auto, cpu, cuda or mps) that is not there.
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


NetworkJob = TypeVar("NetworkJob", bound=_OfSource)


def predict_all(
    jobs: Sequence[HeatmapJob],
    models: TileModel | Ensemble | Sequence[Path],
    *,
    out: Path | None = None,
    device: str = "auto",
    cluster: ClusterConfig | None = None,
) -> list[Outcome[HeatmapJob, HeatmapReport]]:
    """Make heatmaps with one model or several: in processes, on all GPUs of this machine, or on a cluster.

    How it is shared out: `run_on_devices`. Models that do not fit are refused before any slide is opened.

    Args:
        jobs: The slides or stores.
        models: A loaded model, for this process alone; or the folders of models, which each process loads for itself.
        out: A folder to be made when the models are known to fit.
        device: auto, cpu, cuda or mps.
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
        if out is not None:
            require_folder(out)
        here, sizes = partial(heatmap_job, model=models), [bytes_of(job.source) for job in jobs]
        return run_slides(here, jobs, workers=0, title="heatmaps", sizes=sizes)
    folders = tuple(Path(folder).absolute() for folder in models)
    task: Task[HeatmapJob, HeatmapReport] = partial(heatmap_job_elsewhere, models=folders, device=device)
    own = jobs[0].config if jobs and cluster is None else None
    first = partial(try_models, folders, device if cluster is None else "cpu", own, out)
    return heatmaps_on_devices(task, jobs, device=device, cluster=cluster, first=first)


def heatmaps_on_devices(
    task: Task[NetworkJob, HeatmapReport],
    jobs: Sequence[NetworkJob],
    *,
    device: str,
    cluster: ClusterConfig | None,
    first: Preparation,
) -> list[Outcome[NetworkJob, HeatmapReport]]:
    """Heatmaps, as `run_on_devices` shares them out; jobs and folders are named as they were given."""
    outcomes = run_on_devices(task, jobs, title="heatmaps", device=device, cluster=cluster, first=first)
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
    first: Preparation,
) -> list[Outcome[NetworkJob, Result]]:
    """Run what a network computes of slides: in this process, on all GPUs of this machine, or on a cluster.

    On a CPU, and with one GPU, they follow each other in one process: torch uses all cores there already, and more
    would only share them. It is this one for stores. Slides get one that can be lost, for a damaged slide may crash the
    library that reads it; the rest go on in a fresh one, and this process need not load torch. With several GPUs each
    has a process.

    Args:
        task: What is done for a job; each process loads the network for itself.
        jobs: The slides or stores.
        title: What the progress is called.
        device: auto, cpu, cuda or mps.
        cluster: Where it is done; None: on this machine.
        first: Loads the network, and raises what is refused before any slide.

    Returns:
        What became of each job, in their order; on a cluster the jobs have absolute paths.

    Raises:
        SpecslideError: As `pipeline.execution.pool.run_slides`.
    """
    devices = [] if device == "cpu" else gpus()
    sizes = [bytes_of(job.source) for job in jobs]
    if cluster is None:
        slides = sum(not is_store(job.source) for job in jobs)
        workers = len(devices) if len(devices) > 1 else min(1, slides)
        return run_slides(task, jobs, workers=workers, title=title, sizes=sizes, devices=devices, first=first)
    if cluster.kind != "local" and device != "cpu":
        devices = ["those of the workers"]
    sent = [anywhere(job) for job in jobs]
    return run_slides(task, sent, workers=0, title=title, sizes=sizes, cluster=cluster, devices=devices, first=first)


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
        device: auto, cpu, cuda or mps.
        cluster: Where it is done; None: on this machine.

    Returns:
        The heatmaps; and the reason for each slide that failed, by its id.

    Raises:
        InputError: For one region for several slides.
        OutputError: If the folder `out` cannot be made or written.
        SpecslideError: As `predict_all`.
    """
    found, failed = with_regions(rows, roi, part)
    jobs = [
        HeatmapJob(row.slide_path, row.slide_id, out, config, row.mpp, region, None, outputs, overwrite)
        for row, region in found
    ]
    return indexed(out, rows, predict_all(jobs, models, out=out, device=device, cluster=cluster), failed)


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
