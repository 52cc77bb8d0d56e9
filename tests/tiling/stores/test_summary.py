"""What is said of a slide's area, on literal cases."""

from __future__ import annotations

import pytest

from tiling.stores.summary import TissueSummary


def summary(tissue: float, *, scanned: float = 100, ink: float = 0, small: float = 0, notable: float = 0,
            below: float = 0, inked: float = 0) -> TissueSummary:  # fmt: skip
    return TissueSummary(
        scanned_mm2=scanned, tissue_mm2=tissue, ink_mm2=ink, too_small_mm2=small, notable_mm2=notable,
        below_min_tissue_mm2=below, inked_mm2=inked,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "named"),
    [
        (summary(50), []),
        (summary(0), ["--tissue all"]),
        (summary(0, notable=50, small=50, below=50), ["--tissue all"]),
        (summary(95), []),
        (summary(95.1), ["nearly all"]),
        (summary(9, notable=1), []),  # a tenth of what the mask could have held
        (summary(9, notable=1.01), ["outside the mask"]),
        (summary(8, notable=1, small=1), []),
        (summary(9, small=1.01), ["--min-object-um2"]),
        (summary(9, ink=50), []),
        (summary(8, inked=4), []),
        (summary(8, inked=4.01), ["--drop-ink"]),
        (summary(8, below=2), []),
        (summary(8, below=2.01), ["--min-tissue"]),
        (summary(96, notable=20, small=20, below=30),
         ["nearly all", "outside the mask", "--min-object-um2", "--min-tissue"]),
    ],
)  # fmt: skip
def test_what_is_doubtful(found: TissueSummary, named: list[str]) -> None:
    doubts = found.doubts()
    assert len(doubts) == len(named)
    for doubt, word in zip(doubts, named, strict=True):
        assert word in doubt


@pytest.mark.parametrize(
    ("found", "areas", "shares"),
    [
        (summary(50), [], []),
        (summary(50, ink=0.0049), [], []),
        (summary(50, ink=5, small=0.5, below=10), [5, 0.5, 10], ["10%", "1%", "20%"]),
        (summary(0, ink=5), [5], []),
        (summary(50, notable=5), [], []),  # a doubt, not a cut
    ],
)
def test_what_was_left_out(found: TissueSummary, areas: list[float], shares: list[str]) -> None:
    assert list(found.left_out().values()) == areas
    text = found.text()
    assert f"{found.tissue_mm2:.2f} mm²" in text
    assert [word.strip("(),") for word in text.split() if "%" in word] == shares
