"""The feature store, version 1: what an encoder makes of a slide's tiles, one zarr v3 group a slide.

Reading; `tiling.stores.write_features` writes. Plain zarr-python and xarray read it all. Knows nothing of encoders but
their record. Design of the format: README, "Features".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, Self, cast

import numpy as np
import zarr
import zarr.codecs
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tiling.core.arrays import FeatureType, Float32Array, Icc
from tiling.core.artefact import Recipe, content_hash, folder_faults, read_commit, setting_differences
from tiling.core.errors import StoreError
from tiling.core.files import FEATURES, sha256_json
from tiling.core.versions import RESEARCH_USE
from tiling.grid import Grid, Mpp, Px0, Raster, TilePx, Tiles, same_scale
from tiling.stores.codec import decode_lossless
from tiling.stores.group import ANNOTATION, FORGED, ROOT, CheckedGroup
from tiling.stores.shards import CHECKSUM_BYTES
from tiling.stores.store import SlideFacts, of_one_slide
from tiling.stores.tabular import Tabular

FORMAT: Final = "specslide-features"
VERSION: Final = 1
MARK: Final = "features/zarr.json"
"""A file that every feature store has."""
MAX_DIM: Final = 65_536
_MAX_CHUNK_BYTES = 1 << 30


class Encoder(BaseModel):
    """What makes features of tiles: all that must be equal for features to be used together."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(min_length=1, max_length=256)
    """The encoder's name: of a known one, timm's, a model's backbone, or a file's."""
    kind: Literal["timm", "model", "torchscript", "onnx", "imported"]
    """By what the features are computed; imported: by another program."""
    sha256: str = Field(pattern=r"^([0-9a-f]{64})?$")
    """Of its weights, by name, shape and value; of a model folder, TorchScript or ONNX, of that; "" if unknown."""
    tile_px: TilePx
    """Side of its tiles, pixels."""
    mpp: Mpp
    """Micrometres per pixel of its tiles, as asked for; the grid has the true one."""
    input_px: int | None = Field(None, gt=0)
    """Side of the picture the network sees, to which tiles are resized; None if unknown."""
    mean: tuple[float, ...] | None = None
    """Per channel, for pixels in [0, 1]; None if unknown, as `std`."""
    std: tuple[float, ...] | None = None
    pooling: str = ""
    """How the network's last maps or tokens become one vector; "" if unknown."""
    fit: Literal["resize", "crop"] = "resize"
    """How a tile becomes that picture: resized, or its middle."""
    dim: int = Field(gt=0, le=MAX_DIM)
    """Length D of a feature vector."""
    licence: str = ""
    """Under which the weights are given; "" if unknown."""

    def record(self) -> dict[str, Any]:
        """All that decides the features: everything but the licence."""
        return self.model_dump(mode="json", exclude={"licence"})

    def difference(self, other: Encoder) -> str:
        """How another encoder differs from this one, in words; "" if their features can be used together.

        Scales are equal where `tiling.grid.same_scale` says so.
        """
        theirs = other.record() | ({"mpp": self.mpp} if same_scale(self.mpp, other.mpp) else {})
        return setting_differences(self.record(), theirs)


