"""Colour: a slide's pixels in sRGB, by the ICC profile in its file, which littleCMS computes with.

Of the profile's text, which may name a laboratory or a person, nothing is read.
"""

from __future__ import annotations

import hashlib
import io
import threading
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
from PIL import Image, ImageCms

from tiling.core.arrays import UInt8Array
from tiling.core.errors import SlideError
from tiling.core.tiff import DAMAGE
from tiling.slides.reader import SlideReader

_DAMAGE = (ImageCms.PyCMSError, OSError, *DAMAGE)
_WORTH_PX = 1 << 25  # to convert so many pixels takes about as long as to make the table: tests/benchmarks/icc.py

_tables: WeakValueDictionary[str, UInt8Array] = WeakValueDictionary()
"""By hash of the profile: slides of one scanner mostly share one. 48 MiB each."""
_making = threading.Lock()


def profile_of(data: bytes | None) -> ImageCms.ImageCmsProfile | None:
    """The ICC profile in those bytes, None without any. Raises OSError for what is none."""
    return ImageCms.ImageCmsProfile(io.BytesIO(data)) if data else None


def to_srgb(path: Path, reader: SlideReader) -> ToSrgb | None:
    """What gives a slide's pixels in sRGB; None for a slide without a profile.

    Raises SlideError for a profile that is damaged, or is not one of RGB.
    """
    try:
        profile = reader.icc_profile()
        return None if profile is None else ToSrgb(profile)
    except _DAMAGE as error:  # its text may quote the profile
        what = f"has an ICC profile that is damaged, or not one of RGB ({type(error).__name__})"
        raise SlideError(path, what, "leave out --icc, or copy the slide again") from None


class ToSrgb:
    """Gives pixels in sRGB, by a profile and the rendering intent that it asks for. Thread-safe.

    Of many pixels each is looked up in a table of all 16.8 million colours, which gives the same. Raises
    ImageCms.PyCMSError, OSError, ValueError for a profile that cannot be used.
    """

    def __init__(self, profile: ImageCms.ImageCmsProfile) -> None:
        intent = ImageCms.Intent(ImageCms.getDefaultIntent(profile))
        self._transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), "RGB", "RGB", intent)
        self._name = hashlib.sha256(profile.tobytes()).hexdigest()
        self._table: UInt8Array | None = None
        self._seen_px = 0  # threads that count at once may lose some: no matter

    def __call__(self, pixels: UInt8Array) -> UInt8Array:
        """Pixels (h, w, 3) in sRGB."""
        if self._table is None:
            self._seen_px += pixels.size // 3
            if self._seen_px < _WORTH_PX:
                return self.computed(pixels)
            self._table = self._made()
        return looked_up(pixels, self._table)

    def computed(self, pixels: UInt8Array) -> UInt8Array:
        """The same, by littleCMS for each pixel."""
        return np.array(self._transform.apply(Image.fromarray(pixels)))

    def table(self) -> UInt8Array:
        """What becomes of every colour, (2^24, 3); the row of a colour is 65536 red + 256 green + blue."""
        plane, table = np.empty((256, 256, 3), np.uint8), np.empty((256, 256, 256, 3), np.uint8)
        plane[..., 1], plane[..., 2] = np.arange(256)[:, None], np.arange(256)
        for red in range(256):
            plane[..., 0] = red
            table[red] = self.computed(plane)
        return table.reshape(-1, 3)

    def _made(self) -> UInt8Array:
        with _making:
            table = _tables.get(self._name)
            if table is None:
                table = _tables[self._name] = self.table()
            return table


def looked_up(pixels: UInt8Array, table: UInt8Array) -> UInt8Array:
    """Pixels (h, w, 3) by a table of `ToSrgb.table`."""
    red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
    return np.take(table, red << 16 | green << 8 | blue, axis=0)
