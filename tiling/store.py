"""The tile store, version 1: one zarr v3 group a slide. The only importer of zarr, but for the codec it registers.

Stores are written and checked with zarr-python; tiles are read back by `tiling.shards`. `DESIGN` of the format: README,
"The tile store".
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, Self, cast

import imagecodecs
import numpy as np
import zarr
import zarr.codecs
import zarr.errors
import zarr.storage
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from tiling.codec import JpegCodec, TileCodec, decode_jpeg
from tiling.errors import SpecslideError, StoreError
from tiling.files import COMMIT, folder_faults, folder_hash, read_commit
from tiling.grid import Grid
from tiling.shards import ShardReader
from tiling.versions import RESEARCH_USE

UInt8Array = NDArray[np.uint8]
FloatColumn = NDArray[np.float32]

FORMAT: Final = "specslide-tiles"
VERSION: Final = 1
_SHARD_TILES = 256
_SHARD_PIXEL_BYTES = 64 << 20  # a shard is held in memory while it is written: fewer tiles of a larger size
_ZSTD_LEVEL = 5


class SlideFacts(BaseModel):
    """What a store says of its slide: the allow-list, nothing else leaves a slide."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slide_id: str
    sha256: str
    width: int
    height: int
    mpp: float
    vendor: str
    objective_power: float | None
    level_downsamples: tuple[float, ...]


class StoreAttributes(BaseModel):
    """The attributes of a store's group."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["specslide-tiles"] = FORMAT
    version: Literal[1] = VERSION
    slide: SlideFacts
    grid: Grid
    mpp: float
    """Micrometres per pixel of the tiles."""
    mask_px0: float
    """Level-0 pixels spanned by one pixel of `mask`."""
    thumbnail_px0: float
    """Level-0 pixels spanned by one pixel of `thumbnail`."""
    quality: tuple[str, ...]
    annotation: tuple[str, ...]
    config: dict[str, Any]
    """The whole tiling configuration, with the slide's given mpp and the hash of its annotation file."""
    config_sha256: str
    software: dict[str, str]
    notice: str = RESEARCH_USE


@dataclass(frozen=True)
class Columns:
    """One value a tile, in reading order: int32 and float32 arrays (N,)."""

    x: NDArray[np.int32]
    y: NDArray[np.int32]
    tissue: FloatColumn
    quality: Mapping[str, FloatColumn] = field(default_factory=dict)
    annotation: Mapping[str, FloatColumn] = field(default_factory=dict)


def write_tiles(folder: Path, count: int, tile_px: int, codec: TileCodec, tiles: Iterable[UInt8Array]) -> None:
    """Start a store in the empty `folder`: its group and the array `tiles`, from `count` tiles uint8 (T, T, 3).

    Shards are written whole, one after the other. Raises OSError (disk full), ValueError if the count does not fit.
    """
    group = zarr.create_group(store=zarr.storage.LocalStore(folder), zarr_format=3)
    per_shard = shard_tiles(tile_px)
    array = group.create_array(
        "tiles",
        shape=(count, tile_px, tile_px, 3),
        chunks=(1, tile_px, tile_px, 3),
        shards=(per_shard, tile_px, tile_px, 3),
        dtype="uint8",
        config={"write_empty_chunks": True},  # so that a chunk that is not there is damage, never a black tile
        filters=None,
        **_tile_codecs(codec),
    )
    written = 0
    for block in _blocks(tiles, per_shard):
        array[written : written + len(block)] = block
        written += len(block)
    if written != count:
        raise ValueError(f"{written} tiles were given instead of {count}")


def write_columns(
    folder: Path,
    columns: Columns,
    mask: NDArray[np.bool_],
    thumbnail: UInt8Array,
    attributes: StoreAttributes,
) -> None:
    """Finish the store in `folder`: columns, mask (h, w), thumbnail uint8 (h, w, 3), attributes."""
    group = zarr.open_group(zarr.storage.LocalStore(folder), mode="r+")
    _write_array(group, "x", columns.x)
    _write_array(group, "y", columns.y)
    _write_array(group, "tissue", columns.tissue)
    for kind, named in (("quality", columns.quality), ("annotation", columns.annotation)):
        subgroup = group.create_group(kind)
        for name, values in named.items():
            _write_array(subgroup, name, values)
    _write_array(group, "mask", mask.astype(np.uint8))
    _write_array(group, "thumbnail", thumbnail)
    group.attrs.update(attributes.model_dump(mode="json"))
    with warnings.catch_warnings():
        # Consolidated metadata is an extension that zarr-python reads and others ignore. It lists the members, so
        # that zarr-python need not look through the folder and stumble over commit.json.
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        zarr.consolidate_metadata(group.store)


