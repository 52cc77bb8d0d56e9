"""What a test of heatmaps found: figures with intervals, by site and scanner, as JSON and Markdown. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from inference.evaluation.froc import (
    RATES,
    Hits,
    challenge_score,
    froc_curve,
    froc_score,
    resampled_sensitivities,
    sensitivities,
)
from inference.evaluation.operating_point import sensitivity_at_specificity, sensitivity_of
from tiling.core.text import threshold_text
from tiling.core.versions import RESEARCH_USE
from training.evaluation.bootstrap import MIN_CASES, Interval, bootstrap_band, interval, resampled
from training.evaluation.metrics import Floats, Metric, auroc
from training.evaluation.tables import markdown_table

SPECIFICITIES = (0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Slides:
    """Slides that are known to be positive or not, and their scores; (N,) each."""

    slide_id: NDArray[np.str_]
    case_id: NDArray[np.str_]
    positive: NDArray[np.bool_]
    scores: Mapping[str, Floats]
    """By name; the higher, the more suspicious."""

    def chosen(self, which: NDArray[np.bool_]) -> Slides:
        """Some of them, by truths (N,)."""
        scores = {name: values[which] for name, values in self.scores.items()}
        return Slides(self.slide_id[which], self.case_id[which], self.positive[which], scores)


@dataclass(frozen=True)
class Group:
    """How well one score separates the slides of a group; `Interval`s are undefined where a class is missing."""

    slides: int
    cases: int
    positives: int
    auroc: Interval
    sensitivity_at_specificity: dict[str, Interval]
    """By the specificity, as text."""


@dataclass(frozen=True)
class AtThreshold:
    """Sensitivity and specificity of a threshold that was chosen on other slides."""

    chosen_on: str
    """The split."""
    chosen_for: float
    """The sensitivity asked for there."""
    chosen_positives: int
    """Positive slides it was chosen on."""
    threshold: float
    sensitivity: Interval
    specificity: Interval


@dataclass(frozen=True)
class FrocResult:
    """Detections against lesions, by the definition of CAMELYON16; see `inference.evaluation.froc`."""

    slides: int
    lesions: int
    """Those that count; isolated tumour cells do not."""
    score: Interval
    sensitivity: dict[str, Interval]
    """By false positives a slide, as text."""
    challenge_score: float
    """The score as the challenge's script reads the curve."""
    separation_um: float
    of: str = "heatmap"
    """What the detections are local maxima of."""


class Within(NamedTuple):
    """Within one positive slide, how well tiles of lesions are told from others: AUROC, in [0, 1]."""

    attention: float
    probability: float
    """Of the probabilities that each tile alone has."""


@dataclass(frozen=True)
class AttentionResult:
    """Attention of a model of bags against annotations: means over slides."""

    slides: int
    """Positive slides with lesions that are drawn."""
    auroc: Interval
    """Of attention."""
    probability_auroc: Interval
    """Of the probabilities that each tile alone has."""


