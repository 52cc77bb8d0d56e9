"""How the tiles of a level are coded, and their pixels: JPEG, or lossless. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from tiling.core.arrays import UInt8Array
from tiling.slides.jpeg_stream import Header, ScaleDenom, decode_stream, header_of

Unpack = Callable[[bytes, int], bytes]  # stored bytes, bytes of pixels -> pixels
Memory = Callable[[tuple[int, int, int]], UInt8Array]  # shape -> memory for a tile, its content undefined


class Coding(Protocol):
    """How the tiles of one level are coded."""

    @property
    def copied(self) -> bool:
        """Whether a tile's bytes are a JPEG that can be copied."""

    def decode(self, data: bytes, denom: ScaleDenom, memory: Memory) -> tuple[UInt8Array, ScaleDenom]:
        """The pixels of a tile, uint8 (h, w, 3), and the fraction of their size that they have.

        Args:
            data: The tile's bytes.
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

    def decode(self, data: bytes, denom: ScaleDenom, memory: Memory) -> tuple[UInt8Array, ScaleDenom]:
        """As `Coding.decode`."""
        header = self._header_of(data)
        in_dct = header.dct_denom(denom)
        width, height = self.size
        out = memory((height // in_dct, width // in_dct, 3))
        return decode_stream(self._whole(header, data), width, height, in_dct, out), in_dct

    def stream(self, data: bytes) -> bytes:
        """As `Coding.stream`: the stored coefficients untouched."""
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

    def decode(self, data: bytes, denom: ScaleDenom, memory: Memory) -> tuple[UInt8Array, ScaleDenom]:
        """As `Coding.decode`, at full size."""
        width, height = self.size
        pixels = np.frombuffer(self.unpack(data, width * height * 3), np.uint8)
        if len(pixels) != width * height * 3:
            raise ValueError(f"{len(pixels)} bytes of pixels, not {width * height * 3}")
        tile = pixels.reshape(height, width, 3)
        return (np.asarray(np.cumsum(tile, axis=1, dtype=np.uint8)) if self.differences else tile), 1

    def stream(self, data: bytes) -> bytes:
        """There is none."""
        raise TypeError("lossless tiles are no JPEG streams")
