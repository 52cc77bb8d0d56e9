"""The verb: models and labelled tiles, or bags -> how well they stand what another scanner or laboratory changes.

out/stress.json      all figures, published last       out/stress.csv      a row a model, shift and strength
out/stress.png       the metric against the strength, a plot a shift
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tiling.core.artefact import atomic_folder, locked_folder, require_own
from tiling.core.errors import ConfigError
from tiling.core.files import canonical_json, write_file
from tiling.core.versions import RESEARCH_USE
from training.config import ShiftsConfig
from training.data.samples import Split
from training.evaluation.bootstrap import Interval, Resampled, interval, resampled
from training.evaluation.evaluate import Progress, counter, made_with, require_comparable
from training.evaluation.figures import ShiftPanel, shift_curves
from training.evaluation.metrics import METRIC_NAMES, Floats
from training.evaluation.perturbations import SHIFTS
from training.evaluation.predictions import Model, Predictions, View, predict_views
from training.evaluation.tables import csv_text
from training.recipes import stress_recipe

Place = tuple[str, float]
"""A shift and its strength; ("", 0) for unshifted tiles."""
UNSHIFTED: Place = ("", 0.0)
PredictViews = Callable[
    [Mapping[str, Model], Split, Sequence[View], Callable[[int], None]], Mapping[str, Sequence[Predictions]]
]
"""Models by name, a split, views of its tiles and what is told of each prediction -> by model, predictions a view."""


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
    """The results of a stress test."""

    metric: str
    split: str
    tiles: int
    cases: int
    resamples: int
    models: dict[str, str]
    """SHA-256 of each model's folder, by its name."""
    unshifted: dict[str, Interval]
    """The metric on the unshifted tiles, by model."""
    curves: dict[str, dict[str, Curve]]
    """By shift and model."""
    notes: tuple[str, ...]
    noun: str = "tile"
    """What was tested: tiles or bags."""

    def record(self) -> dict[str, Any]:
        """The content of stress.json."""
        return asdict(self) | {"interval": "95% bootstrap over cases", "notice": RESEARCH_USE}

    def table(self) -> str:
        """CSV: a row a model, shift and strength."""
        rows = [
            [model, shift, f"{point.strength:g}", point.amount, *_cells(point.metric, curve.area)]
            for shift, of_shift in self.curves.items()
            for model, curve in of_shift.items()
            for point in curve.points
        ]
        return csv_text(["model", "shift", "strength", "amount", self.metric, "low", "high", "area"], rows)


