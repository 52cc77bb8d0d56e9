"""From slide or store to probabilities: the same tiles, the right scale, and refusals that say what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

import tiling.slides.slide
from inference.config import PredictConfig
from inference.predict import predict_slide
from inference.prediction import Prediction
from inference.recipes import is_store
from pipeline.demo.synthetic import write_pyramid
from tests.inference.conftest import MakeModel, picture
from tiling import Slide, TilingConfig, tile_slide
from tiling.core.errors import ModelError, SlideError, StoreError
from training import TileModel, load_model

LOSSLESS = TilingConfig(mpp=0.5, tile_px=32, codec="lossless")


@pytest.fixture(scope="session")
def store(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lossless store of the slide, with the model's tiles."""
    return tile_slide(slide, tmp_path_factory.mktemp("stores"), LOSSLESS).store


def opened(path: Path, x: int, y: int, side: int) -> NDArray[np.uint8]:
    """OpenSlide's own pixels of a level-0 square."""
    with openslide.OpenSlide(path) as handle:
        return np.asarray(handle.read_region((x, y), 0, (side, side)).convert("RGB"), np.uint8)


def by_place(prediction: Prediction) -> dict[tuple[int, int], float]:
    """The tumour's probability of each tile."""
    places = zip(prediction.tiles.x0.tolist(), prediction.tiles.y0.tolist(), strict=True)
    return dict(zip(places, prediction.probabilities[:, 1].tolist(), strict=True))


