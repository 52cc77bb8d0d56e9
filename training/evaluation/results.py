"""What a test of models found: metrics with intervals, by group and for the worst one, and two models compared. Pure.

Groups are sites, scanners or cases. Knows nothing of networks or pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.core.text import threshold_text
from tiling.core.versions import RESEARCH_USE
from training.evaluation.bootstrap import FEW_CASES, Difference, Interval, Resampled, difference, interval, resampled
from training.evaluation.metrics import LOWER_IS_BETTER, METRIC_NAMES
from training.evaluation.predictions import Predictions
from training.evaluation.tables import markdown_table

COLUMNS = ("site", "scanner", "case")
"""What tiles are grouped by."""
_log = logging.getLogger(__name__)
UNKNOWN = "unknown"
"""The group of tiles whose site or scanner is not known."""


@dataclass(frozen=True)
class Group:
    """The metrics of a group of tiles."""

    cases: int
    tiles: int
    tiles_per_class: dict[str, int]
    metrics: dict[str, Interval]
    """Without intervals where there are fewer cases than bootstrap.MIN_CASES."""


@dataclass(frozen=True)
class ModelResult:
    """The metrics of one model."""

    name: str
    sha256: str
    """Of its folder."""
    backbone: str
    threshold: float
    temperature: float
    overall: Group
    groups: dict[str, dict[str, Group]]
    """By column and name."""

    def worst(self, by: str) -> dict[str, str]:
        """By metric, the name of the group where it is worst; without the metrics that no group has."""
        found = {}
        for metric in METRIC_NAMES:
            sign = -1 if metric in LOWER_IS_BETTER else 1
            values = {name: group.metrics[metric].value for name, group in self.groups[by].items()}
            known = {name: sign * value for name, value in values.items() if value is not None}
            if known:
                found[metric] = min(known, key=lambda name: (known[name], name))
        return found


@dataclass(frozen=True)
class Evaluation:
    """The results of testing one model, or two on the same tiles."""

    classes: tuple[str, ...]
    positive_class: str
    split: str
    resamples: int
    models: tuple[ModelResult, ...]
    differences: dict[str, Difference] = field(default_factory=dict)
    """By metric, the second model's value minus the first's; empty for one model."""
    notes: tuple[str, ...] = ()
    """What to bear in mind, a sentence each."""
    noun: str = "tile"
    """What was tested on: tiles, or bags; figures called `tiles` count those."""

    def record(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        record = asdict(self)
        for model, written in zip(self.models, record["models"], strict=True):
            written["worst"] = {by: model.worst(by) for by in model.groups}
        return record | {"interval": "95% bootstrap over cases", "notice": RESEARCH_USE}

    def page(self) -> str:
        """All of it but single cases, as Markdown."""
        first = self.models[0].overall
        counts = ", ".join(f"{count:,} {name}" for name, count in first.tiles_per_class.items())
        parts = [
            "# Evaluation",
            f"**{RESEARCH_USE}**",
            f"Split: {self.split}. {first.tiles:,} {self.noun}s of {first.cases:,} cases: {counts}.",
            *self.notes,
            _models_table(self.models),
            "## Metrics",
            markdown_table(
                ["metric", *(model.name for model in self.models), *(["B minus A"] if self.differences else [])],
                [
                    [label, *(str(m.overall.metrics[name]) for m in self.models), *self._difference(name)]
                    for name, label in METRIC_NAMES.items()
                ],
            ),
            _explanation(len(self.classes), self.positive_class, self.resamples, bool(self.differences)),
        ]
        for model in self.models:
            for by, groups in model.groups.items():
                parts += [f"## {model.name} by {by}", _worst_table(model, by, self.noun)]
                parts += [_groups_table(by, groups, self.noun)] if by != "case" else []
        return "\n\n".join(parts) + "\n"

    def _difference(self, metric: str) -> list[str]:
        if not self.differences:
            return []
        found = self.differences[metric]
        above = "" if found.above_zero is None else f", above 0 in {found.above_zero:.1%}"
        return [f"{found}{above}"]


def measure(predictions: Predictions, *, resamples: int = 1000, seed: int = 0) -> Group:
    """The metrics of all tiles, with intervals over cases."""
    cases, drawn = np.unique(predictions.case_ids), _resampled(predictions, resamples, seed)
    counts = np.bincount(predictions.labels, minlength=len(predictions.classes)).tolist()
    return Group(
        cases=len(cases),
        tiles=len(predictions.labels),
        tiles_per_class=dict(zip(predictions.classes, counts, strict=True)),
        metrics={name: interval(*values) for name, values in drawn.items()},
    )


def measure_groups(
    predictions: Predictions, names: NDArray[np.str_], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Group]:
    """The metrics of each group of tiles, with intervals over cases.

    Args:
        predictions: What a model says of N tiles.
        names: The group of each tile, (N,); "" is unknown, and left out.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.

    Returns:
        The metrics by the group's name.
    """
    return {
        name: measure(predictions.chosen(which), resamples=resamples, seed=seed)
        for name, which in grouped(names).items()
    }


def worse_than_chance(results: Sequence[ModelResult]) -> tuple[str, ...]:
    """A warning of each model whose AUROC lies below 0.5 with its whole interval; it is logged too."""
    found = [(result.name, result.overall.metrics["auroc"]) for result in results]
    below = [name for name, auroc in found if auroc.high is not None and auroc.high < 0.5]
    notes = tuple(f"{name}: the AUROC is below 0.5. Are two classes swapped in the labels?" for name in below)
    for note in notes:
        _log.warning("%s", note)
    return notes


def grouped(names: NDArray[np.str_]) -> dict[str, NDArray[np.bool_]]:
    """By the name of each group, which of N belong to it, bool (N,); `names` (N,), where "" is unknown."""
    known = np.where(names == "", UNKNOWN, names)
    return {str(name): known == name for name in np.unique(known)}


def compare(first: Predictions, second: Predictions, *, resamples: int = 1000, seed: int = 0) -> dict[str, Difference]:
    """By metric, the second model's value minus the first's, with the interval of a paired bootstrap over cases.

    Args:
        first: What the first model says.
        second: What the second says of the same tiles, in the same order.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.

    Returns:
        The differences by metric.
    """
    a, b = (_resampled(predictions, resamples, seed) for predictions in (first, second))
    return {name: difference(a[name], b[name]) for name in a}


def _resampled(predictions: Predictions, resamples: int, seed: int) -> dict[str, Resampled]:
    """The metrics with their resamples."""
    return resampled(predictions.metrics(), predictions.case_ids, resamples=resamples, seed=seed)


def _models_table(models: Sequence[ModelResult]) -> str:
    rows = [[m.name, m.backbone, m.sha256[:12], f"{m.temperature:.4g}", threshold_text(m.threshold)] for m in models]
    return markdown_table(["model", "backbone", "SHA-256", "temperature", "threshold"], rows)


def _explanation(classes: int, positive: str, resamples: int, paired: bool) -> str:
    lines = [
        f"In brackets the 95% bootstrap interval over cases ({resamples:,} resamples); that of ECE lies high, since",
        f"noise only adds to it. There is {FEW_CASES}.",
    ]
    if classes == 2:
        lines += [f"AUROC and average precision are those of {positive}, which a model calls from its threshold on."]
    else:
        lines += [
            "AUROC and average precision are the mean over the classes of one against the rest, and the Brier score is",
            f"summed over the classes. A model calls {positive} from its threshold on, else the likeliest other class.",
        ]
    if paired:
        lines += [
            "B minus A is a paired bootstrap: the same cases are drawn for both models. With it stands the share of",
            "the resamples in which B's value is the higher one; for log loss, Brier score and ECE lower is better.",
        ]
    return "\n".join(lines)


def _worst_table(model: ModelResult, by: str, noun: str) -> str:
    groups, rows = model.groups[by], []
    for metric, name in model.worst(by).items():
        there, overall = (group.metrics[metric] for group in (groups[name], model.overall))
        rows.append([METRIC_NAMES[metric], name, f"{groups[name].tiles:,}", str(there), str(overall)])
    caveat = f"The worst of {len(model.groups[by]):,} is picked after the fact: chance makes it look worse than it is."
    return markdown_table(["metric", f"worst {by}", f"{noun}s", "there", "overall"], rows) + "\n\n" + caveat


def _groups_table(by: str, groups: Mapping[str, Group], noun: str) -> str:
    rows = [
        [name, f"{g.cases:,}", f"{g.tiles:,}", *(str(g.metrics[metric]) for metric in METRIC_NAMES)]
        for name, g in groups.items()
    ]
    return markdown_table([by, "cases", f"{noun}s", *METRIC_NAMES.values()], rows)
