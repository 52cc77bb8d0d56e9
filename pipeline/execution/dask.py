"""Slides on the workers of a Dask cluster: one slide is one task, and every slide gets an outcome.

Dask's scheduler hands each slide to an idle worker, the largest first; what becomes of a slide whose worker was lost is
decided here: it is tried again, unless the worker was ended for its use of memory.
"""

from __future__ import annotations

import logging
import os
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from pipeline.execution.dask_clusters import SETTINGS, open_cluster, quiet
from pipeline.execution.dask_config import ClusterConfig
from pipeline.execution.pool import DIED, Task, Watch, reason_of, use_one_thread
from tiling.core.errors import ClusterError, SpecslideError, StoppedError
from tiling.core.versions import software_versions

import dask  # isort: skip - after dask_clusters, which says how to install it
from dask.utils import format_bytes  # isort: skip
from distributed import Client, Future, get_worker  # isort: skip
from distributed.scheduler import KilledWorker  # isort: skip

log = logging.getLogger(__name__)

Job = TypeVar("Job")
Result = TypeVar("Result")
Answer = tuple[Result | None, str | None]
"""What a task gives: its result, or the reason why there is none."""

_POLL_S = 0.2
LOOK_FOR_WORKERS_S = 2.0
_MEMORY_NEWS_S = 1.0  # how much later than a worker's end the news may come that it was ended for its use of memory
_REPORT_S = 1.0  # how often a worker tells how far it is
_ANSWER_S = 5.0
_MAX_TRIES = 20  # of a slide that never was what its worker was at; such a thing ends too
_MEMORY_TOPIC = "worker-restart-memory"  # of Dask's nannies
_LOST_NOW = "look at the memory and the disk of this machine, then run the same command again to go on"
_LOOK_AT_THE_JOBS = (
    "look at the queue, and at the jobs' logs (log_directory): can they reach this machine (interface)? Or raise wait_s"
)
_NO_WORKER_FIX = {
    "local": _LOST_NOW,
    "slurm": _LOOK_AT_THE_JOBS,
    "pbs": _LOOK_AT_THE_JOBS,
    "lsf": _LOOK_AT_THE_JOBS,
    "scheduler": "start some with `dask worker ADDRESS --nthreads 1`, and run the same command again",
}


def run_on_cluster(
    task: Task[Job, Result],
    order: Sequence[int],
    config: ClusterConfig,
    watch: Watch[Job, Result],
    devices: Sequence[str] = (),
) -> None:
    """Run `task` on the jobs of `watch` on a Dask cluster, and give each its outcome; what is complete stays.

    Args:
        task: What is done for a job.
        order: Indices of the jobs, in the order in which they are to be done.
        config: The cluster.
        watch: The run, which takes the outcomes.
        devices: The GPUs of this machine that tasks need, each with a worker of its own.

    Raises:
        ClusterError: If the cluster cannot be reached, is lost, or has no worker for longer than the configuration
            says.
        ConfigError: For settings that dask-jobqueue does not take.
        StoppedError: As `Watch.look`.
    """
    if not order:
        return
    with quiet(), dask.config.set(SETTINGS), open_cluster(config, len(order), devices) as (client, refusals):
        slides = ClusterRun(client, task, order, config, watch, refusals, gpu=bool(devices))
        try:
            slides.run()
        finally:
            slides.cancel()


