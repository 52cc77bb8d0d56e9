"""The pixels of slides for the viewer: from the slide, or from a store, where only tissue is, or small. Thread-safe.

What was shown lately is kept as JPEG within stated bytes, and so many slides stay open.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import cv2
import numpy as np

from inference.store_pixels import placed, store_region
from inference.viewer.cohort import Shown
from inference.viewer.slide_picture import SlidePicture, SlideSource, drawn_jpeg
from inference.viewer.zooms import TILE_PX, Square
from tiling.core.arrays import Icc, UInt8Array
from tiling.core.errors import SpecslideError
from tiling.grid import Frame, Raster
from tiling.stores.store import SlideFacts, TileStore

log = logging.getLogger(__name__)

CACHE_BYTES = 256 * 2**20
RECOLOURED_CACHE_BYTES = 64 * 2**20
"""Of JPEG tiles that are kept."""
OPEN_SLIDES = 16
_UNKNOWN, _DAMAGED = 236, 200


class Picture(Protocol):
    """What can be drawn of a slide."""

    @property
    def kind(self) -> str:
        """What is drawn: "slide", "store", "thumbnail" or "none"."""

    @property
    def frame(self) -> Frame:
        """The slide's size, and where its coordinates begin."""

    @property
    def mpp(self) -> float | None:
        """Micrometres per level-0 pixel; None where nobody says."""

    @property
    def finest_px0(self) -> float:
        """Level-0 pixels per pixel of the finest picture there is: finer ones are enlarged."""

    @property
    def tile_px(self) -> int:
        """Side of the tiles that it is best drawn in, pixels."""

    @property
    def has_profile(self) -> bool:
        """Whether the slide's file is read and has an ICC profile that can be used."""

    @property
    def icc(self) -> Icc:
        """The colours that it is drawn in: "srgb" where a profile was applied."""

    def region(self, square: Square, side_px: int) -> UInt8Array:
        """A square of the slide at `side_px` pixels a side, RGB (side_px, side_px, 3). Raises SlideError, StoreError.

        White beyond the slide.
        """

    def jpeg(self, square: Square, side_px: int) -> bytes:
        """The same as JPEG. Raises SlideError, StoreError."""

    def close(self) -> None:
        """Release its files. Not while a thread reads."""


Opener = Callable[[SlideSource], Picture]
"""What opens a slide: here, or in a process that may be lost. Raises SpecslideError."""


class StorePicture:
    """A store: its tiles, on its thumbnail."""

    kind: Final = "store"
    tile_px: Final = TILE_PX
    has_profile: Final = False

    def __init__(self, store: TileStore) -> None:
        self._store, self.frame = store, store.slide.frame()
        self.mpp: float | None = store.slide.mpp
        self.icc: Icc = store.icc
        self.finest_px0 = store.grid.tile_px0 / store.grid.tile_px

    def region(self, square: Square, side_px: int) -> UInt8Array:
        """See `Picture`."""
        return store_region(self._store, *square, side_px)

    def jpeg(self, square: Square, side_px: int) -> bytes:
        """See `Picture`."""
        return drawn_jpeg(self.region(square, side_px))

    def close(self) -> None:
        """See `Picture`."""


class ThumbnailPicture:
    """The slide in small, which is all that a feature store has of it."""

    kind: Final = "thumbnail"
    tile_px: Final = TILE_PX
    has_profile: Final = False

    def __init__(self, facts: SlideFacts, thumbnail: Raster, icc: Icc) -> None:
        self.frame, self._thumbnail, self.icc = facts.frame(), thumbnail, icc
        self.mpp: float | None = facts.mpp
        self.finest_px0 = max(1.0, thumbnail.downsample)

    def region(self, square: Square, side_px: int) -> UInt8Array:
        """See `Picture`."""
        return placed(self._thumbnail.values, self._thumbnail.downsample, *square, side_px)

    def jpeg(self, square: Square, side_px: int) -> bytes:
        """See `Picture`."""
        return drawn_jpeg(self.region(square, side_px))

    def close(self) -> None:
        """See `Picture`."""


