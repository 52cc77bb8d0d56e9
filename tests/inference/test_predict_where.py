"""Which tiles of a store are predicted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from inference.predict import PredictConfig, predict_slide, prediction_settings
from pipeline.synthetic import write_pyramid
from tiling import TileStore, TilingConfig, tile_slide
from tiling.errors import ConfigError
from training import TileModel


class Redness:
    """Stands for a model: the probability is the mean of the red channel."""

    info = SimpleNamespace(
        classes=("no", "yes"), positive=1, threshold=0.5, mpp=0.5, tile_px=32, input_px=32, backbone="none",
        hashes={"weights.safetensors": "0"},
    )  # fmt: skip
    sha256 = "0"
    device = torch.device("cpu")
    novelty = None

    def predict(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        red = tiles[..., 0].mean((1, 2)) / 255
        return np.stack([1 - red, red], 1).astype(np.float32)


MODEL = cast(TileModel, Redness())


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    picture = np.full((320, 400, 3), 244, np.uint8)
    cv2.circle(picture, (200, 160), 140, (222, 140, 180), -1)
    path = tmp_path_factory.mktemp("slides") / "disc.tif"
    write_pyramid(path, picture, mpp=0.5, levels=1)
    return path


@pytest.fixture(scope="module")
def store(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> TileStore:
    config = TilingConfig(mpp=0.5, tile_px=32, codec="lossless", min_tissue=0.1)
    return TileStore(tile_slide(slide, tmp_path_factory.mktemp("stores"), config).store)


def test_where_chooses_tiles_of_a_store(store: TileStore) -> None:
    everything = predict_slide(store.path, MODEL, PredictConfig(min_tissue=0))
    some = predict_slide(store.path, MODEL, PredictConfig(min_tissue=0, where="white < 0.1 and x >= 64"))
    kept = (store.quality["white"] < 0.1) & (store.x >= 64)
    assert 0 < kept.sum() < len(store) == len(everything.x0)
    np.testing.assert_array_equal(some.x0, store.x[kept])
    np.testing.assert_array_equal(some.probabilities, everything.probabilities[kept])
    assert some.provenance["settings"]["where"] == "white < 0.1 and x >= 64"
    assert "where" not in everything.provenance["settings"]


def test_where_needs_a_store(slide: Path) -> None:
    with pytest.raises(ConfigError, match=r"tile disc\.tif first"):
        predict_slide(slide, MODEL, PredictConfig(where="x > 1"))
    assert "where" not in prediction_settings(slide, PredictConfig(where="x > 1"))


def test_where_is_parsed_at_once() -> None:
    with pytest.raises(ConfigError, match="position 4"):
        PredictConfig(where="x >")
