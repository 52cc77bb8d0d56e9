"""What a study of other hospitals shows: each rule's choice, SD against its rivals, sites, tables and a figure. Pure.

Two intervals stand beside each other: a 95% t interval over seeds, which speaks of splits, weights and orders of
batches on these cases, and a percentile interval over bootstrap resamples of the external cases, which speaks of
other cases for these very networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tiling.core.text import counted
from tiling.core.versions import RESEARCH_USE
from training.evaluation.bootstrap import Interval, bootstrap_interval
from training.evaluation.figures import COLOURS, png, tidy
from training.evaluation.tables import csv_text, markdown_table
from training.external.config import AnyExternalConfig, ExternalBagConfig
from training.selection.rules import RULES
from training.trials.choice import Estimate, Grid, Line, chosen_lines, fixed_lines, rule_lines, t_interval
from training.trials.config import grids_of, views_of
from training.trials.records import VALIDATION, unpacked
from training.trials.study import SetFacts, Study

Floats = NDArray[np.float64]

EXTERNAL = "external"
MEASURES = ("balanced_accuracy", "auroc", "sensitivity", "specificity", "ece")
BASELINE = ("weight_decay", "log_loss")
"""The method and the rule that recipes are measured against."""
_LOOKED_AT = {
    True: ("stress", "stress: mean balanced accuracy, shifted validation"),
    False: ("log_loss", "minus log loss on validation"),
}
"""By whether there are pixels, the rule whose value the figure shows of every setting."""


def right_share(line: Line, name: str) -> Floats:
    """The share of a line's seeds that decide each tile of a set rightly, (N,)."""
    return np.asarray(np.mean([unpacked(record.right[name]) for record in line.records], axis=0))


def case_interval(share: Floats, tested: SetFacts, resamples: int) -> Interval:
    """Balanced accuracy with its interval over cases, of (N,) shares of seeds that are right, or differences of them.

    Recall is linear in who is right, so that the mean over seeds may be taken first.
    """
    label = tested.labels

    def metric(weights: Floats) -> Floats:
        recalls = []
        for c in (0, 1):
            of_class = weights[:, label == c]
            mass = of_class.sum(axis=1)
            recalls.append(
                np.divide(of_class @ share[label == c], mass, out=np.full(len(mass), np.nan), where=mass > 0)
            )
        return np.asarray(np.mean(recalls, axis=0))

    return bootstrap_interval(metric, np.array(tested.case).astype(str), resamples=resamples)


def gain_over(line: Line, other: Line, study: Study, config: AnyExternalConfig) -> tuple[Estimate, Interval]:
    """How much more external balanced accuracy a line has than another: over seeds, paired, and over cases."""
    gain = t_interval(line.values(EXTERNAL) - other.values(EXTERNAL))
    share = right_share(line, EXTERNAL) - right_share(other, EXTERNAL)
    return gain, case_interval(share, study.sets[EXTERNAL], config.resamples)


def rivals_of(method: str, lines: dict[str, Line]) -> list[Line]:
    """The methods without spectral decoupling that a method is held against, the best on external tiles first.

    They have a grid, and see tiles as it does: augmented and normalised alike.
    """
    rivals = [
        line
        for other, line in lines.items()
        if grids_of(other) and "sd_lambdas" not in grids_of(other) and views_of(other) == views_of(method)
    ]
    return sorted(rivals, key=lambda line: -line.estimate(EXTERNAL).mean)