class NoPicture:
    """A slide of which neither file nor store is at hand: grey."""

    kind: Final = "none"
    tile_px: Final = TILE_PX
    has_profile: Final = False
    icc: Icc = "none"

    def __init__(self, facts: SlideFacts) -> None:
        self.frame = facts.frame()
        self.mpp: float | None = facts.mpp
        self.finest_px0 = max(1.0, max(self.frame.size0) / TILE_PX)

    def region(self, square: Square, side_px: int) -> UInt8Array:
        """See `Picture`."""
        return np.full((side_px, side_px, 3), _UNKNOWN, np.uint8)

    def jpeg(self, square: Square, side_px: int) -> bytes:
        """See `Picture`."""
        return drawn_jpeg(self.region(square, side_px))

    def close(self) -> None:
        """See `Picture`."""


def open_picture(shown: Shown, opener: Opener = SlidePicture, icc: Icc = "none") -> Picture:
    """The slide where it is at hand and can be opened, else a store of it or its thumbnail, else nothing but grey.

    Raises SpecslideError for a slide that cannot be opened where there is nothing else.
    """
    if shown.slide is not None:
        facts = shown.results[0].summary.slide if shown.results else None
        mpp = facts.mpp if facts is not None else None if shown.row is None else shown.row.mpp
        size0 = None if facts is None else (facts.width, facts.height)
        try:
            return opener(SlideSource(shown.slide_id, shown.slide, mpp, size0, icc))
        except SpecslideError as error:
            if not shown.maps:
                raise
            log.warning("%s: %s; it is shown without", shown.slide_id, error.what)
    if shown.store is not None:
        return StorePicture(shown.store)
    if shown.features is not None and shown.features.thumbnail is not None:
        return ThumbnailPicture(shown.features.slide, shown.features.thumbnail, shown.features.icc)
    return NoPicture(shown.features.slide if shown.features is not None else shown.results[0].summary.slide)


class Pictures:
    """The pictures of a cohort as JPEG, by the slide's number; those of slides' files in the colours `icc`."""

    def __init__(
        self,
        slides: tuple[Shown, ...],
        cache_bytes: int = CACHE_BYTES,
        opener: Opener = SlidePicture,
        icc: Icc = "none",
    ) -> None:
        self.icc: Icc = icc
        self._slides, self._limit, self._bytes, self._opener = slides, cache_bytes, 0, opener
        self._kept: OrderedDict[tuple[int, Square], bytes] = OrderedDict()
        self._open: OrderedDict[int, Picture] = OrderedDict()
        self._users: dict[int, int] = {}
        self._lock, self._opening = threading.Lock(), [threading.Lock() for _ in slides]

    @contextmanager
    def opened(self, number: int) -> Iterator[Picture]:
        """The picture of a slide, open while it is used. Raises SpecslideError."""
        with self._opening[number]:  # of one slide: to open another may take long
            with self._lock:
                known = self._open.get(number)
                self._users[number] = self._users.get(number, 0) + 1  # so that nobody closes it
            try:
                picture = known or open_picture(self._slides[number], self._opener, self.icc)
            except SpecslideError:
                self._users[number] -= 1
                raise
        with self._lock:
            self._open[number] = picture
            self._open.move_to_end(number)
            idle = [n for n in self._open if not self._users.get(n)]
            closing = [self._open.pop(n) for n in idle[: max(0, len(self._open) - OPEN_SLIDES)]]
        for one in closing:
            one.close()
        try:
            yield picture
        finally:
            with self._lock:
                self._users[number] -= 1

    def jpeg(self, number: int, square: Square) -> bytes:
        """A square of a slide as JPEG of the picture's `tile_px`; grey, with words, where it is damaged.

        Raises SpecslideError for a slide that cannot be opened.
        """
        key = (number, square)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        with self.opened(number) as picture:
            try:
                data = picture.jpeg(square, picture.tile_px)
            except SpecslideError as error:
                log.warning("%s: %s", self._slides[number].slide_id, error.what)
                data = drawn_jpeg(_damaged(picture.tile_px))
        with self._lock:
            if key not in self._kept:
                self._kept[key] = data
                self._bytes += len(data)
            while self._bytes > self._limit:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return data

    def close(self) -> None:
        """Release the slides. Not while a thread reads."""
        for picture in self._open.values():
            picture.close()


def _damaged(side_px: int) -> UInt8Array:
    """A grey square that says why it is grey."""
    grey = np.full((side_px, side_px, 3), _DAMAGED, np.uint8)
    where = (side_px // 4, side_px // 2)
    return np.asarray(cv2.putText(grey, "cannot be read", where, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (60, 60, 60), 1))
