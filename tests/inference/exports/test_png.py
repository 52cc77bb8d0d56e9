"""The overlay picture: it opens, it is transparent where nothing is, and its colours mean something."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from matplotlib import colormaps
from matplotlib.axes import Axes
from numpy.typing import NDArray
from PIL import Image

from inference.colours import HEATMAP
from inference.exports import png as overlay
from inference.exports.png import heatmap_png, overlay_png, write_layer
from inference.prediction import Prediction
from tests.inference.conftest import MakePrediction
from tiling.grid import Raster

FULL = [(x, y) for y in range(0, 192, 64) for x in range(0, 256, 64)]


def pixels_of(prediction: Prediction, truth: shapely.Geometry | None = None) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(overlay_png(prediction, truth))) as image:
        assert image.format == "PNG"
        assert image.mode == "RGBA"
        assert "Software" not in image.info
        return np.asarray(image, np.uint8)


def share_of(pixels: NDArray[np.uint8], colour: NDArray[np.float64]) -> float:
    """Fraction of the picture that is of that opaque colour, to within rounding."""
    return float((np.abs(pixels[..., :3] - colour).max(-1) < 4).mean())


def blended(probability: float) -> NDArray[np.float64]:
    """The heatmap's colour over a thumbnail of 230: 55% of a sure probability, a quarter of that where it is 0."""
    opacity = 0.55 * (0.25 + 0.75 * probability)
    return opacity * 255 * np.array(colormaps[HEATMAP](probability)[:3]) + (1 - opacity) * 230


