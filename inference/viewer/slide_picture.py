"""A slide's pixels for the viewer, read from its file at any scale. All that a process which draws slides needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inference.viewer.zooms import Square, tile_px_for
from tiling.core.arrays import Icc, UInt8Array
from tiling.core.errors import SlideError
from tiling.slides.jpeg_stream import decode_stream
from tiling.slides.slide import Slide
from tiling.stores.codec import encode_jpeg

_QUALITY: Final = 85
_SUBSAMPLING: Final = "4:2:2"
_STRIPS_BYTES: Final = 32 << 20
"""Of decoded strips that are kept of a slide; as much as OpenSlide keeps."""


@dataclass(frozen=True)
class SlideSource:
    """Which slide is drawn, and what is known of it."""

    slide_id: str
    path: Path
    mpp: float | None
    """Micrometres per level-0 pixel, where the file does not say."""
    size0: tuple[int, int] | None
    """What its heatmap says, level-0 pixels; None where there is none."""
    icc: Icc = "none"
    """The colours it is shown in."""


class SlidePicture:
    """A slide, read at any scale. Raises SlideError if it cannot be opened, or is not of the size given."""

    kind: Final = "slide"
    finest_px0: Final = 1.0

    def __init__(self, source: SlideSource) -> None:
        self._slide = Slide(source.path, mpp=source.mpp, icc=source.icc)
        self.frame = self._slide.frame
        native = self._slide.tile_px
        self.tile_px = tile_px_for(native)
        if native is not None and native[0] != native[1]:  # tiles share strips, and browsers ask for the middle first
            self._slide.keep_decoded(_STRIPS_BYTES)
        if source.size0 not in (None, self.frame.size0):
            self._slide.close()
            what = "is not the heatmap's slide: that has {} x {} px".format(*source.size0 or ())
            raise SlideError(source.slide_id, what, "pass the slide that the heatmap was made of")
        try:
            self.mpp: float | None = self._slide.mpp
        except SlideError:  # it can be looked at all the same
            self.mpp = None
        try:
            self.has_profile = self._slide.has_profile
        except SlideError:  # which in its own colours needs none
            self.has_profile = False
        self.icc: Icc = source.icc if self.has_profile else "none"

    @property
    def direct(self) -> bool:
        """See `Slide`."""
        return self._slide.direct

    def region(self, square: Square, side_px: int) -> UInt8Array:
        """See `Picture`."""
        return self._slide.read_scaled(square.x0, square.y0, (square.side0, square.side0), (side_px, side_px))

    def jpeg(self, square: Square, side_px: int) -> bytes:
        """See `Picture`."""
        return self._stored(square, side_px) or drawn_jpeg(self.region(square, side_px))

    def _stored(self, square: Square, side_px: int) -> bytes | None:
        """The slide's own JPEG tile where that shows just the square at that size and can be decoded; else None.

        It carries no text: its application segments are left out.
        """
        width0, height0 = self.frame.size0
        if square.x0 + square.side0 > width0 or square.y0 + square.side0 > height0:
            return None  # what fills such a tile up beyond the slide is often black
        column, row = square.x0 // square.side0, square.y0 // square.side0
        for number, level in enumerate(self._slide.levels):
            own = self._slide.native_tile_px(number) == (side_px, side_px)
            if own and level.downsample * side_px == square.side0:
                try:
                    stream = self._slide.native_stream(number, column, row)
                    if stream is not None:
                        decode_stream(stream, side_px, side_px, 8)  # the smallest picture: all of it is read for that
                    return stream
                except (SlideError, ValueError, IndexError):  # a level may be a pixel short of the last column
                    return None  # who reads the pixels says so
        return None

    def close(self) -> None:
        """See `Picture`."""
        self._slide.close()


def drawn_jpeg(pixels: UInt8Array) -> bytes:
    """Pixels as the viewer sends them, from (h, w, 3)."""
    return encode_jpeg(pixels, _QUALITY, _SUBSAMPLING)
