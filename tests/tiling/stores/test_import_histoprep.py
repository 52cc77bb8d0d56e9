"""HistoPrep's output folders, written here as HistoPrep 2 and histoslice write them: same tiles, same metrics."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
from numpy.typing import NDArray

from tiling import TileStore
from tiling.core.errors import InputError, OutputError, StoreError
from tiling.stores.import_histoprep import import_histoprep
from tiling.stores.query import rows_where
from tiling.stores.store import verify_store

U8 = NDArray[np.uint8]
COLUMNS = ("x", "y", "w", "h", "path", "background", "laplacian_std", "gray_q50")
PLACES = [(768, 0), (0, 0), (384, 384), (0, 768)]  # as histoslice's workers may finish: in no order


def tiles(side: int = 32) -> list[U8]:
    noise = np.random.default_rng(0).integers(0, 256, (len(PLACES), side // 8, side // 8, 3), np.uint8)
    return [np.asarray(cv2.resize(picture, (side, side)), np.uint8) for picture in noise]


def output(folder: Path, *, ending: str = "jpeg", table: str = "parquet", overlap: float = 0.25) -> Path:
    """The folder of a slide of 512-px tiles, saved at 1/16: x, y, w, h, path and metrics."""
    (folder / "tiles").mkdir(parents=True)
    rows = []
    for number, ((x, y), tile) in enumerate(zip(PLACES, tiles(), strict=True)):
        name = f"x{x}_y{y}_w512_h512.{ending}"
        PIL.Image.fromarray(tile).save(folder / "tiles" / name, quality=80)
        metrics = {"background": number / 10, "laplacian_std": 3.5 * number, "gray_q50": 100 + number}
        rows.append({"x": x, "y": y, "w": 512, "h": 512, "path": f"/elsewhere/tiles/{name}", **metrics})
    written = pyarrow.Table.from_pylist(rows)
    if table == "csv":
        pyarrow.csv.write_csv(written, folder / "metadata.csv")
    else:
        pyarrow.parquet.write_table(written, folder / "metadata.parquet")
    properties = {"num_tiles": 4, "level": 4, "level_downsample": [16.0, 16.0], "width": 512, "height": 512}
    (folder / "properties.json").write_text(json.dumps(properties | {"overlap": overlap, "max_background": 0.5}))
    return folder


@pytest.mark.parametrize(("ending", "table"), [("jpeg", "parquet"), ("png", "csv")])
def test_a_folder_becomes_a_store(tmp_path: Path, ending: str, table: str) -> None:
    folder = output(tmp_path / "slide_1", ending=ending, table=table)
    report = import_histoprep(folder, tmp_path / "stores", mpp=4.0)
    store = TileStore(report.store)
    assert (report.slide_id, report.tiles, report.reused) == ("slide_1", 4, False)
    assert verify_store(store.path) == []
    assert list(store.tiles.places()) == [(0, 0), (768, 0), (384, 384), (0, 768)]
    grid = store.grid
    assert (grid.tile_px, grid.tile_px0, grid.stride_px0, grid.mpp, grid.slide_mpp) == (32, 512, 384, 4.0, 0.25)
    for tile, x, y in zip(store.read(slice(None)), store.tiles.x0, store.tiles.y0, strict=True):
        saved = PIL.Image.open(folder / "tiles" / f"x{x}_y{y}_w512_h512.{ending}")
        np.testing.assert_array_equal(tile, np.asarray(saved))
    assert {name: values.tolist() for name, values in store.quality.items()} == {
        "background": pytest.approx([0.1, 0, 0.2, 0.3]),
        "laplacian_std": pytest.approx([3.5, 0, 7, 10.5]),
        "gray_q50": [101, 100, 102, 103],
    }
    np.testing.assert_allclose(store.tiles.columns["tissue"], [0.9, 1, 0.8, 0.7], rtol=1e-6)
    assert rows_where(store, "laplacian_std > 3 and background < 0.25").tolist() == [True, False, True, False]
    assert store.mask.values.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]


def test_jpeg_tiles_are_copied_not_encoded_again(tmp_path: Path) -> None:
    folder = output(tmp_path / "slide_1")
    store = import_histoprep(folder, tmp_path / "stores", mpp=4.0).store
    shard = b"".join(p.read_bytes() for p in (store / "tiles" / "c").rglob("*") if p.is_file())
    for picture in (folder / "tiles").iterdir():
        assert picture.read_bytes() in shard


def test_the_thumbnail_is_made_of_the_tiles(tmp_path: Path) -> None:
    store = TileStore(import_histoprep(output(tmp_path / "a", ending="png"), tmp_path / "stores", mpp=4.0).store)
    side = round(512 / store.attributes.thumbnail_px0)
    expected = cv2.resize(tiles()[1], (side, side), interpolation=cv2.INTER_AREA)
    corner = round(384 / store.attributes.thumbnail_px0)  # the tile at (384, 384) lies over its corner
    np.testing.assert_array_equal(store.thumbnail.values[:corner, :corner], expected[:corner, :corner])
    assert (store.thumbnail.values[-3:, -3:] == 255).all()


def test_the_same_folder_again_and_another(tmp_path: Path) -> None:
    folder = output(tmp_path / "slide_1")
    first = import_histoprep(folder, tmp_path / "stores", mpp=4.0)
    before = TileStore(first.store).sha256
    assert import_histoprep(folder, tmp_path / "stores", mpp=4.0).reused
    with pytest.raises(StoreError, match=r"--overwrite"):
        import_histoprep(folder, tmp_path / "stores", mpp=2.0)
    assert TileStore(first.store).sha256 == before
    tile = folder / "tiles" / "x0_y0_w512_h512.jpeg"
    PIL.Image.fromarray(tiles()[1]).save(tile, quality=95)
    with pytest.raises(StoreError, match="was made otherwise"):
        import_histoprep(folder, tmp_path / "stores", mpp=4.0)
    import_histoprep(folder, tmp_path / "stores", mpp=2.0, overwrite=True)
    assert TileStore(first.store).grid.mpp == 2.0


def test_a_folder_of_something_else_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "stores" / "slide_1.zarr" / "mine").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"slide_1\.zarr: .*tile store"):
        import_histoprep(output(tmp_path / "slide_1"), tmp_path / "stores", mpp=4.0, overwrite=True)
    assert (tmp_path / "stores" / "slide_1.zarr" / "mine").is_dir()


def rewritten(folder: Path, **columns: object) -> None:
    path = folder / "metadata.parquet"
    table = pyarrow.parquet.read_table(path).to_pydict() | columns
    pyarrow.parquet.write_table(pyarrow.table({k: v for k, v in table.items() if v is not None}), path)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"x": None}, "has no column x of whole numbers"),
        ({"y": [0.5, 1.5, 2.5, 3.5]}, "has no column y of whole numbers"),
        ({"x": [0, None, 0, 0]}, "lacks a value in the column x"),
        ({"w": [512, 512, 512, 256]}, "not squares of one size"),
        ({"x": [-384, 0, 384, 0]}, "lie on no slide"),
        ({"x": [2**31 - 5, 0, 384, 0]}, "lie on no slide"),
        ({"x": [384 * 10**6, 0, 384, 0], "y": [0, 384 * 10**6, 0, 0]}, "too far from each other|lie on no slide"),
        ({"x": [1, 0, 384, 0]}, "off a grid of 384 px"),
        ({"x": [0, 0, 0, 0], "y": [0, 0, 384, 768]}, "two tiles at one place"),
        ({"x": [1152, 0, 384, 0]}, r"x1152_y0_w512_h512\.jpeg: does not exist"),
        ({name: [] for name in COLUMNS}, "of whole numbers"),
        (dict.fromkeys(COLUMNS, pyarrow.array([], pyarrow.int64())), "has no tiles"),
    ],
)  # fmt: skip
def test_hostile_metadata_is_refused(tmp_path: Path, columns: dict[str, object], reason: str) -> None:
    folder = output(tmp_path / "slide_1")
    rewritten(folder, **columns)
    with pytest.raises(InputError, match=reason):
        import_histoprep(folder, tmp_path / "stores", mpp=4.0)
    assert not (tmp_path / "stores").exists()


def test_a_metric_whose_name_is_no_folder_s_is_percent_encoded(tmp_path: Path) -> None:
    folder = output(tmp_path / "slide_1")
    rewritten(folder, **{"a/b": [1, 2, 3, 4]})
    store = TileStore(import_histoprep(folder, tmp_path / "stores", mpp=4.0).store)
    assert sorted(store.quality["a%2Fb"].tolist()) == [1, 2, 3, 4]


def test_broken_folders_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    folder = output(tmp_path / "slide_1")
    stores = tmp_path / "stores"
    tile = folder / "tiles" / "x384_y384_w512_h512.jpeg"
    whole = tile.read_bytes()
    for content in (b"", b"no picture"):
        tile.write_bytes(content)
        with pytest.raises(InputError, match=rf"{tile.name}: .*picture"):
            import_histoprep(folder, stores, mpp=4.0)
    PIL.Image.new("RGB", (16, 16)).save(tile)
    with pytest.raises(InputError, match="is no picture of 32 x 32 px"):
        import_histoprep(folder, stores, mpp=4.0)
    tile.write_bytes(whole)
    for properties in ("{", "[]", "{}", '{"overlap": 2}', '{"overlap": null}'):
        (folder / "properties.json").write_text(properties)
        with pytest.raises(InputError, match=r"properties\.json: .*overlap"):
            import_histoprep(folder, stores, mpp=4.0)
    (folder / "metadata.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"metadata\.parquet: cannot be read"):
        import_histoprep(folder, stores, mpp=4.0)
    (folder / "metadata.parquet").unlink()
    with pytest.raises(InputError, match=r"holds no metadata\.parquet"):
        import_histoprep(folder, stores, mpp=4.0)
    assert list(stores.iterdir()) == []