def test_corners_are_transparent_and_the_slide_is_not(make_prediction: MakePrediction) -> None:
    pixels = pixels_of(make_prediction(FULL[:3], [0.2, 0.5, 0.8]))
    assert pixels[0, 0, 3] == pixels[0, -1, 3] == pixels[-1, -1, 3] == 0
    assert pixels[pixels.shape[0] // 2, pixels.shape[1] // 3, 3] == 255


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_tiles_have_the_colour_of_their_probability(make_prediction: MakePrediction, probability: float) -> None:
    pixels = pixels_of(make_prediction(FULL, [probability] * len(FULL)))
    assert share_of(pixels, blended(probability)) > 0.3
    for other in {0.0, 0.5, 1.0} - {probability}:
        assert share_of(pixels, blended(other)) < 0.05


def test_a_place_without_tile_shows_the_slide(make_prediction: MakePrediction) -> None:
    pixels = pixels_of(make_prediction([], []))
    assert share_of(pixels, np.full(3, 230.0)) > 0.3


def test_equal_predictions_are_equal_bytes(make_prediction: MakePrediction) -> None:
    first, again = (make_prediction(FULL[:2], [0.25, 0.75]) for _ in range(2))
    assert overlay_png(first) == overlay_png(again)
    assert overlay_png(first) != overlay_png(make_prediction(FULL[:2], [0.25, 0.9]))


@pytest.mark.parametrize(
    "truth",
    [
        shapely.box(20, 20, 120, 120),
        shapely.box(20, 20, 120, 120) - shapely.box(50, 50, 80, 80),
        shapely.MultiPolygon([shapely.box(0, 0, 40, 40), shapely.box(100, 100, 140, 140)]),
    ],
)
def test_the_truth_is_outlined(make_prediction: MakePrediction, truth: shapely.Geometry) -> None:
    prediction = make_prediction(FULL, [0.5] * len(FULL))
    white = np.full(3, 255.0)
    assert share_of(pixels_of(prediction, truth), white) > share_of(pixels_of(prediction), white)


def test_many_rings_drawn_at_once_look_as_each_drawn_by_itself(
    make_prediction: MakePrediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oracle draws two lines a ring. No two rings touch: there the one drawn later would cut the other's line."""
    values = [0.9 if place in {(0, 0), (128, 128)} else 0.6 for place in FULL]
    prediction = make_prediction(FULL, values, threshold=0.75)
    truth = shapely.box(70, 70, 120, 120) - shapely.box(90, 90, 100, 100)
    at_once = overlay_png(prediction, truth)

    def one_by_one(axes: Axes, rings: list[NDArray[np.float64]], px0: float, colour: str) -> None:
        for ring in rings:
            axes.plot(*(ring / px0 - 0.5).T, color="black" if colour == "white" else "white", linewidth=2.4)
            axes.plot(*(ring / px0 - 0.5).T, color=colour, linewidth=1.2)

    monkeypatch.setattr(overlay, "draw_outlines", one_by_one)
    assert at_once == overlay_png(prediction, truth)


def test_an_empty_truth_outlines_nothing(make_prediction: MakePrediction) -> None:
    prediction = make_prediction(FULL, [0.5] * len(FULL))
    assert overlay_png(prediction, shapely.Polygon()) == overlay_png(prediction)


@pytest.mark.parametrize("name", ["tumör", "a$b", "$\\frac", "a_b^{c", "50%"])
def test_no_name_upsets_the_picture(make_prediction: MakePrediction, name: str) -> None:
    """matplotlib reads what stands between two dollar signs as mathematics."""
    base = make_prediction([(0, 0)], [0.5])
    slide = base.slide.model_copy(update={"slide_id": f"{name}$"})
    named = make_prediction([(0, 0)], [0.5], classes=("benign", f"{name}$"), slide=slide)
    assert pixels_of(named).shape[2] == 4


@pytest.mark.parametrize("size", [(2, 300), (300, 2), (1, 1)])
def test_extreme_slides_have_a_picture(make_prediction: MakePrediction, size: tuple[int, int]) -> None:
    prediction = make_prediction([], [], thumbnail=Raster(np.full((*size, 3), 230, np.uint8), 2.0))
    pixels = pixels_of(prediction)
    assert max(pixels.shape[:2]) < 20_000


# ------------------------------------------------------------------------------------------------ without the slide


def heatmap_pixels(prediction: Prediction) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(heatmap_png(prediction))) as image:
        assert (image.format, image.mode) == ("PNG", "RGBA")
        return np.asarray(image, np.uint8)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_the_heatmap_has_the_maps_own_colours(make_prediction: MakePrediction, probability: float) -> None:
    """Whatever the other tiles are: the range is from 0 to 1."""
    pixels = heatmap_pixels(make_prediction(FULL, [probability] * len(FULL)))
    assert share_of(pixels, 255 * np.array(colormaps[HEATMAP](probability)[:3])) > 0.4


def test_the_heatmap_is_transparent_where_nothing_was_predicted(make_prediction: MakePrediction) -> None:
    """The picture of 4 x 3 tiles has tiles on the left half alone."""
    pixels = heatmap_pixels(make_prediction([place for place in FULL if place[0] < 128], [0.9] * 6))
    colour = np.abs(pixels[..., :3] - 255 * np.array(colormaps[HEATMAP](0.9)[:3])).max(-1) < 4
    row = np.flatnonzero(colour[pixels.shape[0] // 2])
    middle = row[row < pixels.shape[1] * 0.7]  # the colour bar stands to the right
    assert (pixels[pixels.shape[0] // 2, middle, 3] == 255).all()
    assert pixels[pixels.shape[0] // 2, middle[-1] + 60 : middle[-1] + 200, 3].max() == 0


def test_the_threshold_is_outlined(make_prediction: MakePrediction) -> None:
    """Where the threshold divides the tiles there are black lines that are not there where it does not."""
    values = [0.9 if place[0] < 128 else 0.6 for place in FULL]
    dark = [
        [(picture(make_prediction(FULL, values, threshold=t))[..., :3].max(-1) < 30).sum() for t in (0.75, 0.95)]
        for picture in (heatmap_pixels, pixels_of)
    ]
    assert all(divided > whole + 500 for divided, whole in dark)


def test_a_slide_without_tiles_has_a_heatmap(make_prediction: MakePrediction) -> None:
    assert heatmap_pixels(make_prediction([], [])).shape[2] == 4


def test_equal_heatmaps_are_equal_bytes(make_prediction: MakePrediction) -> None:
    first, again, other = (heatmap_png(make_prediction(FULL[:1], [p])) for p in (0.5, 0.5, 0.6))
    assert first == again != other


# ------------------------------------------------------------------------------------------------------ as a layer


def test_a_layer_lies_where_its_file_says(make_prediction: MakePrediction, tmp_path: Path) -> None:
    """Laid over the slide by what stands in the JSON, each tile has its colour, and what was not predicted none."""
    prediction = make_prediction([(0, 0), (192, 128)], [0.25, 1.0])
    write_layer(prediction, tmp_path / "layer.png")
    place = json.loads((tmp_path / "layer.json").read_text())
    assert (place["width0"], place["height0"], place["slide"]["width0"]) == (256, 192, 256)
    with Image.open(tmp_path / "layer.png") as image:
        assert image.mode == "RGBA"
        scaled = image.resize((int(place["width0"]), int(place["height0"])), Image.Resampling.NEAREST)
        pixels = np.asarray(scaled).astype(np.int16)
    for (x, y), probability in (((0, 0), 0.25), ((192, 128), 1.0)):
        colour = 255 * np.array(colormaps[HEATMAP](probability)[:3])
        tile = pixels[y : y + 64, x : x + 64]
        assert np.abs(tile[..., :3] - colour).max() <= 1
        assert (tile[..., 3] == 255).all()
    assert (pixels[..., 3] > 0).sum() == 2 * 64 * 64
