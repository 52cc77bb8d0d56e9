"""What a shortcut study shows: the methods as chosen by each rule, the whole grid, tables and pictures. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tiling.core.text import counted
from tiling.core.versions import RESEARCH_USE
from training.evaluation.figures import png, tidy
from training.evaluation.tables import csv_text, markdown_table
from training.selection.rules import RULES
from training.shortcut.config import TESTS, ShortcutConfig
from training.shortcut.confound import CONFOUNDERS, amount_of
from training.trials.choice import Estimate, Grid, Line, chosen_lines, fixed_lines, t_interval
from training.trials.records import VALIDATION
from training.trials.study import Study

Pixels = NDArray[np.uint8]

BASELINE = "weight_decay"
"""The method that gains are measured against."""
COLORS = {"in_distribution": "#0072B2", "unconfounded": "#E69F00", "clean": "#009E73", "reversed": "#CC79A7"}
MARKERS = {"in_distribution": "o", "unconfounded": "s", "clean": "^", "reversed": "D"}
NAMES = {"in_distribution": "as in training", "unconfounded": "unconfounded", "clean": "clean", "reversed": "reversed"}
"""Colours of Okabe and Ito, and a marker each, for those who see few colours."""


def study_table(grid: Grid, config: ShortcutConfig) -> str:
    """CSV: a row a method as chosen by each rule, then one for every setting, with mean and interval of everything."""
    best = chosen_lines(grid, "log_loss").get(BASELINE)
    groups = [(rule, chosen) for rule in config.rules for chosen in [chosen_lines(grid, rule)]]
    lines = [(rule, line, chosen.get(BASELINE)) for rule, chosen in groups for line in chosen.values()]
    lines += [("fixed", line, best) for line in fixed_lines(grid)]
    head = ["rule", "method", "setting", "seeds", "seeds_that_chose_it", "cpu_seconds_a_run"]
    head += [f"{name}{part}" for name in _estimates(*lines[0][1:]) for part in ("", "_low", "_high")]
    rows = []
    for rule, line, baseline in lines:
        setting = "" if line.setting is None else str(line.setting)
        row = [rule, line.method, setting, len(line.records), line.chosen.total(), f"{line.seconds:.3f}"]
        rows.append([*row, *(cell for estimate in _estimates(line, baseline).values() for cell in _cells(estimate))])
    return csv_text(head, rows)


def study_markdown(grid: Grid, config: ShortcutConfig, study: Study) -> str:
    """The study as Markdown: what was done, the methods as chosen by each rule, and the whole grid."""
    amount, unit = amount_of(config.confounder, config.amount), CONFOUNDERS[config.confounder].unit
    heads = [NAMES[test] for test in TESTS]
    gain = f"gain over {BASELINE}, unconfounded"
    best = chosen_lines(grid, "log_loss").get(BASELINE)
    whole = [
        [line.method, _words(line, config), str(line.chosen.total()),
         f"{line.estimate(VALIDATION, 'log_loss').mean:.3f}", f"{line.estimate(VALIDATION, 'auroc').mean:.3f}",
         *(f"{line.estimate(test).mean:.3f}" for test in TESTS), _gain(line, best, "unconfounded"),
         _gain(line, best, "reversed")]
        for line in fixed_lines(grid)
    ]  # fmt: skip
    whole_head = [
        "method", "setting", "seeds where its log loss is best", "validation log loss", "validation AUROC", *heads,
        gain, "reversed",
    ]  # fmt: skip

    def chosen(rule: str) -> str:
        lines = chosen_lines(grid, rule)
        rows = [
            [line.method, _words(line, config), *(str(line.estimate(test)) for test in TESTS),
             _gain(line, lines.get(BASELINE), "unconfounded"), f"{line.seconds:.1f}"]
            for line in lines.values()
        ]  # fmt: skip
        table = markdown_table(["method", "chosen (seeds)", *heads, gain, "CPU s a run"], rows)
        return f"### {rule}: {RULES[rule].text}\n\n{table}"

    kept = ""
    if config.keep_clear is not None:
        kept = f"""
Only {study.tiles[0]} of {study.tiles[1]} tiles are in it: those that networks trained without the confounder on other
cases decide rightly by a margin above {config.keep_clear:g}. That is a selection by label; no figure below is an
accuracy on tissue.
"""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(study.made_with.items()))
    return f"""# Shortcut study: {config.confounder}

{RESEARCH_USE} {counted(config.seeds, "seed")}, each with its own split by case.

