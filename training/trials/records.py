"""Records of finished runs, a JSON each, from which an interrupted study goes on; and the processes that train.

out/runs/<key>.json: the key is a hash of all that decides the figures, so that a run is never trained twice.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from tiling.core.files import canonical_json, sha256_json, write_file
from tiling.core.signals import end_with_parent
from tiling.core.versions import software_versions
from training.selection.rules import Quantities
from training.trials.config import Run, Setting

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the numbers of finished runs and of all."""
Train = Callable[[Run, str], "RunRecord"]
"""Trains and tests the network of a run, given its key too."""

FORMAT = 3
"""Raised when the code changes what a run gives: 3 keeps what shifted validation shows."""
SOFTWARE = ("torch", "timm", "numpy", "scipy", "opencv-python-headless", "torchstain")
VALIDATION = "validation"


class RunRecord(BaseModel):
    """The record of a finished run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    """SHA-256 of everything that decides the figures."""
    run: Run
    validation: Quantities
    """Less what the rule `errors` needs, which is in `right`."""
    tests: dict[str, dict[str, float]]
    """By what it was tested on and metric."""
    right: dict[str, str]
    """By what it was tested on, VALIDATION too: which tiles were decided rightly, as `packed`."""
    seconds: float
    """CPU time of preparing the training tiles and of training, which others on the machine change little."""


def run_key(run: Run, settings: Mapping[str, object], identity: str) -> str:
    """SHA-256 of all that decides a run's figures: its setting, those of every run, tiles, and libraries.

    Of its setting, what is not the default: a method that comes later leaves the keys of earlier ones as they are.
    """
    versions = {name: of for name, of in software_versions(*SOFTWARE).items() if name in SOFTWARE}
    setting = {name: of for name, of in asdict(run.setting).items() if of != getattr(Setting, name)}
    return sha256_json([FORMAT, run.seed, setting, dict(settings), identity, versions])


def packed(flags: NDArray[np.bool_]) -> str:
    """Flags (n,) as text: n, and hexadecimal digits, four flags in each, the first in the highest bit."""
    return f"{len(flags)}:{np.packbits(flags).tobytes().hex()}"


def unpacked(text: str) -> NDArray[np.bool_]:
    """The flags (n,) that `packed` made the text of."""
    count, digits = text.split(":")
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8), count=int(count)).astype(np.bool_)


def record_path(out: Path, key: str) -> Path:
    """Where the record of a run is."""
    return out / "runs" / f"{key}.json"


def read_record(path: Path) -> RunRecord | None:
    """The record of a run that was finished before; None if it is not there or not whole."""
    try:
        record = RunRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        log.warning("%s: cannot be read, its run is repeated", path)
        return None
    return record if path.stem == record.key else None


def finished_runs(out: Path, keys: Mapping[Run, str]) -> dict[Run, RunRecord]:
    """The records that are there already."""
    found = {run: read_record(record_path(out, key)) for run, key in keys.items()}
    return {run: record for run, record in found.items() if record}


def records_of(
    keys: Mapping[Run, str], out: Path, train: Train, *, workers: int = 1, progress: Progress | None = None
) -> dict[Run, RunRecord]:
    """The records of all runs; those that `out` lacks are trained, in their order.

    Args:
        keys: Each run's `run_key`.
        out: The study's folder.
        train: What trains a run; with workers it crosses to each of them once.
        workers: Processes of one thread each; their number changes no figure but the seconds.
        progress: Called with (runs done, runs in all).

    Returns:
        By run, its record.

    Raises:
        ModelError: If a network diverges.
        OutputError: If a record cannot be written.
    """
    records = finished_runs(out, keys)
    missing = {run: key for run, key in keys.items() if run not in records}
    log.info("%d runs, of which %d are there already", len(keys), len(records))
    if progress:
        progress(len(records), len(keys))
    for run, record in _trained(missing, train, workers):
        write_file(record_path(out, record.key), canonical_json(record.model_dump(mode="json", exclude_defaults=True)))
        records[run] = record
        log.info("%d of %d: seed %d, %s", len(records), len(keys), run.seed, run.setting)
        if progress:
            progress(len(records), len(keys))
    return records


def _trained(missing: Mapping[Run, str], train: Train, workers: int) -> Iterator[tuple[Run, RunRecord]]:
    """The missing runs, in the order in which they finish; the first error ends them all."""
    if workers <= 1 or len(missing) < 2:
        for run, key in missing.items():
            yield run, train(run, key)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process that has used torch's threads may hang
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(train,)) as pool:
        running = {pool.submit(_work, run, key): run for run, key in missing.items()}
        try:
            for done in as_completed(running):
                yield running[done], done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_shared: list[Train] = []
"""What a worker was given when it started: the tiles cross to it once, not with every run."""


def _start_worker(train: Train) -> None:
    _shared[:] = [train]
    end_with_parent()  # workers of a killed study would wait for its next run for ever


def _work(run: Run, key: str) -> RunRecord:
    return _shared[0](run, key)
