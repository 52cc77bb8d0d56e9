"""TIFF files opened so that damaged ones end, and what tifffile raises for them. Decodes nothing."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO
from xml.etree import ElementTree

import tifffile

TIFF_DAMAGE = (
    tifffile.TiffFileError, ValueError, LookupError, TypeError, ArithmeticError, AttributeError, struct.error,
    MemoryError,  # a damaged count asks for any size
)  # fmt: skip
"""What tifffile raises for damaged files."""

DAMAGE = (*TIFF_DAMAGE, RuntimeError, ElementTree.ParseError)  # RuntimeError: what imagecodecs raises
"""What tifffile and its codecs raise for damaged files."""

_MAX_PAGES = 10_000


def open_tiff(file: BinaryIO) -> tifffile.TiffFile:
    """A TIFF whose list of pages ends: tifffile follows a circle for ever. Raises what it raises for damaged files."""
    tiff = tifffile.TiffFile(file)
    form, seen, offset = tiff.tiff, set[int](), tiff.pages.first.offset
    while offset:
        if offset in seen or len(seen) == _MAX_PAGES:
            raise ValueError("a list of pages without an end")
        seen.add(offset)
        file.seek(offset)
        count = file.read(form.tagnosize)
        if len(count) < form.tagnosize:
            break
        file.seek(struct.unpack(form.tagnoformat, count)[0] * form.tagsize, os.SEEK_CUR)
        following = file.read(form.offsetsize)
        if len(following) < form.offsetsize:
            break
        offset = struct.unpack(form.offsetformat, following)[0]
    return tiff
