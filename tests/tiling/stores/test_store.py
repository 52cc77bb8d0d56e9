"""The store as DESIGN.md's table has it, read by plain zarr-python; edited stores are refused."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from pipeline.demo.synthetic import write_pyramid
from tiling import Grid, TileStore, TilingConfig, tile_slide
from tiling.core.errors import StoreError
from tiling.core.files import canonical_json, sha256_file, sha256_json
from tiling.quality import METRICS
from tiling.stores.codec import TileCodec, decode_jpeg, encode_jpeg
from tiling.stores.store import verify_store
from tiling.stores.write import shard_tiles, write_tiles

# Run in another process that knows zarr alone; specslide's codec comes by entry point. Prints every array's facts.
_LIST = """
import json, sys, numpy, zarr
group = zarr.open_group(sys.argv[1], mode="r")
facts = {}
def look(group, prefix=""):
    for name, member in sorted(group.items() if isinstance(group, dict) else group.members()):
        if isinstance(member, zarr.Group):
            look(member, prefix + name + "/")
        else:
            values = member[...]
            outer = member.metadata.to_dict()["codecs"]
            inner = outer[0].get("configuration", {}).get("codecs", [])
            codecs = [[c["name"] for c in these] for these in (outer, inner)]
            facts[prefix + name] = [str(values.dtype), list(values.shape), list(member.chunks), member.shards, *codecs]
look(group)
if "tiles" not in facts:  # JPEG's are in no list that a reader without the codec would stumble over
    look({"tiles": zarr.open_array(sys.argv[1] + "/tiles", mode="r")})
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
    height, width = store.mask.values.shape
    for name in ("mask", "cut"):
        assert facts.pop(name)[:2] == ["uint8", [height, width]]
    assert facts.pop("thumbnail")[:2] == ["uint8", list(store.thumbnail.values.shape)]
    for name in ("x", "y"):
        assert facts.pop(name) == ["int32", [n], [n], None, ["bytes", *columns], []]
    for name in ("tissue", *(f"quality/{metric}" for metric in METRICS)):
        assert facts.pop(name) == ["float32", [n], [n], None, ["bytes", *columns], []]
    assert facts.pop("crc32c") == ["uint32", [n], [n], None, ["bytes", *columns], []]
    assert facts == {}


def test_columns_equal_plain_zarr(finished: Path) -> None:
    store, group = TileStore(finished), zarr.open_group(finished, mode="r")
    columns: dict[str, NDArray[Any]] = {"x": store.tiles.x0, "y": store.tiles.y0, "mask": store.mask.values}
    columns |= {"tissue": store.tiles.columns["tissue"], "thumbnail": store.thumbnail.values}
    columns |= {f"quality/{name}": values for name, values in store.quality.items()}
    for name, values in columns.items():
        np.testing.assert_array_equal(values, np.asarray(group[name][...]))  # type: ignore[index]
    assert set(np.unique(np.asarray(group["mask"][...]))) <= {0, 1}  # type: ignore[index]


def test_rows_are_in_reading_order(finished: Path) -> None:
    store = TileStore(finished)
    order = np.lexsort((store.tiles.x0, store.tiles.y0))
    np.testing.assert_array_equal(order, np.arange(len(store)))
    assert (store.tiles.columns["tissue"] >= 0.1).all()
    assert (store.tiles.columns["tissue"] <= 1).all()


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
    assert not store.mask.values.any()
    assert verify_store(report.store) == []
    facts = seen_by_zarr(report.store)
    assert facts["tiles"][:2] == ["uint8", [0, 64, 64, 3]]
    assert facts["x"][:2] == ["int32", [0]]


@pytest.mark.parametrize(("tile_px", "count"), [(1, 256), (256, 256), (296, 255), (512, 85), (4730, 1), (8192, 1)])
def test_shards_hold_256_tiles_or_64_mib(tile_px: int, count: int) -> None:
    assert shard_tiles(tile_px) == count


