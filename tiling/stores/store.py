"""The tile store, version 1: one zarr v3 group a slide. Reading; `tiling.stores.write` writes.

The tiles' shards are read by `tiling.stores.shards`. Design of the format: README, "The tile store".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, Protocol, Self, TypeVar, cast

import numpy as np
import zarr
import zarr.codecs
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from tiling.annotations.classes import ClassRules
from tiling.core.arrays import Float32Array, Icc, UInt8Array
from tiling.core.artefact import Recipe, content_hash, folder_faults
from tiling.core.errors import StoreError
from tiling.core.files import sha256_json
from tiling.core.versions import RESEARCH_USE
from tiling.grid import Bounds, Frame, Grid, Mpp, Px0, Raster, Side0, Tiles
from tiling.stores.codec import JpegCodec, TileCodec
from tiling.stores.group import ANNOTATION, FORGED, ROOT, CheckedGroup
from tiling.stores.shards import ShardReader
from tiling.stores.summary import TissueSummary
from tiling.stores.tabular import Tabular

FORMAT: Final = "specslide-tiles"
VERSION: Final = 1
MARK: Final = "tiles/zarr.json"
"""A file that every store has, and hardly another folder of the name `*.zarr`."""
NO_PROFILE: Final = "no ICC profile: its pixels are taken for sRGB"
DECLARE_BOUNDS: Final = ("leica", "mirax", "ventana")
"""Vendors whose slides declare what part was scanned; of one that does not, it is noted that all was."""


class SlideFacts(BaseModel):
    """What a store says of its slide: the allow-list, nothing else leaves a slide."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slide_id: str
    sha256: str
    width: Side0
    height: Side0
    mpp: Mpp
    vendor: str
    objective_power: float | None
    level_downsamples: tuple[Px0, ...] = Field(max_length=100)
    bounds: Bounds | None = None
    """The part that was scanned; None: all of it."""
    plane: str | None = None
    """Which of several pictures, focal planes or time points in the file it is; None if there is one only."""

    def frame(self) -> Frame:
        """Where its coordinates begin and end.

        Raises StoreError for a slide of a format that declares what was scanned, if these facts are of a version that
        did not ask: no one knows where QuPath counts from.
        """
        if self.bounds is None and self.vendor in DECLARE_BOUNDS:
            what = "was tiled by an earlier version, which did not note what part of the slide was scanned"
            raise StoreError(self.slide_id, what, "tile the slide again with --overwrite")
        return Frame((self.width, self.height), self.bounds)

    @model_serializer(mode="wrap")
    def _as_ever(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without bounds and plane the facts, and so what is hashed of them, are those that earlier versions wrote."""
        later = ("bounds", "plane")
        return {name: value for name, value in plain(self).items() if name not in later or value is not None}


class _OnASlide(Protocol):
    @property
    def slide(self) -> SlideFacts: ...
    @property
    def grid(self) -> Grid: ...


Placed = TypeVar("Placed", bound=_OnASlide)


def of_one_slide(attributes: Placed) -> Placed:
    """A store's attributes themselves. Raises ValueError if the grid lies over a slide of another size."""
    if attributes.grid.size0 != (attributes.slide.width, attributes.slide.height):
        raise ValueError("grid: it lies over a slide of another size")
    return attributes


class StoreAttributes(BaseModel):
    """The attributes of a store's group."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["specslide-tiles"] = FORMAT
    version: Literal[1] = VERSION
    slide: SlideFacts
    grid: Grid
    mpp: Mpp
    """Micrometres per pixel of the tiles."""
    mask_px0: Px0
    """Level-0 pixels spanned by one pixel of `mask`."""
    thumbnail_px0: Px0
    """Level-0 pixels spanned by one pixel of `thumbnail`."""
    quality: tuple[str, ...]
    annotation: tuple[str, ...]
    bad_tiles: tuple[tuple[int, int], ...] = ()
    """Corners (x0, y0), level-0 pixels, of tiles left out because the slide cannot be decoded there."""
    tissue_summary: TissueSummary | None = None
    """None in stores of before version 0.2, and imported ones; as is `cut`."""
    lacks_profile: bool = False
    """Whether pixels that are to be sRGB are the slide's own, which has no ICC profile."""
    config: dict[str, Any]
    """The whole tiling configuration, with the slide's given mpp and the hash of its annotation file."""
    config_sha256: str
    software: dict[str, str]
    notice: str = RESEARCH_USE

    @model_validator(mode="after")
    def _of_one_slide(self) -> Self:
        return of_one_slide(self)

    def doubts(self) -> list[str]:
        """Warnings about the store: see `TissueSummary.doubts`, which has none where the mask was given."""
        given = self.config.get("tissue", {}).get("method") in ("all", "mask")
        of_tissue = [] if self.tissue_summary is None or given else self.tissue_summary.doubts()
        return [NO_PROFILE] * self.lacks_profile + of_tissue


def store_recipe(slide_sha256: str, config: Mapping[str, Any]) -> Recipe:
    """The recipe of a store; `config` is its attributes' own: `tiling.tile.tiling_inputs`.

    So a store of commit version 1, which has no recipe, tells it by its attributes.
    """
    files = {name: config.get(f"{name}_sha256") for name in ("annotation", "tissue")}
    settings = {name: value for name, value in config.items() if name not in ("annotation_sha256", "tissue_sha256")}
    return Recipe("store", {"slide": slide_sha256} | files, settings)


def annotated_inputs(config: Mapping[str, Any], sha256: str | None, rules: ClassRules) -> dict[str, Any]:
    """The inputs of a store, as its attributes have them, with another annotation, of that hash, or none.

    The rules are named only where there is an annotation that they could change: version 0.1 had none.
    """
    others = {name: value for name, value in config.items() if name != "annotation"} | {"annotation_sha256": sha256}
    ruled = sha256 is not None and rules != ClassRules()
    return others | ({"annotation": rules.model_dump(mode="json")} if ruled else {})


class TileStore(Tabular):
    """A finished tile store, open for reading. Cheap to open, safe to share between threads, and it pickles.

    Whatever is read is checked first: metadata and columns against the hashes of `commit.json`, tiles against
    their checksums. Raises StoreError, naming the file, for a store that is missing, incomplete or damaged.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        make = "make it with `specslide tile`, --overwrite if it exists"
        self._group = CheckedGroup(self.path, "tile store", make, "tile the slide again with --overwrite")
        self._files = self._group.files
        if "features/zarr.json" in self._files and MARK not in self._files:
            raise StoreError(self.path, "holds features of tiles, and no tiles", "pass the slide, or a tile store")
        try:
            group = self._group.open()
            self.attributes = StoreAttributes.model_validate(dict(group.attrs))
            codec = TileCodec.parse(self.attributes.config["codec"])
            self._count, per_shard = _tiles_layout(group["tiles"], self.grid.tile_px, codec)
        except FORGED as error:
            raise self._group.forged(f"a tile store of version {VERSION}", error) from error
        self._group.require_count("tiles", self._count)
        self._shards = ShardReader(self.path / "tiles", per_shard, codec.decode)

    def __len__(self) -> int:
        return self._count

    @property
    def slide(self) -> SlideFacts:
        """The slide it was made from."""
        return self.attributes.slide

    @property
    def grid(self) -> Grid:
        """Where its tiles lie."""
        return self.attributes.grid

    @property
    def icc(self) -> Icc:
        """The colours of its pixels: see `TilingConfig.icc`."""
        return "srgb" if self.attributes.config.get("icc") == "srgb" else "none"

    @property
    def recipe(self) -> Recipe:
        """The store's recipe, by its attributes: a store of commit version 1 has it too."""
        return store_recipe(self.slide.sha256, self.attributes.config)

    @cached_property
    def sha256(self) -> str:
        """One hash of everything in the store."""
        return content_hash(self.path)

    @cached_property
    def pixels_sha256(self) -> str:
        """The store's identity for what is computed from its pixels, whatever labels and features it has.

        One hash of tiles, places, tissue, quality columns, mask and thumbnail, and of slide and grid.
        """
        own = {
            name: of["sha256"]
            for name, of in self._files.items()
            if name != ROOT and not name.startswith((f"{ANNOTATION}/", "features/"))
        }
        facts = [self.slide.model_dump(mode="json"), self.grid.model_dump(mode="json")]
        return sha256_json([*facts, own])

    @cached_property
    def tiles(self) -> Tiles:
        """Where its tiles are, and their columns: `tissue`, quality metrics, and `annotation/<class>`.

        A column is read, and checked, when it is first asked for.
        """
        annotation = (f"{ANNOTATION}/{name}" for name in self.attributes.annotation)
        return self._group.tiles(self.grid, ("tissue", *self.attributes.quality, *annotation), self._count)

    @property
    def quality(self) -> dict[str, Float32Array]:
        """Quality metrics by name, float32 (N,) each; see `tiling.quality`."""
        return {name: self.tiles.columns[name] for name in self.attributes.quality}

    @property
    def annotations(self) -> dict[str, Float32Array]:
        """Fraction of each tile under each class's annotation, float32 (N,) each."""
        return {name: self.tiles.columns[f"{ANNOTATION}/{name}"] for name in self.attributes.annotation}

    @cached_property
    def mask(self) -> Raster:
        """Tissue mask, bool (h, w)."""
        return Raster(np.asarray(self._read("mask", np.uint8, (-1, -1)) > 0), self.attributes.mask_px0)

    @cached_property
    def cut(self) -> Raster | None:
        """What the mask leaves out, uint8 (h, w): 1 for pen ink, 2 for pieces that are too small; 0 elsewhere."""
        if "cut/zarr.json" not in self._files:
            return None
        return Raster(self._read("cut", np.uint8, (-1, -1)), self.attributes.mask_px0)

    @cached_property
    def thumbnail(self) -> Raster:
        """The slide in small, uint8 (h, w, 3)."""
        return Raster(self._read("thumbnail", np.uint8, (-1, -1, 3)), self.attributes.thumbnail_px0)

    def read(
        self,
        rows: Sequence[int] | NDArray[np.integer] | slice,
        out: UInt8Array | None = None,
        places: NDArray[np.integer] | None = None,
    ) -> UInt8Array:
        """The tiles of those rows, uint8 (n, T, T, 3), in the order asked for; rows may repeat.

        With `out`, contiguous and of that shape, they are decoded into it: fresh memory costs a tenth of the time. With
        `places` (n,) too, `out` is a batch (m, T, T, 3) of any stores' tiles, and tile i becomes its `places[i]`.
        Raises IndexError for a row or place that does not exist, ValueError for an `out` that does not fit, and
        StoreError for a damaged tile; then `out` is to be thrown away.
        """
        index = rows if isinstance(rows, slice) else np.asarray(rows, None if len(rows) else np.intp)
        wanted = np.arange(self._count)[index]  # numpy resolves slices, and negative or absent rows
        count = len(wanted) if out is None or places is None else len(out)
        shape = (count, self.grid.tile_px, self.grid.tile_px, 3)
        out = np.empty(shape, np.uint8) if out is None else out
        if out.dtype != np.uint8 or out.shape != shape or not out.flags.c_contiguous:
            raise ValueError(f"`out` is {out.dtype} {out.shape} instead of a contiguous uint8 {shape}")
        if places is not None and places.shape != wanted.shape:
            raise ValueError(f"`places` is {places.shape} for {len(wanted)} rows")
        checksums = None if self._checksums is None else self._checksums[wanted].tolist()
        targets = out if places is None else [out[place] for place in places.tolist()]
        self._shards.read_into(wanted.tolist(), targets, checksums)
        return out

    def _about(self) -> list[str]:
        return [f"codec {self.attributes.config['codec']}"]

    def _picture(self) -> Raster:
        return self.thumbnail

    @cached_property
    def _checksums(self) -> NDArray[np.uint32] | None:
        """What tells that a tile is the one written as this row, uint32 (N,).

        Without that column (it is not needed by version 1) every byte of the tiles is hashed instead, once.
        """
        if "crc32c/zarr.json" in self._files:
            return cast(NDArray[np.uint32], self._read("crc32c", np.uint32))
        self._group.check(name for name in self._files if name.startswith("tiles/"))
        return None

    def _read(self, name: str, dtype: type[np.generic], shape: tuple[int, ...] | None = None) -> Any:
        """All of an array, its bytes checked; one value a tile, unless its shape is given, -1 for any length."""
        return self._group.read(name, dtype, shape or (self._count,))


def verify_store(path: Path) -> list[str]:
    """The faults of a store, one sentence each; every byte is read. Empty if it is intact."""
    if faults := folder_faults(path):
        return faults
    try:
        TileStore(path)
    except StoreError as error:
        return [str(error)]
    return []


def _tiles_layout(array: object, tile_px: int, codec: TileCodec) -> tuple[int, int]:
    """(number of tiles, tiles in a shard) of the array `tiles`. Raises ValueError unless it is as version 1 has it."""
    if not isinstance(array, zarr.Array) or array.shards is None:
        raise ValueError("`tiles` is not an array with shards")
    tile = (tile_px, tile_px, 3)
    if array.dtype != np.uint8 or (array.shape[1:], array.chunks, array.shards[1:]) != (tile, (1, *tile), tile):
        raise ValueError(f"`tiles` does not hold tiles of {tile_px} px")
    bytes_codecs = [zarr.codecs.BytesCodec, zarr.codecs.ZstdCodec] if codec.kind == "lossless" else [JpegCodec]
    found = [type(c) for c in (*array.filters, array.serializer, *array.compressors)]
    if found != [*bytes_codecs, zarr.codecs.Crc32cCodec]:
        raise ValueError(f"`tiles` is not encoded as {codec.kind}")
    return array.shape[0], array.shards[0]
