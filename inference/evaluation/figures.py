"""The picture of an evaluation of slides: ROC of the slides, FROC of the lesions, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inference.evaluation.froc import RATES, Hits, froc_curve
from inference.evaluation.results import FrocResult, SlideEvaluation, Slides
from tiling.core.text import threshold_text
from training.evaluation.bootstrap import bootstrap_band
from training.evaluation.figures import BLUE, ORANGE, png, tidy
from training.evaluation.metrics import roc_at, roc_curve

_GRID = np.linspace(0, 1, 101)
_MIN_RATE = 0.125


def slide_picture(evaluation: SlideEvaluation, slides: Slides, hits: Sequence[Hits], *, seed: int = 0) -> bytes:
    """PNG of the ROC of the slides and the FROC of the lesions; equal data give equal bytes.

    Args:
        evaluation: What the test found.
        slides: The slides and their scores.
        hits: What the detections of each slide are worth; without any there is no FROC panel.
        seed: Draws the bootstrap resamples of the cases.

    Returns:
        The PNG's bytes.
    """
    # Fixed places: to find a layout takes longer than all the drawing.
    figure = Figure(figsize=(10.8 if hits else 5.6, 5.0), dpi=110)
    places = {"left": 0.07 if hits else 0.13, "right": 0.98, "bottom": 0.15, "top": 0.92, "wspace": 0.18}
    panels = figure.subplots(1, 2 if hits else 1, squeeze=False, gridspec_kw=places)[0]
    _draw_roc(panels[0], evaluation, slides, seed)
    if hits:
        _draw_froc(panels[1], evaluation, hits)
    return png(figure)


def _draw_roc(axes: Axes, evaluation: SlideEvaluation, slides: Slides, seed: int) -> None:
    values, positive = slides.scores[evaluation.score], slides.positive
    curve = partial(roc_at, values, positive, _GRID)
    low, high = bootstrap_band(curve, slides.case_id, resamples=evaluation.resamples, seed=seed)
    if np.isfinite(low).any():
        axes.fill_between(_GRID, low, high, color=BLUE, alpha=0.18, linewidth=0, label="95% interval over cases")
    axes.plot(*roc_curve(values, positive), color=BLUE, label=f"score {evaluation.score}")
    found = evaluation.at_threshold
    if found and found.specificity.value is not None and found.sensitivity.value is not None:
        place = (1 - found.specificity.value, found.sensitivity.value)
        axes.plot(
            *place, "s", color=ORANGE, label=f"threshold {threshold_text(found.threshold)}, chosen on {found.chosen_on}"
        )
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=1, label="chance")
    axes.set(xlabel="false positive rate", ylabel="sensitivity", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_title(f"Slides, AUROC {evaluation.scores[evaluation.score].auroc}", fontsize="medium")
    axes.legend(frameon=False, fontsize="small", loc="lower right")
    tidy(axes)


def _draw_froc(axes: Axes, evaluation: SlideEvaluation, hits: Sequence[Hits]) -> None:
    curve, found = froc_curve(hits), evaluation.froc
    assert found is not None
    rate = np.append(np.maximum(curve.false_positives, _MIN_RATE), max(RATES[-1], curve.false_positives[-1]))
    axes.plot(rate, np.append(curve.sensitivity, curve.sensitivity[-1]), color=BLUE, drawstyle="steps-post")
    for place, value in zip(RATES, found.sensitivity.values(), strict=True):
        if value.low is not None and value.high is not None:
            axes.plot([place, place], [value.low, value.high], color=ORANGE, linewidth=1.5)
        if value.value is not None:
            axes.plot(place, value.value, "o", color=ORANGE, markersize=4)
    axes.set_xscale("log", base=2)
    axes.set_xticks(RATES, ["1/4", "1/2", "1", "2", "4", "8"])
    axes.set(xlim=(_MIN_RATE, 8 * 1.1), ylim=(-0.02, 1.02), xlabel="false positives a slide", ylabel="sensitivity")
    by = "" if found.of == FrocResult.of else f"\nby {found.of}"
    axes.set_title(f"Lesions, FROC score {found.score}{by}", fontsize="medium")
    tidy(axes)
