"""Records -> what each seed chose by a rule, estimates over seeds, and paired gains. Pure.

Intervals are 95% t intervals of the mean over seeds. Seeds split the same cases anew, so they are not independent
samples of patients: the intervals speak of splits, weights and orders of batches on these cases.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from training.selection.quantities import with_errors
from training.selection.rules import RULES
from training.trials.config import GridConfig, Run, Setting, candidates, plain
from training.trials.records import VALIDATION, RunRecord, unpacked

Floats = NDArray[np.float64]
Grid = Mapping[str, Mapping[Setting, Sequence[RunRecord]]]
"""By method and setting, weakest first: a record a seed, in their order, complete for every rule."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95% t interval, which one seed does not have (NaN)."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if np.isnan(self.low) else f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"

    def signed(self) -> str:
        """As a gain."""
        span = "" if np.isnan(self.low) else f" ({self.low:+.3f} to {self.high:+.3f})"
        return f"{self.mean:+.3f}{span}"


@dataclass(frozen=True)
class Line:
    """A method with a setting, or with the one that each seed chose."""

    method: str
    setting: Setting | None
    """None: each seed's own choice."""
    chosen: Counter[Setting]
    """How many seeds chose which setting."""
    records: tuple[RunRecord, ...]
    """One a seed."""

    def values(self, test: str, metric: str = "balanced_accuracy") -> Floats:
        """The metric of each seed, (seeds,)."""
        if test == VALIDATION:
            return np.array([getattr(record.validation, metric) for record in self.records])
        return np.array([record.tests[test][metric] for record in self.records])

    def estimate(self, test: str, metric: str = "balanced_accuracy") -> Estimate:
        """The metric over seeds."""
        return t_interval(self.values(test, metric))

    def gain(self, over: Line | None, test: str) -> Estimate | None:
        """The paired gain in balanced accuracy over another line of the same seeds; None over none."""
        return None if over is None else t_interval(self.values(test) - over.values(test))

    @property
    def seconds(self) -> float:
        """Mean CPU time of a training."""
        return float(np.mean([record.seconds for record in self.records]))


def t_interval(values: Floats) -> Estimate:
    """The mean of values (n,) and its 95% interval by Student's t with n - 1 degrees of freedom."""
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(mean, np.nan, np.nan)
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return Estimate(mean, mean - half, mean + half)


def as_grid(records: Mapping[Run, RunRecord], config: GridConfig) -> Grid:
    """The records of all planned runs, by method and setting, with what the rule `errors` looks at."""

    def of(run: Run) -> RunRecord:
        right, plainly = (unpacked(records[one].right[VALIDATION]) for one in (run, plain(config, run.seed)))
        seen = with_errors(records[run].validation, right, plainly)
        return records[run].model_copy(update={"validation": seen})

    return {
        method: {
            setting: [of(Run(seed, setting)) for seed in range(config.seeds)] for setting in candidates(method, config)
        }
        for method in config.methods
    }


def choose(by_setting: Mapping[Setting, Sequence[RunRecord]], rule: str) -> list[Setting]:
    """The setting of each seed, by its own validation alone."""
    seeds = len(next(iter(by_setting.values())))
    return [
        RULES[rule]({setting: records[seed].validation for setting, records in by_setting.items()})
        for seed in range(seeds)
    ]


def chosen_line(method: str, by_setting: Mapping[Setting, Sequence[RunRecord]], rule: str) -> Line:
    """A method, each seed with the setting it chose."""
    chosen = choose(by_setting, rule)
    return Line(method, None, Counter(chosen), tuple(by_setting[s][seed] for seed, s in enumerate(chosen)))


def chosen_lines(grid: Grid, rule: str) -> dict[str, Line]:
    """By method, each seed with the setting it chose by a rule."""
    return {method: chosen_line(method, by_setting, rule) for method, by_setting in grid.items()}


def rule_lines(grid: Grid, rules: Sequence[str]) -> dict[str, Line]:
    """By rule, each seed with what it chose among the settings of all methods; plain training comes first."""
    every = {setting: records for by_setting in grid.values() for setting, records in by_setting.items()}
    return {rule: chosen_line(rule, every, rule) for rule in rules}


def fixed_lines(grid: Grid, rule: str = "log_loss") -> list[Line]:
    """A line for each method and setting of its grid; `chosen` counts the seeds that chose it by the rule."""
    lines = []
    for method, by_setting in grid.items():
        counts = Counter(choose(by_setting, rule))
        lines += [
            Line(method, setting, Counter({setting: counts[setting]}), tuple(records))
            for setting, records in by_setting.items()
        ]
    return lines
