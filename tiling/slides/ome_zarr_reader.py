"""Slides in OME-Zarr 0.4 (zarr version 2) and 0.5 (version 3), through zarr-python: 8-bit RGB as three channels.

A slide is a folder with multiscales, or one that holds several such, as bioformats2raw writes it; then the largest is
read. Of its metadata only what describes the pixels is read, no names; and no codec that could run code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tiling.core.arrays import UInt8Array
from tiling.core.errors import UnsupportedSlideError
from tiling.grid import Bounds
from tiling.slides.reader import Level, damaged, read_segments, unreadable
from tiling.slides.tile_cache import TileCache

MARKS = (".zattrs", "zarr.json")
"""Files that hold a group's attributes, in version 2 and 3; where both lie, the first is read."""
# Codecs that turn bytes into bytes; version 2 has others that run what they read, `pickle` among them.
_COMPRESSIONS = {"blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd"}
_LAYOUTS = {"bytes", "crc32c", "sharding_indexed", "shuffle", "transpose"}
_UM_PER_UNIT = {
    "angstrom": 1e-4, "nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6,
}  # fmt: skip
_PLANES = {"z": "focal plane", "t": "time point"}
_RGB = ["FF0000", "00FF00", "0000FF"]
_CACHE_BYTES = 64 << 20
_MAX_CHUNK_BYTES = 256 << 20  # one chunk is decoded whole
_MAX_LEVELS = 64
_MAX_JSON_BYTES = 16 << 20
_FIX = "convert it to 8-bit RGB"
# What zarr-python and numcodecs raise for damaged metadata and chunks; RecursionError is a RuntimeError.
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError)


@dataclass(frozen=True)
class _Image:
    """One multiscales image: the folders of its levels, finest first, and what they say of its axes."""

    levels: tuple[Path, ...]
    axes: tuple[str, ...]
    mpp_xy: tuple[float, float] | None
    colours: tuple[str, ...]
    """Of the channels, as rendering settings (omero) give them; empty without any."""


def is_zarr(folder: Path) -> bool:
    """Whether a folder is zarr of any kind, by the files that zarr's groups and arrays have."""
    return any((folder / name).is_file() for name in (*MARKS, ".zgroup", ".zarray"))


def ome_zarr_mark(folder: Path) -> Path | None:
    """The file of a folder that says it is OME-Zarr, if it is; cheap, and no promise that it can be read."""
    mark = next((folder / name for name in MARKS if (folder / name).is_file()), None)
    try:
        return mark if mark is not None and {"multiscales", "bioformats2raw.layout"} & {*_attributes(mark)} else None
    except (OSError, *_DAMAGE):
        return None


def ome_zarr_files(folder: Path) -> list[Path]:
    """Every file of the images in such a folder; labels over them and what no zarr is are left out. Raises OSError."""
    inside = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in inside if _is_own(path.relative_to(folder).parts)]


def open_with_zarr(path: Path, entry: Path) -> OmeZarrReader | None:
    """The reader of an OME-Zarr folder; None for anything else."""
    return OmeZarrReader(path, entry.parent) if entry.name in MARKS else None


