"""What the command line shows: results on standard output, progress and messages on standard error."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

# Nothing in a text is taken for markup: names may hold [bold] and :on:.
results = Console(highlight=False, markup=False, emoji=False)
errors = Console(stderr=True, highlight=False, markup=False, emoji=False)


_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""What a terminal obeys and does not show: names and texts of others may hold it."""


def plain(text: str) -> str:
    """Text with terminal control characters escaped."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


def start_logging(verbose: bool) -> None:
    """Send the log to standard error: warnings, and with `verbose` what is done at each step."""
    handler = RichHandler(console=errors, show_time=False, show_path=False)
    handler.setFormatter(_Plain("%(message)s"))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])


def progress_bar() -> Progress:
    """A bar whose column `done` says how far a task is; the time left is by what was done in the last ten minutes."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"), TimeRemainingColumn(),
        console=errors, speed_estimate_period=600,
    )  # fmt: skip


@contextmanager
def progress(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar; yields a function to be called with (units done, units in all)."""
    with progress_bar() as bar:
        task = bar.add_task(title, total=None, done="")
        yield lambda done, total: bar.update(task, completed=done, total=total, done=f"{done}/{total} {unit}")


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table."""
    table = Table(title=plain(title), title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(plain(column), overflow="fold")
    for row in rows:
        table.add_row(*(plain(str(cell)) for cell in row))
    results.print(table)


def say(message: str) -> None:
    """Print a line."""
    results.print(plain(message), soft_wrap=True)


def note(message: str) -> None:
    """Print a line beside the results, on standard error."""
    errors.print(plain(message), soft_wrap=True)


def show_error(message: str) -> None:
    """Print a message that ends the command."""
    errors.print(Text.assemble(("error:", "bold red"), f" {plain(message)}"), soft_wrap=True)