class ClusterRun(Generic[Job, Result]):
    """A run of slides on a cluster, and the progress that its workers report."""

    def __init__(
        self,
        client: Client,
        task: Task[Job, Result],
        order: Sequence[int],
        config: ClusterConfig,
        watch: Watch[Job, Result],
        refusals: Sequence[str],
        *,
        gpu: bool,
    ) -> None:
        self._client, self._task, self._order, self._config, self._watch = client, task, order, config, watch
        self._refusals = refusals
        self._resources = {"GPU": 1} if gpu and _offers_gpus(client) else None
        self._topic = f"specslide-{uuid.uuid4().hex}"
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._futures: dict[int, Future[Answer[Result]]] = {}
        self._at: dict[str, set[int]] = {}
        """Slides that workers have begun and not finished, lost workers too."""
        self._exceeding: set[str] = set()
        """Workers that were ended for their use of memory."""
        self._limits: dict[str, int | None] = {}
        """The workers' memory limits, bytes."""
        self._losses, self._submitted = Counter[int](), Counter[int]()
        self._priority = {number: -rank for rank, number in enumerate(order)}
        self._lost: dict[int, tuple[float, KilledWorker]] = {}
        """Slides whose worker is lost, with the time until which news of its memory may come."""
        self._unanswered: set[int] = set()
        self._seen_worker = self._looked = time.monotonic()

    def run(self) -> None:
        """Run until every slide has its outcome."""
        self._client.subscribe_topic(self._topic, lambda event: self._inbox.put(partial(self._hear, event[1])))
        self._client.subscribe_topic(
            _MEMORY_TOPIC, lambda event: self._inbox.put(partial(self._exceeded, event[1]["worker"]))
        )
        for number in self._order:
            self._submit(number)
        while len(self._watch.outcomes) < len(self._order):
            with suppress(Empty):
                self._inbox.get(timeout=_POLL_S)()
                while True:  # all that has come meanwhile
                    self._inbox.get_nowait()()
            self._decide()
            self._watch.look()
            self.look_for_workers()

    def cancel(self) -> None:
        """Cancel what is not finished; a worker notices at its next progress report."""
        left = [future for number, future in self._futures.items() if number not in self._watch.outcomes]
        with suppress(OSError, ValueError, TimeoutError):  # the scheduler may be gone
            self._client.cancel(left, force=True)

    def _submit(self, number: int) -> None:
        self._submitted[number] += 1
        future = self._client.submit(
            _work, self._task, self._watch.jobs[number], number, self._topic, code_version(),
            key=f"slide-{self._topic[-32:]}-{number}-{self._submitted[number]}",
            priority=self._priority[number], pure=False, retries=0, resources=self._resources,
        )  # fmt: skip
        self._futures[number] = future
        self._await(number, future)

    def _await(self, number: int, future: Future[Answer[Result]]) -> None:
        future.add_done_callback(lambda done: self._inbox.put(partial(self._done, number, done)))

    def _hear(self, news: Mapping[str, Any]) -> None:
        """A worker tells how far it is with a slide."""
        if news["slide"] not in self._watch.outcomes:
            self._at.setdefault(news["worker"], set()).add(news["slide"])
        self._limits[news["worker"]] = news["memory_limit"]
        if news["total"]:
            self._watch.at(news["slide"], news["done"], news["total"])

    def _exceeded(self, worker: str) -> None:
        """A worker was ended for its use of memory: so would be the next that takes what it was working on."""
        self._exceeding.add(worker)
        for number in self._at.get(worker, set()) - self._watch.outcomes.keys():
            self._futures[number].cancel(force=True)
            self._end(number, _memory_reason(self._limits[worker]))

    def _done(self, number: int, future: Future[Answer[Result]]) -> None:
        if number in self._watch.outcomes or future is not self._futures[number]:
            return
        if future.status == "finished":
            self._take(number, future)
        elif future.status == "error":
            error = future.exception()
            if isinstance(error, KilledWorker):
                self._lost[number] = time.monotonic() + _MEMORY_NEWS_S, error
            else:
                self._end(number, reason_of(error))
                self._left(number)
        elif future.status == "cancelled":  # by Dask's client, which has lost its scheduler
            raise _lost_scheduler(self._config)
        elif future.status == "lost":  # with its worker, as an answer; another one is asked, and finds all complete
            self._unanswered.add(number)
        else:
            self._await(number, future)

    def _take(self, number: int, future: Future[Answer[Result]]) -> None:
        try:
            answer = future.result(timeout=_ANSWER_S)
        except TimeoutError:
            self._await(number, future)
        except TypeError as error:  # no pickle
            self._end(number, reason_of(error))
        else:
            self._watch.finished(number, *answer)
            self._left(number)
            future.release()

    def _decide(self) -> None:
        """Decide what becomes of slides whose worker is lost."""
        for number in list(self._unanswered):
            self._unanswered.remove(number)
            self._done(number, self._futures[number])
        now = time.monotonic()
        for number, (until, error) in list(self._lost.items()):
            worker = error.last_worker
            if worker.address in self._exceeding and self._was_at(number, worker.address):
                self._end(number, _memory_reason(worker.memory_limit))
            elif now >= until:
                del self._lost[number]
                self._try_again(number, worker.address, error.allowed_failures + 1)

    def _try_again(self, number: int, worker: str, losses: int) -> None:
        if self._was_at(number, worker):
            self._losses[number] += losses
        if self._losses[number] > self._config.retries or self._submitted[number] > _MAX_TRIES:
            self._end(number, f"{DIED}, {max(1, self._losses[number])} times")
        else:
            log.info("a worker was lost; its slide is tried again")
            self._submit(number)

    def _was_at(self, number: int, worker: str) -> bool:
        """Whether a lost worker was at this slide, and not at another while this one waited there."""
        begun = self._at.get(worker, set())
        return number in begun or not begun  # it may have been lost before it could tell

    def _left(self, number: int) -> None:
        for begun in self._at.values():
            begun.discard(number)

    def _end(self, number: int, reason: str) -> None:
        self._watch.finished(number, None, reason)
        self._lost.pop(number, None)

    def look_for_workers(self) -> None:
        """Raise ClusterError if the scheduler is lost, or has had no worker for too long."""
        now = time.monotonic()
        if now - self._looked < LOOK_FOR_WORKERS_S:
            return
        self._looked = now
        try:
            workers = self._client.scheduler_info(n_workers=0)["n_workers"]
        except (OSError, ValueError, TimeoutError):  # ValueError: the client has been closed
            raise _lost_scheduler(self._config) from None
        if workers:
            self._seen_worker = now
        elif self._refusals:
            raise ClusterError(self._config.at, self._refusals[0], "correct the queue's settings")
        elif now - self._seen_worker >= self._config.patience_s:
            what = f"has had no worker for {self._config.patience_s:g} s"
            raise ClusterError(self._config.at, what, _NO_WORKER_FIX[self._config.kind])


