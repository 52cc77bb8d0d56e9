"""How fast work goes, how long the rest of it takes, and when to say so. Knows nothing of what is worked on."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

PROGRESS = "specslide.progress"
"""Name of the log of how far work is; the command line always shows it, where there is no bar."""
progress_log = logging.getLogger(PROGRESS)

_FIRST_S, _BEAT_S = 15.0, 60.0
_WINDOW_S = 600.0


class Pace:
    """The pace of work whose amount is a number, such as bytes or steps.

    The rate is that of the last ten minutes. `clock` gives seconds.
    """

    def __init__(self, done: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        """`done` is what was done before."""
        self._clock = clock
        self._seen: deque[tuple[float, float]] = deque([(clock(), done)])
        self._next_s = clock() + _FIRST_S

    def at(self, done: float) -> None:
        """Note how much is done."""
        now = self._clock()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] > _WINDOW_S:
            self._seen.popleft()

    def rate(self) -> float | None:
        """Amount a second; None before anything is known."""
        (first, before), (last, after) = self._seen[0], self._seen[-1]
        return (after - before) / (last - first) if last > first and after > before else None

    def left_s(self, total: float) -> float | None:
        """Seconds until all is done at that rate; None before anything is known."""
        rate = self.rate()
        return None if rate is None else max(0.0, total - self._seen[-1][1]) / rate

    def due(self) -> bool:
        """Whether it is time to say how far it is: first after a quarter of a minute, then a minute after the last."""
        if self._clock() < self._next_s:
            return False
        self.said()
        return True

    def said(self) -> None:
        """Note that it was said by other means."""
        self._next_s = self._clock() + _BEAT_S


def left_text(seconds: float | None) -> str:
    """How long the rest takes, in words; "" if that is not known."""
    if seconds is None:
        return ""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            return f"about {seconds / size:{'.2g' if seconds < 10 * size else '.0f'}} {unit} left"
    return f"about {seconds:.0f} s left"


def say_progress(message: str, **fields: object) -> None:
    """Say how far work is, as one line; the fields are the same as data, for a log in JSON."""
    progress_log.info("%s", message, extra={"fields": fields})
