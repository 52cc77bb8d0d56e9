"""TIFF's LZW, whose last codes are surely there: the decoder makes up the bits that a stream cut short lacks."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import imagecodecs

_imagecodecs: Any = imagecodecs  # its stubs leave out arguments

NO_CODE = b"\xff" * 4
"""Put behind a stream before it is decoded: imagecodecs (2026.3) misreads codes in the last bytes of its input.

All ones are no valid code, so that a stream whose end is missing is an error.
"""
ZEROS = bytes(4)


def unpack(data: bytes, size: int) -> bytes:
    """The first `size` bytes that an LZW stream holds, or fewer if it says that it ends before.

    A stream that does not say where it ends (old writers leave that out, and so does damage) is decoded twice: what
    lies behind it must not matter to the bytes.

    Raises:
        ValueError: Of the last ones, bits are missing. RuntimeError too, which is imagecodecs', for a damaged stream.
    """
    with suppress(RuntimeError):  # of a stream that does not say where it ends
        unpacked = _decoded(data + NO_CODE, size + 1)
        if len(unpacked) <= size:
            return unpacked
    unpacked = _decoded(data + NO_CODE, size)
    if unpacked != _decoded(data + ZEROS, size):
        raise ValueError("its last pixels are missing")
    return unpacked


def _decoded(data: bytes, size: int) -> bytes:
    return bytes(_imagecodecs.lzw_decode(data, out=size))