def shard_tiles(tile_px: int) -> int:
    """Tiles in a shard: 256, or as many as fit in 64 MiB of pixels."""
    return max(1, min(_SHARD_TILES, _SHARD_PIXEL_BYTES // (tile_px * tile_px * 3)))


class TileStore:
    """A finished tile store, open for reading. Cheap to open, safe to share between threads, and it pickles.

    Whatever is read is checked first: metadata and columns against the hashes of `commit.json`, tiles against
    their checksums. Raises StoreError, naming the file, for a store that is missing, incomplete or damaged.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self._files = read_commit(self.path)
        except SpecslideError as error:
            what = "is not a finished tile store" if not (self.path / COMMIT).exists() else error.what
            raise StoreError(self.path, what, "make it with `specslide tile`, --overwrite if it exists") from error
        self._check(name for name in self._files if name.endswith("zarr.json"))
        try:
            self.attributes = StoreAttributes.model_validate(dict(self._group().attrs))
        except (ValidationError, ValueError, KeyError) as error:
            fix = "tile the slide again with this version of specslide"
            raise StoreError(self.path, f"is not a tile store of version {VERSION}", fix) from error
        codec = TileCodec.parse(self.attributes.config["codec"])
        decode = decode_jpeg if codec.jpeg_quality else self._decode_lossless
        self._shards = ShardReader(self.path / "tiles", shard_tiles(self.grid.tile_px), decode)

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """The same as `TileStore(path)`."""
        return cls(path)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def slide(self) -> SlideFacts:
        """The slide it was made from."""
        return self.attributes.slide

    @property
    def grid(self) -> Grid:
        """Where its tiles lie."""
        return self.attributes.grid

    @cached_property
    def content_hash(self) -> str:
        """One hash of everything in the store."""
        return folder_hash(self.path)

    @cached_property
    def x(self) -> NDArray[np.int32]:
        """Left edges, level-0 pixels, int32 (N,)."""
        return cast(NDArray[np.int32], self._read("x"))

    @cached_property
    def y(self) -> NDArray[np.int32]:
        """Upper edges, level-0 pixels, int32 (N,)."""
        return cast(NDArray[np.int32], self._read("y"))

    @cached_property
    def tissue(self) -> FloatColumn:
        """Fraction of each tile that is tissue, float32 (N,)."""
        return cast(FloatColumn, self._read("tissue"))

    @cached_property
    def quality(self) -> dict[str, FloatColumn]:
        """Quality metrics by name, float32 (N,) each; see `tiling.quality`."""
        return {name: self._read(f"quality/{name}") for name in self.attributes.quality}

    @cached_property
    def annotations(self) -> dict[str, FloatColumn]:
        """Fraction of each tile under each class's annotation, float32 (N,) each."""
        return {name: self._read(f"annotation/{name}") for name in self.attributes.annotation}

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """Tissue mask, bool (h, w); a pixel spans `attributes.mask_px0` level-0 pixels."""
        return np.asarray(self._read("mask") > 0)

    @cached_property
    def thumbnail(self) -> UInt8Array:
        """The slide in small, uint8 (h, w, 3); a pixel spans `attributes.thumbnail_px0` level-0 pixels."""
        return cast(UInt8Array, self._read("thumbnail"))

    def read(self, rows: NDArray[np.integer] | slice) -> UInt8Array:
        """The tiles of those rows, uint8 (n, T, T, 3), in the order asked for.

        Raises IndexError for a row that does not exist, StoreError for a damaged one.
        """
        wanted = np.arange(len(self))[rows]  # also resolves slices, and negative or absent rows as numpy does
        out = np.empty((len(wanted), self.grid.tile_px, self.grid.tile_px, 3), np.uint8)
        self._shards.read_into(wanted, out)
        return out

    def _group(self) -> zarr.Group:
        return zarr.open_group(zarr.storage.LocalStore(self.path, read_only=True), mode="r")

    def _read(self, name: str) -> Any:
        self._check(n for n in self._files if n.startswith(f"{name}/"))
        array = self._group()[name]
        assert isinstance(array, zarr.Array)
        return np.asarray(array[...])

    def _check(self, names: Iterable[str]) -> None:
        """Raise StoreError unless those files are as they were written."""
        faults = folder_faults(self.path, only=frozenset(names))
        if faults:
            raise StoreError(self.path, f"is damaged: {faults[0]}", "tile the slide again with --overwrite")

    def _decode_lossless(self, data: memoryview) -> UInt8Array:
        side = self.grid.tile_px
        try:
            raw = imagecodecs.zstd_decode(bytes(data))
        except RuntimeError as error:  # imagecodecs' errors
            raise ValueError(str(error)) from error
        return np.frombuffer(raw, np.uint8).reshape(side, side, 3)


def verify_store(path: Path) -> list[str]:
    """Everything wrong with a store, a sentence a fault; every byte is read. Empty if it is intact."""
    faults = folder_faults(path)
    if not faults:
        try:
            TileStore(path)
        except StoreError as error:
            return [str(error)]
    return faults


def _tile_codecs(codec: TileCodec) -> dict[str, Any]:
    checksum = zarr.codecs.Crc32cCodec()
    if codec.jpeg_quality is not None:
        return {"serializer": JpegCodec(codec.jpeg_quality), "compressors": [checksum]}
    return {"compressors": [zarr.codecs.ZstdCodec(level=_ZSTD_LEVEL), checksum]}


def _write_array(group: zarr.Group, name: str, values: NDArray[Any]) -> None:
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=tuple(max(1, n) for n in values.shape),
        dtype=values.dtype,
        compressors=[zarr.codecs.ZstdCodec(level=_ZSTD_LEVEL), zarr.codecs.Crc32cCodec()],
        filters=None,
        config={"write_empty_chunks": True},
    )
    array[...] = values


def _blocks(tiles: Iterable[UInt8Array], size: int) -> Iterator[UInt8Array]:
    """The tiles stacked in arrays of up to `size`."""
    block: list[UInt8Array] = []
    for tile in tiles:
        block.append(tile)
        if len(block) == size:
            yield np.stack(block)
            block = []
    if block:
        yield np.stack(block)
