"""An output folder of HistoPrep 2 or histoslice -> tile store: its tiles as they are, its metrics as quality columns.

    <slide>/metadata.parquet (or .csv)    one row a tile: x, y, w, h in level-0 pixels, path, then the metrics
            properties.json               among others the overlap
            tiles/x0_y0_w512_h512.jpeg    or .png, .tif

The slide itself is not at hand: the store's slide ends with its last tile, its thumbnail is made of the tiles, and its
mask is where tiles are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from tiling.annotations.classes import column_name
from tiling.core.arrays import UInt8Array
from tiling.core.artefact import atomic_folder, locked_folder, require_own
from tiling.core.errors import InputError, StoreError
from tiling.core.files import sha256_file, sha256_json
from tiling.core.versions import software_versions
from tiling.grid import MAX_SIDE0, MAX_TILE_PX, Grid, Raster, Tiles
from tiling.manifest import require_slide_id
from tiling.reports import TileReport
from tiling.stores.codec import TileCodec, decode_jpeg
from tiling.stores.group import MAX_VALUES
from tiling.stores.store import MARK, SlideFacts, StoreAttributes, TileStore, store_recipe
from tiling.stores.write import write_columns, write_tiles

_JPEG: Final = (".jpeg", ".jpg")
_ENDINGS: Final = (*_JPEG, ".png", ".tif", ".tiff")
_PLACE: Final = ("x", "y", "w", "h")
_PATHS: Final = ("path", "mask_path")
_THUMBNAIL_PX: Final = 1024


@dataclass(frozen=True)
class _Folder:
    """The tiles of one folder, in reading order."""

    x0: NDArray[np.int32]
    y0: NDArray[np.int32]
    tile_px0: int
    stride_px0: int
    images: tuple[Path, ...]
    metrics: dict[str, NDArray[np.float32]]
    sha256: str
    """Of the metadata, and of the pictures' sizes: the same metadata comes with pictures of another quality."""

    @property
    def size0(self) -> tuple[int, int]:
        """Width and height up to the last tile, level-0 pixels."""
        return int(self.x0.max()) + self.tile_px0, int(self.y0.max()) + self.tile_px0

    @property
    def is_jpeg(self) -> bool:
        return all(image.suffix in _JPEG for image in self.images)


def import_histoprep(
    folder: Path | str, out_dir: Path | str, *, mpp: float, slide_id: str | None = None, overwrite: bool = False
) -> TileReport:
    """Write the store `<out_dir>/<slide_id>.zarr` of an output folder of HistoPrep 2 or histoslice.

    JPEG tiles are copied, not encoded again; others are stored lossless. `tissue` is 1 less HistoPrep's `background`,
    or 1 where it was not measured.

    Args:
        folder: The output folder of one slide.
        out_dir: Where the store goes.
        mpp: Micrometres per pixel of the saved tiles.
        slide_id: What the slide is called; None: the folder's name.
        overwrite: Whether a store made otherwise is replaced.

    Returns:
        What became of the slide.

    Raises:
        InputError: If the folder cannot be read as HistoPrep's.
        OutputError: If the store cannot be written, or something else has its name.
        StoreError: For a store made otherwise, unless `overwrite`.
        ConfigError: For a slide id that cannot name a folder.
    """
    folder = Path(folder)
    slide_id = require_slide_id(slide_id or folder.resolve().name, folder)
    path = Path(out_dir) / f"{slide_id}.zarr"
    tiles = _read_folder(folder)
    inputs = {
        "imported": "histoprep",
        "folder_sha256": tiles.sha256,
        "mpp": mpp,
        "codec": "source" if tiles.is_jpeg else "lossless",
        "annotation_sha256": None,
    }
    with locked_folder(path):
        if path.exists() and not overwrite:
            store = TileStore(path)
            if store.attributes.config != inputs:
                raise StoreError(path, "was made otherwise", "choose another --out, or pass --overwrite")
            return TileReport(slide_id, path, len(store), True, store.attributes.mpp)
        require_own(path, MARK, "a tile store")
        with atomic_folder(path, store_recipe(tiles.sha256, inputs)) as partial:
            _write(partial, tiles, slide_id, mpp, inputs)
    return TileReport(slide_id, path, len(tiles.x0), False, TileStore(path).attributes.mpp)


