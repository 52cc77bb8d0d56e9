"""The verb: models and labelled tiles -> how well they stand what another scanner or laboratory changes.

out/stress.json      all figures, published last       out/stress.csv      a row a model, shift and strength
out/stress.png       the metric against the strength, a plot a shift
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tiling.core.artefact import locked_folder
from tiling.core.errors import ConfigError, ModelError
from tiling.core.files import canonical_json, output_error, write_file
from tiling.core.versions import RESEARCH_USE
from training.data.dataset import Tiles
from training.data.samples import Samples
from training.evaluation.evaluate import leaks, require_fit
from training.evaluation.figures import ShiftPanel, shift_curves
from training.evaluation.metrics import (
    METRIC_NAMES,
    Floats,
    Interval,
    Ints,
    Resampled,
    interval,
    resampled,
    standard_metrics,
)
from training.evaluation.perturbations import SHIFTS
from training.models.folder import TileModel

log = logging.getLogger(__name__)

METRICS = ("balanced_accuracy", "auroc")
RESULTS = ("stress.json", "stress.csv", "stress.png")

Progress = Callable[[int, int], None]
"""Called with (predictions done, predictions in all)."""
Place = tuple[str, float]
"""A shift and its strength; ("", 0) for tiles as they are."""
AS_THEY_ARE: Place = ("", 0.0)


@dataclass(frozen=True)
class Point:
    """A model at one strength of a shift."""

    strength: float
    amount: str
    """The strength in the shift's own unit."""
    metric: Interval


@dataclass(frozen=True)
class Curve:
    """A model under one shift."""

    points: tuple[Point, ...]
    """From the lowest strength to the highest."""
    area: Interval
    """The area under the curve over its width: the mean of the metric over the strengths."""


@dataclass(frozen=True)
class StressTest:
    """What a stress test found."""

    metric: str
    split: str
    tiles: int
    cases: int
    resamples: int
    models: dict[str, str]
    """SHA-256 of each model's folder, by its name."""
    unshifted: dict[str, Interval]
    """The metric on the tiles as they are, by model."""
    curves: dict[str, dict[str, Curve]]
    """By shift and model."""
    notes: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """What stress.json says."""
        return asdict(self) | {"interval": "95% bootstrap over cases", "notice": RESEARCH_USE}

    def table(self) -> str:
        """CSV: a row a model, shift and strength."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["model", "shift", "strength", "amount", self.metric, "low", "high", "area"])
        for shift, of_shift in self.curves.items():
            for model, curve in of_shift.items():
                for point in curve.points:
                    values = (point.metric.value, point.metric.low, point.metric.high, curve.area.value)
                    cells = ["" if value is None else f"{value:.6f}" for value in values]
                    writer.writerow([model, shift, f"{point.strength:g}", point.amount, *cells])
        return text.getvalue()


def stress(
    models: Mapping[str, TileModel],
    samples: Samples,
    chosen: Ints,
    out: Path,
    *,
    split: str = "all",
    metric: str = "balanced_accuracy",
    shifts: Sequence[str] = tuple(SHIFTS),
    steps: int = 4,
    resamples: int = 1000,
    seed: int = 0,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> StressTest:
    """Measure models, by name, on the same tiles under each shift in `steps` strengths to each side.

    `samples` are `labelled_tiles` of the first model, `chosen` indices (n,) into them, `split` what they are called.
    The metric is balanced accuracy at each model's own threshold, or AUROC; its intervals, by bootstrap over cases, are
    of the same resamples for every model, shift and strength. Tiles are shifted as the model gets them, at its own side
    in pixels, and before any stain normalisation of its own. Writes the files listed above into `out`. Raises
    ConfigError for an unknown shift or metric, ModelError for a model that does not fit the tiles, OutputError.
    """
    _require_known(models, metric, shifts, steps)
    first = next(iter(models.values()))
    for name, model in models.items():
        require_fit(model.info, first.info, samples, name)
    notes = [note for name, model in models.items() for note in leaks(name, model, samples, chosen)]
    for note in notes:
        log.warning("%s", note)
    places = [AS_THEY_ARE] + [(name, s) for name in shifts for s in SHIFTS[name].strengths(steps) if s != 0]
    report = _Report(progress, len(models) * len(places) * len(chosen))
    with locked_folder(out / "stress"):
        _sweep(out)
        found = {
            name: _measure(model, Tiles(samples, chosen, model.info.tile_px), places, metric, resamples, seed,
                           batch_size, report)
            for name, model in models.items()
        }  # fmt: skip
        result = StressTest(
            metric=metric,
            split=split,
            tiles=len(chosen),
            cases=len(np.unique(samples.case_id[chosen])),
            resamples=resamples,
            models={name: model.sha256 for name, model in models.items()},
            unshifted={name: interval(*at[AS_THEY_ARE]) for name, at in found.items()},
            curves={shift: {name: _curve(shift, steps, at) for name, at in found.items()} for shift in shifts},
            notes=tuple(notes),
        )
        write_file(out / "stress.png", picture(result, len(samples.classes)))
        write_file(out / "stress.csv", result.table())
        write_file(out / "stress.json", canonical_json(result.record()))
    return result


def picture(result: StressTest, classes: int) -> bytes:
    """PNG of a stress test: a plot a shift, a line a model."""
    panels = [
        ShiftPanel(
            title=shift,
            ticks=_ticks(next(iter(of_shift.values())).points),
            curves={name: [(p.strength, p.metric) for p in curve.points] for name, curve in of_shift.items()},
        )
        for shift, of_shift in result.curves.items()
    ]
    chance = 1 / classes if result.metric == "balanced_accuracy" else 0.5
    title = f"{METRIC_NAMES[result.metric]} on {result.tiles:,} tiles of {result.cases} cases, shifted"
    return shift_curves(panels, result.metric, chance, title)


def area(strengths: Sequence[float], values: Sequence[Floats]) -> Floats:
    """Area under each of R curves by the trapezoid rule, over its width; `values` are (R,) for each strength."""
    parts = [(b - a) * (u + v) / 2 for (a, b), (u, v) in zip(pairwise(strengths), pairwise(values), strict=True)]
    return np.asarray(np.sum(parts, axis=0) / (strengths[-1] - strengths[0]))


class _Report:
    """Counts what is done."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def add(self, count: int) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(self.done, self.total)


