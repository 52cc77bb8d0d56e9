"""How tiles are coded, and their pixels: JPEG, whole or in strips, JPEG 2000, or lossless. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import imagecodecs
import numpy as np

from tiling.core.arrays import UInt8Array
from tiling.slides import jpeg2000_stream
from tiling.slides.jpeg_stream import (
    Header,
    NotUnderstoodError,
    ScaleDenom,
    decode_stream,
    frame_height_at,
    header_of,
    scale_of,
)

Unpack = Callable[[bytes, int], bytes]  # stored bytes, bytes of pixels -> pixels
Memory = Callable[[tuple[int, int, int]], UInt8Array]  # shape -> memory for a tile, its content undefined

_imagecodecs: Any = imagecodecs  # its stubs leave out arguments
_RESTARTS = tuple(bytes((0xFF, 0xD0 + i)) for i in range(8))
_END = b"\xff\xd9"


class Coding(Protocol):
    """How the tiles of one level are coded."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of what is coded in one piece."""

    @property
    def copied(self) -> bool:
        """Whether a tile's bytes are a JPEG that can be copied."""

    def decode(self, pieces: Sequence[bytes], denom: ScaleDenom, memory: Memory) -> tuple[UInt8Array, ScaleDenom]:
        """The pixels of a tile, uint8 (h, w, 3), and the fraction of their size that they have.

        Args:
            pieces: The tile's bytes, in the pieces that the level stores.
            denom: The fraction wanted; 1 is given where the coding has no exact one.
            memory: Gives memory to decode into.

        Returns:
            The pixels at 1 / d of their size, and d.

        Raises:
            NotUnderstoodError: For a tile that is not coded as the level's are.
            ValueError: For a damaged one. RuntimeError too, which is imagecodecs'.
        """

    def stream(self, data: bytes) -> bytes:
        """A tile as a file that any decoder shows in the right colours. Raises NotUnderstoodError."""


