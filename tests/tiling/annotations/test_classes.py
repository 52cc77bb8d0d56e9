"""Names of classes as columns: `urllib.parse.unquote` is the oracle."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tiling.annotations.classes import ClassRules, column_name

COLUMNS = {
    "tumour": "tumour",
    "Stroma: µ": "Stroma: µ",
    "50% tumour": "50% tumour",
    "a/b": "a%2Fb",
    "a%2Fb": "a%252Fb",
    "..": "%2E.",
    ".": "%2E",
    "__a": "%5F_a",
    "zarr.json": "zarr%2Ejson",
    "nul\0": "nul%00",
    "line\nbreak": "line%0Abreak",
    "\x1b[2J": "%1B[2J",
    "\ud800": "%ED%A0%80",
}


@pytest.mark.parametrize("name", COLUMNS)
def test_what_can_name_no_folder_is_percent_encoded(name: str) -> None:
    assert column_name(name) == COLUMNS[name]


@given(st.text(st.characters() | st.sampled_from("%/._0Fa"), max_size=30))
def test_the_name_comes_back_and_the_column_is_one_part_of_a_path(name: str) -> None:
    column = column_name(name)
    assert unquote(column, errors="surrogatepass") == name
    assert column.isprintable()
    assert "/" not in column
    assert not column.startswith("__")
    assert column == "" or column.strip(".") != ""


def test_long_names_are_cut_and_stay_apart() -> None:
    first, second = (column_name("µ" * 150 + end) for end in "ab")
    assert first != second
    assert max(len(first.encode()), len(second.encode())) <= 200
    assert first.startswith("µ" * 80)


def test_rules_name_a_class_once_and_as_columns_do() -> None:
    rules = ClassRules(order=("a/b", " "), cut_out=("",))
    assert (rules.order, rules.cut_out) == (("a%2Fb",), ())
    with pytest.raises(ValidationError, match="named twice"):
        ClassRules(order=("a", "b", "a"))
