"""The JPEG streams of tiles: their segments, their headers, and whole tiles decoded by libjpeg-turbo. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import simplejpeg

from tiling.core.arrays import UInt8Array

ScaleDenom = Literal[1, 2, 4, 8]
_DENOMS: tuple[ScaleDenom, ...] = get_args(ScaleDenom)

# An Adobe APP14 marker tells libjpeg the colour space of streams that do not say it; OpenSlide goes by the TIFF tag.
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
TRANSFORM = {2: b"\x00", 6: b"\x01"}  # TIFF PhotometricInterpretation (RGB, YCbCr) -> Adobe transform
_SOI, _DHT, _EOI, _SOS, _DQT, _COM = 0xD8, 0xC4, 0xD9, 0xDA, 0xDB, 0xFE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {_DHT, 0xC8, 0xCC}  # SOF0..SOF15
_PLAIN_FRAMES = (0xC0, 0xC1)  # baseline and extended sequential Huffman
_HUFFMAN_FRAMES = (*_PLAIN_FRAMES, 0xC2)  # and progressive
_APPLICATION = frozenset(range(0xE0, 0xF0)) | {_COM}


def scale_of(denom: int) -> ScaleDenom:
    """1, 2, 4 or 8, of which a decoder makes pictures smaller."""
    return next(known for known in _DENOMS if known == denom)


class NotUnderstoodError(Exception):
    """A file or stream that is left to another reader, with the reason."""


def decode_stream(
    stream: bytes, width: int, height: int, scale_denom: ScaleDenom = 1, out: UInt8Array | None = None
) -> UInt8Array:
    """The pixels of a whole JPEG stream, at full size or scaled down in the DCT domain, uint8 (h, w, 3), RGB.

    Accurate DCT and smooth chroma upsampling, as in OpenSlide.

    Args:
        stream: The JPEG file.
        width: Its width in pixels.
        height: Its height in pixels.
        scale_denom: The result has 1 / `scale_denom` of that size.
        out: Memory of the result's size to use; None: new memory.

    Returns:
        The pixels, in `out` where that is given.

    Raises:
        ValueError: If the stream is corrupt or of another size, even where a decoder could carry on: OpenSlide refuses
            such tiles too.
    """
    w, h = width // scale_denom, height // scale_denom
    tile: UInt8Array = simplejpeg.decode_jpeg(
        stream, "RGB", fastdct=False, fastupsample=False, min_height=h, min_width=w, buffer=out
    )
    if tile.shape != (h, w, 3):
        raise ValueError(f"{tile.shape} pixels, not {(h, w, 3)}")
    return tile


def stream_prefix(tables: bytes | None, photometric: int) -> bytes:
    """The bytes in front of every stream of a page: SOI, the colour space, the page's shared tables."""
    kept = bytearray(b"\xff\xd8" + _ADOBE + TRANSFORM[photometric])
    if tables is None:
        return bytes(kept)
    for marker, start, end in _segments(tables):
        if marker in _FRAMES or marker == _SOS:
            raise NotUnderstoodError("JPEG tables that hold a picture")
        if marker in (_DQT, _DHT):  # anything else would not outlive the tables' own end of image
            kept += tables[start:end]
    return bytes(kept)


@dataclass(frozen=True)
class Header:
    """A JPEG stream up to its entropy-coded data: the same bytes mean the same in every stream of a level."""

    stored: bytes
    kept: bytes  # without SOI and application segments

    @cached_property
    def chroma(self) -> str:
        """Chroma subsampling as "444", "422" and so on. Raises ValueError if libjpeg-turbo knows no name for it."""
        return str(simplejpeg.decode_jpeg_header(b"\xff\xd8" + self.kept)[3])

    def dct_denom(self, denom: ScaleDenom) -> ScaleDenom:
        """How far to scale down in the DCT domain on the way to 1 / `denom`; area averaging does the rest.

        All the way where chroma is as coarse down as across. Elsewhere libjpeg scales chroma by the finer of the two
        and then widens it again: at 1/8, 4:2:2 colours would have the resolution of 1/16. Raises ValueError.
        """
        if denom == 1 or self.chroma in ("444", "420"):
            return denom
        return 2 if self.chroma in ("422", "440") else 1


