"""Zoom levels: every tile in its place, the slide covered once, at level 0 by one tile."""

from __future__ import annotations

import pytest

from inference.viewer.zooms import TILE_PX, Square, Zooms, tile_px_for


@pytest.mark.parametrize(
    ("size0", "last"), [((1, 1), 0), ((256, 256), 0), ((257, 1), 1), ((512, 500), 1), ((20_000, 20_001), 7)]
)
def test_the_finest_level_has_the_slides_own_pixels(size0: tuple[int, int], last: int) -> None:
    zooms = Zooms(size0)
    assert zooms.last == last
    assert zooms.square(last, 0, 0) == Square(0, 0, TILE_PX)
    assert zooms.tiles(0) == [(0, 0)]


@pytest.mark.parametrize(
    ("native", "side"),
    [
        (None, 256), ((256, 256), 256), ((240, 240), 240), ((512, 512), 512), ((64, 64), 256), ((128, 128), 256),
        ((1024, 1024), 512), ((4096, 4096), 512), ((4064, 4064), 508), ((16, 16), 256), ((2048, 8), 256),
    ],
)  # fmt: skip
def test_no_tile_begins_within_one_of_the_slides_own(native: tuple[int, int] | None, side: int) -> None:
    """Where these are square: each is whole ones, or a part that goes into one without a rest."""
    assert tile_px_for(native) == side
    if native is not None and native[0] == native[1]:
        assert side % native[0] == 0 or native[0] % side == 0


@pytest.mark.parametrize(("tiles", "last"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (512, 9), (513, 10)])
@pytest.mark.parametrize("side", [240, 256])
def test_the_coarsest_level_is_one_tile_to_the_pixel(tiles: int, last: int, side: int) -> None:
    assert Zooms((7, side * tiles), side).last == last
    assert Zooms((7, side * tiles - side + 1), side).last == last


@pytest.mark.parametrize("side", [240, 256])
@pytest.mark.parametrize("size0", [(1280, 1024), (1000, 300), (257, 3000)])
def test_the_tiles_of_a_level_cover_the_slide_once(size0: tuple[int, int], side: int) -> None:
    zooms = Zooms(size0, side)
    for zoom in range(zooms.last + 1):
        squares = [zooms.square(zoom, *at) for at in zooms.tiles(zoom)]
        assert all(square is not None for square in squares)
        area = sum(
            (min(s.x0 + s.side0, size0[0]) - s.x0) * (min(s.y0 + s.side0, size0[1]) - s.y0) for s in squares if s
        )
        assert (area, len(set(squares))) == (size0[0] * size0[1], len(squares))


@pytest.mark.parametrize("at", [(-1, 0, 0), (4, 0, 0), (3, 5, 0), (3, 0, 4), (0, 1, 0), (3, -1, 0), (3, 10**9, 0)])
def test_what_lies_beyond_is_no_tile(at: tuple[int, int, int]) -> None:
    assert Zooms((1280, 1024)).square(*at) is None