@dataclass(frozen=True)
class SlideEvaluation:
    """The results of `evaluate_slides`."""

    positive_class: str
    split: str
    score: str
    """The score that groups, threshold and pictures are about."""
    resamples: int
    scores: dict[str, Group]
    """All slides, by score."""
    groups: dict[str, dict[str, Group]]
    """By column (site, scanner) and name."""
    at_threshold: AtThreshold | None
    froc: FrocResult | None
    notes: tuple[str, ...]
    """What to bear in mind, a sentence each."""
    slides: tuple[dict[str, Any], ...]
    """Each slide: id, case, whether positive, scores."""
    made_from: dict[str, Any]
    """Model and settings of the heatmaps."""
    attention: AttentionResult | None = None
    """None of heatmaps that show no attention, and without annotations."""
    tiles_froc: FrocResult | None = None
    """Of a model of bags the same as `froc`, which is of attention, of the probabilities that each tile alone has."""

    def record(self) -> dict[str, Any]:
        """The results ready for JSON."""
        head = {"format": "specslide-slide-evaluation", "version": 1}
        return head | asdict(self) | {"interval": "95% bootstrap over cases", "notice": RESEARCH_USE}

    def page(self) -> str:
        """The results, without single slides, as Markdown."""
        whole = self.scores[self.score]
        parts = [
            "# Evaluation of slides",
            f"**{RESEARCH_USE}**",
            f"Split: {self.split}. {whole.slides:,} slides of {whole.cases:,} cases, {whole.positives:,} of them "
            f"{self.positive_class}.",
            *self.notes,
            "## Scores",
            _group_table("score", self.scores),
            f"In brackets the 95% bootstrap interval over cases ({self.resamples:,} resamples). The sensitivity is the "
            "highest that a threshold with at least that specificity gives on these very slides; nothing is "
            f"interpolated. There is no interval of fewer than {MIN_CASES} cases that are {self.positive_class}, or "
            "that are not.",
            *self._threshold_part(),
        ]
        for column, groups in self.groups.items():
            parts += [f"## {self.score} by {column}", _group_table(column, groups)]
        return "\n\n".join([*parts, *self._attention_part(), *self._froc_part()]) + "\n"

    def _threshold_part(self) -> list[str]:
        found = self.at_threshold
        if found is None:
            return []
        text = (
            f"The threshold {threshold_text(found.threshold)} of {self.score} was chosen for a sensitivity of "
            f"{found.chosen_for:g} on the {found.chosen_positives:,} positive slides of the "
            f"split {found.chosen_on}. On the slides above it "
            f"gives a sensitivity of {found.sensitivity} and a specificity of {found.specificity}."
        )
        return ["## Chosen threshold", text]

    def _attention_part(self) -> list[str]:
        found = self.attention
        if found is None:
            return []
        rows = [["attention", str(found.auroc)], ["probability of each tile alone", str(found.probability_auroc)]]
        text = (
            "How well tiles of lesions are told from others within a slide, the mean over "
            f"{found.slides:,} slides that are {self.positive_class}. Tiles of which less than a half is lesion are "
            "left out."
        )
        return ["## Attention against annotations", markdown_table(["of tiles", "AUROC"], rows), text]

    def _froc_part(self) -> list[str]:
        found = self.froc
        if found is None:
            return []
        both = [found] if self.tiles_froc is None else [found, self.tiles_froc]
        text = (
            f"{found.lesions:,} lesions on {found.slides:,} slides, by the definition of CAMELYON16: annotations are "
            "widened by 37.5 µm, what touches is one lesion, and lesions shorter than 275 µm then, isolated tumour "
            f"cells, do not count. A detection is a local maximum of the {' or of the '.join(one.of for one in both)}, "
            f"at least {found.separation_um:g} µm from the next. Read as the challenge's script reads a curve, the "
            f"score is {' and '.join(f'{one.challenge_score:.3f}' for one in both)}."
        )
        rows = [[rate, *(str(one.sensitivity[rate]) for one in both)] for rate in found.sensitivity]
        rows.append(["score, their mean", *(str(one.score) for one in both)])
        columns = ["sensitivity"] if len(both) == 1 else [f"sensitivity by {one.of}" for one in both]
        return ["## Lesions (FROC)", markdown_table(["false positives a slide", *columns], rows), text]


def measure(slides: Slides, score: str, *, resamples: int = 1000, seed: int = 0) -> Group:
    """How well a score separates positive slides from others, with intervals over cases.

    Args:
        slides: The slides.
        score: A name of `slides.scores`.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.

    Returns:
        AUROC, and the sensitivity at each of `SPECIFICITIES`.
    """
    values, positive = slides.scores[score], slides.positive
    two = np.stack([-values, values], 1)
    metrics: dict[str, Metric] = {"auroc": partial(auroc, two, positive.astype(np.int64))}
    metrics |= {f"{s:g}": partial(sensitivity_at_specificity, values, positive, s) for s in SPECIFICITIES}
    sides = (np.unique(slides.case_id[side]) for side in (positive, ~positive))
    few = min(map(len, sides)) < MIN_CASES  # all draws would be alike, which is no certainty
    found = _intervals(metrics, slides.case_id, 0 if few else resamples, seed)
    return Group(len(values), len(np.unique(slides.case_id)), int(positive.sum()), found.pop("auroc"), found)


