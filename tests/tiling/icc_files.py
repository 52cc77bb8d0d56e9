"""ICC profiles for tests, and pixels in sRGB as Pillow makes them of these."""

from __future__ import annotations

import io
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

# The primaries of Adobe RGB (1998) and the white of the connection space, CIE XYZ under D50.
_PRIMARIES = {
    b"rXYZ": (0.60974, 0.31111, 0.01947), b"gXYZ": (0.20528, 0.62567, 0.06087), b"bXYZ": (0.14919, 0.06322, 0.74457),
    b"wtpt": (0.9642, 1.0, 0.8249),
}  # fmt: skip


def rgb_profile(text: str = "", *, intent: int = 1) -> bytes:
    """A profile of RGB of wide gamut (ICC.1:2001-04, three primaries and one gamma), described by a text."""
    said = text.encode() + b"\0"
    tags = {name: b"XYZ \0\0\0\0" + b"".join(map(_fixed, xyz)) for name, xyz in _PRIMARIES.items()}
    tags |= dict.fromkeys(
        (b"rTRC", b"gTRC", b"bTRC"), b"curv\0\0\0\0" + struct.pack(">IH", 1, round(1.8 * 256)) + b"\0\0"
    )
    tags[b"cprt"] = b"text\0\0\0\0" + said
    tags[b"desc"] = b"desc\0\0\0\0" + struct.pack(">I", len(said)) + said + bytes(78)
    at, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = bytes(4) + bytes(4) + b"\x02\x40\0\0" + b"scnr" + b"RGB " + b"XYZ " + bytes(12) + b"acsp" + bytes(24)
    header += struct.pack(">I", intent) + b"".join(map(_fixed, _PRIMARIES[b"wtpt"]))
    header = header.ljust(128, b"\0")
    return struct.pack(">I", len(header) + len(table) + len(body)) + header[4:] + table + body


def by_pillow(pixels: NDArray[np.uint8], profile: bytes) -> NDArray[np.uint8]:
    """The pixels in sRGB, uint8 (h, w, 3), by Pillow and the intent that the profile asks for."""
    own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    intent = ImageCms.Intent(ImageCms.getDefaultIntent(own))
    shown = ImageCms.profileToProfile(Image.fromarray(pixels), own, ImageCms.createProfile("sRGB"), intent)
    assert shown is not None
    return np.array(shown)


def _fixed(number: float) -> bytes:
    return struct.pack(">i", round(number * 65536))