@dataclass(frozen=True)
class Watched(TileModel):
    """A model that notes how many tiles were read when it was asked."""

    seen: list[tuple[int, int]] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)

    def predict(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.seen.append((len(self.reads), len(tiles)))
        return super().predict(tiles)


# -------------------------------------------------------------------------------------------- the same numbers


def test_slide_and_lossless_store_give_the_same_probabilities(slide: Path, store: Path, model: TileModel) -> None:
    direct, stored = predict_slide(slide, model), predict_slide(store, model)
    assert len(direct.tiles.x0) > 80
    assert_array_equal(direct.tiles.x0, stored.tiles.x0)
    assert_array_equal(direct.tiles.y0, stored.tiles.y0)
    assert_array_equal(direct.probabilities, stored.probabilities)
    assert_array_equal(direct.thumbnail.values, stored.thumbnail.values)
    assert direct.slide == stored.slide
    assert repr(direct) == f"<Prediction disc: {len(direct.tiles)} tiles of 32 px at 0.5 µm/px; tumour by test_resnet>"
    assert repr(model) == "<TileModel benign, tumour by test_resnet; 32 px at 0.5 µm/px>"
    assert direct.grid == stored.grid
    assert direct.thumbnail.downsample == stored.thumbnail.downsample


def test_probabilities_are_the_models_of_openslides_pixels(slide: Path, model: TileModel) -> None:
    found = predict_slide(slide, model)
    places = list(zip(found.tiles.x0.tolist(), found.tiles.y0.tolist(), strict=True))
    tiles = np.stack([opened(slide, x, y, 32) for x, y in places])
    assert_allclose(found.probabilities, model.predict(tiles), atol=1e-6)
    assert_allclose(found.probabilities.sum(1), 1, atol=1e-6)
    assert found.probabilities.dtype == np.float32
    assert found.probabilities.std() > 0
    assert places == sorted(places, key=lambda place: (place[1], place[0]))


def test_a_finer_slide_is_resampled(tmp_path: Path, model: TileModel) -> None:
    path = tmp_path / "fine.tif"
    write_pyramid(path, picture(1024), mpp=0.25, compression="none")
    found = predict_slide(path, model)
    assert (found.grid.tile_px, found.grid.tile_px0, found.grid.stride_px0) == (32, 64, 64)
    assert found.grid.mpp == pytest.approx(0.5)
    places = by_place(found)
    assert len(places) > 80
    small = [cv2.resize(opened(path, x, y, 64), (32, 32), interpolation=cv2.INTER_AREA) for x, y in places]
    assert_allclose(found.probabilities, model.predict(np.asarray(small, np.uint8)), atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batches_change_no_prediction(slide: Path, store: Path, model: TileModel, batch_size: int) -> None:
    expected = predict_slide(slide, model).probabilities
    config = PredictConfig(batch_size=batch_size)
    assert_allclose(predict_slide(slide, model, config).probabilities, expected, atol=1e-6)
    assert_allclose(predict_slide(store, model, config).probabilities, expected, atol=1e-6)


def test_overlap_adds_tiles_between(slide: Path, model: TileModel) -> None:
    plain, dense = predict_slide(slide, model), predict_slide(slide, model, PredictConfig(overlap=0.5))
    assert dense.grid.stride_px0 == 16
    assert set(zip(plain.tiles.x0, plain.tiles.y0, strict=True)) < set(zip(dense.tiles.x0, dense.tiles.y0, strict=True))


@pytest.mark.parametrize("source", ["slide", "store"])
def test_min_tissue_chooses_the_tiles(source: str, request: pytest.FixtureRequest, model: TileModel) -> None:
    path: Path = request.getfixturevalue(source)
    some, full = (predict_slide(path, model, PredictConfig(min_tissue=m)) for m in (0.5, 0.95))
    assert 0 < len(full.tiles.x0) < len(some.tiles.x0)
    before, after = by_place(some), by_place(full)
    assert {place: before[place] for place in after} == pytest.approx(after, abs=1e-6)


@pytest.mark.parametrize("as_store", [False, True])
def test_a_slide_without_tissue_is_an_empty_prediction(
    glass: Path, model: TileModel, tmp_path: Path, as_store: bool
) -> None:
    found = predict_slide(tile_slide(glass, tmp_path, LOSSLESS).store if as_store else glass, model)
    assert found.probabilities.shape == (0, 2)
    assert found.tiles.x0.shape == found.tiles.y0.shape == (0,)
    assert found.thumbnail.values.ndim == 3


# --------------------------------------------------------------------------------------------------- the scale


def slide_of(folder: Path, mpp: float | None) -> Path:
    write_pyramid(folder / "other.tif", picture(256), mpp=mpp)
    return folder / "other.tif"


def test_a_coarser_slide_is_refused_saying_what_to_do(tmp_path: Path, model: TileModel) -> None:
    with pytest.raises(ModelError, match=r"other\.tif: .*0\.5.*--mpp 1\b"):
        predict_slide(slide_of(tmp_path, 1.0), model)


@pytest.mark.parametrize(("mpp", "fits"), [(0.509, True), (0.491, True), (0.511, False)])
def test_scales_within_2_percent_are_taken_as_they_are(
    tmp_path: Path, model: TileModel, mpp: float, fits: bool
) -> None:
    path = slide_of(tmp_path, mpp)
    if not fits:
        with pytest.raises(ModelError, match="too coarse"):
            predict_slide(path, model)
        return
    assert predict_slide(path, model).grid.tile_px0 == 32


def test_a_slide_without_scale_needs_one(tmp_path: Path, model: TileModel) -> None:
    path = slide_of(tmp_path, None)
    with pytest.raises(SlideError, match=r"other\.tif.*--slide-mpp"):
        predict_slide(path, model)
    assert predict_slide(path, model, slide_mpp=0.25).grid.tile_px0 == 64


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"mpp": 1.0, "tile_px": 32}, "has tiles of 32 px at 1 micrometres a pixel, not 32 at 0.5"),
        ({"mpp": 0.5, "tile_px": 64}, "has tiles of 64 px at 0.5 micrometres a pixel, not 32 at 0.5"),
    ],
)
def test_a_store_of_other_tiles_is_refused(
    slide: Path, tmp_path: Path, model: TileModel, config: dict[str, float], said: str
) -> None:
    store = tile_slide(slide, tmp_path, TilingConfig.model_validate(config)).store
    with pytest.raises(ModelError) as caught:
        predict_slide(store, model)
    assert said in str(caught.value)
    assert "--mpp 0.5 --tile-px 32" in str(caught.value)
    assert str(store) in str(caught.value)