def _write(partial: Path, tiles: _Folder, slide_id: str, mpp: float, inputs: dict[str, Any]) -> None:
    tile_px = len(_picture(tiles.images[0], None)[1])
    codec, mosaic = TileCodec.parse(inputs["codec"]), _Mosaic(tiles)
    write_tiles(partial, tile_px, codec, mosaic.watch(tile_px, codec))
    slide_mpp = mpp * tile_px / tiles.tile_px0
    width0, height0 = tiles.size0
    count = len(tiles.x0)
    tissue = 1 - tiles.metrics["background"] if "background" in tiles.metrics else np.ones(count, np.float32)
    grid = Grid(
        width0=width0,
        height0=height0,
        slide_mpp=slide_mpp,
        tile_px=tile_px,
        tile_px0=tiles.tile_px0,
        stride_px0=tiles.stride_px0,
    )
    mask, thumbnail = _mask(tiles), Raster(mosaic.picture, mosaic.px0)
    attributes = StoreAttributes(
        slide=SlideFacts(
            slide_id=slide_id,
            sha256=tiles.sha256,
            width=width0,
            height=height0,
            mpp=slide_mpp,
            vendor="histoprep",
            objective_power=None,
            level_downsamples=(1.0,),
        ),
        grid=grid,
        mpp=mpp,
        mask_px0=mask.downsample,
        thumbnail_px0=thumbnail.downsample,
        quality=tuple(tiles.metrics),
        annotation=(),
        config=inputs,
        config_sha256=sha256_json(inputs),
        software=software_versions("numpy", "simplejpeg", "zarr"),
    )
    placed = Tiles(grid, tiles.x0, tiles.y0, {"tissue": tissue, **tiles.metrics})
    write_columns(partial, placed, {"mask": mask, "thumbnail": thumbnail}, attributes)


