"""How a tile becomes bytes: the JPEG codec for zarr v3, and the names of the codecs on the command line.

The codec is registered under the name "specslide.jpeg" by entry point, so any zarr-python that has specslide
installed reads its arrays. A chunk is one self-contained JPEG file, which anything else can decode too.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Any, Literal, Self, cast

import numpy as np
import simplejpeg
import zarr.abc.codec
from numpy.typing import NDArray
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.common import JSON

UInt8Array = NDArray[np.uint8]
Subsampling = Literal["4:4:4", "4:2:2", "4:2:0"]

JPEG_NAME = "specslide.jpeg"


def encode_jpeg(tile: UInt8Array, quality: int, subsampling: Subsampling = "4:4:4") -> bytes:
    """A JPEG file of an RGB tile uint8 (h, w, 3); accurate DCT; the same tile always gives the same bytes."""
    pixels = np.ascontiguousarray(tile)
    return cast(bytes, simplejpeg.encode_jpeg(pixels, quality, "RGB", subsampling.replace(":", ""), fastdct=False))


def decode_jpeg(data: bytes | memoryview) -> UInt8Array:
    """The RGB pixels of a JPEG file, uint8 (h, w, 3). Raises ValueError if it cannot be decoded."""
    return cast(UInt8Array, simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False))


@dataclass(frozen=True)
class TileCodec:
    """A codec as named on the command line: `jpeg:Q` (quality 1 to 100) or `lossless` (zstd)."""

    jpeg_quality: int | None

    @classmethod
    def parse(cls, name: str) -> Self:
        """Raises ValueError for a name that is none."""
        if name == "lossless":
            return cls(None)
        match = re.fullmatch(r"jpeg:(\d{1,3})", name)
        if match is None or not 1 <= int(match[1]) <= 100:
            raise ValueError(f"unknown codec {name!r}: use jpeg:1 to jpeg:100, or lossless")
        return cls(int(match[1]))


@dataclass(frozen=True)
class JpegCodec(zarr.abc.codec.ArrayBytesCodec):
    """zarr v3 array-to-bytes codec: a uint8 chunk (1, h, w, 3) as one JPEG file."""

    is_fixed_size = False

    quality: int = 90
    subsampling: Subsampling = "4:4:4"

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        """From its entry in `zarr.json`."""
        return cls(**cast(dict[str, Any], data.get("configuration", {})))

    def to_dict(self) -> dict[str, JSON]:
        """Its entry in `zarr.json`."""
        return {
            "name": JPEG_NAME,
            "configuration": {"quality": self.quality, "subsampling": self.subsampling},
        }

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """JPEG sizes depend on the pixels."""
        raise NotImplementedError

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        pixels = await asyncio.to_thread(decode_jpeg, chunk_data.to_bytes())
        if pixels.shape != chunk_spec.shape[1:]:
            raise ValueError(f"the JPEG is {pixels.shape}, its chunk {chunk_spec.shape}")
        return chunk_spec.prototype.nd_buffer.from_numpy_array(pixels[None])

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        tile = chunk_data.as_numpy_array()
        if tile.dtype != np.uint8 or tile.ndim != 4 or tile.shape[0] != 1 or tile.shape[3] != 3:
            raise ValueError(f"JPEG chunks are uint8 (1, h, w, 3), not {tile.dtype} {tile.shape}")
        data = await asyncio.to_thread(encode_jpeg, tile[0], self.quality, self.subsampling)
        return chunk_spec.prototype.buffer.from_bytes(data)