In training and validation a tile carries the confounder ({config.confounder} {amount:g}: {unit}) exactly if it is
{study.classes[1]}, with probability {config.strength:g}. Tested on the same tiles with the confounder as in training,
at random (unconfounded), on none (clean), and following the other class (reversed). {config.backbone} from
{"random" if config.weights == "none" else config.weights} weights, both classes drawn equally often,
{counted(config.epochs, "epoch")}, batches of {config.batch_size}, learning rate {config.learning_rate:g}.
{kept}
Balanced accuracy, mean and 95% t interval over seeds; gains are paired by seed. The seeds split the same cases, so the
intervals say nothing of other cases.

## As chosen by each rule

What a method leaves open was chosen for each seed by a rule on its validation, which is confounded like the training.

{(chr(10) * 2).join(chosen(rule) for rule in config.rules)}

## The whole grid

Gains against the weight decay that each seed chose by log loss.

{markdown_table(whole_head, whole)}

Made with {versions}.
"""


def study_figure(grid: Grid, config: ShortcutConfig) -> bytes:
    """PNG: the methods as chosen by each rule, and what lambda and weight decay do by themselves."""
    curves = [method for method in ("sd", "weight_decay") if len(grid.get(method, ())) > 1]
    wide = 1.0 + 0.55 * len(grid)
    widths = [wide] * len(config.rules) + [3.0] * len(curves)
    figure = Figure(figsize=(1 + sum(widths), 4.2), layout="constrained")
    every = list(figure.subplots(1, len(widths), sharey=True, width_ratios=widths, squeeze=False)[0])
    first, rest = every[0], every[len(config.rules) :]
    for axes, rule in zip(every, config.rules, strict=False):
        lines = list(chosen_lines(grid, rule).values())
        for shift, test in zip(np.linspace(-0.24, 0.24, len(TESTS)), TESTS, strict=True):
            _draw(axes, np.arange(len(lines)) + shift, [line.estimate(test) for line in lines], test, line="none")
        axes.set_xticks(range(len(lines)), [line.method for line in lines], fontsize=7, rotation=45, ha="right")
        axes.set_title(f"chosen by {rule}")
    first.set(ylabel="balanced accuracy", ylim=(0, 1))
    for axes, method in zip(rest, curves, strict=True):
        strengths = [setting.sd_lambda or setting.weight_decay for setting in grid[method]]
        for test in TESTS:
            values = [[r.tests[test]["balanced_accuracy"] for r in records] for records in grid[method].values()]
            _draw(axes, strengths, [t_interval(np.array(v)) for v in values], test, line="-")
        axes.set(xscale="log", xlabel="lambda" if method == "sd" else "weight decay", title=method.replace("_", " "))
    for axes in every:
        axes.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
        tidy(axes)
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(TESTS), frameon=False)
    figure.suptitle(f"{config.confounder}, strength {config.strength:g}; mean and 95% interval over "
                    f"{counted(config.seeds, 'seed')}")  # fmt: skip
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


def _estimates(line: Line, baseline: Line | None) -> dict[str, Estimate | None]:
    """All that study.csv says of a line, by column."""
    measured = [(test, metric) for test in TESTS for metric in ("balanced_accuracy", "auroc")]
    measured += [(VALIDATION, metric) for metric in ("log_loss", "auroc", "balanced_accuracy")]
    found: dict[str, Estimate | None] = {f"{test}_{metric}": line.estimate(test, metric) for test, metric in measured}
    return found | {f"gain_{test}": line.gain(baseline, test) for test in TESTS}


def _cells(estimate: Estimate | None) -> list[str]:
    values = (np.nan,) * 3 if estimate is None else (estimate.mean, estimate.low, estimate.high)
    return ["" if np.isnan(value) else f"{value:.6f}" for value in values]


def _gain(line: Line, baseline: Line | None, test: str) -> str:
    gain = line.gain(baseline, test)
    return "-" if gain is None else gain.signed()


def _words(line: Line, config: ShortcutConfig) -> str:
    """The line's setting, or those that were chosen, the most often chosen first."""
    if line.setting is not None:
        return line.setting.words(config.learning_rate)
    return "; ".join(f"{of.words(config.learning_rate)} ({count})" for of, count in line.chosen.most_common())


def _draw(
    axes: Axes, x: Sequence[float] | NDArray[np.float64], estimates: Sequence[Estimate], test: str, line: str
) -> None:
    means = np.array([estimate.mean for estimate in estimates])
    span = np.array([[e.mean - e.low, e.high - e.mean] for e in estimates]).T
    axes.errorbar(
        x, means, yerr=np.nan_to_num(span), fmt=MARKERS[test], linestyle=line, color=COLORS[test], label=NAMES[test],
        markersize=5, capsize=2, linewidth=1.2,
    )  # fmt: skip
