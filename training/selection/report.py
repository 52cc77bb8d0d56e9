"""What is written of a tuning: the table, the page and the figure. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from tiling.core.versions import RESEARCH_USE
from training.evaluation.figures import COLOURS, png, tidy
from training.evaluation.tables import csv_text, markdown_table
from training.models.info import SelectionSummary
from training.selection.candidates import STRENGTHS, Candidate, TuneConfig
from training.selection.choice import mean_quantities
from training.selection.rules import RULES, Quantities

_NAMES = {
    "none": "no penalty", "sd": "spectral decoupling", "weight_decay": "AdamW's weight decay", "l2": "L2 in the loss",
    "sd+l2": "spectral decoupling and L2", "consistency": "consistency under shifts",
}  # fmt: skip
_MARKERS = "osD^vP"
_HEAD = ("penalty", *STRENGTHS, "learning_rate", "augment")


@dataclass(frozen=True)
class Tuning:
    """All candidates with what they showed, and what the rules take."""

    config: TuneConfig
    chosen: Candidate
    seed: int
    """Of the chosen run's training."""
    seen: Mapping[Candidate, Sequence[Quantities]]
    """By candidate, the weakest regularisation first: a record a seed."""
    takes: Mapping[str, Candidate]
    """By rule, the candidate it takes."""
    failed: Mapping[Candidate, str]
    """Candidates that diverged under some seed, and why; none of them is chosen."""

    def summary(self, chosen: Candidate) -> SelectionSummary:
        """What the model's record says."""
        return SelectionSummary(
            rule=self.config.rule,
            text=RULES[self.config.rule].text,
            shifts=self.config.shifts,
            candidates=len(self.seen) + len(self.failed),
            seeds=self.config.seeds,
            chosen=chosen.name,
            others={rule: one.name for rule, one in self.takes.items()},
        )


def values_of(seen: Sequence[Quantities]) -> dict[str, float | None]:
    """The means over seeds that tables show, by column; None for what nobody looked at."""
    mean = mean_quantities(seen)
    rules = {f"rule_{name}": rule.value for name, rule in RULES.items() if name in ("stress", "agreement")}
    blind = mean.where_right is None and mean.where_wrong is None
    return {
        "log_loss": mean.log_loss,
        "auroc": mean.auroc,
        "balanced_accuracy": mean.balanced_accuracy,
        "shifted_balanced_accuracy": _point(seen)[1],
        **{name: value(mean) for name, value in rules.items()},
        "rule_errors": None if blind else RULES["errors"].value(mean),
    }


def tune_table(tuning: Tuning) -> str:
    """CSV: a row a candidate, with means over seeds, and the rules that take it; failed ones with the reason."""
    columns = list(values_of(tuning.seen[tuning.chosen]))
    rows = []
    for one, seen in tuning.seen.items():
        cells = ["" if value is None else f"{value:.6f}" for value in values_of(seen).values()]
        rows.append([one.name, *_settings(one), str(len(seen)), *cells, " ".join(taken_by(tuning, one)), ""])
    for one, why in tuning.failed.items():
        rows.append([one.name, *_settings(one), "", *[""] * len(columns), "", why])
    return csv_text(["candidate", *_HEAD, "seeds", *columns, "taken_by", "failure"], rows)


def tune_page(tuning: Tuning) -> str:
    """Markdown: what was chosen and how, and the candidates."""
    config, rule = tuning.config, RULES[tuning.config.rule]
    count, seeds = len(tuning.seen) + len(tuning.failed), config.seeds
    rows = []
    for one, seen in tuning.seen.items():
        cells = ["" if value is None else f"{value:.3f}" for value in values_of(seen).values()]
        mark = "**chosen**" if one == tuning.chosen else ""
        rows.append([one.name, *cells, ", ".join(taken_by(tuning, one)), mark])
    head = [name.removeprefix("rule_").replace("_", " ") for name in values_of(tuning.seen[tuning.chosen])]
    failed = "".join(f"\n- {one.name} failed: {why}" for one, why in tuning.failed.items())
    return f"""# Tuning

{RESEARCH_USE} {count:,} candidates, each under the same {_seeds(seeds)} on one split.

Chosen: **{tuning.chosen.name}**, by the rule `{config.rule}`: {rule.text}. The model is that of seed {tuning.seed}, the
best of its seeds by the same rule.

Validation was shifted in {", ".join(config.shifts)}, each by half its strength. Rules look at validation
alone: neither the test split nor any other data took part. Whether the choice holds elsewhere, only cases of another
hospital tell.

![Balanced accuracy on validation against that on its shifted copies](tune.png)

## The candidates, the weakest regularisation first

Means over the seeds on validation; balanced accuracy at the threshold that is fixed on unshifted validation.

{markdown_table(["candidate", *head, "taken by", ""], rows)}
{failed}
""".replace("\n\n\n", "\n\n")


def tune_figure(tuning: Tuning) -> bytes:
    """PNG: balanced accuracy on validation against the mean on its shifted copies, a point a candidate.

    The chosen one is ringed, those that rules take are called by their rules, and the stronger the larger the point.
    """
    figure = Figure(figsize=(8.2, 5.0), layout="constrained")
    axes = figure.subplots()
    at = {one: _point(seen) for one, seen in tuning.seen.items()}
    sizes = dict(zip(at, np.linspace(16, 80, len(at)), strict=True))
    for number, penalty in enumerate(tuning.config.penalties):
        own = [one for one in at if one.penalty == penalty]
        if own:
            axes.scatter(
                [at[one][0] for one in own], [at[one][1] for one in own], s=[sizes[one] for one in own],
                color=COLOURS[number], marker=_MARKERS[number], label=_NAMES[penalty], alpha=0.8, linewidth=0, zorder=3,
            )  # fmt: skip
    x, y = at[tuning.chosen]
    ring = f"chosen by {tuning.config.rule}"
    axes.scatter([x], [y], s=260, facecolor="none", edgecolor="black", linewidth=1.4, zorder=4, label=ring)
    for one in dict.fromkeys(tuning.takes.values()):
        names = "\n".join(taken_by(tuning, one))
        axes.annotate(names, at[one], (9, 9), textcoords="offset points", fontsize=7, color="0.25")
    axes.set(xlabel="balanced accuracy on validation", ylabel="mean balanced accuracy on its shifted copies")
    axes.margins(0.12)
    axes.set_title(f"{len(at):,} candidates, means over {_seeds(tuning.config.seeds)}", fontsize="medium")
    tidy(axes)
    legend = figure.legend(loc="outside right upper", frameon=False, fontsize="small", title="larger: stronger")
    for handle in legend.legend_handles:
        handle.set_sizes([40])  # type: ignore[union-attr]  # of a scatter
    return png(figure)


def _point(seen: Sequence[Quantities]) -> tuple[float, float]:
    """Balanced accuracy on validation, and its mean on the shifted copies; means over seeds."""
    mean = mean_quantities(seen)
    return mean.balanced_accuracy, float(np.mean([copy.balanced_accuracy for copy in mean.shifted.values()]))


def _settings(one: Candidate) -> list[str]:
    numbers = (*(getattr(one, name) for name in STRENGTHS), one.learning_rate)
    return [one.penalty, *(f"{number:g}" for number in numbers), one.augment]


def taken_by(tuning: Tuning, one: Candidate) -> list[str]:
    """The rules that take a candidate."""
    return [rule for rule, taken in tuning.takes.items() if taken == one]


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count:,} seeds"