class OmeZarrReader:
    """Reads RGB images in OME-Zarr; keeps the last decoded chunks."""

    vendor = "ome-zarr"
    objective_power: float | None = None
    bounds: Bounds | None = None
    compression: str | None

    def __init__(self, path: Path, folder: Path) -> None:
        self._path = path
        try:
            images = {number: _image(path, at) for number, at in _image_folders(folder)}
            arrays = {number: [_array(path, level) for level in image.levels] for number, image in images.items()}
            largest = max(images, key=lambda number: _size(images[number], arrays[number][0][0]))
            self._image, self._arrays = images[largest], [array for array, _ in arrays[largest]]
            _require_rgb(path, self._image, self._arrays)
            sizes = [_size(self._image, array)[1:] for array in self._arrays]
            if any(a <= b for a, b in pairwise(sizes)) or min(map(min, sizes)) < 1:
                raise ValueError("levels that do not get smaller")
        except OSError as error:
            raise unreadable(path, error) from error
        except _DAMAGE as error:
            raise damaged(path, error) from error
        self.levels = tuple(Level(width, height, sizes[0][0] / width) for width, height in sizes)
        self.mpp_xy, self.compression = self._image.mpp_xy, arrays[largest][0][1]
        planes = [f"image {largest} of {len(images)}"] if len(images) > 1 else []
        for axis, of in _PLANES.items():
            if (count := self._length(0, axis)) > 1:
                planes.append(f"{of} {self._plane(0, axis) + 1} of {count}")
        self.plane = ", ".join(planes) or None
        self._cache = TileCache(_CACHE_BYTES)

    def read(self, x0: int, y0: int, level: int, width: int, height: int) -> UInt8Array:
        """As `SlideReader.read`."""
        array, shape = self._arrays[level], self.levels[level]
        at_x, at_y = (self._image.axes.index(axis) for axis in "xy")
        segment = array.chunks[at_x], array.chunks[at_y]
        corner = round(x0 / shape.downsample), round(y0 / shape.downsample)

        def part(column: int, row: int, inside: tuple[slice, slice]) -> UInt8Array:
            return self._cache.tile((level, column, row, 1), lambda: self._chunk(level, column, row, segment))[inside]

        with self._cache.reading(_CACHE_BYTES):
            return read_segments((shape.width, shape.height), segment, corner, (width, height), part)

    def icc_profile(self) -> None:
        """As `SlideReader.icc_profile`: the format has none."""

    def close(self) -> None:
        """Nothing is kept open."""
        self._cache.clear()

    def _chunk(self, level: int, column: int, row: int, size: tuple[int, int]) -> UInt8Array:
        """The pixels of a chunk, uint8 (h, w, 3), as far as it lies on the level. Raises SlideError."""
        where: dict[str, int | slice] = {
            **{axis: self._plane(level, axis) for axis in _PLANES},
            "x": slice(column * size[0], (column + 1) * size[0]),
            "y": slice(row * size[1], (row + 1) * size[1]),
            "c": slice(None),
        }
        kept = [axis for axis in self._image.axes if isinstance(where[axis], slice)]
        try:
            found = np.asarray(self._arrays[level][tuple(where[axis] for axis in self._image.axes)])
        except OSError as error:
            raise unreadable(self._path, error) from error
        except _DAMAGE as error:
            raise damaged(self._path, error) from error
        return np.ascontiguousarray(found.transpose([kept.index(axis) for axis in "yxc"]), np.uint8)

    def _plane(self, level: int, axis: str) -> int:
        """Which focal plane or time point is read: the middle one, the first."""
        return self._length(level, axis) // 2 if axis == "z" else 0

    def _length(self, level: int, axis: str) -> int:
        axes = self._image.axes
        return int(self._arrays[level].shape[axes.index(axis)]) if axis in axes else 1


def _is_own(parts: tuple[str, ...]) -> bool:
    hidden = parts[-1].startswith(".") and not parts[-1].startswith(".z")
    return not hidden and not {"labels", "OME"} & {*parts[:-1]}


def _json(path: Path) -> Any:
    """What a file of metadata says. Raises OSError and what damaged JSON raises."""
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ValueError("too much of metadata")
    return json.loads(path.read_bytes())


def _attributes(mark: Path) -> dict[str, Any]:
    """The OME attributes of a group, as version 0.5 names them. Raises OSError and what damaged JSON raises."""
    found = _json(mark)
    attributes = found["attributes"].get("ome", {}) if mark.name == "zarr.json" else found
    return dict(attributes)


def _image_folders(folder: Path) -> Iterator[tuple[int, Path]]:
    """The folders with multiscales, by number: the folder itself, or those in it. Raises OSError, DAMAGE."""
    mark = next(folder / name for name in MARKS if (folder / name).is_file())
    if "multiscales" in _attributes(mark):
        yield 0, folder
        return
    for number in range(_MAX_LEVELS):
        if not any((folder / str(number) / name).is_file() for name in MARKS):
            break
        yield number, folder / str(number)


