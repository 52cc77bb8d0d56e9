"""Slides into tile stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline import console
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
from pipeline.commands.outcomes import reason_for_user, refused_outcomes, show_outcomes
from pipeline.commands.settings import Settings, options_of, settings_of
from pipeline.execution.partition import Part
from tiling.config import TilingConfig
from tiling.core.errors import ConfigError, InputError
from tiling.core.text import counted
from tiling.grid import same_scale

if TYPE_CHECKING:
    from tiling import TileReport
    from tiling.annotations.classes import ClassRules

_SHOWN = 5

# readable=False: a slide that may not be read is a bad slide like any other, and must not stop the rest.
Slides = Annotated[
    list[Path] | None, typer.Argument(help="Slides, and folders with slides in them or below.", readable=False)
]


@options_of(
    TilingConfig,
    common=(
        "mpp",
        "coarser_ok",
        "tile_px",
        "overlap",
        "min_tissue",
        "mpp_tolerance",
        "codec",
        "quality",
        "max_bad_tiles",
        "min_object_um2",
        "max_hole_um2",
        "drop_ink",
    ),
    names={
        "tissue_method": "tissue",
        **{f"tissue_{name}": name for name in ("min_object_um2", "max_hole_um2", "drop_ink")},
    },
)
def tile(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the stores.")],
    settings: Settings,
    slides: Slides = None,
    manifest: ManifestOption = None,
    slide_mpp: SlideMpp = None,
    annotations: Annotated[
        Path | None,
        typer.Option(
            help="Folder of .geojson (QuPath), .xml (ASAP, ImageScope), .annotations (HALO), .png or .tif (labels), "
            "named by slide_id or as the slide; before a manifest's."
        ),
    ] = None,
    tissue: Annotated[
        str,
        typer.Option(
            help="Tissue detection: local (unlike the glass nearby, any stain), specslide (that of version 0.1), otsu, "
            "hsv, histoprep, all (no detection); or your own mask: a file, or a folder as for --annotations."
        ),
    ] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="Parallel processes; default: one per core.")] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads for each slide; default: the cores are shared among the slides at work."),
    ] = None,
    cluster: ClusterOption = None,
    cluster_config: ClusterConfigFile = None,
    worker_memory: WorkerMemory = None,
    part: PartOption = None,
    overwrite: Overwrite = False,
    check: CheckOption = False,
) -> None:
    """Tile slides into zarr stores, with a tissue mask and a preview picture of each.

    Stopped at any time, the same command goes on. A bad slide never stops the others.

    Examples:

    `specslide tile slide.svs --out stores --mpp 0.5`

    `specslide tile slides/ --out stores`, all slides in a folder and below it

    `specslide tile slide.svs --out stores --mpp native`, each slide at its own scale

    `specslide tile slide.svs --out stores --tissue all --drop-ink`, the whole slide but for pen ink

    `specslide tile --manifest slides.csv --annotations geojson --out stores --workers 8`

    `specslide tile --manifest slides.csv --out stores --cluster local:4 --worker-memory 8GB`

    `specslide tile --manifest slides.csv --out stores --cluster slurm --cluster-config cluster.yaml`, with a file like

        workers: 40
        queue: {cores: 8, memory: 32GB, queue: normal, walltime: "04:00:00"}
    """
    settings.setdefault("tissue", {})["method"] = tissue_method(tissue)
    config = settings_of(TilingConfig, settings, "tile options")
    rows, refused = slides_of(slides, manifest, slide_mpp)
    machines = cluster_of(cluster, cluster_config, memory=worker_memory, workers=workers)
    if annotations is not None and not annotations.is_dir():
        raise InputError(annotations, "is not a folder", "pass the folder of the GeoJSON files")
    masks = tissue_files(Path(tissue), rows) if config.tissue.method == "mask" else {}
    if check:
        return
    require_any(rows, manifest)
    from pipeline.execution.pool import default_workers
    from pipeline.execution.tile_jobs import tile_all
    from tiling.annotations.find import find_annotations

    unused: list[Path] = []
    if annotations is not None:
        found, unused = find_annotations(annotations, {row.slide_id: row.slide_path for row in rows})
        rows = [row.model_copy(update={"annotation": found.get(row.slide_id, row.annotation)}) for row in rows]
    share = part or Part()
    outcomes = tile_all(
        share.of(rows), out, config, workers=workers or default_workers(), overwrite=overwrite,
        tissue_files=masks, cluster=machines, threads=threads,
    )  # fmt: skip
    if scales := _scales([o.result.mpp for o in outcomes if o.result]):
        console.note(scales)
    if annotations is not None or any(row.annotation for row in rows):
        for line in _annotated([o.result for o in outcomes if o.result], config.annotation, unused, manifest):
            console.note(line)
    show_outcomes(
        f"stores in {out}",
        [*((o.job.slide_id, _tiles_made(o.result), _note(o.result, config)) if o.result
           else (o.job.slide_id, "", reason_for_user(o.error or "", o.job.row, manifest)) for o in outcomes),
         *refused_outcomes(refused, share)],
    )  # fmt: skip


def tissue_method(tissue: str) -> str:
    """The method that `--tissue` names; the method `mask` for a file or folder."""
    from tiling.tissue import METHODS

    if tissue in METHODS:
        return tissue
    if Path(tissue).exists():
        return "mask"
    named = ", ".join(METHODS)
    raise ConfigError(f"--tissue {tissue}", "is neither a method nor a file", f"use {named}, or the path of a mask")


def tissue_files(path: Path, rows: list[Any]) -> dict[str, Path]:
    """The mask of each slide, by slide_id: one file for one slide, or those of a folder."""
    from tiling.annotations.find import find_annotations

    if path.is_dir():
        found = find_annotations(path, {row.slide_id: row.slide_path for row in rows}).of
        missing = [row.slide_id for row in rows if row.slide_id not in found]
        if missing:
            raise InputError(path, f"holds no mask of {missing[0]}", f"add {missing[0]}.png, .tif, .geojson or .xml")
        return found
    if len(rows) > 1:
        raise InputError(path, f"is one mask for {len(rows)} slides", "pass a folder of masks named by slide_id")
    return {rows[0].slide_id: path}


def _note(report: Any, config: TilingConfig) -> str:
    """What became of a slide: its tissue, what is doubtful, and its tiles' scale where it is not the one asked for."""
    said = [_scale_note(report, config), *([report.tissue.text()] if report.tissue else []), *report.doubts]
    return "; ".join(said)


