"""NDPI files for tests: one JPEG a level, with restart markers and the list of where they are."""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

_CHROMA = {
    "444": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, "440": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    "422": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422, "420": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "411": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
}  # fmt: skip


def ndpi_jpeg(level: NDArray[np.uint8], chroma: str, restart: int) -> bytes:
    """A level as one JPEG with a restart marker after so many MCUs; 0: without."""
    settings = [cv2.IMWRITE_JPEG_QUALITY, 85, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, _CHROMA[chroma]]
    settings += [cv2.IMWRITE_JPEG_RST_INTERVAL, restart]
    return bytes(cv2.imencode(".jpg", level[..., ::-1], settings)[1].tobytes())


def strip_starts(jpeg: bytes) -> list[int]:
    """Where the data after each restart marker begin, and the first."""
    scan = jpeg.index(b"\xff\xda")
    first = scan + 2 + int.from_bytes(jpeg[scan + 2 : scan + 4], "big")
    return [first, *(mark.end() for mark in re.finditer(rb"\xff[\xd0-\xd7]", jpeg) if mark.start() > first)]


def write_ndpi(
    path: Path,
    levels: Sequence[NDArray[np.uint8]],
    chroma: str = "422",
    *,
    restart: int | Sequence[int] = 16,
    profile: bytes | None = None,
) -> Path:
    """Levels, the finest first, 20x at 0.5 micrometres a pixel; `restart` MCUs between markers, of all or of each."""
    intervals = [restart] * len(levels) if isinstance(restart, int) else restart
    sizes = [(level.shape[1], level.shape[0]) for level in levels]
    jpegs = [ndpi_jpeg(level, chroma, interval) for level, interval in zip(levels, intervals, strict=True)]
    return write_jpegs(path, jpegs, sizes, profile or b"")


def write_jpegs(path: Path, jpegs: Sequence[bytes], sizes: Sequence[tuple[int, int]], profile: bytes = b"") -> Path:
    """Of JPEGs of the levels, their (width, height), and an ICC profile. Data come before directories, whose
    offsets have 64 bits."""
    data, directories = bytearray(b"II*\0" + bytes(8)), list[tuple[int, int]]()
    for jpeg, (width, height) in zip(jpegs, sizes, strict=True):
        starts, times, at = strip_starts(jpeg), sizes[0][0] / width, len(data)
        data += jpeg + bytes(-len(jpeg) % 2)
        values = len(data)
        data += struct.pack("<3H2x2I", 8, 8, 8, 20_000, 1) + b"Hamamatsu\0" + struct.pack(f"<{len(starts)}I", *starts)
        own = len(data)
        data += profile + bytes(-len(profile) % 2)
        lens = int.from_bytes(struct.pack("<f", 20 / times), "little")
        tags = [  # code, type, count, value or where it lies
            (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, values), (259, 3, 1, 7), (262, 3, 1, 6),
            (271, 2, 10, values + 16), (273, 4, 1, at), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, len(jpeg)),
            (282, 5, 1, values + 8), (283, 5, 1, values + 8), (296, 3, 1, 3),
            *([(34675, 7, len(profile), own)] if profile else []), (65420, 3, 1, 1), (65421, 11, 1, lens),
            (65424, 9, 1, 0), *([(65426, 4, len(starts), values + 26)] if len(starts) > 1 else []),
        ]  # fmt: skip
        directories.append((len(data), len(data) + 2 + 12 * len(tags)))
        data += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        data += bytes(8 + 4 * len(tags))  # where the next directory lies, and the upper halves of the values
    struct.pack_into("<Q", data, 4, directories[0][0])
    for (_, end), (begin, _) in itertools.pairwise(directories):
        struct.pack_into("<Q", data, end, begin)
    path.write_bytes(data)
    return path
