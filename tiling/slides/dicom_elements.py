"""The data elements of DICOM files (PS3.5), read one after the other. Knows nothing of slides."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Collection, Iterator
from typing import BinaryIO

FRAME_PLACES, PIXEL_DATA = 0x52009230, 0x7FE00010
"""The tags of the per-frame functional groups, and of the pixels."""
ITEM, SEQUENCE_END = 0xFFFEE000, 0xFFFEE0DD
UNDEFINED_LENGTH = 0xFFFFFFFF

_LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_COLUMN, _ROW = 0x0048021E, 0x0048021F
_ITEM_END = 0xFFFEE00D
_MAX_ELEMENTS, _MAX_VALUE = 100_000, 4096  # no header of a slide comes near; bound what a damaged one costs


def elements(
    f: BinaryIO, wanted: Collection[int], *, explicit: bool, last: int, max_bytes: int = _MAX_VALUE
) -> Iterator[tuple[int, bytes]]:
    """The wanted data elements of the dataset at the file's position, up to the tag `last`; (tag, value).

    What sequences hold is passed over.

    Args:
        f: The file, at the beginning of an element; left behind the tag, representation and length in 16 bits of
            `last`, or at the first element beyond.
        wanted: The tags wanted.
        explicit: Whether value representations are written out.
        last: The tag to end with: of its value, which may be a long one, nothing but that it is there is told.
        max_bytes: Longest value that is read.

    Yields:
        Tag and value; of `last` no value.

    Raises:
        ValueError: If the dataset is damaged. struct.error, too.
    """
    inside = [explicit]  # of the dataset and of the sequences and items of undefined length about to be passed over
    for _ in range(_MAX_ELEMENTS):
        head = f.read(8)
        if len(head) < 8:
            return
        group, element, length = struct.unpack("<HHI", head)
        tag, representation = group << 16 | element, head[4:6]
        if len(inside) == 1 and tag > last:
            f.seek(-8, os.SEEK_CUR)
            return
        if len(inside) == 1 and tag == last:
            yield tag, b""
            return
        if tag in (_ITEM_END, SEQUENCE_END):
            inside.pop()
            if not inside:
                raise ValueError("an end without its beginning")
            continue
        if tag != ITEM and inside[-1]:
            if not representation.isalpha():
                raise ValueError("no value representation")
            long = representation in _LONG_VRS
            length = struct.unpack("<I", f.read(4))[0] if long else struct.unpack("<H", head[6:])[0]
        if length == UNDEFINED_LENGTH:  # what a sequence of unknown representation holds is written without any
            inside.append(inside[-1] and representation != b"UN")
        elif len(inside) == 1 and tag in wanted:
            if length > max_bytes:
                raise ValueError("a value too long")
            yield tag, f.read(length)
        else:
            f.seek(length, os.SEEK_CUR)
    raise ValueError("too many elements")


def nested_elements(f: BinaryIO, wanted: Collection[int], max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """The wanted elements of a sequence, at any depth; (tag, value), of a longer value b"".

    `f` is behind the tag and representation of the sequence, where `elements` leaves it at its last, and is left behind
    the sequence, however it and its items are delimited. Raises ValueError, struct.error.
    """
    length = struct.unpack("<I", f.read(4))[0]
    at, opened = 0, int(length == UNDEFINED_LENGTH)  # bytes read; sequences and items that an element of its own ends
    end = length if not opened else math.inf
    while at < end:
        group, element, size = struct.unpack("<HHI", head := f.read(8))
        at += 8
        tag = group << 16 | element
        if tag in (_ITEM_END, SEQUENCE_END):
            opened -= 1
            if not opened and end == math.inf:
                break
            continue
        if tag != ITEM:
            representation = head[4:6]
            if not representation.isalpha() or representation == b"UN":
                raise ValueError("no value representation")
            size = struct.unpack_from("<H", head, 6)[0]
            if representation in _LONG_VRS:
                size, at = struct.unpack("<I", f.read(4))[0], at + 4
        if tag == ITEM or representation == b"SQ":  # entered: what it holds comes next
            opened += size == UNDEFINED_LENGTH
            continue
        if tag in wanted:
            yield tag, f.read(size) if size <= max_bytes else b""
        f.seek(0 if tag in wanted and size <= max_bytes else size, os.SEEK_CUR)
        at += size


def frame_corners(f: BinaryIO, max_frames: int) -> list[tuple[int, int]]:
    """Where the frames lie, by the per-frame functional groups: x and y of their corners, pixels of the whole image.

    `f` is where `elements` leaves it at FRAME_PLACES, and is left behind the groups. Raises ValueError, struct.error.
    """
    columns, rows = list[int](), list[int]()
    for tag, value in nested_elements(f, (_COLUMN, _ROW), 4):
        (columns if tag == _COLUMN else rows).append(struct.unpack("<i", value)[0] - 1)
        if len(columns) > max_frames:
            raise ValueError("too many places")
    if len(columns) != len(rows):
        raise ValueError("columns without rows")
    return list(zip(columns, rows, strict=True))