def _offers_gpus(client: Client) -> bool:
    """Whether some workers say that they have a GPU, as `dask worker --resources GPU=1` does; others then get none."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return any(worker["resources"].get("GPU") for worker in workers)


def _memory_reason(limit: int | None) -> str:
    allowed = "" if limit is None else f" of {format_bytes(limit)}"
    return f"it took more than the memory limit{allowed} of its worker, which was ended; give the workers more memory"


def _lost_scheduler(config: ClusterConfig) -> ClusterError:
    what = "the connection to the scheduler is lost"
    return ClusterError(config.at, what, "check that it runs, and run the same command again to go on")


def _work(task: Task[Job, Result], job: Job, number: int, topic: str, version: str) -> Answer[Result]:
    """Run a task on a worker. An error that a person understands is an answer: Dask has nothing to do with it."""
    if version != code_version():
        fix = "install the same version everywhere"
        return None, str(ClusterError("a worker", f"has specslide {code_version()} instead of {version}", fix))
    worker = get_worker()
    key = worker.get_current_task()
    use_one_thread()
    take_device(worker.name)
    reported = 0.0

    def report(done: int, total: int) -> None:
        limit = worker.memory_manager.memory_limit
        news = {"slide": number, "worker": worker.address, "done": done, "total": total, "memory_limit": limit}
        worker.log_event(topic, news)

    def progress(done: int, total: int) -> None:
        nonlocal reported
        if time.monotonic() - reported < _REPORT_S:
            return
        reported = time.monotonic()
        state = worker.state.tasks.get(key)
        if state is None or state.state == "cancelled":  # who asked for it has stopped, or is gone
            raise StoppedError("a worker", "is asked to leave this slide")
        report(done, total)

    report(0, 0)
    try:
        return task(job, progress), None
    except (SpecslideError, StoppedError) as error:
        return None, str(error)
    except SystemExit as error:  # Dask would let it end the worker
        return None, f"unexpected SystemExit: {error}"


def take_device(name: object) -> None:
    """Give this worker the GPU of its own number among its job's, before anything uses one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    number = re.search(r"-(\d+)$", str(name))
    if len(visible) > 1 and number is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[int(number[1]) % len(visible)]


@cache
def code_version() -> str:
    """The version of specslide that this process runs."""
    return software_versions().get("specslide", "of no known version")
