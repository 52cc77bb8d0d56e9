"""A slide in small for the list of slides, under its heatmap, as JPEG."""

from __future__ import annotations

import numpy as np

from inference.colours import opacity
from inference.maps.overview import colours
from inference.maps.stitch import assemble
from inference.viewer.numbers import Numbers
from inference.viewer.pictures import Picture
from inference.viewer.zooms import Square
from tiling.stores.codec import encode_jpeg

_SIDE_PX = 192
_QUALITY = 80
_OPACITY = 0.55


def thumbnail_jpeg(picture: Picture, numbers: Numbers | None) -> bytes:
    """The whole slide, its longer side `_SIDE_PX` pixels, under the first layer. Raises SlideError, StoreError."""
    side0 = max(picture.frame.size0)
    pixels = picture.region(Square(0, 0, side0), _SIDE_PX)
    width, height = (max(1, round(_SIDE_PX * length0 / side0)) for length0 in picture.frame.size0)
    pixels = pixels[:height, :width]
    if numbers is not None and numbers.layers:
        values = assemble(numbers.layers[0].values, numbers.tiles, side0 / _SIDE_PX, (height, width))
        known = np.isfinite(values)
        heat = np.nan_to_num(values)
        share = (_OPACITY * opacity(heat) * known)[..., None]
        pixels = np.rint(pixels * (1 - share) + colours(heat)[..., :3] * share).astype(np.uint8)
    return encode_jpeg(pixels, _QUALITY)
