"""The ways to ask: several models, orientations, regions of interest, readers and batches; and what must not change."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import shapely
import tifffile
import torch
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from inference import Ensemble, make_ensemble
from inference.config import PredictConfig
from inference.predict import predict_slide
from inference.recipes import prediction_settings
from pipeline.demo.synthetic import write_pyramid
from tests.inference.conftest import MakeModel, picture, write_model
from tiling import Slide, TileStore, TilingConfig, tile_slide
from tiling.core.errors import InputError, ModelError, SlideError, StoreError
from training import TileModel, load_model


@pytest.fixture(scope="module")
def store(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = TilingConfig(mpp=0.5, tile_px=32, codec="lossless", min_tissue=0.1)
    return tile_slide(slide, tmp_path_factory.mktemp("stores"), config).store


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> TileModel:
    """A second model."""
    return load_model(write_model(tmp_path_factory.mktemp("models") / "other", seed=1))


@dataclass(frozen=True)
class Narrow(TileModel):
    """A model on whose device only so many tiles fit."""

    fits: int = 5
    asked: list[int] = field(default_factory=list)

    def predict(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.asked.append(len(tiles))
        if len(tiles) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().predict(tiles)


@dataclass(frozen=True)
class Sick(TileModel):
    """A model that gives NaN for the tiles that equal one of those given."""

    of: tuple[bytes, ...] = ()

    def predict(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        found = super().predict(tiles)
        found[[tile.tobytes() in self.of for tile in tiles]] = np.nan
        return found


def parts(model: TileModel) -> tuple[Any, Any, Any, Any]:
    return model.network, model.info, model.sha256, model.device


def region_file(folder: Path, *shapes: shapely.Geometry) -> Path:
    path = folder / "roi.geojson"
    features = [{"type": "Feature", "geometry": shapely.geometry.mapping(shape), "properties": {}} for shape in shapes]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


# ------------------------------------------------------------------------------------- what changes no prediction


@pytest.mark.parametrize("readers", [2, 5])
def test_readers_change_nothing(slide: Path, store: Path, model: TileModel, readers: int) -> None:
    config = PredictConfig(batch_size=7)
    many = config.model_copy(update={"readers": readers})
    for source in (slide, store):
        expected, found = predict_slide(source, model, config), predict_slide(source, model, many)
        assert_array_equal(found.probabilities, expected.probabilities)
        assert_array_equal(found.tiles.x0, expected.tiles.x0)
        assert_array_equal(found.tiles.y0, expected.tiles.y0)


def test_memory_that_runs_out_changes_nothing(slide: Path, model: TileModel) -> None:
    narrow = Narrow(*parts(model))
    found = predict_slide(slide, narrow, PredictConfig(batch_size=64, backend="torch"))
    assert_allclose(found.probabilities, predict_slide(slide, model).probabilities, atol=1e-6)
    assert narrow.asked[:5] == [64, 32, 16, 8, 4]
    assert max(narrow.asked[5:]) == 4
    narrow.asked.clear()
    predict_slide(slide, narrow, PredictConfig(batch_size=64, backend="torch"))
    assert set(narrow.asked[:-1]) == {4}, "the next slide does not learn it again"


@pytest.mark.parametrize("text", ["auto", None])
def test_the_batch_size_may_be_left_to_the_machine(slide: Path, model: TileModel, text: str | None) -> None:
    config = PredictConfig.model_validate({"batch_size": text})
    assert_array_equal(
        predict_slide(slide, model, config).probabilities,
        predict_slide(slide, model, PredictConfig(batch_size=64)).probabilities,
    )


def test_speed_is_no_part_of_a_results_identity(slide: Path) -> None:
    plain = prediction_settings(slide, PredictConfig())
    assert plain == {
        "overlap": 0.0, "min_tissue": 0.5, "mpp_tolerance": 0.02, "max_bad_tiles": 0.01, "backend": "auto",
    }  # fmt: skip
    assert prediction_settings(slide, PredictConfig(batch_size=3, readers=4)) == plain
    assert prediction_settings(slide, PredictConfig(tta=True, backend="onnx", precision="32")) == plain | {
        "tta": True,
        "backend": "onnx",
        "precision": "32",
    }


def test_onnx_gives_what_torch_gives(slide: Path, model: TileModel) -> None:
    found, plain = (predict_slide(slide, model, PredictConfig(backend=b)) for b in ("onnx", "torch"))
    assert_allclose(found.probabilities, plain.probabilities, atol=1e-4, rtol=0)
    assert [made.provenance["backend"] for made in (found, plain)] == ["onnx", "torch"]
    assert [made.provenance["settings"].get("backend") for made in (found, plain)] == ["onnx", None]


# --------------------------------------------------------------------------------- several models, orientations


def test_an_ensemble_is_the_mean_of_its_models_and_says_how_they_differ(
    slide: Path, model: TileModel, other: TileModel
) -> None:
    ensemble = make_ensemble([model, other])
    assert isinstance(ensemble, Ensemble)
    found, *alone = (predict_slide(slide, m) for m in (ensemble, model, other))
    each = np.stack([a.probabilities for a in alone])
    assert_allclose(found.probabilities, each.mean(0), atol=1e-6)
    assert_allclose(found.columns["spread"], each[..., 1].std(0), atol=1e-6)
    assert found.columns["spread"].max() > 0
    assert_allclose(found.columns["entropy"], scipy.stats.entropy(found.probabilities, axis=1), atol=1e-5)
    assert "spread" not in alone[0].columns
    assert found.provenance["model_sha256"] == ensemble.sha256
    assert [m["model_sha256"] for m in found.provenance["models"]] == [model.sha256, other.sha256]
    assert found.provenance["backbone"] == "2 models, test_resnet"


def test_the_threshold_of_an_ensemble_is_the_mean(slide: Path, model: TileModel, make_model: MakeModel) -> None:
    strict = load_model(make_model("strict", seed=3, threshold=0.8))
    assert predict_slide(slide, make_ensemble([model, strict])).threshold == pytest.approx(0.65)


def test_tta_is_the_mean_over_turned_and_mirrored_tiles(slide: Path, model: TileModel) -> None:
    plain, found = predict_slide(slide, model), predict_slide(slide, model, PredictConfig(tta=True))
    with Slide(slide) as opened:
        tiles = np.stack([opened.read_region(x, y, 0, 32, 32) for x, y in plain.tiles.places()])
    turned = [np.rot90(t, k, (1, 2)) for t in (tiles, tiles.transpose(0, 2, 1, 3)) for k in range(4)]
    each = np.stack([model.predict(np.ascontiguousarray(t)) for t in turned])
    assert_allclose(found.probabilities, each.mean(0), atol=1e-6)
    assert_allclose(found.columns["spread"], each[..., 1].std(0), atol=1e-6)
    assert found.provenance["settings"]["tta"] is True


# ------------------------------------------------------------------------------------------- regions of interest


@pytest.mark.parametrize("source", ["slide", "store"])
def test_a_region_keeps_the_tiles_that_touch_it(
    source: str, request: pytest.FixtureRequest, model: TileModel, tmp_path: Path
) -> None:
    path: Path = request.getfixturevalue(source)
    everything = predict_slide(path, model)
    shapes = [shapely.Point(200, 210).buffer(60), shapely.box(300, 300, 310, 320)]
    roi = region_file(tmp_path, *shapes)
    found = predict_slide(path, model, roi=roi)
    tiles = shapely.box(everything.tiles.x0, everything.tiles.y0, everything.tiles.x0 + 32, everything.tiles.y0 + 32)
    inside = shapely.area(shapely.intersection(tiles, shapely.union_all(shapes))) > 0
    assert 0 < inside.sum() < len(inside)
    assert_array_equal(found.tiles.x0, everything.tiles.x0[inside])
    assert_array_equal(found.tiles.y0, everything.tiles.y0[inside])
    assert_allclose(found.probabilities, everything.probabilities[inside], atol=1e-6)
    assert len(found.provenance["settings"]["roi_sha256"]) == 64
    assert str(tmp_path) not in json.dumps(found.provenance)


def test_a_region_without_tissue_is_an_empty_prediction(slide: Path, model: TileModel, tmp_path: Path) -> None:
    for shape in (shapely.box(0, 0, 20, 20), shapely.box(9000, 9000, 9999, 9999)):
        found = predict_slide(slide, model, PredictConfig(tta=True), roi=region_file(tmp_path, shape))
        assert found.probabilities.shape == (0, 2)
        assert {name: values.shape for name, values in found.columns.items()} == {"entropy": (0,), "spread": (0,)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "read"),
        ("{", "JSON"),
        ('{"type": "FeatureCollection", "features": []}', "no area"),
        ('{"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}}', "no area"),
    ],
)
def test_a_region_that_is_none_is_refused(
    slide: Path, model: TileModel, tmp_path: Path, text: str | None, said: str
) -> None:
    path = tmp_path / "roi.geojson"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=said):
        predict_slide(slide, model, roi=path)


# --------------------------------------------------------------------------------------------------------- faults


def test_a_tile_without_a_finite_probability_is_named(store: Path, model: TileModel) -> None:
    opened = TileStore(store)
    row = int(np.flatnonzero(opened.tiles.columns["tissue"] >= 0.5)[41])
    sick = Sick(*parts(model), of=(opened.read([row])[0].tobytes(),))
    place = f"disc, tile at x {opened.tiles.x0[row]}, y {opened.tiles.y0[row]}: "
    ensemble = make_ensemble([model, Sick(sick.network, sick.info, "other", sick.device, of=sick.of)])
    for asked in (sick, ensemble):
        with pytest.raises(ModelError, match=place):
            predict_slide(store, asked, PredictConfig(batch_size=16, backend="torch"))


def damaged(folder: Path) -> Path:
    """A slide of 512 px, 64 tiles of 64 px, two of whose JPEG streams are noise."""
    path = folder / "disc.tif"
    write_pyramid(path, picture(), mpp=0.5, tile_px=64)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages[0]
        for index in (27, 36):  # in the middle of the tissue
            start, count = page.dataoffsets[index], page.databytecounts[index]
            data[start : start + count] = bytes(count)
    path.write_bytes(bytes(data))
    return path


@pytest.mark.parametrize("readers", [1, 3])
def test_damaged_tiles_are_left_out_and_the_rest_is_as_from_the_store(
    tmp_path: Path, model: TileModel, readers: int
) -> None:
    path = damaged(tmp_path)
    tiling = TilingConfig(mpp=0.5, tile_px=32, codec="lossless", max_bad_tiles=0.2)
    stored = tile_slide(path, tmp_path / "stores", tiling)
    assert len(stored.bad) == 8
    config = PredictConfig(max_bad_tiles=0.2, batch_size=16, readers=readers)
    direct, from_store = predict_slide(path, model, config), predict_slide(stored.store, model, config)
    assert_array_equal(direct.tiles.x0, from_store.tiles.x0)
    assert_array_equal(direct.tiles.y0, from_store.tiles.y0)
    assert_array_equal(direct.probabilities, from_store.probabilities)


def test_too_many_damaged_tiles_fail_the_slide(tmp_path: Path, model: TileModel) -> None:
    said = r"disc\.tif: .*--max-bad-tiles"
    with pytest.raises(SlideError, match=said):
        predict_slide(damaged(tmp_path), model, PredictConfig(max_bad_tiles=0.01))


def test_a_store_damaged_in_a_later_batch_is_a_store_error(store: Path, model: TileModel, tmp_path: Path) -> None:
    copy = tmp_path / "disc.zarr"
    shutil.copytree(store, copy)
    shard = next(path for path in sorted((copy / "tiles" / "c").rglob("*")) if path.is_file())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(StoreError, match="damaged"):
        predict_slide(copy, model, PredictConfig(batch_size=4, min_tissue=0.1))


# ------------------------------------------------------------------------------------------ what a store has decided


@pytest.mark.parametrize(
    ("asked", "min_tissue", "said"),
    [
        (0.05, 0.1, "less than 0.1 of tissue: pass the slide itself, or tile it with --min-tissue 0.05"),
        (0.1, 0.1, ""),
        (0.6, 0.6, ""),
    ],
)
def test_a_store_brings_its_least_tissue(
    store: Path, model: TileModel, caplog: pytest.LogCaptureFixture, asked: float, min_tissue: float, said: str
) -> None:
    found = predict_slide(store, model, PredictConfig(min_tissue=asked))
    assert found.provenance["settings"]["min_tissue"] == min_tissue
    opened = TileStore(store)
    assert len(found.tiles.x0) == int((opened.tiles.columns["tissue"] >= min_tissue).sum())
    warned = [record.getMessage() for record in caplog.records]
    assert warned == ([f"{store}: holds no tile with {said}"] if said else [])


@pytest.mark.parametrize(("tiled", "asked", "warned"), [(0.0, 0.5, True), (0.5, 0.5, False), (0.5, 0.0, False)])
def test_an_overlap_that_a_store_has_not_is_told(
    slide: Path, model: TileModel, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    tiled: float, asked: float, warned: bool,
) -> None:  # fmt: skip
    path = tile_slide(slide, tmp_path, TilingConfig(mpp=0.5, tile_px=32, overlap=tiled)).store
    caplog.clear()
    found = predict_slide(path, model, PredictConfig(overlap=asked))
    assert found.grid.stride_px0 == 32 * (1 - tiled)
    assert ("its tiles overlap by 0, not by 0.5: pass the slide itself" in caplog.text) == warned


def test_a_picture_is_no_region(slide: Path, model: TileModel, tmp_path: Path) -> None:
    (tmp_path / "disc.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"disc\.png: .*polygons"):
        predict_slide(slide, model, roi=tmp_path / "disc.png")
