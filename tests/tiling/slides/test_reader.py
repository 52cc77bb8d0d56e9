"""What the sizes of a pyramid's levels say of their downsamples."""

from __future__ import annotations

import pytest

from tiling.slides.reader import Level, exact_downsamples

SIZES = [
    # level 0, level, what a reader counts, exact
    ((46000, 32914), (11500, 8228), 4.000121537, (4, 4)),  # Aperio: rounded down
    ((46000, 32914), (2875, 2057), 16.0004861, (16, 16)),
    ((20003, 2007), (5001, 502), 3.999, (4, 4)),  # rounded up
    ((20003, 2007), (5001, 501), 4.0028, (4, 4)),  # each side its way
    ((20003, 2007), (78, 7), 271.6, (256, 256)),  # few pixels leave several whole numbers
    ((3000, 1500), (1000, 500), 3.0, (3, 3)),
    ((3001, 1501), (1000, 500), 3.0015, (3, 3)),
    ((1000, 1000), (400, 400), 2.5, (2.5, 2.5)),
    ((1000, 2000), (400, 810), 2.4845, (2.5, 2000 / 810)),  # each axis its own
    ((1000, 1000), (400, 400), 2.6, (2.6, 2.6)),  # no ratio of sizes: the file's statement
    ((1000, 1000), (240, 240), 4.0, (4.0, 4.0)),
    ((1000, 800), (1000, 800), 1.0, (1, 1)),
    ((5, 900), (1, 225), 4.5, (4, 4)),
    ((1, 1), (1, 1), 1.0, (1, 1)),
]


@pytest.mark.parametrize(("size0", "size", "counted", "expected"), SIZES)
def test_a_whole_downsample_is_found_behind_rounded_sizes(
    size0: tuple[int, int], size: tuple[int, int], counted: float, expected: tuple[float, float]
) -> None:
    assert exact_downsamples([Level(*size0, 1.0), Level(*size, counted)])[1] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("factor", [2, 3, 4, 16, 64])
@pytest.mark.parametrize("rounded", [lambda n, f: n // f, lambda n, f: -(-n // f), lambda n, f: round(n / f)])
def test_every_way_of_rounding_is_seen_through(factor: int, rounded: object) -> None:
    assert callable(rounded)
    for width in range(9000, 9130, 7):
        for height in range(6500, 6630, 11):
            size = rounded(width, factor), rounded(height, factor)
            counted = (width / size[0] + height / size[1]) / 2
            levels = [Level(width, height, 1.0), Level(*size, counted)]
            assert exact_downsamples(levels)[1] == (factor, factor), (width, height)
