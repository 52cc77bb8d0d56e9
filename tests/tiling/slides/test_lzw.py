"""LZW streams that lack their end: the pixels, or an error; never what the decoder made up."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from tests.tiling.slides.test_slide import noise
from tiling.core.errors import SlideError
from tiling.slides import lzw
from tiling.slides.slide import Slide

SIDE = 64
PIXELS = st.builds(
    lambda seed, colours, n: np.random.default_rng(seed).integers(0, colours, n, np.uint8).tobytes(),
    st.integers(0, 99), st.sampled_from([1, 2, 7, 256]), st.integers(1, 9000),
)  # fmt: skip


@given(pixels=PIXELS, cut=st.integers(0, 60))
def test_a_stream_cut_short_gives_its_bytes_or_an_error(pixels: bytes, cut: int) -> None:
    stream = imagecodecs.lzw_encode(pixels)
    whole = stream[: max(2, len(stream) - cut)]
    try:
        unpacked = lzw.unpack(bytes(whole), len(pixels))
    except (ValueError, RuntimeError):
        assert cut > 0
    else:
        assert unpacked == pixels[: len(unpacked)]
        assert len(unpacked) == len(pixels) or cut > 0


@given(pixels=PIXELS, more=st.integers(1, 50))
def test_a_stream_may_hold_more_than_is_asked_for(pixels: bytes, more: int) -> None:
    stream = bytes(imagecodecs.lzw_encode(pixels + bytes(more)))
    assert lzw.unpack(stream, len(pixels)) == pixels


def test_a_stream_need_not_say_where_it_ends() -> None:
    stream = bytes(imagecodecs.lzw_encode(b"ab"))
    assert stream == int("1000000000011000010011000101000000010000", 2).to_bytes(5, "big")
    assert lzw.unpack(stream[:4], 2) == b"ab"  # 32 bits of 36: the end's are not all there
    with pytest.raises((ValueError, RuntimeError)):
        lzw.unpack(stream[:3], 2)  # 24 bits of the 27 that the pixels take


def test_a_byte_count_too_small_is_damage_or_costs_no_pixel_where_bits_are_in_reverse(tmp_path: Path) -> None:
    path, picture, another = tmp_path / "a.tif", noise(SIDE, SIDE), (265, "H", 1, 2, True)
    how: dict[str, Any] = {"rowsperstrip": SIDE, "photometric": "rgb", "metadata": None}
    tifffile.imwrite(path, picture, compression="lzw", extratags=[another], **how)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        (offset,), (size,) = page.dataoffsets, page.databytecounts
        count_at = page.tags["StripByteCounts"].offset
        struct.pack_into("<H", data, page.tags[265].offset, 266)  # FillOrder, which tifffile does not write
        data[offset : offset + size] = imagecodecs.bitorder_decode(bytes(data[offset : offset + size]))
    found = []
    for missing in range(40):
        struct.pack_into("<I", data, count_at + 8, size - missing)
        path.write_bytes(data)
        try:
            with Slide(path) as slide:
                pixels = slide.read_region(0, 0, 0, SIDE, SIDE)
        except SlideError:
            found.append("damaged")
        else:
            np.testing.assert_array_equal(pixels, picture)
            found.append("whole")
    assert found == ["whole"] * (whole := found.count("whole")) + ["damaged"] * (40 - whole)
    assert 0 < whole < 4
