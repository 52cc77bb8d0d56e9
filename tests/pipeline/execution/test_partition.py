"""Shares of slides: every slide is in one and only one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.execution.partition import Part, parse_part
from tiling.core.errors import ConfigError


@given(st.lists(st.integers(), max_size=30), st.integers(1, 12))
def test_parts_are_the_whole_and_share_nothing(items: list[int], count: int) -> None:
    shares = [Part(number, count).of(list(enumerate(items))) for number in range(1, count + 1)]
    assert sorted(item for share in shares for item in share) == list(enumerate(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_neighbours_go_to_different_parts() -> None:
    assert list(Part(2, 3).of("abcdefgh")) == ["b", "e", "h"]
    assert Part().of("abc") == "abc"


@pytest.mark.parametrize(("text", "part"), [("1/1", Part()), ("2/3", Part(2, 3)), ("12/0012", Part(12, 12))])
def test_a_part_is_read(text: str, part: Part) -> None:
    assert parse_part(text) == part


@pytest.mark.parametrize(
    "text", ["", "1", "0/3", "4/3", "-1/3", "1/0", "1.5/3", "1/3/5", "1/3\n", "a/b", "٣/٤", "1/9999999"]
)
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="I/N"):
        parse_part(text)
