"""On which parts of a tile a model depends, against a window that is slid by hand."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference import EncoderConfig, load_encoder, make_heatmap
from inference.bag_heatmap import make_bag_heatmap
from inference.config import OutputConfig, PredictConfig
from inference.embed import embed_slide
from inference.ensemble import Ensemble
from inference.explain import bag_positives, load_positives, tile_positives
from inference.import_results import import_results
from inference.occlusion import occlusion_map
from inference.recipes import heatmap_recipe
from tests.inference.conftest import write_model
from tests.inference.test_bag_heatmap import write_bag_model
from tiling.core.arrays import Float32Array, UInt8Array
from tiling.core.errors import ConfigError, ModelError
from training import TileModel, load_bag_model, load_model


def noise(side: int, seed: int = 0) -> UInt8Array:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def curved(tiles: UInt8Array) -> Float32Array:
    """A probability that depends on every pixel in its own way."""
    weights = np.random.default_rng(1).normal(size=tiles.shape[1:])
    return np.asarray(1 / (1 + np.exp(-(tiles / 255 * weights).sum((1, 2, 3)))), np.float32)


def slid(tile: UInt8Array) -> Float32Array:
    """The mean, over the windows that cover a place, of what blurring the window takes from the probability."""
    side = len(tile)
    window, step = max(1, side // 4), max(1, side // 8)
    blurred = np.asarray(cv2.GaussianBlur(tile, (0, 0), side / 8))
    starts = [*range(0, side - window, step), None]
    total, times = np.zeros((side, side)), np.zeros((side, side))
    for top in starts:
        for left in starts:
            # the last window ends with the tile, and begins where the step before leads to
            y, x = (len(starts[:-1]) * step if start is None else start for start in (top, left))
            rows, columns = slice(y, y + window), slice(x, x + window)
            changed = tile.copy()
            changed[rows, columns] = blurred[rows, columns]
            total[rows, columns] += curved(tile[None])[0] - curved(changed[None])[0]
            times[rows, columns] += 1
    return (total / times).astype(np.float32)


@settings(deadline=None, max_examples=12)
@given(side=st.integers(4, 40))
def test_it_is_that_of_a_window_slid_by_hand(side: int) -> None:
    tile = noise(side)
    np.testing.assert_allclose(occlusion_map(tile, curved), slid(tile), atol=1e-6)


def test_where_there_is_no_detail_nothing_changes() -> None:
    assert not occlusion_map(np.full((32, 32, 3), 120, np.uint8), curved).any()


@pytest.mark.parametrize("sign", [1, -1])
def test_it_is_highest_where_the_answer_comes_from(sign: int) -> None:
    """Of a model that looks at the detail of one quarter; what speaks against is below 0."""
    tile = noise(64)

    def of_a_quarter(tiles: UInt8Array) -> Float32Array:
        return np.asarray(0.5 + sign * tiles[:, :32, 32:].std(axis=(1, 2, 3)) / 255, np.float32)

    found = sign * occlusion_map(tile, of_a_quarter)
    assert found[:32, 32:].min() > 0
    assert np.abs(found[40:]).max() == np.abs(found[:, :24]).max() == 0


def test_a_tile_classifiers_is_what_predict_slide_computes(model: TileModel) -> None:
    config = PredictConfig(backend="torch", tta=True)
    both = Ensemble((model, model))
    tiles = np.stack([noise(32, seed) for seed in range(3)])
    np.testing.assert_allclose(tile_positives(both, config)(tiles), tile_positives(model, config)(tiles), atol=1e-6)
    np.testing.assert_allclose(
        tile_positives(model, PredictConfig(backend="torch"))(tiles), model.predict(tiles)[:, 1], atol=1e-6
    )
    assert not np.allclose(tile_positives(model, config)(tiles), model.predict(tiles)[:, 1], atol=1e-6)  # by `tta`


def test_the_report_shows_it_and_so_it_is_another_report(slide: Path, model: TileModel, tmp_path: Path) -> None:
    plain, asked = OutputConfig(), OutputConfig(occlusion=True)
    page = (make_heatmap(slide, model, tmp_path / "asked", outputs=asked).folder / "report.html").read_text()
    assert page.count("On which parts of the tile its probability depends") == 16
    assert "lowers the probability of tumour" in page
    without = make_heatmap(slide, model, tmp_path / "plain", outputs=plain).folder
    assert "probability depends" not in (without / "report.html").read_text()
    of_asked, of_plain = (
        heatmap_recipe(slide, model.sha256, PredictConfig(), outputs=outputs) for outputs in (asked, plain)
    )
    assert of_asked.settings["outputs"] == {"occlusion": True}
    assert of_plain.settings["outputs"] == {}
    for name in ("predictions.csv", "heatmap.geojson", "overlay.png"):
        assert (tmp_path / "asked/disc" / name).read_bytes() == (without / name).read_bytes()


def test_a_model_of_bags_is_asked_for_each_tile_alone(slide: Path, tmp_path: Path) -> None:
    encoder = load_encoder(EncoderConfig(encoder=str(write_model(tmp_path / "encoder"))))
    features = embed_slide(slide, encoder, tmp_path / "features").store
    model = load_bag_model(write_bag_model(tmp_path / "bags", encoder.record))
    outputs = OutputConfig(occlusion=True)
    with pytest.raises(ConfigError, match="pixels"):
        make_bag_heatmap(features, model, tmp_path / "out", outputs=outputs, encode=encoder.encode)
    done = make_bag_heatmap(
        features, model, tmp_path / "out", source=slide, outputs=outputs, encode=encoder.encode
    ).folder  # fmt: skip
    assert "that of the tile as if it were the whole slide" in (done / "report.html").read_text()
    tiles = np.stack([noise(32, seed) for seed in range(3)])
    alone = [model.explain([np.pad(row[None], ((0, 0), (1, 0)))]).probabilities[1] for row in encoder.encode(tiles)]
    np.testing.assert_allclose(bag_positives(model, encoder.encode)(tiles), alone, atol=1e-6)


def test_what_cannot_be_is_refused_before_anything_is_read(
    slide: Path, model: TileModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = OutputConfig(occlusion=True)
    with pytest.raises(ConfigError, match="another program"):
        import_results(tmp_path / "results.csv", slide, tmp_path, outputs=outputs)
    monkeypatch.setattr("inference.occlusion.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"specslide\[occlusion\]"):
        make_heatmap(tmp_path / "none.svs", model, tmp_path, outputs=outputs)


def test_models_are_known_by_the_heatmaps_they_made(tmp_path: Path) -> None:
    one, two = (write_model(tmp_path / name, seed=seed) for name, seed in (("one", 0), ("two", 1)))
    models = tuple(map(load_model, (one, two)))
    both = Ensemble(models).sha256
    assert load_positives([one], [models[0].sha256]).keys() == {models[0].sha256}
    whole = load_positives([two, one], [both])
    tile = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    mean = np.mean([model.predict(tile[None])[0, 1] for model in models])
    assert whole[both](tile[None])[0] == pytest.approx(mean, abs=1e-4)
    with pytest.raises(ConfigError, match=models[1].sha256[:8]):
        load_positives([one, two], [models[0].sha256])


def test_a_model_of_bags_is_asked_with_its_encoder(tmp_path: Path) -> None:
    encoder = load_encoder(EncoderConfig(encoder=str(write_model(tmp_path / "encoder"))))
    bags = write_bag_model(tmp_path / "bags", encoder.record)
    model, tile = load_bag_model(bags), np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    found = load_positives([bags], [model.sha256], str(tmp_path / "encoder"))
    alone = model.explain([np.pad(encoder.encode(tile[None]), ((0, 0), (1, 0)))]).probabilities[1]
    assert found[model.sha256](tile[None])[0] == pytest.approx(float(alone), abs=1e-6)
    with pytest.raises(ConfigError, match="--encoder"):
        load_positives([bags], [model.sha256])
    with pytest.raises(ModelError, match="another encoder"):
        load_positives([bags], [model.sha256], str(write_model(tmp_path / "other", seed=1)))
