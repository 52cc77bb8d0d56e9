"""What a shortcut study shows: mean and interval over seeds, paired gains, tables and pictures. Pure.

Intervals are 95% t intervals of the mean over seeds. Seeds split the same cases anew, so they are not independent
samples of patients: the intervals speak of splits, weights and draws of the confounder on these cases.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from tiling.core.versions import RESEARCH_USE
from training.evaluation.figures import png, tidy
from training.evaluation.tables import csv_text, markdown_table
from training.shortcut.config import TESTS, VALIDATION, Grid, RunRecord, Setting, ShortcutConfig, choose
from training.shortcut.confound import CONFOUNDERS, amount_of

Pixels = NDArray[np.uint8]

BASELINE = "weight_decay"
"""The method that gains are measured against."""
COLORS = {"in_distribution": "#0072B2", "unconfounded": "#E69F00", "clean": "#009E73", "reversed": "#CC79A7"}
MARKERS = {"in_distribution": "o", "unconfounded": "s", "clean": "^", "reversed": "D"}
NAMES = {"in_distribution": "as in training", "unconfounded": "unconfounded", "clean": "clean", "reversed": "reversed"}
"""Colours of Okabe and Ito, and a marker each, for those who see few colours."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95% t interval, which one seed does not have (NaN)."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if np.isnan(self.low) else f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Line:
    """One row of the study's table: a method with a setting, or with the one each seed chose."""

    method: str
    setting: Setting | None
    """None: each seed's own choice."""
    chosen: Counter[Setting]
    """How many seeds chose which setting; for a fixed one, only itself."""
    records: tuple[RunRecord, ...]
    """One a seed."""
    gains: dict[str, Estimate]
    """By test: how much its balanced accuracy exceeds that of the weight decay each seed chose; empty without that."""

    def values(self, test: str, metric: str) -> NDArray[np.float64]:
        """The metric of each seed, (seeds,)."""
        return np.array([record.metrics[test][metric] for record in self.records])

    def estimate(self, test: str, metric: str = "balanced_accuracy") -> Estimate:
        """The metric over seeds."""
        return t_interval(self.values(test, metric))

    def gain(self, test: str) -> str:
        """The gain with its sign and interval, "-" where there is none."""
        gain = self.gains.get(test)
        if gain is None:
            return "-"
        return f"{gain.mean:+.3f}" + ("" if np.isnan(gain.low) else f" ({gain.low:+.3f} to {gain.high:+.3f})")

    @property
    def seconds(self) -> float:
        """Mean CPU time of a training."""
        return float(np.mean([record.seconds for record in self.records]))


def t_interval(values: NDArray[np.float64]) -> Estimate:
    """The mean of values (n,) and its 95% interval by Student's t with n - 1 degrees of freedom."""
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(mean, np.nan, np.nan)
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return Estimate(mean, mean - half, mean + half)


def chosen_lines(grid: Grid, tolerance: float | None = None) -> list[Line]:
    """A line a method, each seed with the setting it chose; see `training.shortcut.config.choose` for the two rules."""
    baseline = _chosen(grid, BASELINE, tolerance) if BASELINE in grid else None
    lines = []
    for method, by_setting in grid.items():
        records = _chosen(grid, method, tolerance)
        lines.append(Line(method, None, Counter(choose(by_setting, tolerance)), records, _gains(records, baseline)))
    return lines


def fixed_lines(grid: Grid) -> list[Line]:
    """A line for each method and setting of its grid; `chosen` counts the seeds where its log loss is the lowest."""
    baseline = _chosen(grid, BASELINE) if BASELINE in grid else None
    return [
        Line(
            method, setting, Counter(s for s in choose(by_setting) if s == setting), tuple(records),
            _gains(records, baseline),
        )
        for method, by_setting in grid.items() for setting, records in by_setting.items()
    ]  # fmt: skip


def study_table(grid: Grid, tolerance: float) -> str:
    """CSV: a row a method as chosen by each rule, then one for every setting, with mean and interval of everything."""
    head = ["rule", "method", "sd_lambda", "weight_decay", "seeds", "seeds_that_chose_it", "cpu_seconds_a_run"]
    names = _estimates(fixed_lines(grid)[0])
    head += [f"{name}{part}" for name in names for part in ("", "_low", "_high")]
    rows = []
    for rule, lines in (
        ("best", chosen_lines(grid)), ("strongest", chosen_lines(grid, tolerance)), ("fixed", fixed_lines(grid)),
    ):  # fmt: skip
        for line in lines:
            setting = ("", "") if line.setting is None else tuple(f"{value:g}" for value in line.setting)
            row = [rule, line.method, *setting, len(line.records), line.chosen.total(), f"{line.seconds:.3f}"]
            rows.append([*row, *(cell for estimate in _estimates(line).values() for cell in _cells(estimate))])
    return csv_text(head, rows)


