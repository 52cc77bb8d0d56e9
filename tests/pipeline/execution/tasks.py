"""What the workers of the tests do. They import this module, and none of what the tests themselves need."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

from pipeline.execution.pool import TileProgress, threads_for_slide
from tiling.core.errors import SlideError


class StrangeError(Exception):
    """An exception that cannot travel between processes: it wants two arguments when it is made again."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


def act(job: str, progress: TileProgress) -> str:
    """A task that does what its job says."""
    progress(1, 2)
    match job.split(":"):
        case ["raise", what]:
            raise SlideError(what, "is damaged", "copy it again")
        case ["break"]:
            raise ZeroDivisionError("no slide is this thin")
        case ["strange"]:
            raise StrangeError("a", "b")
        case ["exit"]:
            sys.exit(3)
        case ["kill", *_]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["once", marker]:
            if not Path(marker).exists():
                Path(marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        case ["sleep", marker]:
            Path(marker).write_text(str(os.getpid()))
            time.sleep(120)
        case ["opaque"]:
            return lambda: None  # type: ignore[return-value]  # a result that cannot be pickled
        case ["signal", number, marker]:
            Path(marker).write_text(str(os.getpid()))
            time.sleep(0.5)  # the one before is known to be done
            os.kill(main_process(), int(number))
            while True:
                progress(1, 2)
                time.sleep(0.02)
        case ["device", _]:
            return os.environ["CUDA_VISIBLE_DEVICES"]
        case ["threads", *_]:
            return str(threads_for_slide())
        case ["note", marker, what]:
            with Path(marker).open("a") as notes:
                notes.write(what)
    progress(2, 2)
    return job.upper()


def main_process() -> int:
    """The process that a terminal's Ctrl-C, or Slurm, is meant for."""
    parent = multiprocessing.parent_process()
    pid = os.getpid() if parent is None else parent.pid
    assert pid is not None
    return pid


def say(what: str) -> str:
    """Done before the jobs."""
    return what


def refuse(what: str) -> None:
    raise SlideError(what, "does not fit", "take another")


def die_in_a_worker() -> None:
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)


NAMING = "of Miller's slide"


def buggy(number: int, progress: TileProgress) -> int:
    if number == 1:
        raise ZeroDivisionError(NAMING)
    return number
