"""Writing of feature stores: features chunk by chunk, in bounded memory; metadata and columns by zarr-python."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tiling.core.arrays import AnyArray, FeatureType, Float32Array
from tiling.core.errors import ConfigError
from tiling.grid import Raster, Tiles
from tiling.stores.codec import encode_zstd
from tiling.stores.features import FeatureAttributes, chunk_name
from tiling.stores.group import ANNOTATION
from tiling.stores.shards import CHECKSUM_BYTES, crc32c
from tiling.stores.write import consolidate, group_of, write_array, write_group, zstd_codecs

_LEVEL = 1  # of zstd: features hardly compress
_CHUNK_ROWS, _CHUNK_BYTES = 1024, 4 << 20
_TILE = ("tile",)


def chunk_rows(dim: int, dtype: FeatureType) -> int:
    """Rows of a chunk: 1,024, or as many as fit in 4 MiB."""
    return max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // (dim * np.dtype(dtype).itemsize)))


def write_features(folder: Path, dim: int, dtype: FeatureType, blocks: Iterable[Float32Array]) -> int:
    """Start a feature store in an empty folder: its group, and the array `features`.

    Args:
        folder: The empty folder.
        dim: Length D of a feature vector.
        dtype: As what they are stored.
        blocks: The features in the order of the rows, finite float32 (n, D) each, of any n. One chunk is in memory.

    Returns:
        The number of rows.

    Raises:
        OSError: If the folder cannot be written.
        ConfigError: For features beyond what float16 holds.
    """
    rows = chunk_rows(dim, dtype)
    chunk = np.zeros((rows, dim), np.dtype(dtype).newbyteorder("<"))
    count = filled = 0
    for block in blocks:
        _require_fits(block, dtype)
        while len(block):
            part, block = block[: rows - filled], block[rows - filled :]
            chunk[filled : filled + len(part)] = part
            filled, count = filled + len(part), count + len(part)
            if filled == rows:
                _write_chunk(folder, (count - 1) // rows, chunk)
                filled = 0
    if filled:
        chunk[filled:] = 0  # chunks of zarr are all of one size
        _write_chunk(folder, (count - 1) // rows, chunk)
    with group_of(folder) as group:
        group.create_array(
            "features",
            shape=(count, dim),
            chunks=(rows, dim),
            dtype=dtype,
            dimension_names=("tile", "feature"),
            compressors=zstd_codecs(_LEVEL),
            filters=None,
            config={"write_empty_chunks": True},
        )
    return count


def write_feature_columns(
    folder: Path, tiles: Tiles, attributes: FeatureAttributes, thumbnail: Raster | None = None
) -> None:
    """Finish the feature store in `folder`: the tiles' places and columns, the slide in small, attributes.

    Args:
        folder: A folder that `write_features` has started.
        tiles: The places and columns (N,) of the rows.
        attributes: What the store says of itself, the names of its columns among it.
        thumbnail: The slide in small, uint8 (h, w, 3), if it is known; `attributes` say its scale.

    Raises:
        OSError: If the folder cannot be written.
        KeyError: For a column that the attributes name and `tiles` lacks.
    """
    columns = {name: tiles.columns[name] for name in attributes.columns}
    tissue, prefix = columns.pop("tissue", None), f"{ANNOTATION}/"
    annotation = {name.removeprefix(prefix): columns.pop(name) for name in [*columns] if name.startswith(prefix)}
    with group_of(folder) as group:
        write_array(group, "x", tiles.x0, _TILE)
        write_array(group, "y", tiles.y0, _TILE)
        if tissue is not None:
            write_array(group, "tissue", tissue, _TILE)
        write_group(group, "quality", columns, _TILE)
        write_group(group, ANNOTATION, annotation, _TILE)
        if thumbnail is not None:
            write_array(group, "thumbnail", thumbnail.values, ("thumbnail_y", "thumbnail_x", "rgb"))
        group.attrs.update(attributes.model_dump(mode="json"))
        consolidate(group)


def _write_chunk(folder: Path, number: int, chunk: AnyArray) -> None:
    data = encode_zstd(chunk, _LEVEL)
    path = folder / chunk_name(number)
    path.parent.mkdir(parents=True)
    path.write_bytes(data + crc32c(data).to_bytes(CHECKSUM_BYTES, "little"))


def _require_fits(block: Float32Array, dtype: FeatureType) -> None:
    if dtype == "float16" and len(block) and np.abs(block).max() > np.finfo(np.float16).max:
        raise ConfigError("dtype", f"features of up to {np.abs(block).max():g} do not fit in float16", "use float32")
