"""Filter expressions: numpy and Python's own evaluation are the oracles; hostile text is refused by position."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tiling import TileStore
from tiling.core.errors import ConfigError
from tiling.stores.query import column_summary, parse_where, rows_where

COUNT = 6
COLUMNS = {
    "focus": np.array([0, 5, 20, 40, np.nan, np.inf], np.float32),
    "pen": np.array([0, 0.05, 0.1, 0.9, 0, 0], np.float32),
    "tissue": np.array([0.5, 0.6, 0.7, 0.8, 0.9, 1], np.float32),
    "x": np.arange(COUNT) * 2e9,
    "annotation/tumour": np.array([0, 0, 0, 0.5, 1, 1], np.float32),
    "annotation/In situ: A": np.array([1, 0, 0, 0, 0, 0], np.float32),
    "annotation/pen": np.ones(COUNT, np.float32),
    "annotation/a`b": np.zeros(COUNT, np.float32),
    "annotation/in": np.array([0, 1, 0, 0, 0, 0], np.float32),
}


def kept(text: str) -> list[int]:
    mask = parse_where(text).mask(COLUMNS, COUNT)
    assert mask.dtype == np.bool_
    assert mask.shape == (COUNT,)
    return [int(row) for row in np.flatnonzero(mask)]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("focus > 20", [3, 5]),
        ("focus > 20 and pen < 0.05", [5]),
        ("pen < 0.05", [0, 4, 5]),
        ("pen <= 0.05", [0, 1, 4, 5]),
        ("tissue >= 0.9", [4, 5]),
        ("tissue == 0.9", [4]),
        ("tissue != 0.9", [0, 1, 2, 3, 5]),
        ("0.05 <= pen < 0.9", [1, 2]),
        ("1 > pen > 0.05 >= 0", [2, 3]),
        ("pen > 0 or tissue == 1", [1, 2, 3, 5]),
        ("tissue == 1 or pen > 0 and focus < 10", [1, 5]),
        ("(tissue == 1 or pen > 0) and focus < 10", [1]),
        ("not pen > 0", [0, 4, 5]),
        ("not not pen > 0", [1, 2, 3]),
        ("not pen > 0 and tissue < 0.6", [0]),
        ("focus != focus", [4]),
        ("not focus >= 0", [4]),
        ("tissue - 0.5 * 2 < -0.35 + 0", [0, 1]),
        ("-tissue < -.8e0", [4, 5]),
        ("+tissue > 1 - 2 - -1.95", [5]),
        ("8 / 4 / 2 == 1", [0, 1, 2, 3, 4, 5]),
        ("1 / 0 > 5 and focus < 1 / 0", [0, 1, 2, 3]),
        ("0 / 0 == 0 / 0", []),
        ("focus < 1e400", [0, 1, 2, 3]),
        ("x >= 8e9", [4, 5]),
        ("x * 2 > 17e9", [5]),
        ("tumour > 0.4", [3, 4, 5]),
        ("in > 0.4e0", [1]),
        ("`tumour` > 0.4 and 'tumour' < 1", [3]),
        ('"In situ: A" == 1', [0]),
        ("`annotation/In situ: A` == 1", [0]),
        ("`pen` == 1", [0, 1, 2, 3, 4, 5]),
        ('"a`b" > 0', []),
        ("\tfocus\n>\n20  ", [3, 5]),
        ("(((focus))) > (20)", [3, 5]),
        ("1 < 2", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_expressions(text: str, rows: list[int]) -> None:
    assert kept(text) == rows


NAMES = ("a", "b", "c")
numbers = st.one_of(
    st.sampled_from(NAMES), st.integers(0, 9).map(str), st.floats(0, 9, allow_subnormal=False).map(repr)
)
sums = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(" ".join),
        inner.map(lambda e: f"({e})"),
        inner.map(lambda e: f"-{e}"),
    ),
    max_leaves=5,
)
comparisons = st.tuples(sums, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), sums).map(" ".join)
truths = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(" ".join),
        inner.map(lambda e: f"({e})"),
        inner.map(lambda e: f"not {e}"),
    ),
    max_leaves=5,
)


def by_python(text: str, columns: dict[str, NDArray[np.float64]]) -> list[bool]:
    """Python's own reading of the expression, row by row, over numpy's scalars."""
    code = compile(text, "oracle", "eval")
    rows = zip(*(columns[name] for name in NAMES), strict=True)
    scalars = ({name: np.float64(value) for name, value in zip(NAMES, row, strict=True)} for row in rows)
    return [bool(eval(code, {"__builtins__": {}}, row)) for row in scalars]  # noqa: S307 - the oracle, of our own text


@settings(deadline=None, max_examples=150)
@given(text=truths, seed=st.integers(0, 99))
def test_any_expression_means_what_it_means_in_python(text: str, seed: int) -> None:
    values = np.random.default_rng(seed).integers(-3, 9, (3, 5)).astype(np.float64)
    columns = dict(zip(NAMES, values, strict=True))
    try:
        with np.errstate(all="ignore"):
            expected = by_python(text, columns)
    except ZeroDivisionError:  # Python's floats have no infinities by division
        return
    np.testing.assert_array_equal(parse_where(text).mask(columns, 5), expected)


@pytest.mark.parametrize(
    ("text", "position", "what"),
    [
        ("", 1, "no expression"),
        ("   ", 4, "no expression"),
        ("focus", 1, "a comparison is needed here"),
        ("focus >", None, "no expression"),
        ("focus > 20 and", None, "no expression"),
        ("focus > 20 and pen", 16, "a comparison is needed here"),
        ("focus > 20 pen < 1", None, "no expression"),
        ("focus = 20", 7, "'=' has no meaning here; write =="),
        ("focus > 1 & pen < 1", 11, "'&' has no meaning here; write and"),
        ("!focus > 1", 1, "'!' has no meaning here; write not"),
        ("(focus > 20", None, "no expression"),
        ("focus > 20)", 11, "no expression"),
        ("`focus > 20", 1, "this quote is not closed"),
        ("`` > 20", 1, "this quote names no column"),
        ("and > 1", 1, "no expression"),
        ("pen < 1 + (focus > 2)", 12, "a number is needed here"),
        ("-(focus > 2) < 1", 3, "a number is needed here"),
        ("not focus", 5, "a comparison is needed here"),
        ("(pen < 1) < 2", 2, "a number is needed here"),
        ("foc > 1", 1, "there is no column 'foc'; did you mean focus?"),
        ("focus > 1 or `Tumor` > 1", 14, "there is no column 'Tumor'"),
        ("é > 1 and foc > 1", 1, "there is no column 'é'"),
        ("focus`pen` > 1", None, "no expression"),
        ("__import__('os') > 1", None, "no number, column or comparison"),
        ("True > 1", 1, "there is no column 'True'"),
        ("1j > 1", 1, "no number, column or comparison"),
        ("focus is pen", 7, "no expression"),
        ("focus.real > 1", 6, "'.' has no meaning here"),
        ("focus[0] > 1", 6, "'[' has no meaning here"),
        ("lambda: 0", 7, "':' has no meaning here"),
        ("focus > 1; pen", 10, "';' has no meaning here"),
        ("focus > 1 # pen", 11, "'#' has no meaning here"),
        ("focus ** 2 > 1", 1, "no number, column or comparison"),
        ("focus > 1\0", 10, "has no meaning here"),
        ("(" * 300 + "focus > 1" + ")" * 300, None, "no expression"),
        ("not " * 300 + "focus > 1", 205, "nested more than 50 deep"),
        ("-" * 300 + "focus > 1", 51, "nested more than 50 deep"),
    ],
)  # fmt: skip
def test_what_is_no_expression_is_refused_by_position(text: str, position: int | None, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_where(text).mask(COLUMNS, COUNT)
    assert (", position " if position is None else f", position {position}: ") in str(caught.value)
    assert what in str(caught.value)


@settings(deadline=None, max_examples=200)
@given(text=st.text(alphabet="ab1.<>=!+-*/()`'\" andortx\0é", max_size=30))
def test_any_text_is_a_mask_or_one_clear_error(text: str) -> None:
    with suppress(ConfigError):
        assert parse_where(text).mask({"a": np.zeros(3), "b": np.ones(3)}, 3).shape == (3,)


def test_an_endless_expression_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"2008 .*2000"):
        parse_where("a + " * 500 + "1 > 2".ljust(8))


def test_an_unknown_column_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"focus, pen, tissue, x, `tumour`, `In situ: A`, .*\"a`b\""):
        kept("zzz > 1")


def test_rows_of_a_store(finished: Path) -> None:
    store = TileStore(finished)
    assert rows_where(store, None).all()
    mask = rows_where(store, "tissue > 0.5 and x + 16 <= 300 and not y < 100 and saturation > 0.1")
    expected = (
        (store.tiles.columns["tissue"] > 0.5)
        & (store.tiles.x0 <= 284)
        & (store.tiles.y0 >= 100)
        & (store.quality["saturation"] > 0.1)
    )
    np.testing.assert_array_equal(mask, expected)
    assert 0 < mask.sum() < len(store)


def test_the_summary_of_the_columns(finished: Path) -> None:
    store = TileStore(finished)
    rows = {name: values for name, *values in column_summary(store, store.tiles.x0 < 200)}
    assert rows["x"] == [f"{v:.4g}" for v in np.quantile(store.tiles.x0[store.tiles.x0 < 200], [0, 0.5, 1])]
    assert {"focus", "tissue", "y"} <= rows.keys()
    assert column_summary(store, np.zeros(len(store), np.bool_))[0][1:] == ("nan", "nan", "nan")