def _scale_note(report: Any, config: TilingConfig) -> str:
    done = "kept" if report.reused else "made"
    if config.mpp == "native":
        return f"{done} at {report.mpp:.4g} µm/px"
    coarser = config.for_slide(report.mpp).coarser_ok
    return f"{done} at {report.mpp:.4g} µm/px, its own, coarser than {config.mpp:g}" if coarser else done


def _annotated(
    reports: Sequence[TileReport], rules: ClassRules, unused: Sequence[Path], manifest: Path | None
) -> Iterator[str]:
    """How many slides are annotated, and what looks like an annotation that was meant and is missing."""
    given = [report for report in reports if report.classes is not None]
    yield f"annotations: of {len(given)} of {len(reports)} slides"
    for what, ids in {
        "has no annotation": [report.slide_id for report in reports if report.classes is None] if given else [],
        "has an annotation without an area on the slide": [r.slide_id for r in given if not r.classes],
        "has an annotation under which no tile lies": [r.slide_id for r in given if r.classes and not r.annotated],
    }.items():
        if ids:
            yield f"{', '.join(ids[:_SHOWN])}{f' and {len(ids) - _SHOWN} more' if len(ids) > _SHOWN else ''}: {what}"
    if unused:
        names = ", ".join(path.name for path in unused[:_SHOWN]) if manifest is None else f"{len(unused)}"
        yield f"files of --annotations that are no slide's, by their names: {names}"
    known = {name for report in given for name in report.classes or ()}
    if given and (absent := [name for name in rules.order or () if name not in known]):
        there = ", ".join(sorted(known)) or "none"
        yield f"no annotation has a class {', '.join(absent)}, which --annotation-order names; there are {there}"


def _scales(mpps: list[float]) -> str:
    """A word where stores are of several scales, which no model takes together; "" where they are of one."""
    if not mpps or same_scale(min(mpps), max(mpps)):
        return ""
    counts = Counter(f"{mpp:.3g}" for mpp in sorted(mpps))
    each = ", ".join(f"{count} at {mpp}" for mpp, count in counts.items())
    return f"these stores are of several scales ({each} µm/px): models are trained on, and predict, those of one"


def _tiles_made(report: Any) -> str:
    bad = f", {len(report.bad)} left out that cannot be decoded" if report.bad else ""
    return f"{counted(report.tiles, 'tile')}{bad}"