@dataclass
class JpegTiles:
    """Tiles that are JPEG streams, of one size; to be decoded scaled down in the DCT domain."""

    prefix: bytes
    """Start of image, colour space and shared tables: `stream_prefix`."""
    size: tuple[int, int]
    """Width and height of a tile."""
    copied: bool = True
    _header: Header | None = field(default=None, repr=False)  # of the tile last read: most share theirs

    def decode(self, pieces: Sequence[bytes], denom: ScaleDenom, memory: Memory) -> tuple[UInt8Array, ScaleDenom]:
        """As `Coding.decode`."""
        (data,) = pieces
        header = self._header_of(data)
        in_dct = header.dct_denom(denom)
        width, height = self.size
        out = memory((height // in_dct, width // in_dct, 3))
        return decode_stream(self._whole(header, data), width, height, in_dct, out), in_dct

    def stream(self, data: bytes) -> bytes:
        """As `Coding.stream`: the stored coefficients untouched; of them only the end is looked at."""
        if not data.rstrip(b"\0").endswith(_END):  # DICOM fills up an odd length
            raise NotUnderstoodError("it ends too early")
        return self._whole(self._header_of(data), data)

    def _header_of(self, data: bytes) -> Header:
        header = self._header
        if header is None or not data.startswith(header.stored):
            header = self._header = header_of(data, *self.size)
        return header

    def _whole(self, header: Header, data: bytes) -> bytes:
        return b"".join((self.prefix, header.kept, memoryview(data)[len(header.stored) :]))


@dataclass(frozen=True)
class LosslessTiles:
    """Tiles whose pixels are stored, compressed without loss or not at all."""

    size: tuple[int, int]
    """Width and height of a tile."""
    unpack: Unpack
    """The compression undone."""
    differences: bool = False
    """TIFF's horizontal predictor: stored are the differences between neighbours."""
    copied: bool = False

    def decode(self, pieces: Sequence[bytes], denom: ScaleDenom, memory: Memory) -> tuple[UInt8Array, ScaleDenom]:
        """As `Coding.decode`, at full size."""
        (data,), (width, height) = pieces, self.size
        pixels = np.frombuffer(self.unpack(data, width * height * 3), np.uint8)
        if len(pixels) != width * height * 3:
            raise ValueError(f"{len(pixels)} bytes of pixels, not {width * height * 3}")
        tile = pixels.reshape(height, width, 3)
        return (np.asarray(np.cumsum(tile, axis=1, dtype=np.uint8)) if self.differences else tile), 1

    def stream(self, data: bytes) -> bytes:
        """There is none."""
        raise NotUnderstoodError("no JPEG")


@dataclass(frozen=True)
class Jpeg2000Tiles:
    """Tiles that are JPEG 2000 or HTJ2K streams in RGB, or in what the stream says is made of it; at full size only.

    OpenJPEG decodes both. OpenJPH, which is faster at HTJ2K, does not clip what lossy compression leads beyond white
    (imagecodecs 2026.3): white becomes black.
    A stream can be decoded at half its size too, but its pixels then lie half a pixel off those of an area average.
    """

    size: tuple[int, int]
    """Width and height of a tile."""
    copied: bool = False

    def decode(self, pieces: Sequence[bytes], denom: ScaleDenom, memory: Memory) -> tuple[UInt8Array, ScaleDenom]:
        """As `Coding.decode`, at full size."""
        (data,), (width, height) = pieces, self.size
        if not jpeg2000_stream.is_rgb(data, width, height):
            raise NotUnderstoodError("its stream does not fill it with RGB")
        out = memory((height, width, 3))
        return np.asarray(_imagecodecs.jpeg2k_decode(data, out=out), np.uint8), 1

    def stream(self, data: bytes) -> bytes:
        """There is none."""
        raise NotUnderstoodError("no JPEG")


@dataclass(frozen=True)
class RestartTiles:
    """Tiles put together of strips, each of them the data between two restart markers of a JPEG that is far larger.

    Strips that lie below each other become one stream, and each is decoded as it would be alone: which needs a chroma
    that is not widened downwards.
    """

    header: bytes
    """The JPEG up to its entropy-coded data, of the size of a strip."""
    size: tuple[int, int]
    """Width and height of a strip."""
    shrunk: ScaleDenom = 1
    """The level's pixels are those of the JPEG at this fraction of their size, by the DCT."""
    copied: bool = False

    @cached_property
    def _parsed(self) -> tuple[Header, int]:
        """The header, and the place in it of the frame's height."""
        header = header_of(self.header, *self.size)
        return header, frame_height_at(self.header)

    def dct_denom(self, denom: ScaleDenom) -> ScaleDenom:
        """How far to scale down further in the DCT domain on the way to 1 / `denom` of the level."""
        further = self._parsed[0].dct_denom(scale_of(min(8, self.shrunk * denom))) // self.shrunk
        return scale_of(max(1, further))

    def decode(self, pieces: Sequence[bytes], denom: ScaleDenom, memory: Memory) -> tuple[UInt8Array, ScaleDenom]:
        """As `Coding.decode`; a piece is a strip with the marker before it, or the header's end, and the one after."""
        strips = [piece for piece in pieces if piece]
        for number, strip in enumerate(strips):
            begins = strip[:2] in _RESTARTS or (not number and strip[:2] == self.header[-2:])
            if not begins or strip[-2:] not in (*_RESTARTS, _END):
                raise ValueError("no restart marker where one should be")
        (width, height), at, in_dct = self.size, self._parsed[1], self.dct_denom(denom)
        height *= len(strips)
        sized = self.header[:at] + height.to_bytes(2, "big") + self.header[at + 2 :]
        joined = (part for i, strip in enumerate(strips) for part in (memoryview(strip)[2:-2], _RESTARTS[i % 8]))
        stream = b"".join((sized, *tuple(joined)[:-1], _END))
        scale = scale_of(self.shrunk * in_dct)
        return decode_stream(stream, width, height, scale, memory((height // scale, width // scale, 3))), in_dct

    def stream(self, data: bytes) -> bytes:
        """There is none of a whole tile."""
        raise NotUnderstoodError("no JPEG of its own")