@pytest.mark.parametrize("source", ["slide", "store"])
def test_a_model_without_scale_is_refused(source: str, request: pytest.FixtureRequest, make_model: MakeModel) -> None:
    with pytest.raises(ModelError, match="--mpp"):
        predict_slide(request.getfixturevalue(source), load_model(make_model(mpp=None)))


# -------------------------------------------------------------------------------------------------------- faults


def test_a_broken_model_is_refused_naming_the_tile(slide: Path, make_model: MakeModel) -> None:
    first = predict_slide(slide, load_model(make_model("sound")))
    with pytest.raises(ModelError, match="disc, tile at x {}, y {}: ".format(*first.tiles.places()[0])):
        predict_slide(slide, load_model(make_model("broken", broken=True)))


@pytest.mark.parametrize("name", ["absent.svs", "folder"])
def test_what_is_no_slide_is_a_slide_error(tmp_path: Path, model: TileModel, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(SlideError, match=name):
        predict_slide(tmp_path / name, model)


def test_what_is_no_store_is_a_store_error(tmp_path: Path, model: TileModel) -> None:
    (tmp_path / "half.zarr").mkdir()
    with pytest.raises(StoreError, match=r"half\.zarr"):
        predict_slide(tmp_path / "half.zarr", model)


def test_stores_are_told_from_slides(tmp_path: Path, store: Path, slide: Path) -> None:
    assert is_store(store)
    assert is_store(tmp_path / "absent.zarr")
    assert not is_store(slide)
    assert not is_store(tmp_path)
    (tmp_path / "zarr.json").write_text("{}")
    assert is_store(tmp_path)


# --------------------------------------------------------------------------------------------- memory, progress


@pytest.fixture
def read_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The longest side of every read of a slide from now on; overviews are read in blocks of 96."""
    sizes: list[int] = []
    plain: Callable[..., NDArray[np.uint8]] = Slide._read_part

    def read(self: Slide, level: int, x0: int, y0: int, size0: tuple[int, int], *rest: Any) -> NDArray[np.uint8]:
        sizes.append(max(size0))
        return plain(self, level, x0, y0, size0, *rest)

    monkeypatch.setattr(Slide, "_read_part", read)
    monkeypatch.setattr(tiling.slides.slide, "_READ_PX", 96)
    return sizes


def test_a_slide_is_read_tile_by_tile_and_batch_by_batch(slide: Path, model: TileModel, read_sizes: list[int]) -> None:
    watched = Watched(model.network, model.info, model.sha256, model.device, reads=read_sizes)
    found = predict_slide(slide, watched, PredictConfig(batch_size=10, backend="torch"))
    assert max(read_sizes) <= 96
    count = len(found.tiles.x0)
    overview = len(read_sizes) - count
    assert read_sizes[overview:] == [32] * count
    batches = [10] * (count // 10) + ([count % 10] if count % 10 else [])
    assert [size for _, size in watched.seen] == batches
    for (reads, _), end in zip(watched.seen, np.cumsum(batches).tolist(), strict=True):
        assert end <= reads - overview <= end + 3 * 10, "read ahead, but no more than the queue holds"


@pytest.mark.parametrize("source", ["slide", "store"])
def test_progress_ends_at_all(source: str, request: pytest.FixtureRequest, model: TileModel) -> None:
    calls: list[tuple[int, int]] = []
    config = PredictConfig(batch_size=25)
    found = predict_slide(
        request.getfixturevalue(source), model, config, progress=lambda done, total: calls.append((done, total))
    )
    count = len(found.tiles.x0)
    assert calls == [(min(done, count), count) for done in range(25, count + 25, 25)]
