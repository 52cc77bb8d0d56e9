"""What the command line shows: results on standard output, progress and messages on standard error."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from tiling.core.pace import PROGRESS

# Nothing in a text is taken for markup: names may hold [bold] and :on:.
results = Console(highlight=False, markup=False, emoji=False)
errors = Console(stderr=True, highlight=False, markup=False, emoji=False)


_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""What a terminal obeys and does not show: names and texts of others may hold it."""


def plain(text: str) -> str:
    """Text with terminal control characters escaped."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


class _Plain(logging.Formatter):
    """A message with nothing in it that a terminal would obey."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


class _Json(logging.Formatter):
    """A record as one line of JSON: time, level, message, and what else it has as data."""

    def format(self, record: logging.LogRecord) -> str:
        return _as_json(record.levelname, super().format(record), getattr(record, "fields", {}))


class _Lines(logging.Handler):
    """Each record a line of its own, however long."""

    def emit(self, record: logging.LogRecord) -> None:
        errors.print(self.format(record), soft_wrap=True)


def _as_json(level: str, message: str, fields: Mapping[str, object]) -> str:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return json.dumps({"time": now, "level": level.lower(), "message": message, **fields}, ensure_ascii=True)


LogFormat = Literal["auto", "plain", "json"]


@dataclass
class _Log:
    verbose: bool = False
    format: LogFormat = "auto"


_log = _Log()


def start_logging(verbose: bool, log_format: LogFormat = "auto") -> None:
    """Send the log to standard error: warnings, progress, and with `verbose` what is done at each step.

    "plain" is a line a record, as "auto" is where there is no terminal, in place of bars and colours; "json" the same
    in JSON.
    """
    _log.verbose, _log.format = verbose, log_format
    handler: logging.Handler = RichHandler(console=errors, show_time=False, show_path=False)
    handler.setFormatter(_Plain("%(message)s"))
    if not shows_bars():
        handler = _Lines()
        lines = _Plain("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")
        handler.setFormatter(_Json() if log_format == "json" else lines)
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])
    logging.getLogger(PROGRESS).setLevel(logging.INFO)


def log_settings() -> tuple[bool, LogFormat]:
    """What `start_logging` was called with: for the processes that this one starts."""
    return _log.verbose, _log.format


def shows_bars() -> bool:
    """Whether progress is shown as bars."""
    return _log.format == "auto" and errors.is_terminal


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; the first column, which names the rows, is broken last."""
    cells = [[plain(str(cell)) for cell in row] for row in (columns, *rows)]
    table = Table(title=plain(title), title_justify="left", title_style="bold")
    for column, width in zip(cells[0], _widths(cells, results.width), strict=True):
        table.add_column(column, overflow="fold", width=width)
    for row in cells[1:]:
        table.add_row(*row)
    results.print(table)


_SHORT = 12  # where words do not fit, longer ones are broken


def _widths(cells: Sequence[Sequence[str]], width: int) -> Sequence[int | None]:
    """Width of each column of a table `width` wide that breaks no name and no word, if it can; None where it cannot."""
    whole = [max(cell_len(line) for cell in column for line in cell.split("\n")) for column in zip(*cells, strict=True)]
    words = [max(cell_len(w) for cell in column for w in (cell.split() or [""])) for column in zip(*cells, strict=True)]
    room = width - 3 * len(whole) - 1
    others, broken = words[1:], [min(word, _SHORT) for word in words[1:]]
    for least in ([whole[0], *others], words, [whole[0], *broken], [words[0], *broken]):
        if sum(least) <= room:
            caps = range(max(whole), -1, -1)
            grown = ([max(few, min(all_, cap)) for few, all_ in zip(least, whole, strict=True)] for cap in caps)
            return next(widths for widths in grown if sum(widths) <= room)
    return [None] * len(whole)


def say(message: str) -> None:
    """Print a line."""
    results.print(plain(message), soft_wrap=True)


def note(message: str) -> None:
    """Print a line beside the results, on standard error."""
    errors.print(_as_json("info", message, {}) if _log.format == "json" else plain(message), soft_wrap=True)


def show_error(message: str) -> None:
    """Print a message that ends the command."""
    if _log.format == "json":
        errors.print(_as_json("error", message, {}), soft_wrap=True)
        return
    errors.print(Text.assemble(("error:", "bold red"), f" {plain(message)}"), soft_wrap=True)
