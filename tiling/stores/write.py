"""Writing of tile stores: zarr-python writes metadata and columns, `tiling.stores.shards` packs the tiles' shards."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.codecs
import zarr.errors
import zarr.storage
from zarr.abc.buffer import Buffer
from zarr.buffer import cpu

from tiling.core.arrays import AnyArray, Float32Array
from tiling.grid import Raster, Tiles
from tiling.stores.codec import JPEG_NAME, ZSTD_LEVEL, JpegCodec, TileCodec
from tiling.stores.group import ANNOTATION, ROOT
from tiling.stores.shards import pack_shard, shard_path
from tiling.stores.store import StoreAttributes

_SHARD_TILES = 256
_SHARD_PIXEL_BYTES = 64 << 20  # a shard is held in memory while it is written: fewer tiles of a larger size


def write_tiles(folder: Path, tile_px: int, codec: TileCodec, encoded: Iterable[bytes]) -> int:
    """Start a store in an empty folder: its group, and the arrays `tiles` and `crc32c` of encoded tiles.

    Args:
        folder: The empty folder.
        tile_px: Side T of a tile, pixels.
        codec: How the tiles are encoded.
        encoded: The chunks in the order of the rows: what `codec.encode` makes of uint8 (T, T, 3), or for `source` JPEG
            files of that size. Only one shard of them is in memory at a time.

    Returns:
        The number of tiles.

    Raises:
        OSError: If the folder cannot be written.
    """
    tiles, per_shard = folder / "tiles", shard_tiles(tile_px)
    checksums: list[int] = []
    for number, chunks in enumerate(_batches(encoded, per_shard)):
        path = shard_path(tiles, number)
        path.parent.mkdir(parents=True)
        shard, of_chunks = pack_shard(chunks, per_shard)
        path.write_bytes(shard)
        checksums += of_chunks
    with group_of(folder) as group:
        group.create_array(
            "tiles",
            shape=(len(checksums), tile_px, tile_px, 3),
            chunks=(1, tile_px, tile_px, 3),
            shards=(per_shard, tile_px, tile_px, 3),
            dtype="uint8",
            config={"write_empty_chunks": True},  # for others who write to it: a chunk that is not there is damage
            filters=None,
            **_tile_codecs(codec),
        )
        write_array(group, "crc32c", np.array(checksums, np.uint32))
    return len(checksums)


def write_columns(folder: Path, tiles: Tiles, rasters: Mapping[str, Raster], attributes: StoreAttributes) -> None:
    """Finish the store in `folder`: the tiles' places and columns, pictures by name, attributes.

    Args:
        folder: A folder that `write_tiles` has started.
        tiles: The tiles' places and columns (N,): `tissue`, and those that the attributes name.
        rasters: `mask` bool (h, w), `thumbnail` uint8 (h, w, 3), and `cut` uint8 (h, w) where it is known.
        attributes: What the store says of itself.

    Raises:
        OSError: If the folder cannot be written.
        KeyError: For a column that the attributes name and `tiles` lacks.
    """
    columns = tiles.columns
    with group_of(folder) as group:
        write_array(group, "x", tiles.x0)
        write_array(group, "y", tiles.y0)
        write_array(group, "tissue", columns["tissue"])
        write_group(group, "quality", {name: columns[name] for name in attributes.quality})
        write_group(group, ANNOTATION, {name: columns[f"{ANNOTATION}/{name}"] for name in attributes.annotation})
        for name, raster in rasters.items():
            write_array(group, name, raster.values.astype(np.uint8))
        group.attrs.update(attributes.model_dump(mode="json"))
        consolidate(group)


def write_annotations(folder: Path, annotation: Mapping[str, Float32Array], attributes: StoreAttributes) -> None:
    """Add annotation columns (N,) and their attributes to the store in `folder`, which has none yet."""
    with group_of(folder) as group:
        write_group(group, ANNOTATION, annotation)
        group.attrs.put(attributes.model_dump(mode="json"))
        consolidate(group)


def shard_tiles(tile_px: int) -> int:
    """Tiles in a shard: 256, or as many as fit in 64 MiB of pixels."""
    return max(1, min(_SHARD_TILES, _SHARD_PIXEL_BYTES // (tile_px * tile_px * 3)))


@contextmanager
def group_of(folder: Path) -> Iterator[zarr.Group]:
    """The group in `folder` as zarr-python has it in memory; what is new or changed is written to files at the end.

    Given the folder itself, zarr-python would write in threads that go on after one of them has failed, and bring a
    folder back that has been removed meanwhile. Raises OSError.
    """
    before = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("zarr.json"))}
    files: dict[str, Buffer] = {name: cpu.Buffer.from_bytes(data) for name, data in before.items()}
    yield zarr.open_group(zarr.storage.MemoryStore(files), mode="a", zarr_format=3, use_consolidated=False)
    for name, content in sorted(files.items()):
        data = _for_all(content.to_bytes()) if name == ROOT else content.to_bytes()
        if data != before.get(name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)


def _tile_codecs(codec: TileCodec) -> dict[str, Any]:
    """The zarr codecs of a tile's chunk, as `create_array` takes them."""
    if codec.kind == "lossless":
        return {"compressors": zstd_codecs(ZSTD_LEVEL)}
    return {"serializer": JpegCodec(codec.quality, codec.subsampling), "compressors": [zarr.codecs.Crc32cCodec()]}


