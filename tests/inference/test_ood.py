"""Tiles unlike those a model was trained on: the same flags from slide, store and ONNX, and what a person reads."""

from __future__ import annotations

import csv
import json
import logging
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from typer.testing import CliRunner

from inference import backends, make_ensemble
from inference.backends import NOVELTY_AGREEMENT, choose_backend
from inference.config import PredictConfig
from inference.heatmap import make_heatmap
from inference.ood import Outside, comparable, ood_columns, outside
from inference.predict import predict_slide
from pipeline import cli
from pipeline.demo.synthetic import write_pyramid
from tests.inference.conftest import picture, write_model
from tiling import Slide, TilingConfig, tile_slide
from tiling.core.errors import ModelError
from training import TileModel, load_model
from training.models.card import model_card
from training.models.classifier import Features
from training.models.folder import save_model
from training.models.info import NoveltySummary
from training.models.ood import fit_novelty

Tiles = NDArray[np.uint8]


def disc_tiles() -> Tiles:
    """Tiles (N, 32, 32, 3) of the picture of the slide "disc", at places of another grid."""
    pixels = picture()
    return np.stack([pixels[y : y + 32, x : x + 32] for y in range(40, 460, 17) for x in range(45, 460, 19)])


def write_knowing_model(folder: Path, seed: int = 0) -> Path:
    """The model of `write_model`, which also remembers tiles of the disc: one half to learn, one to validate."""
    model = load_model(write_model(folder, seed=seed))
    with torch.inference_mode():
        features = Features(model.network)(torch.from_numpy(disc_tiles())).numpy()
    learned, validated = features[::2], features[1::2]
    novelty = fit_novelty(learned, np.arange(len(learned)) % 2, validated)
    assert novelty is not None
    counts = {"train_tiles": len(learned), "val_tiles": len(validated)}
    thresholds = {
        "features_threshold": novelty.features.threshold, "appearance_threshold": novelty.appearance.threshold,
    }  # fmt: skip
    summary = NoveltySummary.model_validate({**thresholds, "quantile": 0.99, **counts})
    info = model.info.model_copy(update={"novelty": summary, "hashes": {}})
    save_model(folder, model.network, info, model_card(info), novelty)
    return folder


@pytest.fixture(scope="module")
def knowing_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_knowing_model(tmp_path_factory.mktemp("models") / "knowing")


@pytest.fixture(scope="module")
def knowing(knowing_folder: Path) -> TileModel:
    return load_model(knowing_folder)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> TileModel:
    return load_model(write_knowing_model(tmp_path_factory.mktemp("models") / "other", seed=1))


