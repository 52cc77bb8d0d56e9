"""The label image: read back as an annotation it marks each tile by the class that is called there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from inference.exports.label_map import write_labels
from inference.maps.stitch import slide_map
from tests.inference.conftest import GRID, MakePrediction
from tiling.annotations.label_image import label_fractions
from tiling.grid import Frame
from training.evaluation.metrics import decide

FULL = [(x, y) for y in range(0, 192, 64) for x in range(0, 256, 64)]


@pytest.mark.parametrize(("size0", "least"), [((256, 192), 1.0), ((279, 250), 0.93), ((319, 203), 0.93)])
@pytest.mark.parametrize("classes", [2, 5, 300])
def test_it_comes_back_as_an_annotation(
    make_prediction: MakePrediction, tmp_path: Path, classes: int, size0: tuple[int, int], least: float
) -> None:
    made = make_prediction(
        FULL[:-1], [0.0] * 11, grid=GRID.model_copy(update={"width0": size0[0], "height0": size0[1]})
    )
    probabilities = np.random.default_rng(classes).dirichlet(np.ones(classes), 11).astype(np.float32)
    names = tuple(f"class {number}" for number in range(classes))
    threshold = float(np.median(probabilities[:, 1]))
    prediction = replace(made, probabilities=probabilities, classes=names, threshold=threshold)
    write_labels(prediction, tmp_path / "labels.tif")

    values = tifffile.imread(tmp_path / "labels.tif")
    assert values.dtype == (np.uint8 if classes < 256 else np.uint16)
    assert values[-1, -1] == 0, "nothing was predicted there"
    called = decide(probabilities, threshold, 1)
    assert set(np.unique(values)) == {0, *(called + 1).tolist()}
    for tile, number in enumerate(called):
        x, y = FULL[tile][0] + 32, FULL[tile][1] + 32
        row, column = y * values.shape[0] // size0[1], x * values.shape[1] // size0[0]
        assert values[row, column] == number + 1
    if classes < 256:
        found = label_fractions(tmp_path / "labels.tif", prediction.tiles, Frame(size0))
        assert list(found) == sorted(names)
        for tile, number in enumerate(called):
            assert found[f"class {number}"][tile] >= least
            assert sum(of_class[tile] for of_class in found.values()) <= 1 + 1e-6


def test_it_says_how_large_its_pixels_are(make_prediction: MakePrediction, tmp_path: Path) -> None:
    write_labels(make_prediction(FULL, [0.5] * 12), tmp_path / "labels.tif")
    with tifffile.TiffFile(tmp_path / "labels.tif") as tiff:
        page = tiff.pages.first
        assert page.shape == (24, 32)
        mpp = [10_000 * below / above for above, below in (page.tags[tag].value for tag in (282, 283))]
        assert page.tags[296].value == 3, "centimetres"
    assert mpp == pytest.approx([4.0, 4.0], rel=1e-6)


def test_where_tiles_overlap_it_is_no_finer_than_the_map(make_prediction: MakePrediction, tmp_path: Path) -> None:
    grid = GRID.model_copy(update={"stride_px0": 32})
    prediction = make_prediction([(0, 0), (32, 0)], [0.9, 0.2], grid=grid)
    write_labels(prediction, tmp_path / "labels.tif")
    values = tifffile.imread(tmp_path / "labels.tif")
    assert values.shape == slide_map(prediction.positives, prediction.tiles).values.shape == (24, 32)
    # By tents of 8 pixels: 0.9 under one tile alone, 0.6375 and 0.4625 between the two, nothing beyond.
    assert [values[2, 1], values[2, 5], values[2, 6], values[2, 14]] == [2, 2, 1, 0]


def test_equal_predictions_give_equal_bytes(make_prediction: MakePrediction, tmp_path: Path) -> None:
    made = make_prediction(FULL[:5], [0.1, 0.9, 0.5, 0.4, 0.6])
    for name in ("a.tif", "b.tif"):
        write_labels(made, tmp_path / name)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
