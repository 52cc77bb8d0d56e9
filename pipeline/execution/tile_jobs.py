"""The task run for each slide that is tiled: a picklable job around the verb of tiling, without inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from pipeline.execution.job import anywhere, require_folder
from pipeline.execution.pool import Outcome, TileProgress, bytes_of, run_slides, threads_for_slide
from pipeline.redaction import redacted_log
from pipeline.study.ledger import timed
from tiling.manifest import ManifestRow

if TYPE_CHECKING:  # imported when needed: zarr and the libraries of pictures take a while
    from pipeline.execution.dask_config import ClusterConfig
    from tiling import TileReport, TilingConfig


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
    from tiling import tile_slide

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