def consolidate(group: zarr.Group) -> None:
    """List the members of a finished group in its own metadata.

    Consolidated metadata is an extension that zarr-python and xarray read and others ignore. It lists the members, so
    that nobody looks through the folder and stumbles over commit.json. JPEG tiles are left out of the list: for their
    codec, zarr-python without specslide would refuse the whole group. Axes have names in it, as xarray asks for; in the
    metadata of the arrays of a tile store they have none, which would change the store's identity.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        zarr.consolidate_metadata(group.store)


def _for_all(root: bytes) -> bytes:
    """A group's metadata with such a list of members."""
    described = json.loads(root)
    members = (described.get("consolidated_metadata") or {}).get("metadata", {})
    if JPEG_NAME in json.dumps(members.get("tiles")):
        del members["tiles"]
    for name, member in members.items():
        if member["node_type"] == "array" and "dimension_names" not in member:
            member["dimension_names"] = _AXES.get(name, ("tile",))
    return json.dumps(described, indent=2).encode()


_AXES = {
    "tiles": ("tile", "tile_y", "tile_x", "rgb"),
    "mask": ("mask_y", "mask_x"),
    "cut": ("mask_y", "mask_x"),
    "thumbnail": ("thumbnail_y", "thumbnail_x", "rgb"),
}
"""Names of the axes of arrays that are no columns."""


def write_group(
    group: zarr.Group, name: str, columns: Mapping[str, AnyArray], dimensions: tuple[str, ...] | None = None
) -> None:
    """Write arrays by name into a new group of that name within a group."""
    within = group.create_group(name)
    for column, values in columns.items():
        write_array(within, column, values, dimensions)


def write_array(group: zarr.Group, name: str, values: AnyArray, dimensions: tuple[str, ...] | None = None) -> None:
    """Write an array, whole in one chunk; `dimensions` are its axes' names, which xarray asks for."""
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=tuple(max(1, n) for n in values.shape),
        dtype=values.dtype,
        dimension_names=dimensions,
        compressors=zstd_codecs(ZSTD_LEVEL),
        filters=None,
        config={"write_empty_chunks": True},
    )
    array[...] = values


def zstd_codecs(level: int) -> list[Any]:
    """zarr's codecs of bytes compressed by zstd, with a checksum."""
    return [zarr.codecs.ZstdCodec(level=level), zarr.codecs.Crc32cCodec()]


def _batches(chunks: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    """The chunks in lists of `size`, the last of which may be shorter."""
    chunks = iter(chunks)
    while batch := list(islice(chunks, size)):
        yield batch
