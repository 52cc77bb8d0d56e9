"""Zoom levels: every tile in its place, the slide covered once, at level 0 by one tile."""

from __future__ import annotations

import pytest

from inference.viewer.zooms import TILE_PX, Square, Zooms


@pytest.mark.parametrize(
    ("size0", "last"), [((1, 1), 0), ((256, 256), 0), ((257, 1), 1), ((512, 500), 1), ((20_000, 20_001), 7)]
)
def test_the_finest_level_has_the_slides_own_pixels(size0: tuple[int, int], last: int) -> None:
    zooms = Zooms(size0)
    assert zooms.last == last
    assert zooms.square(last, 0, 0) == Square(0, 0, TILE_PX)
    assert zooms.tiles(0) == [(0, 0)]


@pytest.mark.parametrize("size0", [(1280, 1024), (1000, 300), (257, 3000)])
def test_the_tiles_of_a_level_cover_the_slide_once(size0: tuple[int, int]) -> None:
    zooms = Zooms(size0)
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
