"""The feature store: as plain zarr-python and xarray read it, row for row, damage found, and memory bounded."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr

from tiling import Grid, TileStore
from tiling.core.arrays import FeatureType, Float32Array
from tiling.core.artefact import Recipe, atomic_folder, locked_folder
from tiling.core.errors import ConfigError, StoreError
from tiling.grid import Raster, Tiles
from tiling.stores.features import (
    Encoder,
    FeatureAttributes,
    FeatureStore,
    require_one_encoder,
    verify_features,
)
from tiling.stores.store import SlideFacts
from tiling.stores.write_features import chunk_rows, write_feature_columns, write_features

ENCODER = Encoder(
    name="made-up", kind="timm", sha256="0" * 64, tile_px=64, mpp=0.5, input_px=64, mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5), pooling="avg", dim=5, licence="none",
)  # fmt: skip
COLUMNS = ("tissue", "blur", "annotation/tumour")


def attributes_of(grid: Grid, encoder: Encoder = ENCODER, **other: Any) -> FeatureAttributes:
    slide = SlideFacts(
        slide_id="a", sha256="1" * 64, width=grid.width0, height=grid.height0, mpp=0.5, vendor="generic-tiff",
        objective_power=None, level_downsamples=(1.0,),
    )  # fmt: skip
    return FeatureAttributes(slide=slide, grid=grid, encoder=encoder, columns=COLUMNS, **other)


def tiles_of(count: int) -> Tiles:
    side = int(np.ceil(np.sqrt(max(count, 1))))
    grid = Grid(width0=64 * side, height0=64 * side, slide_mpp=0.5, tile_px=64, tile_px0=64, stride_px0=64)
    tiles = Tiles.all_of(grid).only(np.arange(count))
    values = np.random.default_rng(1).random((3, count)).astype(np.float32)
    return Tiles(grid, tiles.x0, tiles.y0, dict(zip(COLUMNS, values, strict=True)))


def made(path: Path, features: Float32Array, dtype: FeatureType = "float32", block: int = 7, **other: Any) -> Path:
    """A finished store of those features, written in blocks of that many rows."""
    tiles = tiles_of(len(features))
    encoder = other.pop("encoder", ENCODER.model_copy(update={"dim": features.shape[1]}))
    picture = Raster(np.full((4, 4, 3), 9, np.uint8), 16.0)
    blocks = (features[start : start + block] for start in range(0, len(features), block))
    with locked_folder(path), atomic_folder(path, Recipe("features", {})) as folder:
        assert write_features(folder, features.shape[1], dtype, blocks) == len(features)
        attributes = attributes_of(tiles.grid, encoder, thumbnail_px0=16.0, **other)
        write_feature_columns(folder, tiles, attributes, picture)
    return path


def random_features(count: int, dim: int = 5) -> Float32Array:
    return np.random.default_rng(0).normal(size=(count, dim)).astype(np.float32)


@pytest.fixture(scope="module", params=["float32", "float16"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,500 rows: two whole chunks and a part of one."""
    return made(tmp_path_factory.mktemp("features") / "a.features.zarr", random_features(2500), request.param)


def test_any_rows_are_as_written(store: Path) -> None:
    features = FeatureStore(store)
    expected = random_features(2500).astype(features.dtype).astype(np.float32)
    for rows in (slice(None), slice(5, 2000, 3), [2499, 0, 1030, 0], [-1], [], np.arange(2500)[::-1]):
        found = features.read(rows)
        np.testing.assert_array_equal(found, expected[rows])
        assert found.dtype == np.float32
    with pytest.raises(IndexError):
        features.read([2500])
    assert (len(features), features.dim, features.slide_id) == (2500, 5, "a")


# Another process, which knows zarr alone and none of specslide's codecs.
_PLAIN = """
import json, sys, numpy, zarr
group = zarr.open_group(sys.argv[1], mode="r")
features = group["features"]
numpy.save(sys.argv[2], features[...])
names = sorted(name for name, member in group.members(max_depth=None))
print(json.dumps([names, str(features.dtype), [c["name"] for c in features.metadata.to_dict()["codecs"]],
                  "specslide" in sys.modules or "tiling" in sys.modules]))
"""