def at_threshold(
    slides: Slides, score: str, threshold: float, chosen: tuple[str, float, int], *, resamples: int, seed: int
) -> AtThreshold:
    """Sensitivity and specificity of a threshold, with intervals over cases.

    Args:
        slides: The slides.
        score: A name of `slides.scores`.
        threshold: A slide is called positive from this score on.
        chosen: On which split it was chosen, for which sensitivity, on how many positives.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.

    Returns:
        What the threshold gives.
    """
    called, positive = slides.scores[score] >= threshold, slides.positive
    metrics: dict[str, Metric] = {
        "sensitivity": partial(sensitivity_of, called, positive),
        "specificity": partial(sensitivity_of, ~called, ~positive),
    }
    found = _intervals(metrics, slides.case_id, resamples, seed)
    return AtThreshold(*chosen, threshold, found["sensitivity"], found["specificity"])


def measure_froc(
    hits: list[Hits], case_ids: NDArray[np.str_], separation_um: float, *, of: str, resamples: int, seed: int
) -> FrocResult | None:
    """FROC score and sensitivities, with intervals over cases.

    Args:
        hits: What the detections of each of S slides are worth.
        case_ids: The slides' cases, (S,).
        separation_um: How far apart the detections are, micrometres.
        of: What the detections are local maxima of.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.

    Returns:
        The result; None without a lesion that counts.
    """
    lesions = sum(len(slide.found) for slide in hits)
    if not lesions:
        return None
    curve, metric = froc_curve(hits), partial(resampled_sensitivities, hits)
    low, high = bootstrap_band(metric, case_ids, resamples=resamples, seed=seed)
    score = _intervals({"score": lambda w: metric(w).mean(axis=1)}, case_ids, resamples, seed)["score"]
    assert score.value == froc_score(curve)
    return FrocResult(
        slides=len(hits),
        lesions=lesions,
        score=score,
        sensitivity={
            f"{rate:g}": Interval(float(value), _known(a), _known(b))
            for rate, value, a, b in zip(RATES, sensitivities(curve), low, high, strict=True)
        },
        challenge_score=challenge_score(curve),
        separation_um=separation_um,
        of=of,
    )


def within(attention: Floats, probability: Floats, lesion: Floats) -> Within | None:
    """How well a slide's lesions are told from its other tiles; None if there are none of either.

    Args:
        attention: Of N tiles.
        probability: Of the positive class, that each of them alone has.
        lesion: The fraction of each that is lesion; tiles of less than a half are left out, but for those of none.

    Returns:
        The AUROC of both.
    """
    clear = (lesion >= 0.5) | (lesion == 0)
    truth = (lesion[clear] >= 0.5).astype(np.int64)
    if not 0 < truth.sum() < len(truth):
        return None
    return Within(*(float(auroc(np.stack([-v, v], 1)[clear], truth)) for v in (attention, probability)))


def measure_attention(
    slides: Sequence[Within], case_ids: NDArray[np.str_], *, resamples: int, seed: int
) -> AttentionResult | None:
    """The means over S slides, with intervals over their cases (S,); None of no slide."""
    if not slides:
        return None
    values = np.array(slides)  # (S, 2)
    metrics: dict[str, Metric] = {name: partial(_mean, values[:, column]) for column, name in enumerate(Within._fields)}
    found = _intervals(metrics, case_ids, resamples, seed)
    return AttentionResult(len(slides), found["attention"], found["probability"])


def _mean(values: Floats, weights: Floats) -> Floats:
    """Means (R,) of values (S,) under weights (R, S)."""
    return np.asarray(weights @ values / weights.sum(axis=1))


def _intervals(
    metrics: Mapping[str, Metric], case_ids: NDArray[np.str_], resamples: int, seed: int
) -> dict[str, Interval]:
    drawn = resampled(metrics, case_ids, resamples=resamples, seed=seed)
    return {name: interval(*values) for name, values in drawn.items()}


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _group_table(head: str, groups: Mapping[str, Group]) -> str:
    rows = [
        [name, f"{g.slides:,}", f"{g.cases:,}", f"{g.positives:,}", str(g.auroc)]
        + [str(value) for value in g.sensitivity_at_specificity.values()]
        for name, g in groups.items()
    ]
    at = [f"sensitivity at specificity {s:g}" for s in SPECIFICITIES]
    return markdown_table([head, "slides", "cases", "positive", "AUROC", *at], rows)
