"""A finished zarr group, read with care: whatever is read is checked against the hashes of `commit.json` first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import zarr
import zarr.storage
from pydantic import ValidationError

from tiling.core.arrays import Float32Array
from tiling.core.artefact import COMMIT, folder_faults, read_commit
from tiling.core.errors import SpecslideError, StoreError
from tiling.core.settings import first_fault
from tiling.grid import Grid, Tiles

ROOT = "zarr.json"
"""Of the group: attributes and consolidated metadata, annotations among them."""
ANNOTATION = "annotation"
"""Name of the group of annotation columns."""
MAX_TILES: Final = 1 << 26
MAX_VALUES: Final = 400_000_000
"""In an array that is read whole: no mask, thumbnail or column of a slide has more."""
FORGED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, OSError)
"""What pydantic and zarr-python raise for metadata that is not as it should be."""


class CheckedGroup:
    """The arrays and attributes of a published zarr group. Safe to share between threads, and it pickles.

    Raises StoreError, naming the file, for a group that is missing, incomplete or damaged; its metadata are checked at
    once, arrays as they are read.
    """

    def __init__(self, path: Path, kind: str, make: str, again: str) -> None:
        """`kind` names what the folder holds, `make` says how it comes to be, `again` what to do about damage."""
        self.path, self._again = path, again
        try:
            self.files: Mapping[str, Mapping[str, Any]] = read_commit(path).files
        except SpecslideError as error:
            what = f"is not a finished {kind}" if not (path / COMMIT).exists() else error.what
            raise StoreError(path, what, make) from error
        self.check(name for name in self.files if name.endswith(ROOT))

    def forged(self, kind: str, error: Exception) -> StoreError:
        """The error for a group that is whole and yet not as this version of specslide writes it."""
        why = f" ({first_fault(error)})" if isinstance(error, ValidationError) else ""
        return StoreError(self.path, f"is not {kind}{why}", "make it again with this version of specslide")

    def require_count(self, name: str, count: int) -> None:
        """Raise StoreError for an array of more tiles than a slide has: what lacks chunks may claim any number."""
        if count > MAX_TILES:
            raise StoreError(self.path / name, f"claims {count} tiles, more than any slide has", self._again)

    def open(self) -> zarr.Group:
        """The group as zarr-python reads it, each array by its own metadata."""
        place = zarr.storage.LocalStore(self.path, read_only=True)
        return zarr.open_group(place, mode="r", use_consolidated=False)

    def read(self, name: str, dtype: type[np.generic], shape: tuple[int, ...]) -> Any:
        """All of an array, its bytes checked; -1 in the shape stands for any length."""
        self.check(n for n in self.files if n.startswith(f"{name}/"))
        try:
            array = cast(zarr.Array[Any], self.open()[name])
            fits = len(shape) == array.ndim and all(m in (-1, n) for m, n in zip(shape, array.shape, strict=True))
            if array.dtype != dtype or not fits:
                what = f"is {array.dtype} {array.shape} instead of {np.dtype(dtype)} {shape}"
                raise StoreError(self.path / name, what, self._again)
            if max(math.prod(array.shape), math.prod(array.chunks)) > MAX_VALUES:
                raise StoreError(self.path / name, f"is larger than any of a slide, {array.shape}", self._again)
            return np.asarray(array[...])
        except FORGED as error:
            raise StoreError(self.path / name, f"cannot be read ({type(error).__name__})", self._again) from error

    def tiles(self, grid: Grid, names: Iterable[str], count: int) -> Tiles:
        """The tiles of a grid, by their places `x` and `y`, int32 (count,), and columns float32 (count,) by name.

        A column is read when it is first asked for. `tissue` and `annotation/<class>` lie under their names, all
        others, which are quality metrics, in `quality`.
        """
        places = []
        for axis, side0 in zip("xy", grid.size0, strict=True):
            place0 = self.read(axis, np.int32, (count,))
            if count and not 0 <= place0.min() <= place0.max() < side0:
                raise StoreError(self.path / axis, "places tiles beside the slide", self._again)
            places.append(place0)
        own = ("tissue", f"{ANNOTATION}/")
        paths = {name: name if name.startswith(own) else f"quality/{name}" for name in names}
        columns = {name: partial(self.read, path, np.float32, (count,)) for name, path in paths.items()}
        return Tiles(grid, places[0], places[1], _StoredColumns(columns))

    def check(self, names: Iterable[str]) -> None:
        """Raise StoreError unless those files are as they were written."""
        if faults := folder_faults(self.path, only=frozenset(names)):
            raise StoreError(self.path, f"is damaged: {faults[0]}", self._again)


class _StoredColumns(Mapping[str, Float32Array]):
    """Columns by name, each read when it is first asked for."""

    def __init__(self, read: Mapping[str, Callable[[], Float32Array]]) -> None:
        self._read, self._known = read, dict[str, Float32Array]()

    def __getitem__(self, name: str) -> Float32Array:
        if name not in self._known:
            self._known[name] = self._read[name]()
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)
