"""Filter expressions over the columns of a store: `blur < 1.2 and black < 0.1` -> which tiles. Pure.

Comparisons (chains too: `0.1 < pen < 0.5`) of numbers, columns and `+ - * /` of them, joined by `and`, `or` and `not`,
as in Python. A column is a name, or any text in backticks or quotes. The text is parsed by `ast`, and only the nodes
listed here are let through; nothing is ever evaluated as Python.
"""

from __future__ import annotations

import ast
import difflib
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tiling.core.arrays import AnyArray
from tiling.core.errors import ConfigError
from tiling.grid import Tiles

if TYPE_CHECKING:
    from tiling.stores.features import FeatureStore
    from tiling.stores.store import TileStore

Columns = Mapping[str, NDArray[Any]]
"""Columns (N,) by name; those of annotation classes as `annotation/<class>`."""

_ANNOTATION: Final = "annotation/"
_MAX_LENGTH: Final = 2000  # characters
_MAX_DEPTH: Final = 50  # parentheses and signs inside each other
_QUOTED = re.compile(r"`([^`]*)`|\"([^\"]*)\"|'([^']*)'")
_NAME = re.compile(r"(?<![\w.])(?!(?:and|or|not)\b)[^\W\d]\w*")
_FOREIGN = re.compile(r"[^\w\s.<>=!+\-*/()]|(?<![<>=!])=(?!=)|!(?!=)|(?<![\d])\.(?!\d)")
_HINTS = {"=": "write == for equality", "&": "write and", "|": "write or", "!": "write not", "~": "write not"}
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq,
    ast.NotEq: operator.ne, ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.divide,
    ast.And: np.logical_and, ast.Or: np.logical_or, ast.Not: np.logical_not, ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}  # fmt: skip


@dataclass(frozen=True)
class Where:
    """A parsed filter expression."""

    text: str
    _tree: ast.expr
    _quoted: Mapping[int, str]
    """Columns in backticks or quotes, by where they stand."""

    def mask(self, columns: Columns, count: int) -> NDArray[np.bool_]:
        """Which of the `count` rows the expression keeps, bool (count,).

        A bare name means the column, else the annotation class, of that name; in backticks or quotes it is the
        other way round. float32 columns are compared with numbers as float32, so `tissue >= 0.9` holds for a stored
        0.9. Comparisons with NaN are false, except `!=`; division by zero gives an infinity or NaN, as in IEEE 754.
        Raises ConfigError for a column that there is not.
        """
        with np.errstate(all="ignore"):
            return np.array(np.broadcast_to(self._value(self._tree, columns), count), dtype=np.bool_)

    def _value(self, node: ast.expr, columns: Columns) -> Any:
        """What a checked node gives for columns. Python floats stay such: they do not widen a float32 column."""
        if isinstance(node, ast.Constant):
            return _number(node)
        if isinstance(node, ast.Name):
            return self._column(node, columns)
        if isinstance(node, ast.Compare):
            values = [self._value(part, columns) for part in (node.left, *node.comparators)]
            links = [_OPERATORS[type(op)](*values[i : i + 2]) for i, op in enumerate(node.ops)]
            return np.logical_and.reduce(np.broadcast_arrays(*links)) if len(links) > 1 else links[0]
        values = [self._value(part, columns) for part in _parts(node)]
        result = values[0]
        operate = _OPERATORS[type(node.op)]  # type: ignore[attr-defined]
        for value in values[1:]:
            result = operate(result, value)
        result = operate(result) if isinstance(node, ast.UnaryOp) else result
        return float(result) if all(isinstance(value, float) for value in values) else result

    def _column(self, node: ast.Name, columns: Columns) -> NDArray[Any]:
        text = self._quoted.get(node.col_offset)
        name = self.text[node.col_offset : node.end_col_offset] if text is None else text
        names = (name, f"{_ANNOTATION}{name}")
        for known in names if text is None else names[::-1]:
            if known in columns:
                return columns[known]
        from tiling.quality import METRICS  # with OpenCV, which few expressions need

        near = difflib.get_close_matches(name, [known.removeprefix(_ANNOTATION) for known in columns], 1)
        meant = f"did you mean {near[0]}? " if near else ""
        fix = f"{meant}the columns are {', '.join(_spelled(known) for known in columns)}"
        if name in METRICS:
            fix = f"tile the slide again, with --overwrite and not as `source`, to have it measured; {fix}"
        raise _error(self.text, node.col_offset - (text is not None), f"there is no column {name!r}", fix)


