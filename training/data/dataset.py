"""Samples -> batches of pixels, or of bags: datasets that fetch a whole batch at once, all tiles of a store together.

Knows nothing of models and never opens a slide.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from tiling import TileStore
from tiling.core.errors import InputError
from tiling.core.threads import usable_cores
from tiling.slides.jpeg_stream import require_whole
from training.data.bags import BagDraw, BagReader
from training.data.radiographs import is_dicom, read_dicom, used_bits
from training.data.samples import Samples, Split

Ints = NDArray[np.int64]
Pixels = NDArray[np.uint8]
ShiftTiles = Callable[[Pixels, int], Pixels]
"""Tiles (B, T, T, 3) and the position of the first -> shifted copies of them; picklable."""


class Batch(NamedTuple):
    """Stored tiles, or bags of their features, with their labels."""

    tiles: torch.Tensor
    """uint8 (B, T, T, 3); of bags float32 (B, n, 1 + D), see training.data.bags."""
    labels: torch.Tensor
    """int64 (B,)"""
    indices: torch.Tensor
    """int64 (B,): which of the samples they are."""
    shifted: torch.Tensor
    """uint8 (B, T, T, 3): the tiles once more, shifted; (B, 0) where nobody asked for that."""


class TileDataset(Dataset[Batch]):
    """The tiles, or bags, of a split as a dataset that fetches whole batches.

    Positions count on from epoch to epoch: p is the sample p % n of epoch p // n, which decides the tiles that `draw`
    draws of a bag. `shift` makes the copies that a batch brings along. Give the loader `collate_fn=whole_batch`. Raises
    InputError or StoreError for a tile that cannot be read.
    """

    def __init__(self, split: Split, draw: BagDraw | None = None, shift: ShiftTiles | None = None) -> None:
        self.split, self.shift, samples = split, shift, split.samples
        self._read: Callable[[Ints, Ints], NDArray[Any]]
        if samples.kind == "bags":
            self._read = BagReader(samples, draw)
        else:
            self._read = _ImageReader(samples, split.tile_px) if samples.kind == "images" else _StoreReader(samples)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, position: int) -> Batch:
        return self.__getitems__([position])

    def __getitems__(self, positions: list[int]) -> Batch:
        """The batch at these positions; the loader calls this instead of `__getitem__`."""
        epochs, places = np.divmod(np.array(positions, dtype=np.int64), len(self))
        chosen = self.split.indices[places]
        tiles, labels = self._read(chosen, epochs), self.split.samples.label[chosen]
        copies = np.empty((len(tiles), 0), np.uint8) if self.shift is None else self.shift(tiles, positions[0])
        return Batch(*map(torch.from_numpy, (tiles, labels, chosen, copies)))


def whole_batch(batch: Any) -> Any:
    """The collate function of a dataset that delivers whole batches."""
    return batch


def loader_workers(workers: int | None, device: str, processes: int = 1) -> int:
    """Processes that load tiles beside each of the `processes` that train on a machine, on a `device` of that type.

    By default none on a CPU, which computes on a tile a hundred times as long as it takes to decode it, so
    that a loader beside it would only take a core away; on a GPU the cores there are but one, at most 16.
    """
    if workers is not None:
        return workers
    if device == "cpu":
        return 0
    cores = usable_cores()
    return max(1, min(16, cores // processes - 1))


def read_image(path: Path, side: int, fit: Literal["stretch", "pad", "crop"] = "stretch") -> Pixels:
    """A picture file as RGB uint8 (side, side, 3); grey ones get three equal channels.

    Of 16-bit ones the upper eight of the bits in use count: 10, 12, 14 or 16, whichever hold the brightest value. For
    DICOM see training.data.radiographs. Made a square by `fit`, see `TrainConfig`; shrunk by area, enlarged linearly.
    Raises InputError, for a damaged JPEG too, which OpenCV would fill up; ConfigError for DICOM without pydicom.
    """
    if is_dicom(path):
        picture: Any = np.repeat(read_dicom(path)[..., None], 3, axis=2)
    else:
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH)
    if picture is None:
        raise InputError(path, "cannot be read as a picture", "pass PNG, JPEG, TIFF or DICOM files")
    _require_whole(path)
    if picture.dtype == np.uint16:
        bits = used_bits(int(picture.max()))
        picture = np.right_shift(picture.astype(np.uint16), bits - 8).astype(np.uint8)
    if picture.dtype != np.uint8:
        raise InputError(path, f"has pixels of {picture.dtype}", "pass pictures of 8 or 16 bits a channel")
    picture = _SQUARE[fit](picture)
    if picture.shape[:2] != (side, side):
        shrinks = min(picture.shape[:2]) > side
        picture = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(picture, dtype=np.uint8)


def _require_whole(path: Path) -> None:
    """Raise InputError for a JPEG that is damaged or cut short."""
    with path.open("rb") as file:
        begin = file.read(2)
        try:
            if begin == b"\xff\xd8":
                require_whole(begin + file.read())
        except ValueError as error:
            raise InputError(path, "is a damaged JPEG, or was not copied whole", "copy it again") from error


def _padded(picture: Any) -> Any:
    """A picture in the middle of a black square."""
    height, width = picture.shape[:2]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    return cv2.copyMakeBorder(picture, top, side - height - top, left, side - width - left, cv2.BORDER_CONSTANT)


def _cropped(picture: Any) -> Any:
    """The square in the middle of a picture."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[top : top + side, left : left + side]


_SQUARE: dict[str, Callable[[Any], Any]] = {"stretch": lambda picture: picture, "pad": _padded, "crop": _cropped}


class _ImageReader:
    def __init__(self, samples: Samples, side: int) -> None:
        self.samples, self.side = samples, side

    def __call__(self, indices: Ints, epochs: Ints) -> Pixels:
        sources = self.samples.sources
        return np.stack([read_image(sources[s], self.side, self.samples.fit) for s in self.samples.source[indices]])


class _StoreReader:
    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.opened: dict[int, TileStore] = {}

    def __call__(self, indices: Ints, epochs: Ints) -> Pixels:
        side = self.samples.tile_px
        tiles = np.empty((len(indices), side, side, 3), dtype=np.uint8)
        source, row = self.samples.source[indices], self.samples.row[indices]
        for s in np.unique(source):
            places = np.flatnonzero(source == s)
            places = places[np.argsort(row[places], kind="stable")]  # in the order of the file
            self._store(int(s)).read(row[places], tiles, places)
        return tiles

    def _store(self, source: int) -> TileStore:
        if source not in self.opened:
            self.opened[source] = TileStore(self.samples.sources[source])
        return self.opened[source]