def study_table(grid: Grid, study: Study, config: AnyExternalConfig) -> str:
    """CSV: a row a method as chosen by each rule, one a rule among all methods, then one for every setting."""
    lines = [(rule, line) for rule in config.rules for line in chosen_lines(grid, rule).values()]
    for name, some in _pools(grid).items():
        lines += [(rule, _named(line, name)) for rule, line in _over_all(some, config).items()]
    lines += [("fixed", line) for line in fixed_lines(grid)]
    measured = [(name, measure) for name in study.sets for measure in MEASURES]
    measured += [(VALIDATION, measure) for measure in ("log_loss", "auroc", "balanced_accuracy")]
    head = ["rule", "method", "setting", "seeds", "seeds_that_chose_it", "cpu_seconds_a_run"]
    head += [f"{name}_{measure}{part}" for name, measure in measured for part in ("", "_low", "_high")]
    head += [f"{EXTERNAL}_balanced_accuracy_{end}_over_cases" for end in ("low", "high")]
    rows = []
    for rule, line in lines:
        setting = "" if line.setting is None else str(line.setting)
        row: list[object] = [rule, line.method, setting, len(line.records), line.chosen.total(), f"{line.seconds:.3f}"]
        for name, measure in measured:
            found = line.estimate(name, measure)
            row += ["" if np.isnan(value) else f"{value:.6f}" for value in (found.mean, found.low, found.high)]
        over_cases = case_interval(right_share(line, EXTERNAL), study.sets[EXTERNAL], config.resamples)
        row += ["" if end is None else f"{end:.6f}" for end in (over_cases.low, over_cases.high)]
        rows.append(row)
    return csv_text(head, rows)


def study_markdown(grid: Grid, study: Study, config: AnyExternalConfig) -> str:
    """The study as Markdown: what was done, each rule's choice, SD against its rivals, the rules, sites, the grid."""
    tested = study.sets[EXTERNAL]
    others = [name for name in study.sets if name != EXTERNAL]
    noun = _noun(config)
    others_said = f", and with {', '.join(others)} {noun}" if others else ""
    positive = int(tested.labels.sum())

    def chosen(rule: str) -> str:
        head = ["method", "chosen (seeds)", "external balanced accuracy", "over cases", "AUROC", "sensitivity",
                "specificity", "ECE", *(f"{name} balanced accuracy" for name in others), "CPU s a run"]  # fmt: skip
        rows = [
            [line.method, _words(line, config), str(line.estimate(EXTERNAL)),
             _span(case_interval(right_share(line, EXTERNAL), tested, config.resamples)),
             *(f"{line.estimate(EXTERNAL, measure).mean:.3f}" for measure in MEASURES[1:]),
             *(f"{line.estimate(name).mean:.3f}" for name in others), f"{line.seconds:.1f}"]
            for line in chosen_lines(grid, rule).values()
        ]  # fmt: skip
        return f"### {rule}: {RULES[rule].text}\n\n{markdown_table(head, rows)}"

    versions = ", ".join(f"{name} {version}" for name, version in sorted(study.made_with.items()))
    return f"""# Study of other hospitals

{RESEARCH_USE} {counted(config.seeds, "seed")}, each with its own split of the training cases.

Trained and validated on {study.tiles[0]} {noun}; tested on {len(tested.case)} external {noun} of
{len(set(tested.case))} cases, of which {positive} {noun} are {study.classes[1]}{others_said}.
{_network(config)}, both classes drawn equally often, {config.epochs} epochs, batches of {config.batch_size}, learning
rate {config.learning_rate:g}. Every method with a grid chooses among as many settings.

Mean over seeds with its 95% t interval; "over cases" is the 95% interval over bootstrap resamples of the external
cases. Balanced accuracy is at the threshold that validation gave.

## As chosen by each rule

{(chr(10) * 2).join(chosen(rule) for rule in config.rules)}

## Spectral decoupling against the best of its rivals

The rival is the method without it that has the best external balanced accuracy under the same rule, augmentation and
as many settings.

{_against_rivals(grid, study, config)}

## What the rules are worth

Each rule among the settings of all methods, and of those without spectral decoupling, against AdamW's weight decay
chosen by log loss. "Lost" is what the best setting of each seed, picked by the external data, has more.

{_rules_worth(grid, study, config)}

## By site

Share of {noun} decided rightly, methods as chosen by `{_site_rule(config)}`.

{_by_site(grid, tested, config)}

## The whole grid

{_whole_grid(grid, others, config)}

Made with {versions}.
"""