def _require_known(models: Mapping[str, TileModel], metric: str, shifts: Sequence[str], steps: int) -> None:
    if not models:
        raise ConfigError("models", "none is given", "pass one or more")
    if metric not in METRICS:
        raise ConfigError("--metric", f"{metric!r} is unknown", f"use {' or '.join(METRICS)}")
    unknown = [name for name in shifts if name not in SHIFTS]
    if unknown or not shifts:
        what = f"{unknown[0]!r} is no shift" if unknown else "names no shift"
        raise ConfigError("--shifts", what, f"use some of {', '.join(SHIFTS)}")
    if len(set(shifts)) < len(shifts):
        raise ConfigError("--shifts", "a shift is named twice", "name each once")
    if steps < 1:
        raise ConfigError("--strengths", f"{steps} leaves nothing but the tiles as they are", "pass 1 or more")


def _measure(
    model: TileModel,
    tiles: Tiles,
    places: Sequence[Place],
    metric: str,
    resamples: int,
    seed: int,
    batch_size: int,
    report: _Report,
) -> dict[Place, Resampled]:
    """The metric at each place, on all tiles and on each resample of the cases."""
    samples, chosen, info = tiles.samples, tiles.indices, model.info
    order = [info.classes.index(name) for name in samples.classes]
    positive = samples.classes.index(info.positive_class)
    metrics = {}
    for place, probabilities in _predict(model, tiles, places, batch_size, report).items():
        of_place = standard_metrics(
            probabilities[:, order], samples.label[chosen], threshold=info.threshold, positive=positive
        )
        metrics[f"{place}"] = of_place[metric]
    drawn = resampled(metrics, samples.case_id[chosen], resamples=resamples, seed=seed)
    return {place: drawn[f"{place}"] for place in places}


def _predict(
    model: TileModel, tiles: Tiles, places: Sequence[Place], batch_size: int, report: _Report
) -> dict[Place, Floats]:
    """Probabilities float64 (n, C) at each place, in the order of the model's classes; tiles are read once."""
    found = {place: np.empty((len(tiles), len(model.info.classes))) for place in places}
    for start in range(0, len(tiles), batch_size):
        rows = list(range(start, min(start + batch_size, len(tiles))))
        pixels = tiles.__getitems__(rows).tiles.numpy()
        for shift, strength in places:
            shifted = SHIFTS[shift](pixels, strength) if shift else pixels
            probabilities = model.predict(shifted)
            if not np.isfinite(probabilities).all():
                slide = tiles.samples.slide_id[tiles.indices[rows[0]]]
                what = f"the model gives no finite probability for a tile under {shift or 'no shift'} {strength:g}"
                raise ModelError(slide, what, "check the model's training")
            found[shift, strength][rows] = probabilities
            report.add(len(rows))
    return found


def _curve(shift: str, steps: int, found: Mapping[Place, Resampled]) -> Curve:
    strengths = SHIFTS[shift].strengths(steps)
    drawn = [found[(shift, s) if s else AS_THEY_ARE] for s in strengths]
    points = [Point(s, SHIFTS[shift].amount(s), interval(*at)) for s, at in zip(strengths, drawn, strict=True)]
    whole = area(strengths, [np.array([at.value]) for at in drawn])[0]
    return Curve(tuple(points), interval(float(whole), area(strengths, [at.drawn for at in drawn])))


def _ticks(points: Sequence[Point]) -> list[tuple[float, str]]:
    """The ends in the shift's unit, and where the tiles are as they are."""
    ends = [(p.strength, p.amount.replace(", ", "\n")) for p in (points[0], points[-1]) if p.strength]
    return sorted([*ends, (0.0, "as is")])


def _sweep(out: Path) -> None:
    """Remove the files of an earlier test, its record first."""
    try:
        for name in RESULTS:
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise output_error(out, error) from error
