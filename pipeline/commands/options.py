"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.execution.dask_config import ClusterConfig
from pipeline.execution.partition import Part, parse_part
from tiling.core.errors import ConfigError
from tiling.core.settings import checked, read_settings
from tiling.manifest import ManifestRow, read_manifest, slide_rows

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what was made otherwise or is damaged.")]
SlideMpp = Annotated[
    float | None, typer.Option(min=0.001, help="Micrometres per pixel of the slides, where their files do not say.")
]
ManifestOption = Annotated[Path | None, typer.Option(help="Table of slides (CSV or Parquet) instead of SLIDES.")]
WhereOption = Annotated[
    str | None, typer.Option(help="Which tiles of the stores, by their columns: `focus > 20 and pen < 0.05`.")
]
PartOption = Annotated[
    Part | None, typer.Option(parser=parse_part, metavar="I/N", help="Do the I-th of N shares of the slides only.")
]

ClusterOption = Annotated[
    str | None,
    typer.Option(help="Work on a Dask cluster: local, local:N, slurm, pbs, lsf, or a scheduler's tcp://host:8786."),
]
ClusterConfigFile = Annotated[
    Path | None,
    typer.Option(help="YAML file of the cluster's settings: workers, memory, retries, queue, gpu_queue ..."),
]
WorkerMemory = Annotated[
    str | None, typer.Option(help="What a worker of --cluster local may use, such as 8GB; more costs it its slide.")
]


def rows_of(slides: list[Path] | None, manifest: Path | None, slide_mpp: float | None) -> list[ManifestRow]:
    """The slides to work on, from the command line or a manifest; `slide_mpp` comes before a manifest's.

    Raises ConfigError for both or none, and InputError for a wrong manifest or two slides of one name.
    """
    if manifest is not None and not slides:
        rows = read_manifest(manifest)
    elif slides and manifest is None:
        rows = slide_rows(slides)
    else:
        raise ConfigError(
            "the arguments", "name no slides, or name them twice", "pass slides or --manifest, one of them"
        )
    return [row.model_copy(update={"mpp": slide_mpp or row.mpp}) for row in rows]


def cluster_of(
    at: str | None,
    settings: Path | None,
    *,
    memory: str | None = None,
    workers: int | None = None,
    study: ClusterConfig | None = None,
) -> ClusterConfig | None:
    """The cluster that the options ask for, then the file, or else the study. None: none, `workers` are processes.

    Raises ConfigError naming the key.
    """
    if at is None and settings is None and study is None and memory is None:
        return None
    values = {} if study is None or at is not None else study.model_dump(exclude_unset=True)
    values = values if settings is None else read_settings(settings)
    options = {"at": at, "memory": memory, "workers": workers}
    values |= {name: value for name, value in options.items() if value is not None}
    return checked(ClusterConfig, values, "cluster" if settings is None else settings)


def listed(text: str | None) -> list[str] | None:
    """The parts between commas."""
    return None if text is None else [part.strip() for part in text.split(",")]
