"""The verb `import_results`: what another program predicted of a slide becomes a heatmap's folder.

What that program does not say is said to be unknown: whether probabilities are calibrated, which threshold holds, and
which tiles are unlike those that its model has seen.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inference.config import OutputConfig
from inference.exports.content import Content
from inference.foreign_results import ForeignResult, foreign_results
from inference.heatmap import publish_heatmap
from inference.prediction import Prediction
from inference.report.evidence import gather_evidence
from inference.reports import HeatmapReport
from inference.summary import VERSION
from tiling import Slide, TilingConfig
from tiling.config import TissueConfig
from tiling.core.arrays import Float32Array, Float64Array
from tiling.core.artefact import Recipe
from tiling.core.errors import ConfigError, InputError
from tiling.core.files import sha256_file
from tiling.grid import MAX_TILE_PX, Grid, Tiles
from tiling.manifest import require_slide_id
from tiling.plan import plan_tiles
from tiling.slides.files import slide_name
from tiling.tile import slide_facts
from training.config import TrainConfig
from training.data.preparation import positive_class as named_positive

log = logging.getLogger(__name__)

_SUM_TOLERANCE = 0.01
_LIMITS = (
    "It was made by {program} and imported: its file does not say whether its probabilities are calibrated, its "
    "threshold of {threshold:g} was given at import, and nothing tells which tiles are unlike those it learned from."
)


def import_results(
    path: Path | str,
    slide: Path | str,
    out_dir: Path | str,
    *,
    probabilities: Sequence[str] = (),
    positive_class: str | None = None,
    threshold: float = 0.5,
    tile_px0: int | None = None,
    slide_id: str | None = None,
    slide_mpp: float | None = None,
    outputs: OutputConfig = OutputConfig(),  # noqa: B008 - frozen
    overwrite: bool = False,
) -> HeatmapReport:
    """Write the heatmap `<out_dir>/<slide_id>/` of what another program predicted of a slide's tiles.

    Args:
        path: The program's file; see `inference.foreign_results.LAYOUTS`.
        slide: The slide that was predicted.
        out_dir: Folder of the heatmaps.
        probabilities: Columns or measurements that are the classes' probabilities; none: those called `prob_<class>`.
        positive_class: The class that the heatmap shows; None: the last that is not called normal, benign or the like.
            Where the classes do not exclude each other, it is held against its absence.
        threshold: From this probability on the class is called; no file says it.
        tile_px0: Side of a tile, level-0 pixels, where the file does not say.
        slide_id: Names the folder; None: the slide's file.
        slide_mpp: Micrometres per level-0 pixel, where the slide's file does not say.
        outputs: Which further files are written.
        overwrite: Replace a result made otherwise, or a damaged one.

    Returns:
        The heatmap.

    Raises:
        InputError: For a file of no known layout, of another slide, or that lacks what is not given either.
        OutputError: For a result made otherwise, unless `overwrite`, and a folder that holds something else.
        SlideError: If the slide cannot be read.
        ConfigError: For `outputs.occlusion`, which asks the model.
    """
    path, slide = Path(path), Path(slide)
    if outputs.occlusion:
        raise ConfigError("occlusion", "asks the model, which another program has", "leave it out")
    slide_id = require_slide_id(slide_id or slide_name(slide), slide)
    found = _of_slide(foreign_results(path, probabilities), slide, path)
    given = {
        "probabilities": list(probabilities), "positive_class": positive_class, "threshold": threshold,
        "tile_px0": tile_px0,
    }  # fmt: skip
    with Slide(slide, mpp=slide_mpp) as opened:
        inputs = {"slide": opened.sha256(), "results": sha256_file(path)}
        settings = {**given, "slide_mpp": opened.mpp, "said": dict(found.said), "version": VERSION}
        written = outputs.model_dump(mode="json", exclude={"occlusion"})
        recipe = Recipe("heatmap", inputs, settings | {"outputs": written})

        def predict() -> Prediction:
            return imported_prediction(found, path, opened, slide_id, inputs["slide"], given)

        return publish_heatmap(
            Path(out_dir) / slide_id, recipe, predict, None, Content.of(outputs),
            evidence=lambda prediction: gather_evidence(slide, prediction, slide_mpp), overwrite=overwrite,
        )  # fmt: skip


def results_of_slides(path: Path, slides: Sequence[Path], probabilities: Sequence[str] = ()) -> list[Path]:
    """The slides that a file holds results of, each of these. Raises InputError for one that is not among them."""
    found = []
    for result in foreign_results(path, probabilities):
        of_result = [slide for slide in slides if is_of_slide(result, slide)]
        if len(of_result) != 1:
            called = f"of {result.slide!r}" if result.slide else "that do not say of which slide"
            what = f"holds results {called}, and {len(of_result)} of the {len(slides)} slides fit"
            raise InputError(path, what, "pass the one slide with --slides")
        found += of_result
    return found


def is_of_slide(result: ForeignResult, slide: Path) -> bool:
    """Whether a result is of that slide, by its name or its file's; one that does not say is of any."""
    return result.slide is None or slide_name(slide) in (result.slide, slide_name(Path(result.slide)))