def test_plain_zarr_reads_it(store: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _PLAIN, store, tmp_path / "out.npy"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    names, dtype, codecs, loaded = json.loads(done.stdout)
    ours = FeatureStore(store)
    assert names == [
        "annotation", "annotation/tumour", "features", "quality", "quality/blur", "thumbnail", "tissue", "x", "y"
    ]  # fmt: skip
    assert (dtype, codecs, loaded) == (ours.dtype, ["bytes", "zstd", "crc32c"], False)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy").astype(np.float32), ours.read())


def test_columns_equal_plain_zarr(store: Path) -> None:
    features, group = FeatureStore(store), zarr.open_group(store, mode="r")
    assert tuple(features.tiles.columns) == COLUMNS
    names = {"tissue": "tissue", "blur": "quality/blur", "annotation/tumour": "annotation/tumour"}
    for name, path in names.items():
        np.testing.assert_array_equal(features.tiles.columns[name], np.asarray(group[path][...]))  # type: ignore[index]
    np.testing.assert_array_equal(features.tiles.x0, np.asarray(group["x"][...]))  # type: ignore[index]
    assert features.thumbnail is not None
    assert (features.thumbnail.values == 9).all()


def test_xarray_reads_it(store: Path) -> None:
    with xarray.open_zarr(store) as data:
        assert dict(data.sizes) == {"tile": 2500, "feature": 5, "thumbnail_y": 4, "thumbnail_x": 4, "rgb": 3}
        ours = FeatureStore(store)
        np.testing.assert_array_equal(data["features"].values.astype(np.float32), ours.read())
        np.testing.assert_array_equal(data["x"].values, ours.tiles.x0)
        assert data.attrs["encoder"]["name"] == "made-up"


@pytest.mark.parametrize("name", ["features/c/1/0", "features/zarr.json", "x/c/0", "quality/blur/c/0", "zarr.json"])
def test_a_flipped_byte_is_found_when_it_is_read(store: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(store, tmp_path / store.name))
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 4
    (copy / name).write_bytes(data)
    assert [name in fault for fault in verify_features(copy)] == [True]
    with pytest.raises(StoreError, match=name):
        _read_all(copy)


def _read_all(path: Path) -> None:
    store = FeatureStore(path)
    store.read()
    _ = store.tiles.x0, [store.tiles.columns[name] for name in store.tiles.columns]


def test_a_chunk_that_is_lost_or_another_is_found(store: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / store.name))
    shutil.copyfile(copy / "features/c/0/0", copy / "features/c/1/0")  # whole, with a checksum that fits
    with pytest.raises(StoreError, match="features/c/1/0"):
        FeatureStore(copy).read()
    (copy / "features/c/2/0").unlink()  # zarr-python would give zeros
    with pytest.raises(StoreError, match="features/c/2/0"):
        FeatureStore(copy).read([2100])
    np.testing.assert_array_equal(FeatureStore(copy).read([3]), FeatureStore(store).read([3]))


def test_the_identity_is_that_of_features_and_not_of_labels(tmp_path: Path) -> None:
    features = random_features(20)
    one = FeatureStore(made(tmp_path / "one.features.zarr", features, block=3))
    same = FeatureStore(made(tmp_path / "two.features.zarr", features, block=20))
    assert one.identity == same.identity
    licensed = ENCODER.model_copy(update={"licence": "another"})
    assert FeatureStore(made(tmp_path / "l.features.zarr", features, encoder=licensed)).identity == one.identity
    sharp = ENCODER.model_copy(update={"mpp": 0.25})
    assert FeatureStore(made(tmp_path / "m.features.zarr", features, encoder=sharp)).identity != one.identity
    assert FeatureStore(made(tmp_path / "f.features.zarr", features + 1)).identity != one.identity
    assert pickle.loads(pickle.dumps(one)).identity == one.identity  # noqa: S301 - our own


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mpp": 0.51}, ""),  # one scale: within `same_scale`
        ({"mpp": 1.0}, "mpp was 0.5, is 1.0"),
        ({"tile_px": 224}, "tile_px was 64, is 224"),
        ({"name": "uni"}, 'name was "made-up", is "uni"'),
        ({"sha256": "2" * 64}, "sha256"),
        ({"licence": "another"}, ""),
    ],
)
def test_encoders_that_differ_are_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    other = ENCODER.model_copy(update=change)
    assert named in ENCODER.difference(other)
    assert bool(ENCODER.difference(other)) == bool(named)
    stores = [
        made(tmp_path / f"{n}.features.zarr", random_features(3), encoder=e) for n, e in enumerate((ENCODER, other))
    ]
    opened = [FeatureStore(path) for path in stores]
    if named:
        with pytest.raises(StoreError, match=r"1\.features\.zarr.*" + named.split()[0]):
            require_one_encoder(opened)
    else:
        assert require_one_encoder(opened) == ENCODER


def test_an_empty_store_is_valid(tmp_path: Path) -> None:
    path = made(tmp_path / "a.features.zarr", random_features(0))
    assert FeatureStore(path).read().shape == (0, 5)
    assert verify_features(path) == []
    assert np.asarray(zarr.open_group(path, mode="r")["features"][...]).shape == (0, 5)  # type: ignore[index]


def test_what_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="float16"):
        made(tmp_path / "a.features.zarr", random_features(3) + 70_000, "float16")
    assert not list(tmp_path.iterdir())


def test_other_folders_are_refused_by_what_they_are(finished: Path, store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a feature store"):
        FeatureStore(finished)
    with pytest.raises(StoreError, match="holds features"):
        TileStore(store)
    with pytest.raises(StoreError, match="is not a finished feature store"):
        FeatureStore(tmp_path / "absent.features.zarr")


def test_memory_is_that_of_chunks_for_200_000_rows(tmp_path: Path) -> None:
    count, dim = 200_000, 64  # 51 MB as float32
    block = random_features(1000, dim)

    def blocks() -> Iterator[Float32Array]:
        for _ in range(count // len(block)):
            yield block

    tiles, encoder = tiles_of(count), ENCODER.model_copy(update={"dim": dim})
    path = tmp_path / "a.features.zarr"
    tracemalloc.start()
    with locked_folder(path), atomic_folder(path) as folder:
        write_features(folder, dim, "float32", blocks())
        written = tracemalloc.get_traced_memory()[1]
        write_feature_columns(folder, tiles, attributes_of(tiles.grid, encoder))
    store = FeatureStore(path)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    for start in range(0, count, 10_000):
        rows = store.read(slice(start, start + 10_000))
        np.testing.assert_array_equal(rows[-1000:], block)
    read = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert written < 4 << 20
    assert read < 12 << 20  # 2.6 MB of rows, twice, a chunk, the row numbers
    assert chunk_rows(dim, "float32") == 1024
    assert chunk_rows(4096, "float32") == 256