def _image(path: Path, folder: Path) -> _Image:
    """What the metadata of an image say. Raises OSError, DAMAGE, UnsupportedSlideError."""
    attributes = _attributes(next(folder / name for name in MARKS if (folder / name).is_file()))
    image = attributes["multiscales"][0]
    if not all(isinstance(axis, dict) for axis in image.get("axes", [0])):
        raise UnsupportedSlideError(path, "is OME-Zarr older than 0.4", "convert it to OME-Zarr 0.4 or 0.5")
    axes = tuple(str(axis["name"]) for axis in image["axes"])
    units = {str(axis["name"]): axis.get("unit") for axis in image["axes"]}
    datasets = image["datasets"][:_MAX_LEVELS]
    if len({*axes}) < len(axes) or not {"x", "y", "c"} <= {*axes} <= {"t", "c", "z", "y", "x"}:
        shown = ", ".join(axis for axis in axes if len(axis) == 1)
        raise UnsupportedSlideError(path, f"has the axes {shown}, not x, y and three channels", _FIX)
    scales = [
        dict(zip(axes, step["scale"], strict=True))
        for steps in (image.get("coordinateTransformations", []), datasets[0].get("coordinateTransformations", []))
        for step in steps
        if step.get("type") == "scale"
    ]
    um = [_um(axis, units[axis], scales) for axis in "xy"]
    colours = tuple(
        str(channel.get("color", "")).upper() for channel in attributes.get("omero", {}).get("channels", [])
    )
    levels = tuple(folder / _inside(str(dataset["path"])) for dataset in datasets)
    return _Image(levels, axes, None if um[0] is None or um[1] is None else (um[0], um[1]), colours)


def _um(axis: str, unit: object, scales: list[dict[str, float]]) -> float | None:
    """Micrometres per pixel of an axis; None if its metadata do not say."""
    if not scales or unit not in _UM_PER_UNIT:
        return None
    value = float(np.prod([float(scale[axis]) for scale in scales])) * _UM_PER_UNIT[str(unit)]
    return value if np.isfinite(value) and value > 0 else None


def _inside(name: str) -> Path:
    """The path of a level below its image. Raises ValueError for one that leads elsewhere."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", name) or ".." in name.split("/"):
        raise ValueError("a level elsewhere")
    return Path(name)


def _array(path: Path, level: Path) -> tuple[Any, str]:
    """A level's array (zarr-python's types say little), and how it is compressed.

    Raises UnsupportedSlideError for a codec not known to be harmless; OSError, DAMAGE.
    """
    import zarr  # takes a while to load, and names of slides are asked for by every command

    version: Literal[2, 3] = 2 if (level / ".zarray").is_file() else 3
    names = _codecs(_json(level / (".zarray" if version == 2 else "zarr.json")))
    if strange := sorted({*names} - _COMPRESSIONS - _LAYOUTS):
        shown = strange[0] if re.fullmatch(r"[\w.-]{1,40}", strange[0]) else "an unknown one"
        raise UnsupportedSlideError(path, f"is OME-Zarr of the codec {shown}, which is not supported", _FIX)
    used = [name for name in names if name in _COMPRESSIONS]
    return zarr.open_array(level, mode="r", zarr_format=version), used[-1].upper() if used else "NONE"


def _codecs(array: dict[str, Any]) -> list[str]:
    """The names of an array's codecs, those within shards too."""
    if array["zarr_format"] == 2:
        return [str(codec["id"]) for codec in [*(array.get("filters") or []), array.get("compressor")] if codec]
    found, waiting = list[str](), list(array["codecs"])
    while waiting:
        codec = waiting.pop(0)
        found.append(str(codec["name"]))
        inner = codec.get("configuration", {})
        waiting += [*inner.get("codecs", []), *inner.get("index_codecs", [])]
    return found


def _size(image: _Image, array: Any) -> tuple[int, int, int]:
    """Pixels, width and height of a level."""
    width, height = (int(array.shape[image.axes.index(axis)]) for axis in "xy")
    return width * height, width, height


def _require_rgb(path: Path, image: _Image, arrays: list[Any]) -> None:
    """Raise UnsupportedSlideError for what is not RGB of 8 bits, ValueError for what does not fit its metadata."""
    for array in arrays:
        if len(array.shape) != len(image.axes):
            raise ValueError("another number of axes than said")
        channels = array.shape[image.axes.index("c")]
        if array.dtype != np.uint8 or channels != 3:
            what = f"has {channels} channels of the type {array.dtype}, not three of 8 bits"
            raise UnsupportedSlideError(path, what, _FIX)
        if np.prod(array.chunks, dtype=float) > _MAX_CHUNK_BYTES:
            what = f"has chunks of more than {_MAX_CHUNK_BYTES >> 20} MB, each decoded whole"
            raise UnsupportedSlideError(path, what, "write it again in chunks of about 1024 x 1024 px")
    if image.colours and list(image.colours) != _RGB:
        what = "has three channels that are not red, green and blue (fluorescence?)"
        raise UnsupportedSlideError(path, what, _FIX)