@pytest.fixture(scope="module")
def store(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = TilingConfig(mpp=0.5, tile_px=32, codec="lossless", min_tissue=0.1)
    return tile_slide(slide, tmp_path_factory.mktemp("stores"), config).store


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide that is nothing but noise in the colours of tissue."""
    path = tmp_path_factory.mktemp("slides") / "noise.tif"
    low, high = (150, 0, 100), (256, 156, 256)
    write_pyramid(path, np.random.default_rng(0).integers(low, high, (512, 512, 3), np.uint8), mpp=0.5)
    return path


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The disc with noise on its right half."""
    pixels = picture()
    noisy = np.random.default_rng(0).integers((150, 0, 100), (256, 156, 256), (512, 512, 3), np.uint8)
    right = (np.arange(512)[None, :] >= 256) & (pixels[..., 1] < 200)
    path = tmp_path_factory.mktemp("slides") / "half.tif"
    write_pyramid(path, np.where(right[..., None], noisy, pixels), mpp=0.5, levels=2)
    return path


@dataclass(frozen=True)
class Narrow(TileModel):
    """A model on whose device only five tiles fit."""

    asked: list[int] = field(default_factory=list)

    def predict_with_novelty(self, tiles: Tiles) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        self.asked.append(len(tiles))
        if len(tiles) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().predict_with_novelty(tiles)


# ---------------------------------------------------------------------------------------------- the same distances


def test_ratios_are_those_of_the_tiles_features(slide: Path, knowing: TileModel) -> None:
    found = predict_slide(slide, knowing, PredictConfig(backend="torch"))
    with Slide(slide) as opened:
        tiles = np.stack([opened.read_region(x, y, 0, 32, 32) for x, y in found.tiles.places()])
    assert knowing.novelty is not None
    with torch.inference_mode():
        features = Features(knowing.network)(torch.from_numpy(tiles))
        expected = knowing.novelty.ratios(features).numpy()
    ratios = found.columns["ood_ratio"]
    assert_allclose(ratios, expected, rtol=1e-4)
    assert_array_equal(found.columns["ood"], ratios > 1)
    assert_allclose(found.probabilities, knowing.predict(tiles), atol=1e-6)
    assert found.ood_quantile == 0.99
    assert ratios.std() > 0


def test_slide_store_and_small_memory_give_the_same(slide: Path, store: Path, knowing: TileModel) -> None:
    config = PredictConfig(backend="torch")
    direct, stored = predict_slide(slide, knowing, config), predict_slide(store, knowing, config)
    narrow = Narrow(knowing.network, knowing.info, knowing.sha256, knowing.device, knowing.novelty)
    halved = predict_slide(slide, narrow, config)
    assert_array_equal(direct.tiles.x0, stored.tiles.x0)
    for name, values in direct.columns.items():
        assert_array_equal(values, stored.columns[name])
        assert_allclose(values, halved.columns[name], rtol=1e-4, atol=1e-6)
    assert narrow.asked[:5] == [64, 32, 16, 8, 4]


def test_onnx_gives_what_torch_gives(slide: Path, half: Path, knowing: TileModel) -> None:
    for path in (slide, half):
        found, plain = (predict_slide(path, knowing, PredictConfig(backend=b)) for b in ("onnx", "torch"))
        assert found.provenance["backend"] == "onnx"
        assert_allclose(found.columns["ood_ratio"], plain.columns["ood_ratio"], rtol=NOVELTY_AGREEMENT)
        assert_allclose(found.probabilities, plain.probabilities, atol=1e-4)


def test_an_onnx_with_other_features_is_seen(knowing: TileModel, monkeypatch: pytest.MonkeyPatch) -> None:

    plain = choose_backend(knowing, "torch", "auto")[1]
    monkeypatch.setattr(backends, "onnx_predict", lambda *asked: lambda tiles: plain(tiles) * [1, 1, 1.01])
    backends.agreeing_onnx.cache_clear()
    with pytest.raises(ModelError, match="ONNX"):
        choose_backend(knowing, "onnx", "auto")
    backends.agreeing_onnx.cache_clear()


def test_orientations_and_models_are_averaged(slide: Path, knowing: TileModel, other: TileModel) -> None:
    one, two, both = (predict_slide(slide, m).columns for m in (knowing, other, make_ensemble([knowing, other])))
    mean = (one["ood_ratio"].astype(np.float64) + two["ood_ratio"]) / 2
    assert_allclose(both["ood_ratio"], mean, rtol=1e-5)
    assert_array_equal(both["ood"], both["ood_ratio"] > 1)
    turned = predict_slide(slide, knowing, PredictConfig(tta=True, backend="torch"))
    with Slide(slide) as opened:
        tiles = np.stack([opened.read_region(x, y, 0, 32, 32) for x, y in turned.tiles.places()])
    views = [np.rot90(t, k, (1, 2)) for t in (tiles, tiles[:, :, ::-1]) for k in range(4)]
    each = [knowing.predict_with_novelty(np.ascontiguousarray(view))[1] for view in views]
    assert_allclose(turned.columns["ood_ratio"], np.mean(np.stack(each), 0), rtol=1e-4)  # type: ignore[arg-type]


def test_a_network_in_bf16_moves_the_ratios_little(half: Path, knowing: TileModel) -> None:
    with Slide(half) as opened:
        tiles = np.stack([opened.read_region(x, 256, 0, 32, 32) for x in range(64, 448, 16)])
    exact = knowing.predict_with_novelty(tiles)[1]
    with torch.autocast("cpu", torch.bfloat16):
        found = knowing.predict_with_novelty(tiles)[1]
    assert found is not None
    assert found.dtype == np.float32
    assert_allclose(found, exact, rtol=0.1)  # type: ignore[arg-type]


def test_one_model_that_cannot_tell_leaves_the_ensemble_without(
    slide: Path, knowing: TileModel, tmp_path: Path
) -> None:
    unknowing = load_model(write_model(tmp_path / "unknowing", seed=7))
    found = predict_slide(slide, make_ensemble([knowing, unknowing]))
    assert set(found.columns) == {"entropy", "spread"}
    assert found.ood_quantile is None
    assert comparable([knowing, knowing]) == (knowing, knowing)
    assert [m.novelty for m in comparable([unknowing, knowing])] == [None, None]


def test_a_distance_that_is_no_number_names_the_tile(slide: Path, knowing: TileModel) -> None:
    assert knowing.novelty is not None
    features = replace(knowing.novelty.features, whitening=knowing.novelty.features.whitening * torch.nan)
    broken = replace(knowing, novelty=replace(knowing.novelty, features=features))
    with pytest.raises(ModelError, match=r"disc, tile at x \d+, y \d+: "):
        predict_slide(slide, broken)


# -------------------------------------------------------------------------------------------- what a person reads


def test_a_slide_like_those_it_knows_has_few_flags_and_no_warning(
    slide: Path, knowing: TileModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = make_heatmap(slide, knowing, tmp_path)
    said = json.loads((made.folder / "slide.json").read_text())["out_of_distribution"]
    assert said["share"] == said["tiles"] / made.tiles <= 0.05
    assert (said["quantile"], said["warning"], made.warning) == (0.99, None, None)
    assert "outside what the model has seen" not in caplog.text
    assert (made.folder / "report.html").read_text().count("lie outside what the model has seen") == 1


def test_a_slide_wholly_unlike_comes_with_a_warning_everywhere(
    noise: Path, knowing: TileModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for reused in (False, True):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            made = make_heatmap(noise, knowing, tmp_path)
        assert made.reused is reused
        assert made.tiles > 100
        assert made.warning is not None
        assert made.warning.startswith("This whole slide lies outside what the model has seen")
        assert f"noise: {made.warning}" in caplog.text
    said = json.loads((made.folder / "slide.json").read_text())["out_of_distribution"]
    assert said == {"tiles": made.tiles, "share": 1.0, "quantile": 0.99, "warning": made.warning}
    page = re.sub(r"<[^>]+>", " ", (made.folder / "report.html").read_text())
    assert str(made.warning) in page
    assert f"100.0% of the analysed tiles ({made.tiles:,} of {made.tiles:,}) lie outside what the model has" in page
    table = pyarrow.parquet.read_table(made.folder / "predictions.parquet").to_pydict()
    assert set(table["ood"]) == {1.0}
    assert min(table["ood_ratio"]) > 1
    with (made.folder / "predictions.csv").open(newline="") as f:
        assert_allclose([float(row["ood_ratio"]) for row in csv.DictReader(f)], table["ood_ratio"], rtol=1e-6)
    features = json.loads((made.folder / "heatmap.geojson").read_text())["features"]
    measured = [feature["properties"]["measurements"] for feature in features]
    assert [m["ood"] for m in measured] == table["ood"]
    assert_allclose([m["ood_ratio"] for m in measured], table["ood_ratio"], atol=1e-6)


def test_the_flags_lie_where_the_noise_is(half: Path, knowing: TileModel, tmp_path: Path) -> None:
    found = predict_slide(half, knowing)
    noisy, clean = found.tiles.x0 >= 256, found.tiles.x0 + 32 <= 256
    inner = (found.tiles.x0 - 240) ** 2 + (found.tiles.y0 - 240) ** 2 < 150**2
    assert found.columns["ood"][noisy & inner].mean() > 0.95
    assert found.columns["ood"][clean].mean() < 0.1
    made = make_heatmap(half, knowing, tmp_path)
    share = round(100 * float(found.columns["ood"].mean()))
    assert made.warning is not None
    assert made.warning.startswith(f"{share}% of the analysed tiles lie outside what the model has seen.")


@pytest.mark.usefixtures("one_process")
def test_the_command_line_warns_and_ends_well(
    noise: Path, knowing_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = ["heatmap", str(noise), "--model", str(knowing_folder), "--out", str(tmp_path)]
    done = CliRunner().invoke(cli.app, asked)
    assert done.exit_code == 0, done.output
    assert "noise: This whole slide lies outside what the model has seen" in caplog.text
    assert (tmp_path / "noise" / "report.html").exists()


def test_a_slide_without_tissue_is_neither(glass: Path, knowing: TileModel, tmp_path: Path) -> None:
    made = make_heatmap(glass, knowing, tmp_path)
    said = json.loads((made.folder / "slide.json").read_text())["out_of_distribution"]
    assert (made.tiles, made.warning) == (0, None)
    assert said == {"tiles": 0, "share": None, "quantile": 0.99, "warning": None}
    names = pyarrow.parquet.read_table(made.folder / "predictions.parquet").column_names
    assert {"ood", "ood_ratio"} <= set(names)


def test_a_model_that_cannot_tell_says_that(slide: Path, model: TileModel, tmp_path: Path) -> None:
    made = make_heatmap(slide, model, tmp_path)
    assert json.loads((made.folder / "slide.json").read_text())["out_of_distribution"] is None
    assert "trained on was not measured" in (made.folder / "report.html").read_text()
    assert "ood" not in pyarrow.parquet.read_table(made.folder / "predictions.parquet").column_names


@pytest.mark.parametrize(
    ("tiles", "total", "warned"),
    [(0, 0, None), (0, 10, None), (1, 10, None), (2, 10, "20% of"), (9, 10, "90% of"), (10, 10, "whole slide")],
)
def test_warnings_begin_where_they_should(tiles: int, total: int, warned: str | None) -> None:
    found = Outside(tiles, total, 0.99)
    assert (found.warning is None) if warned is None else (warned in str(found.warning))
    assert found.share == (tiles / total if total else None)


@pytest.mark.parametrize(
    ("quantile", "said"), [(0.9, "90%"), (0.99, "99%"), (0.995, "99.5%"), (0.9999, "99.99%"), (0.57, "57%")]
)
def test_a_quantile_is_said_with_all_its_digits(quantile: float, said: str) -> None:
    """Rounded to whole percents .995 would be all of the validation tiles."""
    assert f"farther from its training tiles than {said} of its validation tiles" in Outside(1, 3, quantile).finding


def test_the_border_is_not_outside() -> None:
    columns = ood_columns(np.array([0.999, 1.0, np.nextafter(np.float32(1), np.float32(2))], np.float32))
    assert columns["ood"].tolist() == [0, 0, 1]
    assert outside(columns, 0.9) == Outside(1, 3, 0.9)
    assert outside(columns, None) is None
    assert outside({}, 0.9) is None