def study_markdown(grid: Grid, config: ShortcutConfig, classes: Sequence[str]) -> str:
    """The study as Markdown: what was done, the methods as chosen by each rule, and the whole grid."""
    amount, unit = amount_of(config.confounder, config.amount), CONFOUNDERS[config.confounder].unit
    heads = [NAMES[test] for test in TESTS]
    gain = "gain over weight decay, unconfounded"
    whole_head = [
        "method", "setting", "seeds where it is best", "validation log loss", "validation AUROC", *heads, gain,
        "reversed",
    ]  # fmt: skip
    whole = [
        [line.method, str(line.setting), str(line.chosen.total()), f"{line.estimate(VALIDATION, 'log_loss').mean:.3f}",
         f"{line.estimate(VALIDATION, 'auroc').mean:.3f}", *(f"{line.estimate(test).mean:.3f}" for test in TESTS),
         line.gain("unconfounded"), line.gain("reversed")]
        for line in fixed_lines(grid)
    ]  # fmt: skip

    def chosen(tolerance: float | None) -> str:
        head = ["method", "chosen (seeds)", *heads, gain, "CPU s a run"]
        rows = [
            [line.method, _choices(line), *(str(line.estimate(test)) for test in TESTS), line.gain("unconfounded"),
             f"{line.seconds:.1f}"]
            for line in chosen_lines(grid, tolerance)
        ]  # fmt: skip
        return markdown_table(head, rows)

    late = f" Spectral decoupling sets in after {config.sd_start:.0%} of the steps." if config.sd_start else ""
    return f"""# Shortcut study: {config.confounder}

{RESEARCH_USE} {_plural(config.seeds, "seed")}, each with its own split by case.

In training and validation a tile carries the confounder ({config.confounder} {amount:g}: {unit}) exactly if it is
{classes[1]}, with probability {config.strength:g}. Tested on the same tiles with the confounder as in training, at
random (unconfounded), on none (clean), and following the other class (reversed). {config.backbone} from random weights,
both classes drawn equally often, {_plural(config.epochs, "epoch")}, batches of {config.batch_size}, learning rate
{config.learning_rate:g}.{late}

Balanced accuracy, mean and 95% t interval over seeds; gains are paired by seed. The seeds split the same cases, so the
intervals say nothing of other cases.

## Chosen for the best validation

What a method leaves open was chosen for each seed by the log loss of its validation, which is confounded like the
training.

{chosen(None)}

## Chosen for the strongest regularisation that costs little there

The largest lambda, then weight decay, whose validation AUROC is at most {config.tolerance:g} below the method's best.

{chosen(config.tolerance)}

## The whole grid

Gains against the weight decay that each seed chose for the best validation.

{markdown_table(whole_head, whole)}
"""


def study_figure(grid: Grid, config: ShortcutConfig) -> bytes:
    """PNG: the methods as chosen by each rule, and what lambda and weight decay do by themselves."""
    curves = [method for method in ("sd", "weight_decay") if len(grid.get(method, ())) > 1]
    rules = {"Best on validation": None, f"Strongest within {config.tolerance:g} AUROC": config.tolerance}
    wide = 1.0 + 0.85 * len(grid)
    widths = [wide] * len(rules) + [3.0] * len(curves)
    figure = Figure(figsize=(1 + sum(widths), 4.2), layout="constrained")
    every = list(figure.subplots(1, len(widths), sharey=True, width_ratios=widths))
    first, rest = every[0], every[len(rules) :]
    for axes, (title, tolerance) in zip(every, rules.items(), strict=False):
        lines = chosen_lines(grid, tolerance)
        for shift, test in zip(np.linspace(-0.24, 0.24, len(TESTS)), TESTS, strict=True):
            _draw(axes, np.arange(len(lines)) + shift, [line.estimate(test) for line in lines], test, line="none")
        axes.set_xticks(range(len(lines)), [re.sub("[_+]", "\n", line.method) for line in lines])
        axes.set_title(title)
    first.set(ylabel="balanced accuracy", ylim=(0, 1))
    for axes, method in zip(rest, curves, strict=True):
        settings = sorted(grid[method])
        strengths = [max(setting) for setting in settings]
        for test in TESTS:
            values = [[r.metrics[test]["balanced_accuracy"] for r in grid[method][setting]] for setting in settings]
            _draw(axes, strengths, [t_interval(np.array(v)) for v in values], test, line="-")
        axes.set(xscale="log", xlabel="lambda" if method == "sd" else "weight decay", title=method.replace("_", " "))
    for axes in every:
        axes.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
        tidy(axes)
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(TESTS), frameon=False)
    figure.suptitle(f"{config.confounder}, strength {config.strength:g}; mean and 95% interval over "
                    f"{_plural(config.seeds, 'seed')}")  # fmt: skip
    return png(figure)