class FeatureAttributes(BaseModel):
    """The attributes of a feature store's group."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["specslide-features"] = FORMAT
    version: Literal[1] = VERSION
    slide: SlideFacts
    grid: Grid
    encoder: Encoder
    columns: tuple[str, ...] = ()
    """Those of the tiles: `tissue`, quality metrics, and `annotation/<class>`."""
    thumbnail_px0: Px0 | None = None
    """Level-0 pixels spanned by one pixel of `thumbnail`; None: there is none."""
    left_out: dict[str, int] = {}
    """Tiles of the grid that have no features, by reason; see inference.prediction."""
    settings: dict[str, Any] = {}
    """How the tiles were cut, chosen and computed."""
    software: dict[str, str] = {}
    notice: str = RESEARCH_USE

    @model_validator(mode="after")
    def _of_one_slide(self) -> Self:
        return of_one_slide(self)


class FeatureStore(Tabular):
    """A finished feature store, open for reading. Cheap to open, safe to share between threads, and it pickles.

    Whatever is read is checked first against the hashes of `commit.json`. Raises StoreError, naming the file, for a
    store that is missing, incomplete or damaged.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        make = "make it with `specslide embed`, --overwrite if it exists"
        self._group = CheckedGroup(self.path, "feature store", make, _AGAIN)
        try:
            group = self._group.open()
            self.attributes = FeatureAttributes.model_validate(dict(group.attrs))
            self._count, self._chunk_rows, self.dtype = _layout(group["features"], self.attributes.encoder.dim)
        except FORGED as error:
            raise self._group.forged(f"a feature store of version {VERSION}", error) from error
        self._group.require_count("features", self._count)

    def __len__(self) -> int:
        return self._count

    @property
    def slide_id(self) -> str:
        """What the slide is called."""
        return self.attributes.slide.slide_id

    @property
    def slide(self) -> SlideFacts:
        """The slide whose tiles they are."""
        return self.attributes.slide

    @property
    def grid(self) -> Grid:
        """Where the tiles lie."""
        return self.attributes.grid

    @property
    def encoder(self) -> Encoder:
        """What made the features."""
        return self.attributes.encoder

    @property
    def dim(self) -> int:
        """Length D of a feature vector."""
        return self.encoder.dim

    @property
    def icc(self) -> Icc:
        """The colours of the pixels that they were made of: see `TilingConfig.icc`."""
        return "srgb" if self.attributes.settings.get("icc") == "srgb" else "none"

    @property
    def recipe(self) -> Recipe | None:
        """What the store was made from."""
        return read_commit(self.path).recipe

    @cached_property
    def sha256(self) -> str:
        """One hash of everything in the store."""
        return content_hash(self.path)

    @cached_property
    def identity(self) -> str:
        """The store's identity for what is computed from its features, whatever labels it has.

        One hash of features, places, tissue and quality columns, and of slide, grid and encoder.
        """
        shown = (f"{ANNOTATION}/", "thumbnail/")
        own = {n: of["sha256"] for n, of in self._group.files.items() if n != ROOT and not n.startswith(shown)}
        facts = [self.slide.model_dump(mode="json"), self.grid.model_dump(mode="json"), self.encoder.record()]
        return sha256_json([*facts, own])

    @cached_property
    def tiles(self) -> Tiles:
        """Where the tiles are, in the order of the rows, and their columns, as `TileStore.tiles` has them.

        A column is read, and checked, when it is first asked for.
        """
        return self._group.tiles(self.grid, self.attributes.columns, self._count)

    @cached_property
    def thumbnail(self) -> Raster | None:
        """The slide in small, uint8 (h, w, 3); None if the store has none."""
        px0 = self.attributes.thumbnail_px0
        return None if px0 is None else Raster(self._group.read("thumbnail", np.uint8, (-1, -1, 3)), px0)

    def read(self, rows: Sequence[int] | NDArray[np.integer] | slice = slice(None)) -> Float32Array:
        """The features of those rows, float32 (n, D), in the order asked for; rows may repeat.

        Beside them one chunk is in memory at a time: at most 1,024 rows or 4 MiB. Raises IndexError for a row that does
        not exist, StoreError for damage.
        """
        index = rows if isinstance(rows, slice) else np.asarray(rows, None if len(rows) else np.intp)
        wanted = np.arange(self._count)[index]  # numpy resolves slices, and negative or absent rows
        out = np.empty((len(wanted), self.dim), np.float32)
        order = np.argsort(wanted // self._chunk_rows, kind="stable")
        chunks = (wanted // self._chunk_rows)[order]
        for places in np.split(order, np.flatnonzero(np.diff(chunks)) + 1) if len(order) else ():
            number = int(wanted[places[0]]) // self._chunk_rows
            out[places] = self._chunk(number)[wanted[places] - number * self._chunk_rows]
        return out

    def _about(self) -> list[str]:
        return [f"{self.dim} features by {self.encoder.name}"]

    def _facts(self) -> dict[str, Any]:
        """The encoder; tuples as arrays, which anndata's files hold."""
        of = self.encoder.model_dump(exclude_none=True).items()
        return {"encoder": {name: np.asarray(value) if isinstance(value, tuple) else value for name, value in of}}

    def _picture(self) -> Raster | None:
        return self.thumbnail

    def _matrix(self) -> tuple[Float32Array, list[str]]:
        return self.read(), []

    def _chunk(self, number: int) -> NDArray[np.floating]:
        """The rows of a chunk, (R, D), its bytes checked against their hash."""
        name = chunk_name(number)
        path, known = self.path / name, self._group.files.get(name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StoreError(path, f"cannot be read ({error.strerror})", _AGAIN) from error
        if known is None or hashlib.sha256(data).hexdigest() != known["sha256"]:
            raise StoreError(path, "is damaged: its content was changed after it was written", _AGAIN)
        block = np.empty((self._chunk_rows, self.dim), np.dtype(self.dtype).newbyteorder("<"))
        try:
            decode_lossless(data[:-CHECKSUM_BYTES], cast(Any, block.reshape(-1).view(np.uint8)))
        except ValueError as error:
            raise StoreError(path, f"is damaged: {error}", _AGAIN) from error
        return block


_AGAIN = "embed the slide again with --overwrite"


def feature_path(folder: Path, slide_id: str) -> Path:
    """The feature store of a slide in a folder of such."""
    return folder / f"{slide_id}{FEATURES}"


def is_feature_store(path: Path) -> bool:
    """Whether a path names a feature store, finished or not."""
    try:
        return (path / MARK).exists() or path.name.endswith(FEATURES)
    except OSError:  # a folder that may not be read: whoever opens it says so
        return False


def require_one_encoder(stores: Sequence[FeatureStore]) -> Encoder | None:
    """The encoder of all the stores, None without any. Raises StoreError for one of another, saying how it differs."""
    for store in stores[1:]:
        if difference := stores[0].encoder.difference(store.encoder):
            what = f"holds features of another encoder than {stores[0].slide_id}: {difference}"
            raise StoreError(store.path, what, "embed all slides with one encoder")
    return stores[0].encoder if stores else None


def verify_features(path: Path) -> list[str]:
    """The faults of a feature store, one sentence each; every byte is read. Empty if it is intact."""
    if faults := folder_faults(path):
        return faults
    try:
        FeatureStore(path)
    except StoreError as error:
        return [str(error)]
    return []


def chunk_name(number: int) -> str:
    """The file of a chunk of the array `features`, relative to the store's folder."""
    return f"features/c/{number}/0"


def _layout(array: object, dim: int) -> tuple[int, int, FeatureType]:
    """(rows, rows in a chunk, type) of the array `features`. Raises ValueError unless it is as version 1 has it."""
    if not isinstance(array, zarr.Array) or array.shards is not None or array.ndim != 2:
        raise ValueError("`features` is not an array (N, D) without shards")
    (count, width), (rows, wide) = array.shape, array.chunks
    if width != dim or wide != dim or rows * dim * 4 > _MAX_CHUNK_BYTES:
        raise ValueError(f"`features` does not hold vectors of {dim} numbers in chunks of whole rows")
    name = np.dtype(array.dtype).name
    if name not in ("float16", "float32"):
        raise ValueError(f"`features` is {name}")
    found = [type(c) for c in (*array.filters, array.serializer, *array.compressors)]
    if found != [zarr.codecs.BytesCodec, zarr.codecs.ZstdCodec, zarr.codecs.Crc32cCodec]:
        raise ValueError("`features` is encoded otherwise")
    return count, rows, cast(FeatureType, name)
