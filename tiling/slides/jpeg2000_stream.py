"""What a JPEG 2000 stream says of itself (ISO/IEC 15444-1, A.5.1), before anybody decodes it."""

from __future__ import annotations

import struct

BEGIN = b"\xff\x4f\xff\x51"  # start of a codestream, and the marker of its size
_FIXED = 42  # bytes from there to the first component's
HEADER_BYTES = _FIXED + 3 * 3
"""Of a bare codestream with three components: what `fills` looks at."""
_EIGHT_BITS = 7  # unsigned


def frame_shape(data: bytes) -> tuple[int, int, int]:
    """Height, width and samples a pixel that a stream, bare or in a JP2 file, claims.

    Raises ValueError if it does not say.
    """
    at = data.find(BEGIN)
    if at < 0 or len(data) < at + _FIXED:
        raise ValueError("not a JPEG 2000 stream")
    x1, y1, x0, y0 = struct.unpack_from(">4I", data, at + 8)
    return y1 - y0, x1 - x0, struct.unpack_from(">H", data, at + 40)[0]


def fills(data: bytes, width: int, height: int) -> bool:
    """Whether a bare stream holds three samples of 8 bits for each pixel of a tile, or for each block of whole ones."""
    if not data.startswith(BEGIN) or len(data) < HEADER_BYTES:
        return False
    claimed = struct.unpack_from(">4I", data, 8)
    components = list(struct.iter_unpack("3B", data[_FIXED:HEADER_BYTES]))  # bits; pixels across and down
    return (
        claimed == (width, height, 0, 0)
        and struct.unpack_from(">H", data, 40)[0] == len(components)
        and all(bits == _EIGHT_BITS and x and y and not width % x and not height % y for bits, x, y in components)
    )


def is_rgb(data: bytes, width: int, height: int) -> bool:
    """Whether a bare stream holds three samples of 8 bits for each pixel of a tile."""
    blocks = data[_FIXED + 1 : HEADER_BYTES]  # bits; pixels across and down: of each component
    return fills(data, width, height) and all(blocks[i : i + 2] == b"\1\1" for i in (0, 3, 6))