def stress(
    models: Mapping[str, Model],
    split: Split,
    out: Path,
    config: ShiftsConfig | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    batch_size: int = 256,
    predict: PredictViews | None = None,
    progress: Progress | None = None,
) -> StressTest:
    """Measure models on the same tiles under each shift, and publish the files listed above as the folder `out`.

    Tiles are shifted as the model gets them, at its own side in pixels, before any stain normalisation of its own.

    Args:
        models: The models, by the names they have in figures.
        split: Tiles to test on, of `labelled_tiles` of the first model.
        out: The folder; an earlier stress test there is replaced when the new one is complete.
        config: Which shifts, how strong, and what is measured; None: the defaults.
        resamples: Bootstrap resamples of the cases, the same for every model, shift and strength.
        seed: Decides the resamples.
        batch_size: Tiles the model sees at once.
        predict: What predicts shifted samples: of bags `inference.stress_bags`; None: of tiles as they are read.
        progress: Called with (predictions done, predictions in all).

    Returns:
        The figures.

    Raises:
        ConfigError: Without a model or a shift.
        ModelError: For a model that does not fit the tiles.
        OutputError: If `out` cannot be written, or holds something else.

    Example:
        >>> from training import labelled_tiles, load_model
        >>> from training.config import ShiftsConfig
        >>> model = load_model("results/training/seed-0/model")
        >>> stores, manifest = Path("results/stores"), Path("cohort/manifest.csv")
        >>> tiles = labelled_tiles(model.info, stores=stores, manifest=manifest).split_of("test")
        >>> config = ShiftsConfig(shifts=("hue",), strengths=1)
        >>> found = stress({"mine": model}, tiles, Path("stress"), config, resamples=10)
        >>> [point.amount for point in found.curves["hue"]["mine"].points]
        ['-45°', '+0°', '+45°']
    """
    config = config or ShiftsConfig()
    shifts, steps = config.shifts, config.strengths
    if not models or not shifts:
        raise ConfigError("the stress test", f"names no {'shift' if models else 'model'}", "pass one or more")
    notes = require_comparable(models, split)
    hashes = {name: model.sha256 for name, model in models.items()}
    recipe = stress_recipe(hashes, split, config, resamples=resamples, seed=seed)
    places = [UNSHIFTED] + [(name, s) for name in shifts for s in SHIFTS[name].strengths(steps) if s != 0]
    report = counter(progress, len(models) * len(places) * len(split))
    with locked_folder(out):
        require_own(out, "stress.json", "a stress test")
        views = [partial(SHIFTS[shift], strength=s) if s else lambda tiles: tiles for shift, s in places]
        each: Mapping[str, Sequence[Predictions]]
        if predict is None:
            each = {n: predict_views(m, split, views, batch_size=batch_size, report=report) for n, m in models.items()}
        else:
            each = predict(models, split, views, report)
        found: dict[str, dict[Place, Resampled]] = {}
        for name, predicted in each.items():
            metrics = {str(place): of.metrics()[config.metric] for place, of in zip(places, predicted, strict=True)}
            drawn = resampled(metrics, split.case_id, resamples=resamples, seed=seed)
            found[name] = {place: drawn[str(place)] for place in places}
        result = StressTest(
            metric=config.metric,
            split=split.name,
            tiles=len(split),
            cases=len(np.unique(split.case_id)),
            resamples=resamples,
            models=hashes,
            unshifted={name: interval(*at[UNSHIFTED]) for name, at in found.items()},
            curves={shift: {name: _curve(shift, steps, at) for name, at in found.items()} for shift in shifts},
            notes=notes,
            noun=split.samples.noun,
        )
        with atomic_folder(out, recipe, made_with=made_with(next(iter(models.values())))) as folder:
            write_file(folder / "stress.png", picture(result, len(split.classes)))
            write_file(folder / "stress.csv", result.table())
            write_file(folder / "stress.json", canonical_json(result.record()))
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
    title = f"{METRIC_NAMES[result.metric]} on {result.tiles:,} {result.noun}s of {result.cases} cases, shifted"
    return shift_curves(panels, result.metric, chance, title)


def area(strengths: Sequence[float], values: Sequence[Floats]) -> Floats:
    """Area under each of R curves by the trapezoid rule, over its width; `values` are (R,) for each strength."""
    parts = [(b - a) * (u + v) / 2 for (a, b), (u, v) in zip(pairwise(strengths), pairwise(values), strict=True)]
    return np.asarray(np.sum(parts, axis=0) / (strengths[-1] - strengths[0]))


def _curve(shift: str, steps: int, found: Mapping[Place, Resampled]) -> Curve:
    strengths = SHIFTS[shift].strengths(steps)
    drawn = [found[(shift, s) if s else UNSHIFTED] for s in strengths]
    points = [Point(s, SHIFTS[shift].amount(s), interval(*at)) for s, at in zip(strengths, drawn, strict=True)]
    whole = area(strengths, [np.array([at.value]) for at in drawn])[0]
    return Curve(tuple(points), interval(float(whole), area(strengths, [at.drawn for at in drawn])))


def _ticks(points: Sequence[Point]) -> list[tuple[float, str]]:
    """The ends in the shift's unit, and where the tiles are unshifted."""
    ends = [(p.strength, p.amount.replace(", ", "\n")) for p in (points[0], points[-1]) if p.strength]
    return sorted([*ends, (0.0, "none")])


def _cells(metric: Interval, area: Interval) -> list[str]:
    values = (metric.value, metric.low, metric.high, area.value)
    return ["" if value is None else f"{value:.6f}" for value in values]
