"""The runs of a tuning, one task a run: in processes of this machine or on a Dask cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Protocol

from pipeline.execution.devices import gpus
from pipeline.execution.pool import TileProgress, default_workers, run_slides

if TYPE_CHECKING:  # imported when needed: a dry run must not wait for torch
    from pipeline.execution.dask_config import ClusterConfig
    from training import Samples, TrainConfig
    from training.selection.attempts import Attempt


class Data(Protocol):
    """Where the labelled tiles are; hashable, and of absolute paths."""

    def samples(self, config: TrainConfig, mpp: float | None = None) -> Samples:
        """The tiles, for training under `config`."""

    def __hash__(self) -> int:
        """Of the paths."""


@dataclass(frozen=True)
class TuneJob:
    """One run of a tuning."""

    attempt: Attempt
    data: Data
    base: TrainConfig
    """The settings that all candidates share: by them the data is split."""
    mpp: float | None = None
    overwrite: bool = False


def tune_job(job: TuneJob, progress: TileProgress) -> str:
    """Train the run of one job and look at it; returns its name. Raises as `training.tune.attempt`."""
    from training.tune import attempt

    attempt(job.attempt, _samples(job.data, job.base, job.mpp), overwrite=job.overwrite)
    return job.attempt.name


def tune_all(jobs: Sequence[TuneJob], *, at_once: int = 1, cluster: ClusterConfig | None = None) -> dict[str, str]:
    """Train the runs of some jobs: several at once, each GPU with one, or on a cluster.

    Args:
        jobs: The runs.
        at_once: Processes of this machine.
        cluster: Where it is done instead; None: on this machine.

    Returns:
        By name, the reason for each run that failed for another reason than that its training diverged.

    Raises:
        SpecslideError: As `pipeline.execution.pool.run_slides`.
    """
    own = [] if any(job.base.device == "cpu" for job in jobs) else gpus()
    if cluster is not None and cluster.kind != "local" and (jobs and jobs[0].base.device != "cpu"):
        own = ["those of the workers"]
    threads = 1 if cluster is not None else max(1, default_workers() // at_once)
    shared = [
        replace(job, attempt=replace(job.attempt, config=_with_threads(job.attempt.config, threads))) for job in jobs
    ]
    outcomes = run_slides(
        tune_job, shared, workers=at_once, title="tune", unit="runs", cluster=cluster, devices=own
    )  # fmt: skip
    return {one.job.attempt.name: one.error for one in outcomes if one.error is not None}


def _with_threads(config: TrainConfig, threads: int) -> TrainConfig:
    """The settings with so many threads, unless they say a number themselves: processes would fight for the cores."""
    return config if config.threads is not None else config.model_copy(update={"threads": threads})


@cache
def _samples(data: Data, base: TrainConfig, mpp: float | None) -> Samples:
    """The tiles, read once in each process."""
    return data.samples(base, mpp)