def _of_slide(results: Sequence[ForeignResult], slide: Path, path: Path) -> ForeignResult:
    """The result of that slide. Raises InputError naming those that there are."""
    of_slide = [result for result in results if is_of_slide(result, slide)]
    if len(of_slide) != 1:
        names = ", ".join(str(result.slide) for result in results)
        what = f"holds {len(of_slide)} results of the slide {slide_name(slide)}: there are {names}"
        raise InputError(path, what, "pass the slide that it is of")
    return of_slide[0]


def imported_prediction(
    found: ForeignResult, path: Path, slide: Slide, slide_id: str, sha256: str, given: Mapping[str, Any]
) -> Prediction:
    """What a file says of a slide as a prediction, its tiles in reading order.

    Args:
        found: The result.
        path: Its file, to be named in errors.
        slide: The slide.
        slide_id: What it is called.
        sha256: Its hash.
        given: `positive_class`, `threshold` and `tile_px0`, as `import_results` takes them.

    Returns:
        The prediction.

    Raises:
        InputError: For what the file lacks, or cannot be.
    """
    classes, positive, values = _classes(found, path, given["positive_class"])
    grid, tiles, kept = _tiles(found, path, slide, given["tile_px0"])
    overview = TilingConfig(mpp=slide.mpp, tile_px=grid.tile_px, tissue=TissueConfig(method="all"))
    model = found.model or f"a model in {found.program}"
    return Prediction(
        slide=slide_facts(slide, slide_id, sha256),
        tiles=tiles,
        probabilities=values[kept],
        classes=classes,
        positive=positive,
        threshold=float(np.float32(given["threshold"])),
        thumbnail=plan_tiles(slide, overview).thumbnail,
        provenance={
            "model_sha256": "",
            "backbone": model,
            "imported_from": found.program,
            "limits": _LIMITS.format(program=found.program, threshold=given["threshold"]),
            "settings": {**{name: value for name, value in given.items() if value}, **found.said},
        },
        left_out={"other_size": len(found.centres) - len(tiles)},
    )


def _classes(found: ForeignResult, path: Path, positive: str | None) -> tuple[tuple[str, ...], int, Float32Array]:
    """The classes, which of them is shown, and the probabilities, float32 (N, C). Raises InputError."""
    names = tuple(found.probabilities)
    if not names:
        fix = "name the columns or measurements that are the classes' probabilities with --probability"
        raise InputError(path, "has no columns that begin with prob_", fix)
    if positive is not None and positive not in names:
        raise InputError(path, f"has no class {positive!r}: there are {', '.join(names)}", "correct --positive-class")
    values = np.stack([found.probabilities[name] for name in names], 1)
    if not ((values >= 0) & (values <= 1)).all():
        raise InputError(path, f"holds probabilities from {values.min():g} to {values.max():g}", "pass probabilities")
    if len(names) > 1 and (abs(values.sum(1) - 1) <= _SUM_TOLERANCE).all():
        shown = positive or named_positive(names, TrainConfig())
        return names, names.index(shown), values.astype(np.float32)
    if positive is None and len(names) > 1:
        what = f"holds classes that do not exclude each other: {', '.join(names)} are not 1 together"
        raise InputError(path, what, "name one of them with --positive-class: it is held against its absence")
    shown = positive or names[0]
    p = values[:, names.index(shown)]
    return (f"not {shown}", shown), 1, np.stack([1 - p, p], 1).astype(np.float32)