def examples_picture(unchanged: Pixels, changed: Pixels, classes: Sequence[str], config: ShortcutConfig) -> bytes:
    """PNG of tiles of each class, without the confounder and with it.

    Args:
        unchanged: uint8 (C, k, T, T, 3): k tiles of each class.
        changed: The same tiles with the confounder.
        classes: The C names.
        config: The study's settings: confounder and amount.

    Returns:
        The PNG's bytes.

    Raises:
        ConfigError: As `training.shortcut.confound.amount_of`.
    """
    count = unchanged.shape[1]
    figure = Figure(figsize=(1.6 + count, 1.15 * 2 * len(classes) + 0.5), layout="constrained")
    grid = figure.subplots(2 * len(classes), count, squeeze=False)
    for c, name in enumerate(classes):
        for row, (tiles, title) in enumerate(((unchanged[c], name), (changed[c], f"{name}\n{config.confounder}"))):
            for axes, tile in zip(grid[2 * c + row], tiles, strict=True):
                axes.imshow(tile, interpolation="nearest")
                axes.set_xticks([])
                axes.set_yticks([])
            grid[2 * c + row, 0].set_ylabel(title, rotation=0, ha="right", va="center")
    amount = amount_of(config.confounder, config.amount)
    figure.suptitle(f"{config.confounder} {amount:g} ({CONFOUNDERS[config.confounder].unit})")
    return png(figure)


def _chosen(grid: Grid, method: str, tolerance: float | None = None) -> tuple[RunRecord, ...]:
    by_setting = grid[method]
    return tuple(by_setting[setting][seed] for seed, setting in enumerate(choose(by_setting, tolerance)))


def _gains(records: Sequence[RunRecord], baseline: Sequence[RunRecord] | None) -> dict[str, Estimate]:
    """By test, the paired gain in balanced accuracy over the baseline."""
    if baseline is None:
        return {}

    def of(chosen: Sequence[RunRecord], test: str) -> NDArray[np.float64]:
        return np.array([record.metrics[test]["balanced_accuracy"] for record in chosen])

    return {test: t_interval(of(records, test) - of(baseline, test)) for test in TESTS}


def _estimates(line: Line) -> dict[str, Estimate | None]:
    """All that study.csv says of a line, by column."""
    measured = [(test, metric) for test in TESTS for metric in ("balanced_accuracy", "auroc")]
    measured += [(VALIDATION, metric) for metric in ("log_loss", "auroc", "balanced_accuracy")]
    found = {f"{test}_{metric}": line.estimate(test, metric) for test, metric in measured}
    return found | {f"gain_{test}": line.gains.get(test) for test in TESTS}


def _cells(estimate: Estimate | None) -> list[str]:
    values = (np.nan,) * 3 if estimate is None else (estimate.mean, estimate.low, estimate.high)
    return ["" if np.isnan(value) else f"{value:.6f}" for value in values]


def _choices(line: Line) -> str:
    return "; ".join(f"{setting} ({count})" for setting, count in sorted(line.chosen.items()))


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _draw(
    axes: Axes, x: Sequence[float] | NDArray[np.float64], estimates: Sequence[Estimate], test: str, line: str
) -> None:
    means = np.array([estimate.mean for estimate in estimates])
    span = np.array([[e.mean - e.low, e.high - e.mean] for e in estimates]).T
    axes.errorbar(
        x, means, yerr=np.nan_to_num(span), fmt=MARKERS[test], linestyle=line, color=COLORS[test], label=NAMES[test],
        markersize=5, capsize=2, linewidth=1.2,
    )  # fmt: skip
