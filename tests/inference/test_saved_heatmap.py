"""Stores and heatmaps in a notebook: their line, their tiles as tables of other packages, and their picture."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from inference import Heatmap, make_heatmap
from inference.exports import TABLE
from inference.maps.scores import slide_scores
from inference.reports import EmbedReport, HeatmapReport
from tests.tiling.stores.test_features import made, random_features
from tiling import FeatureStore, TileStore, TilingConfig, tile_slide
from tiling.core.errors import ConfigError, InputError
from tiling.reports import TileReport
from tiling.stores.tabular import Tabular
from training import TileModel

mpl.use("agg")


@pytest.fixture(scope="module")
def things(slide: Path, model: TileModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tabular]:
    """A tile store, its heatmap, and a feature store of another slide."""
    folder = tmp_path_factory.mktemp("things")
    store = tile_slide(slide, folder, TilingConfig(mpp=0.5, tile_px=32, min_tissue=0.1)).store
    return {
        "store": TileStore(store),
        "heatmap": Heatmap(make_heatmap(store, model, folder / "heatmaps").folder),
        "features": FeatureStore(made(folder / "f.features.zarr", random_features(20))),
    }


def test_a_line_says_what_it_is(things: dict[str, Tabular]) -> None:
    assert repr(things["store"]).startswith(
        f"<TileStore disc: {len(things['store'])} tiles of 32 px at 0.5 µm/px; codec"
    )
    assert "tumour by test_resnet; score 0." in repr(things["heatmap"])
    assert "5 features by" in repr(things["features"])


def test_the_table_is_the_files(things: dict[str, Tabular]) -> None:
    heatmap = things["heatmap"]
    assert isinstance(heatmap, Heatmap)
    file, table = pd.read_parquet(heatmap.folder / TABLE), heatmap.to_pandas()
    assert list(table.x) == list(file.minx)
    assert list(table.prob_tumour) == list(file.prob_tumour)
    np.testing.assert_array_equal(heatmap.probabilities, file[["prob_benign", "prob_tumour"]].to_numpy())
    store = things["store"].to_pandas()
    assert list(store.tissue) == things["store"].tiles.columns["tissue"].tolist()
    assert set(store.index) == {f"disc-{row}" for row in range(len(store))}


def test_anndata_holds_values_table_and_centres(things: dict[str, Tabular]) -> None:
    expected = {
        "features": random_features(20),
        "heatmap": things["heatmap"].to_pandas()[["prob_benign", "prob_tumour"]].to_numpy(),
        "store": np.stack(list(things["store"].tiles.columns.values()), 1),
    }
    for name, thing in things.items():
        data, half = thing.to_anndata(), thing.grid.tile_px0 / 2
        np.testing.assert_array_equal(data.X, expected[name])
        np.testing.assert_array_equal(data.obsm["spatial"][:, 1], thing.tiles.y0 + half)
        assert data.uns["slide_id"] == thing.slide.slide_id
    assert things["heatmap"].to_anndata().var_names.tolist() == ["benign", "tumour"]


def test_the_picture_shows_each_tile_in_its_place(things: dict[str, Tabular]) -> None:
    thing = things["store"]
    slide, heat = thing.plot().images
    left, right, lower, upper = heat.get_extent()
    shown, cell = np.asarray(heat.get_array().filled(np.nan)), (right - left) / heat.get_array().shape[1]
    assert (cell, upper, right, lower) == (32, 0, 512, 512)
    assert slide.get_extent()[1] == pytest.approx(512, abs=16)
    x, y = thing.tiles.x0 // 32, thing.tiles.y0 // 32
    np.testing.assert_array_equal(shown[y, x], thing.tiles.columns["tissue"])
    assert np.isfinite(shown).sum() == len(thing)
    heatmap = things["heatmap"]
    assert heatmap.plot().images[-1].get_clim() == (0, 1)
    below, above = heatmap.plot(over=thing).images
    assert below.get_extent() == slide.get_extent()
    assert above.get_extent() == heat.get_extent()
    with pytest.raises(ConfigError, match="another slide"):
        heatmap.plot(over=things["features"])
    with pytest.raises(ConfigError, match="prob_tumour"):
        heatmap.plot("p")


def test_what_is_no_heatmap_or_damaged_is_refused(things: dict[str, Tabular], tmp_path: Path) -> None:
    with pytest.raises(InputError):
        Heatmap(tmp_path)
    heatmap = things["heatmap"]
    assert isinstance(heatmap, Heatmap)
    (copy := tmp_path / "copy").mkdir()
    for path in heatmap.folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    data = bytearray((copy / TABLE).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / TABLE).write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        Heatmap(copy)


SPATIAL = """
import sys
from inference import Heatmap
from tiling import TileStore
import spatialdata
store = TileStore(sys.argv[1]).to_spatialdata()
store.write(sys.argv[2])
back = spatialdata.read_zarr(sys.argv[2])
assert len(back.shapes["tiles"]) == back.tables["table"].n_obs == len(TileStore(sys.argv[1]))
whole = spatialdata.get_extent(back.images["thumbnail"])
assert abs(whole["x"][1] - 512) <= 16, whole
assert (back.shapes["tiles"].geometry.area == 32 * 32).all()
x = back.shapes["tiles"].geometry.bounds.minx.to_numpy()
assert (x == TileStore(sys.argv[1]).tiles.x0).all()
heatmap = Heatmap(sys.argv[3]).to_spatialdata()
assert list(heatmap.tables["table"].var_names) == ["benign", "tumour"]
assert not heatmap.images
print("read back")
"""


@pytest.mark.nightly
def test_spatialdata_reads_it_back(things: dict[str, Tabular], tmp_path: Path) -> None:
    """In a folder of its own, for spatialdata brings other versions of what others need."""
    store, heatmap = things["store"], things["heatmap"]
    assert isinstance(store, TileStore)
    assert isinstance(heatmap, Heatmap)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tmp_path / "own"), "spatialdata"]
    subprocess.run(command, check=True, timeout=1200)
    root = Path(__file__).resolve().parents[2]
    words = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        SPATIAL,
        str(store.path),
        str(tmp_path / "s.zarr"),
        str(heatmap.folder),
    ]
    environment = {"PYTHONPATH": f"{tmp_path / 'own'}:{root}", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.stdout.strip() == "read back", done.stderr[-3000:]


def test_reports_say_what_they_are_in_a_line() -> None:
    heatmap = HeatmapReport("s1", Path("out/s1"), 1, slide_scores(np.array([0.25], np.float32), 0.5), False)
    assert repr(heatmap) == "<HeatmapReport s1: 1 tile of mean probability 0.250, in out/s1>"
    embedded = EmbedReport("s1", Path("out/s1.features.zarr"), 1234, 5, True)
    assert repr(embedded) == "<EmbedReport s1: 1,234 tiles, 5 features, in out/s1.features.zarr>"
    tiled = TileReport("s1", Path("out/s1.zarr"), 0, False, 0.5)
    assert repr(tiled) == "<TileReport s1: 0 tiles at 0.5 µm/px, in out/s1.zarr>"
