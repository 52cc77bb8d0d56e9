"""What the command line shows: results on standard output, progress and messages on standard error."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

# Nothing in a text is taken for markup: names may hold [bold] and :on:.
results = Console(highlight=False, markup=False, emoji=False)
errors = Console(stderr=True, highlight=False, markup=False, emoji=False)


def start_logging(verbose: bool) -> None:
    """Send the log to standard error: warnings, and with `verbose` what is done at each step."""
    handler = RichHandler(console=errors, show_time=False, show_path=False)
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler], format="%(message)s")


def progress_bar(unit: str = "slides", *, time_left: bool = True) -> Progress:
    """A bar over slides or another unit, with a column `tiles` for how far a slide's tiles are."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
        TextColumn("{task.fields[tiles]}"), *([TimeRemainingColumn()] if time_left else []), console=errors,
    )  # fmt: skip


@contextmanager
def progress(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar; yields what is called with (units done, units in all)."""
    with progress_bar(unit) as bar:
        shown = bar.add_task(title, total=None, tiles="")
        yield lambda done, total: bar.update(shown, completed=done, total=total)


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    results.print(table)


def say(message: str) -> None:
    """Print a line."""
    results.print(message, soft_wrap=True)


def show_error(message: str) -> None:
    """Print a message that ends the command."""
    errors.print(Text.assemble(("error:", "bold red"), f" {message}"), soft_wrap=True)