class _Mosaic:
    """Encodes tiles as they pass by, and puts them together in small."""

    def __init__(self, tiles: _Folder) -> None:
        self._tiles = tiles
        self._side = max(1, min(64, _THUMBNAIL_PX * tiles.tile_px0 // max(tiles.size0)))
        self.px0 = tiles.tile_px0 / self._side
        width, height = (math.ceil(side / self.px0) for side in tiles.size0)
        self.picture = np.full((height, width, 3), 255, np.uint8)

    def watch(self, tile_px: int, codec: TileCodec) -> Iterator[bytes]:
        for x, y, path in zip(self._tiles.x0.tolist(), self._tiles.y0.tolist(), self._tiles.images, strict=True):
            data, tile = _picture(path, tile_px)
            small = cv2.resize(tile, (self._side, self._side), interpolation=cv2.INTER_AREA)
            place = self.picture[round(y / self.px0) :, round(x / self.px0) :][: self._side, : self._side]
            place[...] = small[: place.shape[0], : place.shape[1]]
            yield data if codec.kind == "source" else codec.encode(tile)


def _mask(tiles: _Folder) -> Raster:
    """Where tiles are, bool (h, w); a pixel's side is one stride."""
    stride, side0 = tiles.stride_px0, tiles.tile_px0
    width, height = (math.ceil(side / stride) for side in tiles.size0)
    mask = np.zeros((height, width), np.bool_)
    for x, y in zip(tiles.x0.tolist(), tiles.y0.tolist(), strict=True):
        mask[y // stride : -(-(y + side0) // stride), x // stride : -(-(x + side0) // stride)] = True
    return Raster(mask, stride)


def _picture(path: Path, side: int | None) -> tuple[bytes, UInt8Array]:
    """The bytes and the RGB pixels uint8 (side, side, 3) of a saved tile. Raises InputError naming it."""
    try:
        data = path.read_bytes()
        if path.suffix in _JPEG:
            pixels = decode_jpeg(data)
        else:
            pixels = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB), np.uint8)
    except (OSError, ValueError, TypeError, cv2.error) as error:
        reason = getattr(error, "strerror", None) or "it is damaged"
        raise InputError(path, f"cannot be read as a picture ({reason})", "save the slide's tiles again") from error
    if pixels.ndim != 3 or pixels.shape[:2] != (side or min(pixels.shape[0], MAX_TILE_PX),) * 2:
        expected = f"{side} x {side} px as the first tile" if side else f"a square of up to {MAX_TILE_PX} px"
        raise InputError(path, f"is no picture of {expected}", "save tiles of one size")
    return data, pixels


def _read_folder(folder: Path) -> _Folder:
    """What the metadata and properties say. Raises InputError naming the file."""
    path = next((p for p in (folder / "metadata.parquet", folder / "metadata.csv") if p.exists()), None)
    if path is None:
        what = "holds no metadata.parquet, so it is no finished output of HistoPrep"
        raise InputError(folder, what, "pass the folder of one slide")
    try:
        table = pyarrow.csv.read_csv(path) if path.suffix == ".csv" else pyarrow.parquet.read_table(path)
        sha256 = sha256_file(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(path, f"cannot be read ({type(error).__name__})", "save the slide's tiles again") from error
    x, y, w, h = (_integers(path, table, name) for name in _PLACE)
    if not len(x):
        raise InputError(path, "has no tiles", "leave this slide out")
    side0 = int(w[0])
    if side0 < 1 or (w != side0).any() or (h != side0).any():
        raise InputError(path, "has tiles that are not squares of one size", "save the slide's tiles again")
    order = np.lexsort((x, y))
    x, y = x[order], y[order]
    stride = _stride(folder / "properties.json", side0)
    _require_places(path, x, y, side0, stride)
    images = tuple(_image(folder / "tiles", a, b, side0) for a, b in zip(x.tolist(), y.tolist(), strict=True))
    names = [name for name in table.column_names if name not in (*_PLACE, *_PATHS)]
    metrics = {column_name(name): _metric(table, name) for name in names if _is_number(table, name)}
    return _Folder(
        x0=x.astype(np.int32),
        y0=y.astype(np.int32),
        tile_px0=side0,
        stride_px0=stride,
        images=images,
        metrics={name: values[order] for name, values in metrics.items()},
        sha256=sha256_json([sha256, [[image.name, image.stat().st_size] for image in images]]),
    )


def _require_places(path: Path, x: NDArray[np.int64], y: NDArray[np.int64], side0: int, stride: int) -> None:
    if min(x.min(), y.min()) < 0 or max(x.max(), y.max()) + side0 > MAX_SIDE0:
        raise InputError(path, "has tiles that lie on no slide", "save the slide's tiles again")
    if (x.max() / stride + 2) * (y.max() / stride + 2) > MAX_VALUES:
        raise InputError(path, "has tiles too far from each other", "save the slide's tiles again")
    if (x % stride).any() or (y % stride).any():
        raise InputError(path, f"has tiles off a grid of {stride} px", "import tiles, not spots or annotations")
    if len(set(zip(x.tolist(), y.tolist(), strict=True))) < len(x):
        raise InputError(path, "has two tiles at one place", "save the slide's tiles again")


def _stride(path: Path, side0: int) -> int:
    """Distance of neighbouring tiles as HistoPrep makes it of the overlap, level-0 pixels."""
    try:
        overlap = float(json.loads(path.read_bytes())["overlap"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        fix = "save the slide's tiles again"
        raise InputError(path, f"does not give the overlap ({type(error).__name__})", fix) from error
    if not 0 <= overlap < 1:
        raise InputError(path, f"gives the overlap {overlap:g}", "save the slide's tiles again")
    return max(side0 - round(side0 * overlap), 1)


def _image(folder: Path, x: int, y: int, side0: int) -> Path:
    """The picture of a tile; its name says its place, and the metadata's own absolute path is not followed."""
    stem = f"x{x}_y{y}_w{side0}_h{side0}"
    found = next((path for ending in _ENDINGS if (path := folder / f"{stem}{ending}").is_file()), None)
    if found is None:
        raise InputError(folder / f"{stem}.jpeg", "does not exist", "save the slide's tiles again")
    return found


def _integers(path: Path, table: Any, name: str) -> NDArray[np.int64]:
    if name not in table.column_names or not pyarrow.types.is_integer(table.schema.field(name).type):
        raise InputError(path, f"has no column {name} of whole numbers", "pass an output folder of HistoPrep")
    if table[name].null_count:
        raise InputError(path, f"lacks a value in the column {name}", "save the slide's tiles again")
    return np.asarray(table[name].to_numpy(), np.int64)


def _is_number(table: Any, name: str) -> bool:
    kind = table.schema.field(name).type
    return bool(pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind))


def _metric(table: Any, name: str) -> NDArray[np.float32]:
    return np.asarray(table[name].to_numpy(), np.float32)