def array_of(folder: Path) -> NDArray[np.uint8]:
    """The tiles as plain zarr-python reads them."""
    return np.asarray(zarr.open_array(folder / "tiles", mode="r")[...], np.uint8)


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 512, 600])
@pytest.mark.parametrize("name", ["lossless", "jpeg:70", "jpeg:70:420", "source"])
def test_zarr_python_reads_what_was_written(tmp_path: Path, name: str, count: int) -> None:
    """Bit for bit, black tiles (the fill value) and the last shard among them."""
    codec, tiles = TileCodec.parse(name), np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    tiles[1:3] = 0
    chunks = [encode_jpeg(t, 60, "4:2:2") if name == "source" else codec.encode(t) for t in tiles]
    assert write_tiles(tmp_path, 8, codec, iter(chunks)) == count
    expected = tiles if name == "lossless" else [decode_jpeg(chunk) for chunk in chunks]
    np.testing.assert_array_equal(array_of(tmp_path), np.reshape(expected, (count, 8, 8, 3)))
    assert len(list((tmp_path / "tiles" / "c").glob("*/0/0/0"))) == -(-count // 256)


def test_the_shards_are_those_zarr_python_writes(tmp_path: Path, noise_tiles: NDArray[np.uint8]) -> None:
    codec = TileCodec.parse("jpeg:70")
    write_tiles(tmp_path, 8, codec, map(codec.encode, noise_tiles))
    ours = {p.relative_to(tmp_path): p.read_bytes() for p in (tmp_path / "tiles" / "c").glob("*/0/0/0")}
    array = zarr.open_array(tmp_path / "tiles", mode="r+")
    for path in ours:
        (tmp_path / path).unlink()
    array[...] = noise_tiles
    assert {path: (tmp_path / path).read_bytes() for path in ours} == ours
    assert len(ours) == 2


def test_one_shard_is_held_at_a_time(tmp_path: Path) -> None:
    """The first is on disk before the first chunk of the second is asked for; what comes before an error stays."""

    def chunks() -> Iterator[bytes]:
        yield from [encode_jpeg(np.zeros((8, 8, 3), np.uint8), 50)] * 256
        assert (tmp_path / "tiles" / "c" / "0" / "0" / "0" / "0").exists()
        raise StoreError("there", "it ends here")

    with pytest.raises(StoreError, match="it ends here"):
        write_tiles(tmp_path, 8, TileCodec.parse("source"), chunks())


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
    "x/c/0": lambda s: s.tiles.x0, "y/c/0": lambda s: s.tiles.y0, "tissue/c/0": lambda s: s.tiles.columns["tissue"],
    "mask/c/0/0": lambda s: s.mask,
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
    edited_commit(copied, lambda c: c.update({key: {} if key == "files" else 3}), sealed=False)
    with pytest.raises(StoreError, match=r"was changed|commit\.json"):
        TileStore(copied)


FORGERIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another version": lambda c: c.update(version=3),
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


def sealed(store: Path) -> None:
    """Make the hashes of commit.json fit whatever is there now, as a forger would."""
    edited_commit(
        store,
        lambda c: c["files"].update(
            {n: {"sha256": sha256_file(store / n), "bytes": (store / n).stat().st_size} for n in c["files"]}
        ),
        sealed=True,
    )


Lie = tuple[str, Callable[[dict[str, Any]], object]]
"""A file of metadata, and how what it says is changed."""


def in_group(change: Callable[[dict[str, Any]], object]) -> Lie:
    return "zarr.json", change


def in_tiles(change: Callable[[dict[str, Any]], object]) -> Lie:
    return "tiles/zarr.json", change


def lied(store: Path, file: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a file of metadata says; its hash fits."""
    described = json.loads((store / file).read_text())
    change(described)
    (store / file).write_text(json.dumps(described))
    sealed(store)


LIES: dict[str, Lie] = {
    "no attributes": in_group(lambda g: g.pop("attributes")),
    "attributes are null": in_group(lambda g: g.update(attributes=None)),
    "no configuration": in_group(lambda g: g["attributes"].pop("config")),
    "no codec": in_group(lambda g: g["attributes"]["config"].pop("codec")),
    "codec is null": in_group(lambda g: g["attributes"]["config"].update(codec=None)),
    "unknown codec": in_group(lambda g: g["attributes"]["config"].update(codec="png")),
    "codec of other stores": in_group(
        lambda g: g["attributes"]["config"].update(
            codec="jpeg:90" if g["attributes"]["config"]["codec"] == "lossless" else "lossless"
        )
    ),
    "another tile size": in_group(lambda g: g["attributes"]["grid"].update(tile_px=32)),
    "another version": in_group(lambda g: g["attributes"].update(version=3)),
    "not a group": in_group(lambda g: g.update(node_type="array")),
    "no tiles": in_tiles(lambda t: t.clear()),
    "tiles are a group": in_tiles(lambda t: t.update(node_type="group", attributes={})),
    "tiles of 16 bits": in_tiles(lambda t: t.update(data_type="uint16")),
    "tiles without shards": in_tiles(lambda t: t.update(codecs=[{"name": "bytes"}])),
    "larger chunks": in_tiles(lambda t: t["codecs"][0]["configuration"].update(chunk_shape=[2, 16, 16, 3])),
    "no checksums": in_tiles(lambda t: t["codecs"][0]["configuration"]["codecs"].pop()),
    "codecs are null": in_tiles(lambda t: t.update(codecs=None)),
    "no shape": in_tiles(lambda t: t.pop("shape")),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_forged_store_is_refused(copied: Path, lie: str) -> None:
    """Its hashes fit, so that only what it says of itself can give it away: one sentence, no other exception."""
    lied(copied, *LIES[lie])
    with pytest.raises(StoreError) as caught:
        TileStore(copied)
    assert str(caught.value).startswith(f"{copied}: ")
    assert verify_store(copied) == [str(caught.value)]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("x", {"shape": [5]}), ("x", {"shape": [2**40]}), ("tissue", {"data_type": "float64"}), ("y", {"codecs": []}),
        ("mask", {"shape": [3]}), ("thumbnail", {"data_type": "int8"}), ("crc32c", {"shape": [7]}),
    ],
    ids=str,
)  # fmt: skip
def test_a_forged_column_is_refused(copied: Path, name: str, change: dict[str, Any]) -> None:
    lied(copied, f"{name}/zarr.json", lambda described: described.update(change))

    def use() -> None:
        store = TileStore(copied)
        store.read([0])
        store.tiles.columns["tissue"], store.mask, store.thumbnail

    with pytest.raises(StoreError) as caught:
        use()
    where = str(caught.value).split(": ")[0]
    assert where == str(copied / name) or (where == str(copied) and "is not a tile store" in str(caught.value))


def test_a_store_without_the_checksum_column_is_still_read(copied: Path) -> None:
    """Version 1 does without it: then the tiles are hashed before the first is read."""
    expected = TileStore(copied).read(slice(None))
    described = json.loads((copied / "zarr.json").read_text())
    described["consolidated_metadata"]["metadata"].pop("crc32c")
    (copied / "zarr.json").write_text(json.dumps(described))
    shutil.rmtree(copied / "crc32c")
    edited_commit(
        copied, lambda c: [c["files"].pop(n) for n in list(c["files"]) if n.startswith("crc32c/")], sealed=True
    )
    sealed(copied)
    assert verify_store(copied) == []
    np.testing.assert_array_equal(TileStore(copied).read(slice(None)), expected)
    swap(*(copied / "tiles" / "c" / number / "0" / "0" / "0" for number in "01"))
    with pytest.raises(StoreError, match=r"tiles/c/0/0/0/0: .*(bytes|changed)"):
        TileStore(copied).read([0])


def swap(one: Path, other: Path) -> None:
    a, b = one.read_bytes(), other.read_bytes()
    one.write_bytes(b)
    other.write_bytes(a)


# ------------------------------------------------------------------------------------------ three hundred damages


def flip(store: Path, random: Random) -> list[Path]:
    file, data = some_file(store, random)
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    file.write_bytes(data)
    return [file]


def truncate(store: Path, random: Random) -> list[Path]:
    file, data = some_file(store, random)
    file.write_bytes(data[: random.choice([0, len(data) // 2, len(data) - 1])])
    return [file]


def lengthen(store: Path, random: Random) -> list[Path]:
    file, data = some_file(store, random)
    file.write_bytes(data + random.choice([b" ", b"\n", bytes(4096)]))
    return [file]


def blank(store: Path, random: Random) -> list[Path]:
    file, data = some_file(store, random)
    file.write_bytes(bytes(len(data)))
    return [file]


def delete(store: Path, random: Random) -> list[Path]:
    file, _ = some_file(store, random)
    file.unlink()
    return [file]


def swap_two(store: Path, random: Random) -> list[Path]:
    file, data = some_file(store, random)
    other = random.choice([p for p in files_of(store) if p.read_bytes() != data])
    swap(file, other)
    return [file, other]


def swap_two_shards(store: Path, random: Random) -> list[Path]:
    shards = random.sample(sorted((store / "tiles" / "c").glob("*/0/0/0")), 2)
    swap(*shards)
    return shards


def edit_json(store: Path, random: Random) -> list[Path]:
    """Another value somewhere, well-formed as before."""
    file = random.choice([p for p in files_of(store) if p.suffix == ".json"])
    document = json.loads(file.read_text())
    place: Any = document
    while True:
        key = random.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or not place[key]:
            break
        place = place[key]
    place[key] = place[key] + 1 if isinstance(place[key], int | float) else f"{place[key]}x"
    file.write_text(json.dumps(document))
    return [file]


def add(store: Path, random: Random) -> list[Path]:
    file = random.choice(files_of(store)).with_name(random.choice(["note.txt", ".hidden", "9"]))
    file.write_bytes(b"x")
    return [file]


def files_of(store: Path) -> list[Path]:
    return sorted(p for p in store.rglob("*") if p.is_file())


def some_file(store: Path, random: Random) -> tuple[Path, bytearray]:
    file = random.choice(files_of(store))
    return file, bytearray(file.read_bytes())


def restore(store: Path, intact: dict[Path, bytes]) -> None:
    for added in set(files_of(store)) - intact.keys():
        added.unlink()
    for file, data in intact.items():
        if not file.exists() or file.read_bytes() != data:
            file.write_bytes(data)


DAMAGES = (flip, flip, truncate, lengthen, blank, delete, swap_two, swap_two_shards, edit_json, add)


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.nightly)])
def test_damaged_stores_are_found(copied: Path, count: int) -> None:
    """All by verification, which names the file; and reading a damaged store is refused or gives the very pixels."""
    expected, rows = TileStore(copied).read(slice(None)), np.arange(0, len(TileStore(copied)), 40)
    intact = {file: file.read_bytes() for file in files_of(copied)}
    found = refused = 0
    for number in range(count):
        damaged = DAMAGES[number % len(DAMAGES)](copied, Random(number))
        found += any(fault.startswith(f"{file}: ") for fault in verify_store(copied) for file in damaged)
        try:
            np.testing.assert_array_equal(TileStore(copied).read(rows), expected[rows])
        except StoreError as error:
            refused += str(copied) in str(error)
        restore(copied, intact)
    assert verify_store(copied) == []
    assert found == count
    assert refused > count / 3


# -------------------------------------------------------------------------------------------------------- the rest


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
    with pytest.raises(StoreError, match="not a finished") as caught:
        TileStore(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *(("slide.mpp", value) for value in (math.inf, math.nan, -1.0, 0.0, 1e300)),
        *((name, value) for name in ("mask_px0", "thumbnail_px0", "mpp") for value in (math.inf, -1.0, 0.0)),
        *((f"grid.{name}", value) for name in ("tile_px", "tile_px0", "stride_px0") for value in (0, -5, 2**40)),
        ("grid.slide_mpp", math.inf), ("grid.width0", 2**40), ("grid.height0", 519), ("slide.width", 10**30),
        ("slide.level_downsamples", [1.0, math.inf]),
        ("slide.bounds", {"x0": 0, "y0": 10**20, "width0": 1, "height0": 1}), ("tissue_summary.ink_mm2", math.inf),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_numbers_beyond_all_measure_are_refused_by_name(copied: Path, place: str, value: object) -> None:
    described = json.loads((copied / "zarr.json").read_text())
    *above, name = place.split(".")
    section = described["attributes"]
    for key in above:
        section = section[key]
    section[name] = value
    (copied / "zarr.json").write_text(json.dumps(described))
    sealed(copied)
    with pytest.raises(StoreError) as caught:
        TileStore(copied)
    assert str(caught.value).startswith(f"{copied}: ")
    assert place.split(".")[0] in str(caught.value)
    assert len(str(caught.value)) < len(str(copied)) + 400


@pytest.mark.parametrize(
    ("array", "change"),
    [
        ("tiles", {"shape": [10**12, 16, 16, 3]}),
        ("mask", {"shape": [10**6, 10**6]}),
        ("thumbnail", {"shape": [10**5, 10**5, 3]}),
        ("mask", {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [10**6, 10**6]}}}),
    ],
    ids=str,
)
def test_arrays_larger_than_a_slide_take_no_memory(copied: Path, array: str, change: dict[str, Any]) -> None:
    """What has no chunk is filled up by zarr-python, so that a few bytes ask for any memory."""
    lied(copied, f"{array}/zarr.json", lambda described: described.update(change))

    def use() -> None:
        store = TileStore(copied)
        assert (store.mask, store.thumbnail, store.tiles) is None

    with pytest.raises(StoreError, match=array):
        use()


@pytest.mark.parametrize("outside", [-1, 700])
def test_tiles_beside_the_slide_are_refused(copied: Path, outside: int) -> None:
    zarr.open_array(copied / "x", mode="r+")[-1] = outside
    sealed(copied)
    with pytest.raises(StoreError, match="x: places tiles"):
        _ = TileStore(copied).tiles
