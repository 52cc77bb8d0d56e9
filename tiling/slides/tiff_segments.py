"""One strip or tile of a TIFF, decoded into no more memory than its pixels take, whatever size its stream claims."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import imagecodecs
import numpy as np
from tifffile import COMPRESSION, FILLORDER, PLANARCONFIG

from tiling.core.arrays import AnyArray
from tiling.slides import jpeg2000_stream, jpeg_stream, jpegxr_stream, lzw

_imagecodecs: Any = imagecodecs  # its stubs leave out arguments
_INTO: dict[int, Callable[..., AnyArray]] = {
    COMPRESSION.PNG: _imagecodecs.png_decode,
    COMPRESSION.WEBP: _imagecodecs.webp_decode,
    COMPRESSION.WEBP_DEPRECATED: _imagecodecs.webp_decode,
    COMPRESSION.JPEGXL: _imagecodecs.jpegxl_decode,
    COMPRESSION.JPEGXL_DNG: _imagecodecs.jpegxl_decode,
    COMPRESSION.JPEGXR: _imagecodecs.jpegxr_decode,
    COMPRESSION.JPEGXR_NDPI: _imagecodecs.jpegxr_decode,
}
"""Decoders that look at a stream's size first, given the memory for its pixels."""
_JPEG2000 = (COMPRESSION.JPEG2000, COMPRESSION.JPEG_2000_LOSSY, COMPRESSION.APERIO_JP2000_RGB)


def decoded_segment(page: Any, index: int, data: bytes, whole: tuple[int, int], inside: tuple[int, int]) -> AnyArray:
    """One strip or tile of a page, (h, w, samples): of its `whole` size, or less but for what lies `inside` the level.

    Args:
        page: Of tifffile, in a compression of `tiling.slides.tiff_picture.READABLE`.
        index: Which of the page's strips or tiles it is.
        data: Its bytes as they are stored.
        whole: Height and width of the page's strips or tiles.
        inside: Height and width of the part of this one that lies on the level.

    Raises:
        ValueError: It has fewer pixels, or its stream claims more. Else what tifffile and imagecodecs raise.
    """
    samples = samples_of(page)
    if page.compression in (COMPRESSION.JPEGXR, COMPRESSION.JPEGXR_NDPI):
        jpegxr_stream.require_whole(data)
    decode = _INTO.get(page.compression)
    if decode is not None:
        if page.samplesperpixel == 4 and decode is _imagecodecs.webp_decode:
            decode = partial(decode, hasalpha=True)  # streams may leave out an alpha of 255
        try:
            return _into(decode, data, (*whole, samples), page.dtype)
        except ValueError:  # at the edge, some writers store what lies on the level
            return _into(decode, data, (*inside, samples), page.dtype)
    if page.compression == COMPRESSION.JPEG or page.compression in _JPEG2000:
        claimed = _jpeg_claims(data) if page.compression == COMPRESSION.JPEG else jpeg2000_stream.frame_shape(data)
        if any(n > m for n, m in zip(claimed, (*whole, page.samplesperpixel), strict=True)):
            raise ValueError("a stream that claims more pixels than the strip or tile has")
    if page.compression == COMPRESSION.JPEG:
        jpeg_stream.require_whole(data, page.jpegtables)
    if page.compression == COMPRESSION.LZW:
        stream = _imagecodecs.bitorder_decode(data) if page.fillorder == FILLORDER.LSB2MSB else data
        lzw.unpack(stream, inside[0] * whole[1] * samples * page.dtype.itemsize)  # raises for what tifffile makes up
        data += lzw.NO_CODE
    segment = np.asarray(page.decode(data, index, jpegtables=page.jpegtables)[0][0])
    if segment.shape[0] < inside[0] or segment.shape[1] < inside[1]:
        raise ValueError("fewer pixels than the strip or tile has")
    if (segment.dtype.kind, segment.itemsize) != (page.dtype.kind, page.dtype.itemsize):
        raise ValueError("a stream of other samples than the page's")
    return segment


def samples_of(page: Any) -> int:
    """Samples a pixel in each of a page's strips or tiles."""
    return int(page.samplesperpixel) if page.planarconfig == PLANARCONFIG.CONTIG else 1


def _into(decode: Callable[..., AnyArray], data: bytes, shape: tuple[int, int, int], dtype: Any) -> AnyArray:
    return np.asarray(decode(data, out=np.empty(shape if shape[2] > 1 else shape[:2], dtype))).reshape(shape)


def _jpeg_claims(data: bytes) -> tuple[int, int, int]:
    """Height, width and samples a pixel that a JPEG stream claims. Raises ValueError if it does not say."""
    try:
        return jpeg_stream.frame_shape(data)
    except jpeg_stream.NotUnderstoodError as error:
        raise ValueError(str(error)) from error
