"""A slide in small, and the heatmap over it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from inference.colours import HEATMAP
from inference.exports.png import overlay_png
from inference.maps.overview import assembled, heat, overview, shrunk
from tests.inference.conftest import MakePrediction
from tiling.grid import Raster


@pytest.mark.parametrize(("shape", "longest", "smaller"), [
    ((96, 128), 200, (96, 128)), ((96, 128), 128, (96, 128)), ((96, 128), 64, (48, 64)), ((3, 3000), 1000, (1, 1000)),
])  # fmt: skip
def test_a_picture_is_shrunk_to_its_longer_side(shape: tuple[int, int], longest: int, smaller: tuple[int, int]) -> None:
    assert shrunk(np.zeros((*shape, 3), np.uint8), longest).shape == (*smaller, 3)


def test_a_smaller_overview_shows_tiles_at_the_same_places(make_prediction: MakePrediction) -> None:
    """The slide of 256 x 192 px has a thumbnail of half its size; the tile begins at three quarters of the width."""
    prediction = make_prediction([(192, 128)], [0.5])
    for longest, downsample in ((128, 2.0), (64, 4.0), (32, 8.0)):
        picture = overview(prediction, longest)
        assert picture.downsample == downsample
        known = np.isfinite(assembled(prediction.heat, prediction, picture))
        rows, columns = np.flatnonzero(known.any(1)), np.flatnonzero(known.any(0))
        assert (rows[0], rows[-1] + 1) == (128 / downsample, 192 / downsample)
        assert (columns[0], columns[-1] + 1) == (192 / downsample, 256 / downsample)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_the_heatmap_is_as_opaque_as_its_value_is_high(make_prediction: MakePrediction, value: float) -> None:
    prediction = make_prediction([(0, 0)], [value])
    drawn = heat(prediction, overview(prediction))
    assert np.abs(drawn[0, 0, :3] - 255 * np.array(colormaps[HEATMAP](value)[:3])).max() <= 1
    assert drawn[0, 0, 3] == round(255 * (0.25 + 0.75 * value))
    assert not drawn[-1, -1].any()


def test_a_thumbnail_finer_than_the_figure_gives_the_same_picture(make_prediction: MakePrediction) -> None:
    """Ten times as many pixels of the thumbnail: frames, tiles and lines stay where they were."""
    places, values = [(0, 0), (64, 0), (192, 128)], [0.2, 0.9, 1.0]
    usual = make_prediction(places, values, threshold=0.5)
    fine = np.repeat(np.repeat(usual.thumbnail.values, 20, 0), 20, 1)
    finer = make_prediction(places, values, threshold=0.5, thumbnail=Raster(fine, usual.thumbnail.downsample / 20))
    pictures = []
    for prediction in (usual, finer):
        with Image.open(io.BytesIO(overlay_png(prediction))) as image:
            pictures.append(np.asarray(image.convert("RGB"), np.int16))
    assert pictures[0].shape == pictures[1].shape
    assert (np.abs(pictures[0] - pictures[1]).max(-1) > 40).mean() < 0.01  # the edges of tiles, half a pixel blurred
