"""Pictures cannot be judged here, but they must come, be equal for equal data, and bear what users name things."""

from __future__ import annotations

import cv2
import matplotlib as mpl
import numpy as np
import pytest
from numpy.typing import NDArray

from training.evaluation.bootstrap import Difference, Interval
from training.evaluation.figures import (
    BLUE,
    COLOURS,
    ORANGE,
    STYLES,
    GalleryRow,
    by_group,
    comparison,
    gallery,
    learning_curve,
    performance,
)
from training.evaluation.metrics import METRIC_NAMES, softmax
from training.evaluation.predictions import Predictions
from training.evaluation.results import measure

HOSTILE = ("$x_{1", "腫瘍 \n\t", "a" * 300, "<b>|\\frac{", "")
NONE = Interval(None, None, None)


def predictions(classes: tuple[str, ...] = ("benign", "tumour"), samples: int = 60, seed: int = 0) -> Predictions:
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(classes), samples)
    p = softmax(random.normal(size=(samples, len(classes))) + np.eye(len(classes))[labels])
    cases = np.array([f"case{i % 7}" for i in range(samples)])
    return Predictions(p, labels, cases, classes, threshold=0.4, positive=len(classes) - 1)


def pixels(png: bytes) -> NDArray[np.uint8]:
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    assert picture.std() > 5, "it is not blank"
    return np.asarray(picture, dtype=np.uint8)


def drawn(of: Predictions) -> bytes:
    return performance(of, measure(of, resamples=20).metrics, "test", resamples=20)


def group_of(values: dict[str, Interval]) -> dict[str, Interval]:
    return dict.fromkeys(METRIC_NAMES, NONE) | values


@pytest.mark.parametrize("classes", [3, 13])
def test_performance_is_drawn_for_any_number_of_classes(classes: int) -> None:
    pixels(drawn(predictions(tuple(f"class {c}" for c in range(classes)), samples=120)))


@pytest.mark.parametrize("kept", [[0], [1], [2]])
def test_performance_without_a_class_or_with_one_tile(kept: list[int]) -> None:
    some = predictions()
    which = np.flatnonzero(some.labels == kept[0]) if kept[0] < 2 else np.array([0])
    pixels(drawn(some.chosen(which)))


def test_performance_without_intervals() -> None:
    some = predictions()
    pixels(performance(some, measure(some, resamples=0).metrics, "test", resamples=0))


def test_the_panels_show_the_predictions() -> None:
    """Swapping two labels changes each panel."""
    some = predictions()
    labels = some.labels.copy()
    labels[[0, 1, 2]] = 1 - labels[[0, 1, 2]]
    other = Predictions(some.probabilities, labels, some.case_ids, some.classes, some.threshold, some.positive)
    metrics = measure(some, resamples=5).metrics
    a, b = (pixels(performance(p, metrics, "test", resamples=5)) for p in (some, other))
    height, width = a.shape[:2]
    for rows in (slice(0, height // 2), slice(height // 2, height)):
        for columns in (slice(0, width // 2), slice(width // 2, width)):
            assert (a[rows, columns] != b[rows, columns]).any()


def test_gallery_shows_the_tiles_as_they_are() -> None:
    tile = np.zeros((1, 4, 4, 3), np.uint8)
    tile[0, :, :2] = (200, 30, 90)  # red, green, blue
    picture = pixels(gallery([GalleryRow("wrong", tile, ["a 0.9\ncase"]), GalleryRow("none", tile[:0], [])], "test"))
    for colour in ((90, 30, 200), (0, 0, 0)):  # OpenCV's order
        assert (picture == colour).all(axis=-1).sum() > 1000
    pixels(gallery([], "nothing at all"))


def test_every_picture_is_the_same_for_the_same_data() -> None:
    some = predictions()
    assert drawn(some) == drawn(predictions())
    assert drawn(some) != drawn(predictions(seed=1))


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_not_taken_for_mathematics(name: str) -> None:
    some = predictions(("benign", name))
    metrics = measure(some, resamples=5).metrics
    pixels(performance(some, metrics, name, resamples=5))
    tile = np.zeros((1, 8, 8, 3), np.uint8)
    pixels(gallery([GalleryRow(name, tile, [name])], name))
    pixels(by_group(metrics, {name: metrics, "other": metrics}, name))


def test_groups_and_differences_without_values_are_drawn() -> None:
    whole = group_of({"auroc": Interval(0.8, 0.7, 0.9)})
    groups = {f"site {i}": group_of({"auroc": Interval(i / 100, None, None)}) for i in range(60)}
    many, few = (pixels(by_group(whole, some, "by site")) for some in (groups, dict(list(groups.items())[:3])))
    assert few.shape[0] < many.shape[0] < 1300, "a picture of 60 groups shows 40"
    missing = Difference(None, None, None)
    pixels(
        comparison({**dict.fromkeys(METRIC_NAMES, missing), "auroc": Difference(0.1, 0.0, 0.2, 0, 0.9)}, "B minus A")
    )


def test_learning_curve_bears_an_undefined_value() -> None:
    record = {"train_ce": 0.5, "train_sd": 0.1, "val_log_loss": 0.4, "val_auroc": float("nan")}
    pixels(learning_curve([{"epoch": 1.0, **record}, {"epoch": 2.0, **record}], best_epoch=1))


def test_matplotlib_is_left_as_it_was() -> None:
    before = dict(mpl.rcParams)
    drawn(predictions())
    assert dict(mpl.rcParams) == before


def simulated(colour: str, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The colour as a dichromat sees it, linear RGB, by the matrices of Machado, Oliveira and Fernandes 2009."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.asarray(np.clip(matrix @ linear, 0, 1))


@pytest.mark.parametrize(
    "matrix",
    [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ],
    ids=["protan", "deutan", "tritan"],
)
def test_the_two_colours_that_mean_something_stay_apart_for_the_colour_blind(matrix: list[list[float]]) -> None:
    blue, orange = (simulated(colour, np.array(matrix)) for colour in (BLUE, ORANGE))
    assert np.linalg.norm(blue - orange) > 0.3
    assert len({(colour, STYLES[i % len(STYLES)]) for i, colour in enumerate(COLOURS)}) == 8, "each curve has its own"
