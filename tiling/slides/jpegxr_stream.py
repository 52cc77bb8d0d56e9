"""Where a JPEG XR file says that its pictures lie (ITU-T T.832, annex A), before anybody decodes it."""

from __future__ import annotations

import struct

_BEGIN = b"II\xbc"
_PLACES = ((0xBCC0, 0xBCC1), (0xBCC2, 0xBCC3))
"""Tags of the offset and the number of bytes: of the picture, and of its alpha."""
_SIZES = {1: 1, 3: 2, 4: 4}
"""Bytes of a number, by its type in the directory."""


def require_whole(data: bytes) -> None:
    """Raise ValueError for a file cut short: the decoder would make up the pixels that are missing."""
    if len(data) < 8 or not data.startswith(_BEGIN):
        raise ValueError("not a JPEG XR file")
    (at,) = struct.unpack_from("<I", data, 4)
    directory = data[at + 2 : at + 2 + 12 * int.from_bytes(data[at : at + 2], "little")]
    if not directory or len(directory) % 12:
        raise ValueError("a JPEG XR file without a directory")
    numbers = {
        tag: int.from_bytes(value[: _SIZES[kind]], "little")
        for tag, kind, count, value in struct.iter_unpack("<HHI4s", directory)
        if count == 1 and kind in _SIZES
    }
    for offset, size in _PLACES:
        if numbers.get(offset, 0) + numbers.get(size, 0) > len(data):
            raise ValueError("a JPEG XR file that ends too early")
