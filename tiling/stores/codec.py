"""How a tile becomes bytes: the JPEG codec for zarr v3, and the names of the codecs on the command line.

The codec is registered under the name "specslide.jpeg" by entry point, so any zarr-python that has specslide
installed reads its arrays. A chunk is one self-contained JPEG file, which anything else can decode too.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Any, Literal, Self, cast

import imagecodecs
import numpy as np
import simplejpeg
import zarr.abc.codec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.common import JSON

from tiling.core.arrays import AnyArray, UInt8Array
from tiling.core.errors import ConfigError

Subsampling = Literal["4:4:4", "4:2:2", "4:2:0"]

JPEG_NAME = "specslide.jpeg"
ZSTD_LEVEL = 5
_imagecodecs: Any = imagecodecs  # its stubs leave out arrays


def encode_jpeg(tile: UInt8Array, quality: int, subsampling: Subsampling = "4:4:4") -> bytes:
    """A JPEG file of an RGB tile uint8 (h, w, 3); accurate DCT; the same tile always gives the same bytes."""
    pixels = np.ascontiguousarray(tile)
    return cast(bytes, simplejpeg.encode_jpeg(pixels, quality, "RGB", subsampling.replace(":", ""), fastdct=False))


def decode_jpeg(data: bytes | memoryview | UInt8Array, out: UInt8Array | None = None) -> UInt8Array:
    """The RGB pixels of a JPEG file, uint8 (h, w, 3), of any subsampling; OpenSlide's pixels exactly.

    Accurate DCT and smooth upsampling, as OpenSlide decodes. With `out`, uint8 (h, w, 3) and contiguous, they are
    decoded straight into it. Raises ValueError if the file cannot be decoded or is not of that size.
    """
    pixels = cast(UInt8Array, simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, buffer=out))
    if out is not None and pixels.shape != out.shape:
        raise ValueError(f"the JPEG has the shape {pixels.shape} instead of {out.shape}")
    return pixels


def encode_lossless(tile: UInt8Array) -> bytes:
    """A zstd frame of a tile's bytes, its content size in the header; the same tile always gives the same bytes."""
    return encode_zstd(tile, ZSTD_LEVEL)


def encode_zstd(values: AnyArray, level: int) -> bytes:
    """A zstd frame of an array's bytes, its content size in the header; equal arrays give equal bytes."""
    return bytes(_imagecodecs.zstd_encode(np.ascontiguousarray(values), level=level))


def decode_lossless(data: bytes | memoryview | UInt8Array, out: UInt8Array) -> UInt8Array:
    """Decompress a zstd frame into `out`, contiguous. Raises ValueError if it is damaged or not of that size."""
    try:
        pixels = _imagecodecs.zstd_decode(data, out=out.reshape(-1))
    except RuntimeError as error:  # imagecodecs' errors
        raise ValueError(str(error)) from error
    if len(pixels) != out.size:
        raise ValueError(f"it holds {len(pixels)} bytes instead of {out.size}")
    return out


@dataclass(frozen=True)
class TileCodec:
    """The encoding of tiles, as named on the command line; see `parse`."""

    kind: Literal["jpeg", "lossless", "source"]
    quality: int | None = None
    subsampling: Subsampling | None = None

    @classmethod
    def parse(cls, name: str) -> Self:
        """The codec of that name. Raises ValueError for a name that is none.

        - `jpeg:Q`: JPEG of quality Q from 1 to 100, colours at full resolution (4:4:4)
        - `jpeg:Q:420`: the same with colours at half resolution (4:2:0), about a third smaller
        - `lossless`: zstd
        - `source`: the slide's own JPEG streams, copied and not encoded again
        """
        if name in ("lossless", "source"):
            return cls(cast(Literal["lossless", "source"], name))
        match = re.fullmatch(r"jpeg:([0-9]{1,3})(:420)?", name)
        if match is None or not 1 <= int(match[1]) <= 100:
            raise ValueError(f"unknown codec {name!r}: use jpeg:1 to jpeg:100, jpeg:90:420, lossless or source")
        return cls("jpeg", int(match[1]), "4:2:0" if match[2] else "4:4:4")

    def encode(self, tile: UInt8Array) -> bytes:
        """A tile uint8 (h, w, 3) as the bytes of its chunk. Raises ConfigError for `source`, which encodes nothing."""
        if self.kind == "lossless":
            return encode_lossless(tile)
        if self.quality is None or self.subsampling is None:
            raise ConfigError("codec", "`source` copies a slide's JPEG streams and cannot encode", "use jpeg:90")
        return encode_jpeg(tile, self.quality, self.subsampling)

    def decode(self, data: bytes | memoryview | UInt8Array, out: UInt8Array) -> UInt8Array:
        """Decode a chunk straight into the tile `out`, uint8 (h, w, 3). Raises ValueError if it does not fit."""
        return decode_lossless(data, out) if self.kind == "lossless" else decode_jpeg(data, out)


@dataclass(frozen=True)
class JpegCodec(zarr.abc.codec.ArrayBytesCodec):
    """zarr v3 array-to-bytes codec: a uint8 chunk (1, h, w, 3) as one JPEG file.

    Without a quality the files were made elsewhere (`source`) and can only be read.
    """

    is_fixed_size = False

    quality: int | None = 90
    subsampling: Subsampling | None = "4:4:4"

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
        if self.quality is None or self.subsampling is None:
            raise ValueError("this array holds JPEG files copied from a slide: it can be read, not written")
        data = await asyncio.to_thread(encode_jpeg, tile[0], self.quality, self.subsampling)
        return chunk_spec.prototype.buffer.from_bytes(data)
