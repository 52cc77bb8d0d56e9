"""Which JPEGs are whole."""

from __future__ import annotations

import io
from collections.abc import Callable

import imagecodecs
import numpy as np
import PIL.Image
import pytest

from tests.tiling.slides.test_slide import noise
from tiling.slides.jpeg_stream import require_whole

PIXELS = noise(60, 75)


def pillows(mode: str = "RGB", **how: object) -> bytes:
    written = io.BytesIO()
    PIL.Image.fromarray(PIXELS).convert(mode).save(written, "JPEG", quality=90, **how)
    return written.getvalue()


KINDS: dict[str, Callable[[], bytes]] = {
    "colour": pillows,
    "grey": lambda: pillows("L"),
    "progressive": lambda: pillows(progressive=True),
    "restart markers": lambda: pillows(restart_marker_blocks=3),
    "CMYK": lambda: pillows("CMYK"),
    "lossless": lambda: bytes(imagecodecs.ljpeg_encode(PIXELS[..., 0].astype(np.uint16), bitspersample=16)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_jpeg_is_one_with_more_bytes_behind_it_too_and_none_that_is_cut_short(kind: str) -> None:
    data = KINDS[kind]()
    require_whole(data)
    require_whole(data + b"\0")
    require_whole(data + b"what a camera adds")
    for missing in (1, 2, 3, 10, len(data) // 2, len(data) - 4, len(data)):
        with pytest.raises(ValueError, match=r"."):
            require_whole(data[: len(data) - missing])


@pytest.mark.parametrize("kind", ["colour", "grey", "progressive", "restart markers"])
def test_one_with_bytes_missing_in_the_middle_is_not(kind: str) -> None:
    data = KINDS[kind]()
    with pytest.raises(ValueError, match=r"."):
        require_whole(data[: len(data) // 2] + data[len(data) // 2 + 400 :])


def test_shared_tables_are_taken_into_account() -> None:
    data = pillows()
    tables, stream = bytearray(b"\xff\xd8"), bytearray(b"\xff\xd8")
    at = 2
    while data[at + 1] != 0xDA:  # start of scan
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        (tables if data[at + 1] in (0xDB, 0xC4) else stream).extend(data[at:end])
        at = end
    stream += data[at:]
    require_whole(bytes(stream), bytes(tables) + b"\xff\xd9")
    with pytest.raises(ValueError, match=r"."):
        require_whole(bytes(stream))
