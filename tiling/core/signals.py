"""The wish to stop: signals are remembered, the work asks when it can, and workers end when their parent does.

Knows nothing of the work.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from tiling.core.platforms import OF_SLURM

STOPPING = (signal.SIGTERM, *OF_SLURM)
"""What Slurm sends before it ends a job (`--signal=USR1@60`), and what everybody else sends."""
SENT_TO_ALL = (signal.SIGINT, *OF_SLURM)
"""What a terminal and srun send to every process, where the first one alone decides."""

_NOBODY = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler, None)


class Stop:
    """Whether a signal has asked the work to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        """The signal handler: remember the signal."""
        self.signal = signal.Signals(number)


@contextmanager
def listening(signals: Iterable[signal.Signals] = STOPPING) -> Iterator[Stop]:
    """Yield a `Stop` that the signals set; their handlers are put back afterwards.

    A signal that came when the work was through all but its end is passed on to the handler of whoever listens outside.
    Outside the main thread, where Python lets nobody handle signals, it is never set.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.ask) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop.signal is not None and signal.getsignal(stop.signal) not in _NOBODY:
        signal.raise_signal(stop.signal)


def end_with_parent() -> None:
    """End this worker process as soon as its parent process has died, for whatever reason; returns at once."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