def _tiles(
    found: ForeignResult, path: Path, slide: Slide, tile_px0: int | None
) -> tuple[Grid, Tiles, np.ndarray[Any, np.dtype[np.intp]]]:
    """Grid and tiles in level-0 pixels, in reading order, and which rows of the file they are. Raises InputError."""
    unit0 = _unit0(found, path, slide)
    side0, kept = _side(found, path, unit0, tile_px0)
    origin = np.array(slide.frame.qupath0 if found.qupath else (0, 0), np.float64)
    corners = np.rint(found.centres[kept] * unit0 + origin - side0 / 2)
    beyond = (corners <= -side0) | (corners >= np.array([slide.width, slide.height]))
    if beyond.any():
        where = corners[beyond.any(1)][0].astype(int).tolist()
        what = f"has tiles that lie off the slide {slide_name(slide.path)}, one at {where[0]}, {where[1]}"
        raise InputError(path, what, "pass the slide that it is of, or its scale with --slide-mpp")
    places = np.maximum(corners, 0).astype(np.int32)
    order = np.lexsort((places[:, 0], places[:, 1]))
    places, kept = places[order], kept[order]
    if len(places) and (np.diff(places, axis=0) == 0).all(1).any():
        raise InputError(path, "has two tiles in one place", "write each tile once")
    grid = Grid(
        width0=slide.width,
        height0=slide.height,
        slide_mpp=slide.mpp,
        tile_px=min(found.tile_px or side0, side0, MAX_TILE_PX),
        tile_px0=side0,
        stride_px0=_stride(places, side0),
    )
    return grid, Tiles(grid, places[:, 0].copy(), places[:, 1].copy()), kept


def _unit0(found: ForeignResult, path: Path, slide: Slide) -> float:
    """Level-0 pixels per unit of the file's places. Raises InputError where the slide does not tell."""
    if found.unit == "power":
        if not slide.objective_power or not found.resolution:
            raise InputError(path, "counts at an objective power, and the slide has none", "predict at a scale in mpp")
        return slide.objective_power / found.resolution
    if found.unit == "level":
        if found.resolution not in range(len(slide.levels)):
            raise InputError(path, f"counts at level {found.resolution:g}, which the slide lacks", "pass its slide")
        return slide.levels[int(found.resolution)].downsample
    return {"px0": 1.0, "um": 1 / slide.mpp, "mpp": found.resolution / slide.mpp}[found.unit]


def _side(
    found: ForeignResult, path: Path, unit0: float, tile_px0: int | None
) -> tuple[int, np.ndarray[Any, np.dtype[np.intp]]]:
    """Side of the tiles, level-0 pixels, and which tiles have it: others are left out, which is said."""
    everything = np.arange(len(found.centres))
    if found.sides is None:
        if tile_px0 is None:
            raise InputError(path, "does not say how large a tile is", "pass --tile-px0")
        return tile_px0, everything
    sides: Float64Array = found.sides * unit0
    sizes, counts = np.unique(np.rint(sides), axis=0, return_counts=True)
    if not len(sizes):
        return tile_px0 or 1, everything
    width, height = sizes[counts.argmax()].tolist()
    if width < 1 or abs(width - height) > 1:
        raise InputError(path, f"has tiles of {width:g} x {height:g} px, which are no squares", "pass square tiles")
    kept = everything[(abs(sides - width) <= 1).all(1)]
    if len(kept) < len(everything):
        log.warning("%s: left out %d tiles of another size than %d px", path, len(everything) - len(kept), width)
    return int(width), kept


def _stride(places: np.ndarray[Any, np.dtype[np.int32]], side0: int) -> int:
    """Distance of neighbouring tiles: the smallest there is, at most a side; rounded places count as side by side."""
    steps = np.concatenate([np.diff(np.unique(places[:, axis])) for axis in (0, 1)])
    smallest = int(steps.min(initial=side0))
    return side0 if smallest >= side0 - 1 else smallest
