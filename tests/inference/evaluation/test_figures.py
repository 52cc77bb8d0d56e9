"""The picture of an evaluation of slides: what it is drawn from decides its bytes."""

from __future__ import annotations

import numpy as np

from inference.evaluation.figures import slide_picture
from inference.evaluation.results import SlideEvaluation, Slides, measure


def test_the_seed_draws_the_band_as_it_draws_the_figures() -> None:
    random, names = np.random.default_rng(0), np.array([f"s{i}" for i in range(12)])
    positive = np.arange(12) % 2 == 0
    slides = Slides(names, names, positive, {"mean": positive * 0.3 + random.random(12)})
    evaluation = SlideEvaluation(
        positive_class="tumour", split="test", score="mean", resamples=20, scores={"mean": measure(slides, "mean")},
        groups={}, at_threshold=None, froc=None, notes=(), slides=(), made_from={},
    )  # fmt: skip
    usual, again, other = (slide_picture(evaluation, slides, [], seed=seed) for seed in (0, 0, 7))
    assert usual == again == slide_picture(evaluation, slides, [])
    assert usual != other
