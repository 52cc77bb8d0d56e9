"""Stores without a heatmap: their columns as layers, over the slide, over its tiles, or over its thumbnail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from inference.viewer.cohort import find_cohort
from inference.viewer.site import Site
from tests.inference.viewer.conftest import BLACK, TILE0, Places, got
from tests.inference.viewer.test_site import pixels_of
from tiling import TileStore
from tiling.core.artefact import Recipe, atomic_folder, locked_folder
from tiling.grid import Tiles
from tiling.stores.features import Encoder, FeatureAttributes, feature_path
from tiling.stores.write_features import write_feature_columns, write_features

ENCODER = Encoder(name="e", kind="timm", sha256="", tile_px=TILE0, mpp=0.5, dim=4)


@pytest.fixture
def features(places: Places, tmp_path: Path) -> Path:
    """Of the tiles of the store `one`, with two of its columns and its thumbnail."""
    return write_features_of(places, tmp_path / "features", thumbnail=True)


def write_features_of(places: Places, folder: Path, *, thumbnail: bool) -> Path:
    store, path = TileStore(places.stores / "one.zarr"), feature_path(folder, "one")
    tiles = Tiles(store.grid, store.tiles.x0, store.tiles.y0, {n: store.tiles.columns[n] for n in ("tissue", "blur")})
    small = store.thumbnail if thumbnail else None
    folder.mkdir()
    with locked_folder(path), atomic_folder(path, Recipe("features", {})) as partial:
        write_features(partial, 4, "float32", [np.ones((len(store), 4), np.float32)])
        attributes = FeatureAttributes(
            slide=store.slide, grid=store.grid, encoder=ENCODER, columns=("tissue", "blur"),
            thumbnail_px0=None if small is None else small.downsample,
        )  # fmt: skip
        write_feature_columns(partial, tiles, attributes, small)
    return path


def check_columns(site: Site, store: TileStore, names: list[str]) -> None:
    """The one map of the first slide is those columns of the store, by tile and by place, and of no model."""
    about = json.loads(got(site, "data/0/slide.json"))["models"]
    (only,) = about
    count = len(store)
    assert (only["sha256"], only["threshold"], only["scores"], only["tiles"]) == (None, None, [], count)
    assert [layer["name"] for layer in only["layers"]] == names
    values = np.frombuffer(got(site, "data/0/0/tiles.bin"), "<f4", len(names) * count, 4 + 8 * count)
    for name, of in zip(names, values.reshape(len(names), count), strict=True):
        np.testing.assert_array_equal(of, store.tiles.columns[name])
    shown = np.frombuffer(got(site, "data/0/0/map-0.bin"), "<f4").reshape(only["map"]["shape"])
    for row in range(count):
        column, line = store.tiles.x0[row] // TILE0, store.tiles.y0[row] // TILE0
        assert shown[line, column] == store.tiles.columns["tissue"][row]
    assert site.get("data/0/1/tiles.bin") is None
    assert all(site.get(address) is not None for address in site.addresses())


def test_features_are_columns_over_a_thumbnail(places: Places, features: Path) -> None:
    cohort = find_cohort([features.parent])
    assert [(one.slide_id, one.slide, one.store) for one in cohort.slides] == [("one", None, None)]
    site, store = Site(cohort), TileStore(places.stores / "one.zarr")
    facts = json.loads(got(site, "data/0/slide.json"))
    assert (facts["pixels"], facts["mask"], facts["score"]) == ("thumbnail", False, None)
    check_columns(site, store, ["tissue", "blur"])
    drawn = pixels_of(got(site, "data/0/0/0-0.jpg"))
    px0 = 256 << facts["zooms"]
    middle = [round((at + 0.5) * TILE0 * 256 / px0) for at in (BLACK[1], BLACK[0])]
    assert drawn[middle[0], middle[1]].max() < 90
    assert drawn[5, 5].min() > 150


def test_a_store_of_tiles_is_columns_over_its_tiles(places: Places) -> None:
    site, store = Site(find_cohort([places.stores])), TileStore(places.stores / "one.zarr")
    assert json.loads(got(site, "data/0/slide.json"))["pixels"] == "store"
    check_columns(site, store, ["tissue", *store.quality])


def test_features_over_the_slide_and_under_a_heatmap(places: Places, features: Path) -> None:
    """The slide is drawn where it is at hand; a heatmap's own layers come first."""
    by_id = find_cohort([features], places.rows[:1])
    assert json.loads(got(Site(by_id), "data/0/slide.json"))["pixels"] == "slide"
    both = Site(find_cohort([features, places.heatmaps / "one"]))
    (model,) = json.loads(got(both, "data/0/slide.json"))["models"]
    names = [layer["name"] for layer in model["layers"]]
    assert names[0] == "prob_tumour"
    assert {"tissue", "blur"} <= set(names)


def test_features_without_a_thumbnail_are_grey_and_damaged_ones_named(places: Places, tmp_path: Path) -> None:
    path = write_features_of(places, tmp_path / "bare", thumbnail=False)
    site = Site(find_cohort([path]))
    assert json.loads(got(site, "data/0/slide.json"))["pixels"] == "none"
    assert len(np.unique(pixels_of(got(site, "data/0/0/0-0.jpg")))) == 1
    damaged = Path(shutil.copytree(path, tmp_path / "bare" / "other.features.zarr"))
    (damaged / "zarr.json").write_text("{}")
    cohort = find_cohort([tmp_path / "bare"])
    assert list(cohort.refused) == [damaged]
    assert len(cohort.slides) == 1