def study_figure(grid: Grid, config: AnyExternalConfig) -> bytes:
    """PNG: external balanced accuracy as chosen by each rule, and of every setting against a rule's value."""
    colours = {method: COLOURS[number % len(COLOURS)] for number, method in enumerate(grid)}
    marks = {method: "os^"[number // len(COLOURS) % 3] for number, method in enumerate(grid)}
    shown = len(config.rules)
    figure = Figure(figsize=(2.2 * shown + 4.6, 4.4), layout="constrained")
    every = figure.subplots(1, shown + 1, sharey=True, squeeze=False, width_ratios=[2.2] * shown + [4.0])[0]
    for axes, rule in zip(every, config.rules, strict=False):
        for place, line in enumerate(chosen_lines(grid, rule).values()):
            found = line.estimate(EXTERNAL)
            span = np.nan_to_num([[found.mean - found.low], [found.high - found.mean]])
            axes.errorbar(
                [place], [found.mean], yerr=span, fmt=marks[line.method], color=colours[line.method], capsize=2
            )
            values = line.values(EXTERNAL)
            beside = np.full(len(values), place + 0.2)
            axes.plot(beside, values, ".", color=colours[line.method], alpha=0.4, markersize=3)
        axes.set_xticks(range(len(grid)), list(grid), fontsize=7, rotation=45, ha="right")
        axes.set_title(f"chosen by {rule}", fontsize=9)
    every[0].set(ylabel="external balanced accuracy")
    last = every[-1]
    rule, words = _LOOKED_AT[config.of_pixels]
    for line in fixed_lines(grid):
        seen = np.mean([RULES[rule].value(record.validation) for record in line.records])
        last.plot(
            [seen], [line.estimate(EXTERNAL).mean], marks[line.method], color=colours[line.method], label=line.method
        )
    last.set(xlabel=words, title="every setting")
    unique = dict(zip(*last.get_legend_handles_labels()[::-1], strict=True))
    last.legend(unique.values(), unique.keys(), fontsize=7, frameon=False)
    for axes in every:
        axes.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
        tidy(axes)
    figure.suptitle(f"external balanced accuracy, mean and 95% interval over {counted(config.seeds, 'seed')}")
    return png(figure)


def _against_rivals(grid: Grid, study: Study, config: AnyExternalConfig) -> str:
    rows = []
    for rule in config.rules:
        lines = chosen_lines(grid, rule)
        for line in lines.values():
            rivals = rivals_of(line.method, lines)
            if rivals and "sd_lambdas" in grids_of(line.method):
                gain, over_cases = gain_over(line, rivals[0], study, config)
                rows.append([rule, line.method, rivals[0].method, gain.signed(), _span(over_cases)])
    return markdown_table(["rule", "method", "best rival", "gain", "over cases"], rows) if rows else "-"


def _rules_worth(grid: Grid, study: Study, config: AnyExternalConfig) -> str:
    method, rule = BASELINE
    baseline = chosen_lines(grid, rule).get(method)
    best = np.max([line.values(EXTERNAL) for line in fixed_lines(grid)], axis=0)
    rows = []
    pools = _pools(grid)
    for name, pool, line in (
        (name, pool, line) for pool, some in pools.items() for name, line in _over_all(some, config).items()
    ):
        gain = ("-", "-")
        if baseline is not None:
            over_seeds, over_cases = gain_over(line, baseline, study, config)
            gain = (over_seeds.signed(), _span(over_cases))
        lost = t_interval(best - line.values(EXTERNAL))
        rows.append([name, pool, _words(line, config), str(line.estimate(EXTERNAL)), *gain, str(lost)])
    head = [
        "rule",
        "among",
        "chosen (seeds)",
        "external balanced accuracy",
        f"gain over {method} by {rule}",
        "over cases",
        "lost",
    ]
    return markdown_table(head, rows)


def _by_site(grid: Grid, tested: SetFacts, config: AnyExternalConfig) -> str:
    lines = chosen_lines(grid, _site_rule(config))
    shares = {method: right_share(line, EXTERNAL) for method, line in lines.items()}
    label, case, site = tested.labels, np.array(tested.case), np.array(tested.site)
    rows = []
    for number, name in enumerate(tested.sites):
        for c in (1, 0):
            chosen = (site == number) & (label == c)
            if chosen.any():
                counts = [str(int(chosen.sum())), str(len(np.unique(case[chosen])))]
                found = [f"{share[chosen].mean():.3f}" for share in shares.values()]
                rows.append([name or "-", "positive" if c else "negative", *counts, *found])
    return markdown_table(["site", "class", _noun(config), "cases", *shares], rows)


def _whole_grid(grid: Grid, others: Sequence[str], config: AnyExternalConfig) -> str:
    looked_at = [name for name in ("stress", "agreement", "errors") if config.of_pixels or name == "errors"]
    head = ["method", "setting", "validation log loss", "validation balanced accuracy", *looked_at,
            "external balanced accuracy", "external AUROC",
            *(f"{name} balanced accuracy" for name in others)]  # fmt: skip
    rows = []
    for line in fixed_lines(grid):
        setting = "-" if line.setting is None else line.setting.words(config.learning_rate)
        rules = [np.mean([RULES[rule].value(record.validation) for record in line.records]) for rule in looked_at]
        means = [line.estimate(VALIDATION, "log_loss").mean, line.estimate(VALIDATION).mean, *rules]
        means += [line.estimate(EXTERNAL).mean, line.estimate(EXTERNAL, "auroc").mean]
        means += [line.estimate(name).mean for name in others]
        rows.append([line.method, setting, *(f"{mean:.3f}" for mean in means)])
    return markdown_table(head, rows)


def _noun(config: AnyExternalConfig) -> str:
    return "bags" if isinstance(config, ExternalBagConfig) else "tiles"


def _network(config: AnyExternalConfig) -> str:
    """What is trained."""
    if isinstance(config, ExternalBagConfig):
        return f"The head {config.head} on bags of up to {config.bag_tiles} tiles' features"
    weights = "random" if config.weights == "none" else config.weights
    side = config.input_px or "the tiles' own"
    augmented = f"augmentation {config.augment} where the method names none"
    return f"{config.backbone} from {weights} weights at {side} px, {augmented}"


def _pools(grid: Grid) -> dict[str, Grid]:
    """The methods that a rule may choose among: all, and those without spectral decoupling, which shows its share."""
    without = {method: of for method, of in grid.items() if "sd_lambdas" not in grids_of(method)}
    return {"any": grid} | ({"any without SD": without} if 0 < len(without) < len(grid) else {})


def _over_all(grid: Grid, config: AnyExternalConfig) -> dict[str, Line]:
    """Each rule among all methods; methods have no common order of strength, so that `tolerance` has no say."""
    return rule_lines(grid, [rule for rule in config.rules if not RULES[rule].strongest])


def _named(line: Line, method: str) -> Line:
    return Line(method, line.setting, line.chosen, line.records)


def _site_rule(config: AnyExternalConfig) -> str:
    return "stress" if "stress" in config.rules else config.rules[0]


def _words(line: Line, config: AnyExternalConfig) -> str:
    """The settings that were chosen, the most often chosen first."""
    return "; ".join(f"{of.words(config.learning_rate)} ({count})" for of, count in line.chosen.most_common())


def _span(over_cases: Interval) -> str:
    if over_cases.low is None or over_cases.high is None:
        return "-"
    return f"{over_cases.low:.3f} to {over_cases.high:.3f}"
