"""The store as DESIGN.md's table has it, read by plain zarr-python; edited stores are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from pipeline.synthetic import write_pyramid
from tiling import Grid, TileStore, TilingConfig, tile_slide
from tiling.codec import TileCodec, decode_jpeg, encode_jpeg
from tiling.errors import StoreError
from tiling.files import canonical_json, sha256_json
from tiling.quality import METRICS
from tiling.store import shard_tiles, verify_store, write_tiles

# Run in another process that knows zarr alone; specslide's codec comes by entry point. Prints every array's facts.
_LIST = """
import json, sys, numpy, zarr
group = zarr.open_group(sys.argv[1], mode="r")
facts = {}
def look(group, prefix=""):
    for name, member in sorted(group.members()):
        if isinstance(member, zarr.Group):
            look(member, prefix + name + "/")
        else:
            values = member[...]
            outer = member.metadata.to_dict()["codecs"]
            inner = outer[0].get("configuration", {}).get("codecs", [])
            codecs = [[c["name"] for c in these] for these in (outer, inner)]
            facts[prefix + name] = [str(values.dtype), list(values.shape), list(member.chunks), member.shards, *codecs]
look(group)
print(json.dumps(facts))
"""


def seen_by_zarr(path: Path) -> dict[str, list[Any]]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _LIST, path], capture_output=True, text=True, check=True
    )
    facts: dict[str, list[Any]] = json.loads(done.stdout)
    return facts


def test_every_array_is_what_the_design_says(finished: Path, codec: str) -> None:
    facts, store = seen_by_zarr(finished), TileStore(finished)
    n, columns = len(store), ["zstd", "crc32c"]
    inner = ["bytes", *columns] if codec == "lossless" else ["specslide.jpeg", "crc32c"]
    tiles = facts.pop("tiles")
    assert tiles == ["uint8", [n, 16, 16, 3], [1, 16, 16, 3], [256, 16, 16, 3], ["sharding_indexed"], inner]
    height, width = store.mask.shape
    assert facts.pop("mask")[:2] == ["uint8", [height, width]]
    assert facts.pop("thumbnail")[:2] == ["uint8", list(store.thumbnail.shape)]
    for name in ("x", "y"):
        assert facts.pop(name) == ["int32", [n], [n], None, ["bytes", *columns], []]
    for name in ("tissue", *(f"quality/{metric}" for metric in METRICS)):
        assert facts.pop(name) == ["float32", [n], [n], None, ["bytes", *columns], []]
    assert facts == {}


def test_columns_equal_plain_zarr(finished: Path) -> None:
    store, group = TileStore(finished), zarr.open_group(finished, mode="r")
    columns: dict[str, NDArray[Any]] = {"x": store.x, "y": store.y, "tissue": store.tissue, "mask": store.mask}
    columns |= {f"quality/{name}": values for name, values in store.quality.items()} | {"thumbnail": store.thumbnail}
    for name, values in columns.items():
        np.testing.assert_array_equal(values, np.asarray(group[name][...]))  # type: ignore[index]
    assert set(np.unique(np.asarray(group["mask"][...]))) <= {0, 1}  # type: ignore[index]


def test_rows_are_in_reading_order(finished: Path) -> None:
    store = TileStore(finished)
    order = np.lexsort((store.x, store.y))
    np.testing.assert_array_equal(order, np.arange(len(store)))
    assert (store.tissue >= 0.1).all()
    assert (store.tissue <= 1).all()


def test_the_attributes(finished: Path, codec: str, small_slide: Path) -> None:
    import hashlib

    attributes: dict[str, Any] = json.loads((finished / "zarr.json").read_text())["attributes"]
    assert (attributes["format"], attributes["version"]) == ("specslide-tiles", 1)
    assert attributes["slide"] == {
        "slide_id": "small", "sha256": hashlib.sha256(small_slide.read_bytes()).hexdigest(), "width": 700,
        "height": 520, "mpp": pytest.approx(0.5), "vendor": "generic-tiff", "objective_power": None,
        "level_downsamples": [1.0, 2.0],
    }  # fmt: skip
    assert Grid.model_validate(attributes["grid"]) == TileStore(finished).grid
    assert attributes["config"]["codec"] == codec
    assert attributes["config_sha256"] == sha256_json(attributes["config"])
    assert "research use only" in attributes["notice"]
    assert {"python", "specslide", "zarr", "openslide-bin"} <= attributes["software"].keys()


def test_an_empty_store_is_valid(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "glass.tif", np.full((300, 400, 3), 244, np.uint8), mpp=0.5)
    report = tile_slide(tmp_path / "glass.tif", tmp_path / "out", TilingConfig(tile_px=64))
    store = TileStore(report.store)
    assert (report.tiles, len(store), store.read(slice(None)).shape) == (0, 0, (0, 64, 64, 3))
    assert not store.mask.any()
    assert verify_store(report.store) == []
    facts = seen_by_zarr(report.store)
    assert facts["tiles"][:2] == ["uint8", [0, 64, 64, 3]]
    assert facts["x"][:2] == ["int32", [0]]


@pytest.mark.parametrize(("tile_px", "count"), [(1, 256), (256, 256), (296, 255), (512, 85), (4730, 1), (8192, 1)])
def test_shards_hold_256_tiles_or_64_mib(tile_px: int, count: int) -> None:
    assert shard_tiles(tile_px) == count


@pytest.mark.parametrize("count", [299, 301])
def test_a_wrong_count_is_refused(tmp_path: Path, noise_tiles: NDArray[np.uint8], count: int) -> None:
    with pytest.raises(ValueError, match=r".+"):
        write_tiles(tmp_path / "a", count, 8, TileCodec.parse("lossless"), iter(noise_tiles))


def test_black_tiles_are_stored_too(tmp_path: Path) -> None:
    """A chunk that equals the fill value is written, so that a missing one is damage."""
    write_tiles(tmp_path / "a", 3, 8, TileCodec.parse("lossless"), iter(np.zeros((3, 8, 8, 3), np.uint8)))
    assert (tmp_path / "a" / "tiles" / "c" / "0" / "0" / "0" / "0").stat().st_size > 16 * 256 + 4


def test_jpeg_tiles_are_the_jpegs(tmp_path: Path, noise_tiles: NDArray[np.uint8]) -> None:
    write_tiles(tmp_path / "a", 300, 8, TileCodec.parse("jpeg:70"), iter(noise_tiles))
    array = zarr.open_group(tmp_path / "a", mode="r")["tiles"]
    assert isinstance(array, zarr.Array)
    expected = np.stack([decode_jpeg(encode_jpeg(t, 70)) for t in noise_tiles])
    np.testing.assert_array_equal(np.asarray(array[...]), expected)


# -------------------------------------------------------------------------------------------------- edited stores


@pytest.mark.parametrize(
    "name", ["zarr.json", "tiles/zarr.json", "x/zarr.json", "quality/zarr.json", "quality/pen/zarr.json"]
)
def test_edited_metadata_is_refused_by_name(copied: Path, name: str) -> None:
    (copied / name).write_text((copied / name).read_text() + " ")
    with pytest.raises(StoreError, match="is damaged") as caught:
        TileStore(copied)
    assert str(copied / name) in str(caught.value)
    assert any(str(copied / name) in fault for fault in verify_store(copied))


READERS: dict[str, Callable[[TileStore], object]] = {
    "x/c/0": lambda s: s.x, "y/c/0": lambda s: s.y, "tissue/c/0": lambda s: s.tissue, "mask/c/0/0": lambda s: s.mask,
    "quality/focus/c/0": lambda s: s.quality, "thumbnail/c/0/0/0": lambda s: s.thumbnail,
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_damaged_columns_are_refused_by_name(copied: Path, name: str, damage: str) -> None:
    file = copied / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data if damage == "flip" else data[:-1])
    if damage == "delete":
        file.unlink()
    store = TileStore(copied)
    with pytest.raises(StoreError) as caught:
        READERS[name](store)
    assert str(file) in str(caught.value)
    assert any(str(file) in fault for fault in verify_store(copied))


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "5", "null", "{}", '{"sha256": 1}', '{"sha256": 1, "files": []}', "\xff", "[" * 100_000],
    ids=lambda content: content[:20],
)
def test_an_unreadable_commit_is_refused(copied: Path, content: str) -> None:
    (copied / "commit.json").write_text(content)
    with pytest.raises(StoreError) as caught:
        TileStore(copied)
    assert str(copied) in str(caught.value)
    assert len(verify_store(copied)) == 1


def edited_commit(store: Path, edit: Callable[[dict[str, Any]], object], *, sealed: bool) -> None:
    """Change commit.json; `sealed` also makes its own hash fit, as a forger would."""
    commit = json.loads((store / "commit.json").read_text())
    own = commit.pop("sha256")
    edit(commit)
    (store / "commit.json").write_text(canonical_json(commit | {"sha256": sha256_json(commit) if sealed else own}))


@pytest.mark.parametrize("key", ["version", "files"])
def test_an_edited_commit_is_refused(copied: Path, key: str) -> None:
    edited_commit(copied, lambda c: c.update({key: {} if key == "files" else 2}), sealed=False)
    with pytest.raises(StoreError, match=r"was changed|commit\.json"):
        TileStore(copied)


FORGERIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another version": lambda c: c.update(version=2),
    "files are a list": lambda c: c.update(files=[]),
    "a file is a number": lambda c: c["files"].update({"zarr.json": 5}),
    "a file has no hash": lambda c: c["files"]["zarr.json"].pop("sha256"),
    "no metadata listed": lambda c: c.update(files={}),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_commit_is_one_sentence(copied: Path, forgery: str) -> None:
    edited_commit(copied, FORGERIES[forgery], sealed=True)
    faults = verify_store(copied)
    assert faults
    assert all("\n" not in fault for fault in faults)
    if forgery != "no metadata listed":
        with pytest.raises(StoreError):
            TileStore(copied)


def test_an_extra_file_is_named(copied: Path) -> None:
    (copied / "x" / "note.txt").write_text("hello")
    assert verify_store(copied) == [f"{copied / 'x' / 'note.txt'}: does not belong here"]


def a_file(path: Path) -> Path:
    path.write_text("x")
    return path


def a_plain_group(path: Path) -> Path:
    zarr.create_group(path)
    return path


@pytest.mark.parametrize("make", [lambda p: p, a_file, a_plain_group], ids=["missing", "a file", "a plain group"])
def test_what_is_no_store_is_refused(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path / "a.zarr")
    with pytest.raises(StoreError, match="is not a finished tile store") as caught:
        TileStore(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_open_is_the_constructor(finished: Path) -> None:
    assert TileStore.open(finished).content_hash == TileStore(str(finished)).content_hash
