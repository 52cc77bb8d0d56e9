"""Rates and times left, against a clock of the test's own."""

from __future__ import annotations

import pytest

from tiling.core.pace import Pace, left_text


def test_the_rate_is_that_of_the_last_ten_minutes() -> None:
    now = [0.0]
    pace = Pace(100.0, lambda: now[0])
    assert (pace.rate(), pace.left_s(1000)) == (None, None)
    for minute in range(1, 61):  # ten a minute for half an hour, then one
        now[0] = 60.0 * minute
        pace.at(100.0 + 10 * min(minute, 30) + max(0, minute - 30))
    assert pace.rate() == pytest.approx(1 / 60)
    assert pace.left_s(440.0) == pytest.approx(600)
    assert pace.left_s(0.0) == 0


def test_it_is_said_after_a_quarter_and_then_each_minute() -> None:
    now = [0.0]
    pace = Pace(clock=lambda: now[0])
    said = [second for second in range(200) if now.__setitem__(0, second) or pace.due()]
    assert said == [15, 75, 135, 195]
    pace.said()
    now[0] = 230.0
    assert not pace.due()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.2, "about 0 s left"), (89, "about 89 s left"), (90, "about 1.5 min left"),
     (1500, "about 25 min left"), (5500, "about 1.5 h left"), (200_000, "about 56 h left")],
)  # fmt: skip
def test_words(seconds: float | None, text: str) -> None:
    assert left_text(seconds) == text
