"""The tasks run for each slide of a cohort: picklable jobs around the verbs of tiling and inference."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from pipeline.console import progress_bar
from pipeline.engines import Outcome, TileProgress, run_slides
from pipeline.page import write_cohort_index
from pipeline.parts import Part
from tiling import TileReport, TilingConfig, tile_slide
from tiling.errors import InputError, OutputError, SpecslideError
from tiling.files import output_error
from tiling.manifest import ManifestRow
from tiling.slide import slide_name

if TYPE_CHECKING:  # imported when needed: workers that tile must not wait for torch
    from inference import Ensemble, HeatmapReport, PredictConfig
    from inference.formats import OutputConfig
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

    @property
    def slide_id(self) -> str:
        """The slide's id."""
        return self.row.slide_id


def tile_job(job: TileJob, progress: TileProgress) -> TileReport:
    """Tile the slide of one job."""
    return tile_slide(
        job.row.slide_path,
        job.out,
        job.config,
        slide_id=job.row.slide_id,
        slide_mpp=job.row.mpp,
        annotation=job.row.annotation,
        tissue_file=job.tissue_file,
        overwrite=job.overwrite,
        progress=progress,
    )


def tile_all(
    rows: Sequence[ManifestRow],
    out: Path,
    config: TilingConfig,
    *,
    workers: int,
    overwrite: bool = False,
    tissue_files: Mapping[str, Path] = MappingProxyType({}),
) -> list[Outcome[TileJob, TileReport]]:
    """Tile the slides in parallel processes. Raises OutputError if the folder `out` cannot be made or written.

    `tissue_files` are the users' tissue masks by slide_id, for the method `mask`.
    """
    require_folder(out)
    jobs = [TileJob(row, out, config, overwrite, tissue_files.get(row.slide_id)) for row in rows]
    return run_slides(tile_job, jobs, workers=workers, title="tiling")


def require_folder(folder: Path) -> None:
    """Make the folder for results now rather than fail once for each slide. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(folder, "cannot be written (Permission denied)", "choose an output folder you may write to")


def find_annotation(folder: Path, slide_id: str) -> Path | None:
    """The slide's annotation in a folder: `<slide_id>` with an ending of GeoJSON, ASAP XML or a label image, in this
    order; None if there is none.
    """
    candidates = (folder / f"{slide_id}{ending}" for ending in (".geojson", ".json", ".xml", ".png", ".tif", ".tiff"))
    return next((path for path in candidates if path.exists()), None)


def heatmap_all(
    sources: Sequence[Path],
    model: TileModel | Ensemble,
    out: Path,
    config: PredictConfig,
    *,
    slide_mpp: float | None = None,
    roi: Path | None = None,
    outputs: OutputConfig | None = None,
    part: Part = _WHOLE,
    overwrite: bool = False,
) -> tuple[list[HeatmapReport], dict[str, str]]:
    """Heatmaps of slides or stores, one after the other on the model's device; and the reason for each that failed.

    `roi` is the region of interest of a single slide, or a folder of those of each. Of several jobs that share the
    slides, each does its `part`. `out/index.html` shows all results in the folder. Raises InputError if two would have
    one name, OutputError if the folder `out` cannot be made or written.
    """
    from inference import make_heatmap
    from inference.formats import OutputConfig

    _refuse_twins(sources)
    if roi is not None and len(sources) > 1 and not roi.is_dir():
        raise InputError(roi, f"is one region for {len(sources)} slides", "pass a folder of them, named by slide_id")
    require_folder(out)
    sources = part.of(sources)  # after the checks, which are about all of them
    reports, failed = [], {}
    with progress_bar() as bar:
        shown = bar.add_task("heatmaps", total=len(sources), tiles="")
        for source in sources:
            try:
                reports.append(
                    make_heatmap(
                        source, model, out, config, slide_mpp=slide_mpp, overwrite=overwrite,
                        roi=None if roi is None else _roi_of(roi, source),
                        outputs=outputs or OutputConfig(),
                        progress=lambda done, total: bar.update(shown, tiles=f"{done:,} of {total:,} tiles"),
                    )
                )  # fmt: skip
            except SpecslideError as error:
                failed[str(source)] = str(error)
            bar.advance(shown)
    write_cohort_index(out, {_name_of(Path(name)): _without_path(text, name) for name, text in failed.items()})
    return reports, failed


def _refuse_twins(sources: Sequence[Path]) -> None:
    """Raise InputError if two slides or stores share one id: the second result would replace the first."""
    seen: dict[str, Path] = {}
    for source in sources:
        name = _name_of(source)
        if name in seen:
            both = f"{seen[name]} and {source}"
            raise InputError("the slides given", f"two have the id {name!r}: {both}", "give each once")
        seen[name] = source


def _name_of(source: Path) -> str:
    return source.name.removesuffix(".zarr") if source.name.endswith(".zarr") else slide_name(source)


def _roi_of(roi: Path, source: Path) -> Path:
    """The slide's region of interest. Raises InputError if a folder holds none."""
    found = find_annotation(roi, _name_of(source)) if roi.is_dir() else roi
    if found is None:
        raise InputError(roi, f"holds no region of {_name_of(source)}", f"add {_name_of(source)}.geojson")
    return found


def _without_path(reason: str, source: str) -> str:
    """A reason as others may read it: the index is sent away with the results, and tells nothing of the machine."""
    known = reason.replace(source, Path(source).name).replace(str(Path(source).resolve().parent) + os.sep, "")
    return re.sub(r"(?<![\w.])/(?:[^/\s;,]+/)+", "", known)
