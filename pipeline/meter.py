"""How far a command is: a bar on a terminal; else a line of the log as each part ends, and one a minute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline import console
from tiling.core.pace import Pace, left_text, say_progress


class Meter:
    """The progress of one task."""

    def __init__(self, title: str, bar: Progress | None = None, pace: Pace | None = None) -> None:
        self.title = title
        self.pace = pace or Pace()
        self._bar, self._total, self._text = bar, 0.0, ""
        self._task = None if bar is None else bar.add_task(title, total=None, done="")

    def show(self, done: float, total: float, text: str) -> None:
        """Say how far it is: amounts of work, and in words."""
        self.pace.at(done)
        self._total, self._text = total, text
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, done=text)
        elif self.pace.due() and done < total:
            self._say("progress", f"{self.title}: ", done=done, total=total)

    def ended(self, name: str, result: str) -> None:
        """Say that one part has ended; `show` has said how far all are."""
        if self._bar is None:
            self.pace.said()
            self._say("end", f"{self.title}: {name} {result}; ", name=name, result=result)

    def _say(self, event: str, begin: str, **fields: object) -> None:
        left_s = self.pace.left_s(self._total)
        words = ", ".join(filter(None, (self._text, left_text(left_s))))
        say_progress(begin + words, event=event, task=self.title, progress=self._text, left_s=left_s, **fields)


@contextmanager
def meter(title: str) -> Iterator[Meter]:
    """A meter, with a bar where standard error is a terminal."""
    if not console.shows_bars():
        yield Meter(title)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"), TimeRemainingColumn())
    with Progress(*columns, console=console.errors, speed_estimate_period=600) as bar:
        yield Meter(title, bar)


@contextmanager
def progress_of(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show progress; yields a function to be called with (units done, units in all)."""
    with meter(title) as shown:
        yield lambda done, total: shown.show(done, total, f"{done}/{total} {unit}")