def header_of(stream: bytes, width: int, height: int) -> Header:
    """The header of a tile's stream. Raises NotUnderstoodError unless it is such a tile.

    Looking at the frame header here keeps a damaged size from reserving gigabytes in the decoder.
    """
    kept, frames = bytearray(), 0
    for marker, start, end in _segments(stream):
        if marker == _SOS:
            if frames != 1:
                break
            return Header(stream[:end], bytes(kept) + stream[start:end])
        if marker in _FRAMES:
            frames += 1
            if marker not in _PLAIN_FRAMES or end - start < 10:
                raise NotUnderstoodError(f"JPEG of kind SOF{marker - 0xC0}")
            bits, h, w, samples = struct.unpack_from(">BHHB", stream, start + 4)
            if (bits, h, w, samples) != (8, height, width, 3):
                raise NotUnderstoodError(f"{w} x {h} px, {samples} samples of {bits} bits")
        if marker not in _APPLICATION:
            kept += stream[start:end]
    raise NotUnderstoodError("JPEG without a picture")


def frame_height_at(stream: bytes) -> int:
    """The place in a JPEG of the two bytes of its height. Raises NotUnderstoodError."""
    for marker, start, _ in _segments(stream):
        if marker in _FRAMES:
            return start + 5
    raise NotUnderstoodError("JPEG without a picture")


def frame_shape(stream: bytes) -> tuple[int, int, int]:
    """Height, width and samples a pixel that a JPEG claims, the most of all its frames. Raises NotUnderstoodError."""
    frames = [
        struct.unpack_from(">HHB", stream, start + 5)
        for marker, start, end in _segments(stream)
        if marker in _FRAMES and end - start >= 10
    ]
    if not frames:
        raise NotUnderstoodError("JPEG without a picture")
    return max(f[0] for f in frames), max(f[1] for f in frames), max(f[2] for f in frames)


def require_whole(stream: bytes, tables: bytes | None = None) -> None:
    """Raise ValueError for a damaged JPEG, whose missing pixels most decoders make up: libjpeg only warns of it.

    Of a kind that libjpeg-turbo does not decode here (lossless, CMYK), only that there is an end is looked at.

    Args:
        stream: The JPEG, of any kind; more bytes may follow it.
        tables: The tables that it lacks and shares with others, a JPEG too; None: it has its own.
    """
    try:
        segments = list(_segments(stream))
    except NotUnderstoodError as error:
        raise ValueError(str(error)) from error
    frames = {(marker, stream[start + 9 : start + 10]) for marker, start, _ in segments if marker in _FRAMES}
    if all(marker in _HUFFMAN_FRAMES and samples in (b"\1", b"\3") for marker, samples in frames):
        simplejpeg.decode_jpeg(stream if tables is None else tables[:-2] + stream[2:], "GRAY")
    elif bytes((0xFF, _EOI)) not in stream[segments[-1][2] :]:
        raise ValueError("a JPEG that ends too early")


def _segments(stream: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of each marker segment after SOI, up to SOS or EOI. Raises NotUnderstoodError."""
    if stream[:2] != bytes((0xFF, _SOI)):
        raise NotUnderstoodError("not a JPEG")
    at = 2
    while at + 2 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker == _EOI:
            return
        length = int.from_bytes(stream[at + 2 : at + 4], "big")
        end = at + 2 + length
        if marker < 0xC0 or marker == _SOI or length < 2 or end > len(stream):
            break
        yield marker, at, end
        if marker == _SOS:
            return
        at = end
    raise NotUnderstoodError("damaged JPEG segments")