def parse_where(text: str) -> Where:
    """Parse a filter expression. Raises ConfigError, naming the position (characters, from 1)."""
    if len(text) > _MAX_LENGTH:
        raise ConfigError("where", f"the expression has {len(text)} characters", f"use at most {_MAX_LENGTH}")
    quoted: dict[int, str] = {}

    def as_name(match: re.Match[str]) -> str:
        content = match[match.lastindex or 1]
        quoted[match.start() + 1] = content
        return f" {'q' * len(content)} "  # as long as it was, so that positions stay

    plain = re.sub(r"\s", " ", _QUOTED.sub(as_name, text))
    if foreign := _FOREIGN.search(plain):
        what = "this quote is not closed" if foreign[0] in "`\"'" else f"{foreign[0]!r} has no meaning here"
        raise _error(text, foreign.start(), what, _HINTS.get(foreign[0], ""))
    if empty := [at for at, name in quoted.items() if not name]:
        raise _error(text, empty[0] - 1, "this quote names no column")
    # ast counts in bytes, and has keywords, and other names for some letters: the columns' own are read from the text.
    plain = _NAME.sub(lambda name: "q" * len(name[0]), plain)
    try:
        tree = ast.parse(plain.lstrip(), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        at = len(plain) - len(plain.lstrip()) + (getattr(error, "offset", None) or 1) - 1
        raise _error(text, min(at, len(text)), "this is no expression of comparisons") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.expr):
            node.col_offset += len(plain) - len(plain.lstrip())
            node.end_col_offset = (node.end_col_offset or 0) + len(plain) - len(plain.lstrip())
    _require(tree, text, truth=True)
    return Where(text, tree, quoted)


def rows_where(store: TileStore | FeatureStore, text: str | None) -> NDArray[np.bool_]:
    """Which tiles of a store an expression keeps, bool (N,); all of them if it is None.

    The columns are x, y (level-0 pixels), tissue, the quality metrics and the annotation classes. Raises ConfigError
    naming the store and its columns, StoreError.
    """
    if text is None:
        return np.ones(len(store), np.bool_)
    where = parse_where(text)
    try:
        return where.mask(tile_columns(store.tiles), len(store))
    except ConfigError as error:
        raise ConfigError(f"{store.path}: {error.where}", error.what, error.fix) from None


def tile_columns(tiles: Tiles) -> dict[str, AnyArray]:
    """The columns of tiles that an expression can use, (N,) each: `x`, `y` and the tiles' own."""
    return {"x": tiles.x0.astype(np.float64), "y": tiles.y0.astype(np.float64), **tiles.columns}


def column_summary(store: TileStore, kept: NDArray[np.bool_]) -> list[tuple[str, str, str, str]]:
    """For each column, spelled as in an expression: minimum, median and maximum of the kept tiles."""
    rows = []
    for name, values in tile_columns(store.tiles).items():
        low, median, high = np.quantile(values[kept], [0, 0.5, 1]) if kept.any() else [np.nan] * 3
        rows.append((_spelled(name), f"{low:.4g}", f"{median:.4g}", f"{high:.4g}"))
    return rows


def _require(node: ast.expr, text: str, *, truth: bool, depth: int = 0) -> None:
    """Raise ConfigError unless the node, and all in it, is what the language knows, and a truth or a number."""
    if depth > _MAX_DEPTH:
        raise _error(text, node.col_offset, f"is nested more than {_MAX_DEPTH} deep")
    joins = isinstance(node, ast.BoolOp) or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not))
    compares = isinstance(node, ast.Compare) and all(type(op) in _OPERATORS for op in node.ops)
    calculates = isinstance(node, ast.BinOp | ast.UnaryOp) and not joins and type(node.op) in _OPERATORS
    single = isinstance(node, ast.Name) or (isinstance(node, ast.Constant) and type(node.value) in (int, float))
    if not (joins or compares or calculates or single):
        raise _error(text, node.col_offset, "this is no number, column or comparison")
    if truth != (joins or compares):
        what = "a comparison is needed here, not a number" if truth else "a number is needed here, not a comparison"
        raise _error(text, node.col_offset, what)
    for part in _parts(node):
        _require(part, text, truth=joins, depth=depth + 1)


def _parts(node: ast.expr) -> list[ast.expr]:
    """The expressions that an expression is made of."""
    return [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]


def _number(node: ast.Constant) -> float:
    try:
        return float(node.value)  # type: ignore[arg-type]
    except OverflowError:
        return float("inf")


def _spelled(name: str) -> str:
    """A column as it is written in an expression."""
    if not name.startswith(_ANNOTATION):
        return name
    quote = '"' if "`" in name else "`"
    return f"{quote}{name.removeprefix(_ANNOTATION)}{quote}"


def _error(text: str, start: int, what: str, fix: str = "") -> ConfigError:
    shown = text if len(text) <= 120 else f"{text[:120]}..."
    return ConfigError(f"where {shown!r}, position {start + 1}", what, fix or "correct the expression")
