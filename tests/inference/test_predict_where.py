"""Which tiles of a store, or of a slide, are predicted."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from inference.config import PredictConfig
from inference.predict import predict_slide
from inference.prediction import Prediction
from inference.recipes import prediction_settings
from pipeline.demo.synthetic import write_pyramid
from tests.inference.test_predict_ways import damaged
from tiling import TileStore, TilingConfig, tile_slide
from tiling.core.errors import ConfigError, SlideError
from training import TileModel


class Redness:
    """Stands for a model: the probability is the mean of the red channel."""

    info = SimpleNamespace(
        classes=("no", "yes"), positive=1, threshold=0.5, mpp=0.5, tile_px=32, input_px=32, backbone="none",
        hashes={"weights.safetensors": "0"}, limits="", icc="none", warn_of_colours=lambda icc, path: None,
    )  # fmt: skip
    sha256 = "0"
    device = torch.device("cpu")
    novelty = None

    def predict(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        red = tiles[..., 0].mean((1, 2)) / 255
        return np.stack([1 - red, red], 1).astype(np.float32)


class Coarse(Redness):
    """The same for tiles of 1 mpp."""

    info = SimpleNamespace(**vars(Redness.info) | {"mpp": 1.0})


MODEL = cast(TileModel, Redness())


def asked(**settings: Any) -> PredictConfig:
    """By torch: this model is no network."""
    return PredictConfig(backend="torch", **settings)


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
    everything = predict_slide(store.path, MODEL, asked(min_tissue=0))
    some = predict_slide(store.path, MODEL, asked(min_tissue=0, where="white < 0.1 and x >= 64"))
    kept = (store.quality["white"] < 0.1) & (store.tiles.x0 >= 64)
    assert 0 < kept.sum() < len(store) == len(everything.tiles.x0)
    np.testing.assert_array_equal(some.tiles.x0, store.tiles.x0[kept])
    np.testing.assert_array_equal(some.probabilities, everything.probabilities[kept])
    assert some.provenance["settings"]["where"] == "white < 0.1 and x >= 64"
    assert "where" not in everything.provenance["settings"]


EXPRESSIONS = ("white < 0.1 and x >= 64", "focus > 20", "tissue >= 0.9 or saturation * 2 > 0.7", "focus < 0")


@pytest.mark.parametrize("where", EXPRESSIONS)
@pytest.mark.parametrize("readers", [1, 3])
def test_a_slide_is_filtered_as_its_store_is(slide: Path, store: TileStore, where: str, readers: int) -> None:
    config = asked(min_tissue=0.1, where=where, batch_size=7, readers=readers)
    direct, stored = predict_slide(slide, MODEL, config), predict_slide(store.path, MODEL, config)
    same(direct, stored)
    assert direct.left_out == stored.left_out
    assert direct.left_out["filtered"] > 0
    assert direct.provenance["settings"]["where"] == where


def test_a_real_slide_is_filtered_as_its_store_is(svs: Path, tmp_path: Path) -> None:
    lossless = TilingConfig(mpp=1.0, tile_px=32, codec="lossless", min_tissue=0.3)
    path = tile_slide(svs, tmp_path, lossless).store
    focus = TileStore(path).quality["focus"]
    where = f"focus > {np.median(focus):.9g} and haematoxylin < eosin * 2 and pen < 0.2"
    config = asked(min_tissue=0.3, where=where)
    model = cast(TileModel, Coarse())
    direct, stored = predict_slide(svs, model, config), predict_slide(path, model, config)
    same(direct, stored)
    assert direct.left_out == stored.left_out
    assert 100 < len(direct.tiles.x0) <= len(focus) / 2


def same(direct: Prediction, stored: Prediction) -> None:
    np.testing.assert_array_equal(direct.tiles.x0, stored.tiles.x0)
    np.testing.assert_array_equal(direct.tiles.y0, stored.tiles.y0)
    np.testing.assert_array_equal(direct.probabilities, stored.probabilities)


def test_nothing_is_measured_of_a_slide_without_a_filter(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise AssertionError

    monkeypatch.setattr("inference.sources.measurer", fail)
    predict_slide(slide, MODEL, asked())
    with pytest.raises(AssertionError):
        predict_slide(slide, MODEL, asked(where="focus > 1"))


def test_a_region_comes_before_the_filter_on_a_slide(slide: Path, store: TileStore, tmp_path: Path) -> None:
    roi = tmp_path / "roi.geojson"
    ring = [[0, 0], [200, 0], [200, 320], [0, 320], [0, 0]]
    roi.write_text(json.dumps({"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}))
    config = asked(min_tissue=0.1, where="white < 0.1")
    direct, stored = (predict_slide(path, MODEL, config, roi=roi) for path in (slide, store.path))
    same(direct, stored)
    inside = store.tiles.x0 < 200
    assert direct.left_out["outside_roi"] == int((~inside).sum())
    assert direct.left_out["filtered"] == int((inside & ~(store.quality["white"] < 0.1)).sum()) > 0
    assert sum(direct.left_out.values()) == sum(stored.left_out.values())


def test_filtered_tiles_are_not_taken_for_damaged_ones(tmp_path: Path) -> None:
    path = damaged(tmp_path)
    tiling = TilingConfig(mpp=0.5, tile_px=32, codec="lossless", max_bad_tiles=0.2)
    stored = TileStore(tile_slide(path, tmp_path / "stores", tiling).store)
    config = asked(where="focus > 500", max_bad_tiles=0.2, batch_size=16)
    direct, expected = predict_slide(path, MODEL, config), predict_slide(stored.path, MODEL, config)
    same(direct, expected)
    assert direct.left_out == expected.left_out
    assert direct.left_out["undecodable"] == len(stored.attributes.bad_tiles) == 8
    assert direct.left_out["filtered"] > 8
    with pytest.raises(SlideError, match="tiles"):
        predict_slide(path, MODEL, asked(where="focus > 500", max_bad_tiles=0.01))


@pytest.mark.parametrize("where", ["focsu > 1", "tumour > 0.5", "x > 1 or `tumour` > 0.5", "hp_sharpness > 1"])
def test_unknown_columns_of_a_slide_are_refused_before_it_is_opened(where: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no column .*annotation") as caught:
        predict_slide(tmp_path / "lost.svs", MODEL, asked(where=where))
    assert "the columns are focus, blur, white, black" in str(caught.value)


def test_progress_ends_at_all_however_many_are_filtered(slide: Path) -> None:
    calls: list[tuple[int, int]] = []
    config = asked(where="y < 100", batch_size=9)
    found = predict_slide(slide, MODEL, config, progress=lambda done, total: calls.append((done, total)))
    assert 0 < len(found.tiles.x0) < calls[-1][1]
    assert calls[-1][0] == calls[-1][1]
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_a_filter_is_part_of_a_results_identity(slide: Path) -> None:
    assert prediction_settings(slide, PredictConfig(where="x > 1"))["where"] == "x > 1"
    assert "where" not in prediction_settings(slide, PredictConfig())


def test_where_is_parsed_at_once() -> None:
    with pytest.raises(ConfigError, match="position"):
        PredictConfig(where="x >")
