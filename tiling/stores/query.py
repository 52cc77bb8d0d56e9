"""Filter expressions over the columns of a store: `focus > 20 and pen < 0.05` -> which tiles. Pure.

    either     := both ("or" both)*
    both       := negation ("and" negation)*
    negation   := "not" negation | comparison
    comparison := sum (("<" | "<=" | ">" | ">=" | "==" | "!=") sum)*      chains as in Python: 0.1 < pen < 0.5
    sum        := product (("+" | "-") product)*
    product    := signed (("*" | "/") signed)*
    signed     := ("-" | "+") signed | number | column | "(" either ")"

A column is a name, or any text in backticks or quotes. The text is parsed by this module, never evaluated as Python.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiling.core.arrays import AnyArray
from tiling.core.errors import ConfigError
from tiling.grid import Tiles

if TYPE_CHECKING:
    from tiling.stores.store import TileStore

Columns = Mapping[str, NDArray[Any]]
"""Columns (N,) by name; those of annotation classes as `annotation/<class>`."""

_ANNOTATION: Final = "annotation/"
_LONGEST: Final = 2000  # characters
_DEEPEST: Final = 50  # parentheses and signs inside each other
_TOKEN = re.compile(
    r"""\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
          |(?P<name>[^\W\d]\w*)
          |`(?P<backticked>[^`]*)` | "(?P<quoted>[^"]*)" | '(?P<single>[^']*)'
          |(?P<sign><=|>=|==|!=|[<>+\-*/()]))""",
    re.VERBOSE,
)
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide,
}  # fmt: skip
_HINTS = {"=": "write == for equality", "&": "write and", "|": "write or", "!": "write not", "~": "write not"}


@dataclass(frozen=True)
class Where:
    """A parsed filter expression."""

    text: str
    _truth: Callable[[Columns], Any]

    def mask(self, columns: Columns, count: int) -> NDArray[np.bool_]:
        """Which of the `count` rows fulfil it, bool (count,).

        A bare name means the column, else the annotation class, of that name; in backticks or quotes it is the
        other way round. float32 columns are compared with numbers as float32, so `tissue >= 0.9` holds for a stored
        0.9. Comparisons with NaN are false, except `!=`; division by zero gives an infinity or NaN, as in IEEE 754.
        Raises ConfigError for a column that there is not.
        """
        with np.errstate(all="ignore"):
            return np.array(np.broadcast_to(self._truth(columns), count), dtype=np.bool_)


def parse_where(text: str) -> Where:
    """The expression of a text. Raises ConfigError, naming the position (characters, from 1)."""
    if len(text) > _LONGEST:
        raise ConfigError("where", f"the expression has {len(text)} characters", f"use at most {_LONGEST}")
    return Where(text, _Parser(text).whole())


def rows_where(store: TileStore, text: str | None) -> NDArray[np.bool_]:
    """Which tiles of a store an expression keeps, bool (N,); all of them if it is None.

    The columns are x, y (level-0 pixels), tissue, the quality metrics and the annotation classes. Raises ConfigError
    naming the known columns, StoreError.
    """
    if text is None:
        return np.ones(len(store), np.bool_)
    return parse_where(text).mask(tile_columns(store.tiles), len(store))


def tile_columns(tiles: Tiles) -> dict[str, AnyArray]:
    """The columns of tiles that an expression can use, (N,) each: their places beside their own."""
    return {"x": tiles.x0.astype(np.float64), "y": tiles.y0.astype(np.float64), **tiles.columns}


def column_summary(store: TileStore, kept: NDArray[np.bool_]) -> list[tuple[str, str, str, str]]:
    """For each column, spelled as in an expression: minimum, median and maximum of the kept tiles."""
    rows = []
    for name, values in tile_columns(store.tiles).items():
        low, median, high = np.quantile(values[kept], [0, 0.5, 1]) if kept.any() else [np.nan] * 3
        rows.append((_spelled(name), f"{low:.4g}", f"{median:.4g}", f"{high:.4g}"))
    return rows


class _Token(NamedTuple):
    kind: str  # number, name, quoted, sign, end
    text: str
    start: int


class _Part(NamedTuple):
    """A piece of the expression: what it gives for given columns, and whether that is truth or a number."""

    truth: bool
    start: int
    value: Callable[[Columns], Any]


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokens(text)
        self._at = 0
        self._depth = 0

    def whole(self) -> Callable[[Columns], Any]:
        part = self._either()
        token = self._tokens[self._at]
        if token.kind != "end":
            raise _error(self._text, token.start, f"{token.text!r} is not expected here")
        return self._needed(part, truth=True).value

    def _either(self) -> _Part:
        return self._joined("or", self._both, np.logical_or)

    def _both(self) -> _Part:
        return self._joined("and", self._negation, np.logical_and)

    def _joined(self, word: str, inner: Callable[[], _Part], join: Callable[[Any, Any], Any]) -> _Part:
        left = inner()
        while self._take("name", word):
            right = self._needed(inner(), truth=True)
            left = _joined(join, self._needed(left, truth=True), right, truth=True)
        return left

    def _negation(self) -> _Part:
        start = self._tokens[self._at].start
        if not self._take("name", "not"):
            return self._comparison()
        inner = self._needed(self._nested(self._negation), truth=True)
        return _Part(True, start, lambda columns: np.logical_not(inner.value(columns)))

    def _comparison(self) -> _Part:
        left = self._sum()
        chain: _Part | None = None
        while sign := self._take("sign", *_COMPARISONS):
            left, right = self._needed(left, truth=False), self._needed(self._sum(), truth=False)
            link = _joined(_COMPARISONS[sign], left, right, truth=True)
            chain = link if chain is None else _joined(np.logical_and, chain, link, truth=True)
            left = right
        return left if chain is None else chain

    def _sum(self) -> _Part:
        return self._calculated(("+", "-"), self._product)

    def _product(self) -> _Part:
        return self._calculated(("*", "/"), self._signed)

    def _calculated(self, signs: tuple[str, ...], inner: Callable[[], _Part]) -> _Part:
        left = inner()
        while sign := self._take("sign", *signs):
            right = self._needed(inner(), truth=False)
            left = _joined(_calculation(_ARITHMETIC[sign]), self._needed(left, truth=False), right, truth=False)
        return left

    def _signed(self) -> _Part:
        start = self._tokens[self._at].start
        if sign := self._take("sign", "-", "+"):
            inner = self._needed(self._nested(self._signed), truth=False)
            return inner if sign == "+" else _Part(False, start, lambda columns: -inner.value(columns))
        return self._atom()

    def _atom(self) -> _Part:
        token = self._tokens[self._at]
        self._at += 1
        match token:
            case ("number", text, start):
                number = float(text)
                return _Part(False, start, lambda columns: number)
            case ("quoted", _, start) | ("name", _, start) if token.text not in ("and", "or", "not"):
                return _Part(False, start, lambda columns: _column(self._text, token, columns))
            case ("sign", "(", start):
                inner = self._nested(self._either)
                if not self._take("sign", ")"):
                    raise _error(self._text, start, "this parenthesis is not closed")
                return inner
            case ("end", _, start):
                raise _error(self._text, start, "the expression ends here, a number or a column should follow")
        raise _error(self._text, token.start, f"{token.text!r} stands where a number or a column should")

    def _nested(self, inner: Callable[[], _Part]) -> _Part:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _error(self._text, self._tokens[self._at].start, f"is nested more than {_DEEPEST} deep")
        part = inner()
        self._depth -= 1
        return part

    def _take(self, kind: str, *texts: str) -> str | None:
        """The next token's text, and step over it, if it is one of those."""
        token = self._tokens[self._at]
        if token.kind != kind or token.text not in texts:
            return None
        self._at += 1
        return token.text

    def _needed(self, part: _Part, *, truth: bool) -> _Part:
        if part.truth == truth:
            return part
        what = "a comparison is needed here, not a number" if truth else "a number is needed here, not a comparison"
        raise _error(self._text, part.start, what)


def _joined(join: Callable[[Any, Any], Any], left: _Part, right: _Part, *, truth: bool) -> _Part:
    return _Part(truth, left.start, lambda columns: join(left.value(columns), right.value(columns)))


def _calculation(calculate: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The same with Python floats staying Python floats, which do not widen a float32 column."""

    def of(left: Any, right: Any) -> Any:
        result = calculate(left, right)
        return float(result) if isinstance(left, float) and isinstance(right, float) else result

    return of


def _column(text: str, token: _Token, columns: Columns) -> NDArray[Any]:
    names = (token.text, f"{_ANNOTATION}{token.text}")
    for name in names if token.kind == "name" else names[::-1]:
        if name in columns:
            return columns[name]
    known = ", ".join(_spelled(name) for name in columns)
    near = difflib.get_close_matches(token.text, [name.removeprefix(_ANNOTATION) for name in columns], 1)
    meant = f"did you mean {near[0]}? " if near else ""
    raise _error(text, token.start, f"there is no column {token.text!r}", f"{meant}the columns are {known}")


def _spelled(name: str) -> str:
    """A column as it is written in an expression."""
    if not name.startswith(_ANNOTATION):
        return name
    quote = '"' if "`" in name else "`"
    return f"{quote}{name.removeprefix(_ANNOTATION)}{quote}"


def _tokens(text: str) -> list[_Token]:
    found, at = [], 0
    end = len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            what = "this quote is not closed" if text[at] in "`\"'" else f"{text[at]!r} has no meaning here"
            raise _error(text, at, what, _HINTS.get(text[at], ""))
        kind = str(match.lastgroup)
        plain = kind if kind in ("number", "name", "sign") else "quoted"
        found.append(_Token(plain, match[kind], match.start(kind) - (plain == "quoted")))
        at = match.end()
    return [*found, _Token("end", "", end)]


def _error(text: str, start: int, what: str, fix: str = "") -> ConfigError:
    shown = text if len(text) <= 120 else f"{text[:120]}..."
    return ConfigError(f"where {shown!r}, position {start + 1}", what, fix or "correct the expression")
