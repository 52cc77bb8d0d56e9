"""Plain JPEG and PNG pictures as slides of one level, through Pillow; their scale is never in them.

Such a file can only be decoded whole. So it is, once, and not before pixels are asked for; larger ones are refused.
"""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import PIL.Image
from PIL.ImageCms import ImageCmsProfile

from tiling.core.arrays import UInt8Array
from tiling.core.errors import SlideError, UnsupportedSlideError
from tiling.grid import Bounds
from tiling.slides.colour import profile_of
from tiling.slides.jpeg_stream import require_whole
from tiling.slides.reader import Level, damaged, read_segments, unreadable

_BEGINS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG"}
_MAX_PX = 1 << 27  # 400 MB of RGB
_ORIENTATION = 0x0112  # EXIF
_PNG_BITS_AT = 24  # of the file: bits a sample, in the header chunk that begins it
_COLOUR = {"RGB", "RGBA", "P", "PA"}  # Pillow's modes; a palette's colours are exact
_NAMED = {"1": "black and white", "L": "grey", "LA": "grey", "I": "grey", "I;16": "grey", "CMYK": "CMYK"}
# What Pillow raises for damaged files; its OSError without a number is one, too.
_DAMAGE = (SyntaxError, ValueError, LookupError, TypeError, ArithmeticError, struct.error, zlib.error, MemoryError)

_decoded: WeakValueDictionary[tuple[str, int, int], UInt8Array] = WeakValueDictionary()
"""Pixels by path, time and size of the file: a slide that is open several times is decoded once."""
_decoding = threading.Lock()


def open_with_pillow(path: Path, entry: Path) -> PictureReader | None:
    """The reader of a JPEG or PNG file; None for anything else."""
    with entry.open("rb") as f:
        begin = f.read(_PNG_BITS_AT + 1)
    kind = next((kind for start, kind in _BEGINS.items() if begin.startswith(start)), None)
    return None if kind is None else PictureReader(path, entry, kind, begin[_PNG_BITS_AT:])


class PictureReader:
    """Reads a picture of one level; transparent pixels lie over white."""

    vendor = "picture"
    objective_power: float | None = None
    mpp_xy: tuple[float, float] | None = None  # dots an inch are for printers
    bounds: Bounds | None = None
    plane: str | None = None
    compression: str | None
    levels: tuple[Level, ...]

    def __init__(self, path: Path, entry: Path, kind: str, png_bits: bytes) -> None:
        self._path, self._entry, self._kind = path, entry, kind
        self.compression = kind
        self._pixels: UInt8Array | None = None
        with self._opened() as picture:
            self._require_supported(picture, 16 if kind == "PNG" and png_bits == b"\x10" else 8)
            self.levels = (Level(picture.width, picture.height, 1.0),)

    def read(self, x0: int, y0: int, level: int, width: int, height: int) -> UInt8Array:
        """As `SlideReader.read`."""
        pixels, size = self._whole(), (self.levels[0].width, self.levels[0].height)
        return read_segments(size, size, (x0, y0), (width, height), lambda column, row, inside: pixels[inside])

    def icc_profile(self) -> ImageCmsProfile | None:
        """As `SlideReader.icc_profile`."""
        with self._opened() as picture:
            data = picture.info.get("icc_profile")
        return profile_of(data)

    def close(self) -> None:
        """Let the pixels go."""
        self._pixels = None

    @contextmanager
    def _opened(self) -> Iterator[PIL.Image.Image]:
        """The file, its header read; what Pillow raises inside is a SlideError."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of large pictures and of damaged EXIF
                with PIL.Image.open(self._entry, formats=[self._kind]) as picture:
                    yield picture
        except PIL.Image.DecompressionBombError as error:
            raise self._too_large() from error
        except OSError as error:
            raise unreadable(self._path, error) if error.errno else damaged(self._path, error) from error
        except _DAMAGE as error:
            raise damaged(self._path, error) from error

    def _require_supported(self, picture: PIL.Image.Image, bits: int) -> None:
        if picture.width * picture.height > _MAX_PX:
            raise self._too_large()
        kind, fix = self._kind, "save it as 8-bit RGB"
        if picture.mode not in _COLOUR:
            raise UnsupportedSlideError(self._path, f"is a {_NAMED.get(picture.mode, 'strange')} {kind}, not RGB", fix)
        if bits != 8:
            raise UnsupportedSlideError(self._path, f"is a {kind} of {bits} bits a sample, not 8", fix)
        if picture.getexif().get(_ORIENTATION, 1) != 1:
            what = "is stored turned or mirrored (EXIF orientation), and viewers differ in how they show that"
            raise UnsupportedSlideError(self._path, what, "save it upright, without EXIF")

    def _whole(self) -> UInt8Array:
        """All pixels, uint8 (h, w, 3). Raises SlideError."""
        if self._pixels is not None:
            return self._pixels
        with _decoding, self._opened() as picture:
            stat = self._entry.stat()
            key = (str(self._entry.resolve()), stat.st_mtime_ns, stat.st_size)
            pixels = _decoded.get(key)
            if pixels is None:
                if self._kind == "JPEG":
                    require_whole(self._entry.read_bytes())
                pixels = _decoded[key] = _rgb(picture)
        self._pixels = pixels
        return pixels

    def _too_large(self) -> SlideError:
        what = f"is a plain {self._kind} of more than {_MAX_PX // 10**6} megapixels, which is decoded whole"
        return UnsupportedSlideError(self._path, what, "convert it to a tiled pyramid TIFF, as `vips tiffsave` does")


def _rgb(picture: PIL.Image.Image) -> UInt8Array:
    """The pixels of a picture over white, uint8 (h, w, 3). Raises what Pillow does."""
    if picture.mode != "RGB" or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        picture = PIL.Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        picture.alpha_composite(rgba)
    return np.asarray(picture.convert("RGB"))
