"""Slides drawn by processes of their own: one that crashes the library that reads it costs grey tiles, not the viewer.

Every slide is opened there first. Those whose tiles we decode ourselves are then drawn in this process, faster.
Each process keeps the slides open that it drew lately. They begin as copies of one small process, so that a lost one is
replaced within a moment.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections import Counter, OrderedDict
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import LifoQueue
from typing import Any, Final

from inference.viewer.slide_picture import SlidePicture, SlideSource
from inference.viewer.zooms import Square
from tiling.core.arrays import UInt8Array
from tiling.core.errors import SlideError, SpecslideError
from tiling.core.threads import usable_cores

_LOST: Final = "ended the process that read it (crashed by a damaged file, out of memory, or killed)"
_MAX_LOST: Final = 20
"""Processes that a slide may end before it is read no more."""
_PATIENCE_S: Final = 120
_OPEN_SLIDES: Final = 16


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    connection: Connection


class Workers:
    """As many processes as cores, which draw slides; begun when one is opened. Thread-safe."""

    def __init__(self, count: int | None = None) -> None:
        self._context: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
        if sys.platform != "win32":
            self._context.set_forkserver_preload(["__main__", SlidePicture.__module__])
        self._idle: LifoQueue[_Worker | None] = LifoQueue()
        for _ in range(count or usable_cores()):
            self._idle.put(None)
        self._lost = Counter[SlideSource]()

    def open(self, source: SlideSource) -> SlidePicture | RemotePicture:
        """The picture of a slide. Raises SlideError if it cannot be opened."""
        return SlidePicture(source) if self.ask(source, "direct") else RemotePicture(self, source)

    def ask(self, source: SlideSource, what: str, *arguments: Any) -> Any:
        """What a slide's picture has under a name, called if there are arguments. Raises SpecslideError."""
        if self._lost[source] >= _MAX_LOST:
            raise SlideError(source.slide_id, _LOST, "repair the slide")
        worker = self._idle.get()
        try:
            if worker is None:
                worker = self._begun()
            worker.connection.send((source, what, arguments))
            if not worker.connection.poll(_PATIENCE_S):
                raise EOFError
            answer = worker.connection.recv()
        except (EOFError, OSError) as error:
            if worker is not None:
                _end(worker)
                worker = None
            self._lost[source] += 1
            raise SlideError(source.slide_id, _LOST, "repair the slide") from error
        finally:
            self._idle.put(worker)
        if isinstance(answer, SpecslideError):
            raise answer
        return answer

    def close(self) -> None:
        """End the processes that do nothing; others end with this one."""
        for _ in range(self._idle.qsize()):
            worker = self._idle.get()
            if worker is not None:
                _end(worker)
            self._idle.put(None)

    def _begun(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs,), daemon=True)
        process.start()
        theirs.close()  # so that its end is noticed
        return _Worker(process, ours)


class RemotePicture:
    """A slide that a worker draws; see `SlidePicture`."""

    kind: Final = "slide"

    def __init__(self, workers: Workers, source: SlideSource) -> None:
        self._workers, self._source = workers, source
        self.frame, self.mpp, self.finest_px0, self.tile_px, self.has_profile, self.icc = (
            workers.ask(source, name) for name in ("frame", "mpp", "finest_px0", "tile_px", "has_profile", "icc")
        )

    def region(self, square: Square, side_px: int) -> UInt8Array:
        """See `Picture`."""
        pixels: UInt8Array = self._workers.ask(self._source, "region", square, side_px)
        return pixels

    def jpeg(self, square: Square, side_px: int) -> bytes:
        """See `Picture`."""
        data: bytes = self._workers.ask(self._source, "jpeg", square, side_px)
        return data

    def close(self) -> None:
        """See `Picture`; the workers close theirs."""


def _end(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.join()
    worker.connection.close()


def _work(connection: Connection) -> None:
    """Answer what `Workers.ask` asks until it asks no more: a process's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's
    opened: OrderedDict[SlideSource, SlidePicture] = OrderedDict()
    while True:
        try:
            source, what, arguments = connection.recv()
        except EOFError:
            return
        try:
            picture = opened.get(source) or SlidePicture(source)
            opened[source] = picture
            opened.move_to_end(source)
            if len(opened) > _OPEN_SLIDES:
                opened.popitem(last=False)[1].close()
            found = getattr(picture, what)
            answer = found(*arguments) if arguments else found
        except SpecslideError as error:
            answer = error
        connection.send(answer)
