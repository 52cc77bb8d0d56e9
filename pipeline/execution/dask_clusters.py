"""Slides on the workers of a Dask cluster: one slide is one task, and every slide gets an outcome.

The only module that knows Dask. The workers are processes of this machine, jobs of a queue (dask-jobqueue), or those of
a scheduler that runs already. Dask's scheduler hands each slide to an idle worker, the largest first; what becomes of a
slide whose worker was lost is decided here: it is tried again, unless the worker was ended for its use of memory.

Functions and slides travel as pickles: whoever can talk to a scheduler can run programs as the user of its workers.
Workers of this machine listen to this machine alone, and those of a queue ask for keys (TLS). A scheduler at `tcp://`
asks nobody anything: start one only in a network that you trust, or at `tls://`, with the keys where Dask's own
configuration says (`distributed.comm.tls`).
"""

from __future__ import annotations

import inspect
import logging
import os
import re
import shlex
import shutil
import signal
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from pipeline.execution.dask_config import ClusterConfig
from pipeline.execution.pool import DIED, Task, Watch, default_workers, reason_of, use_one_thread
from tiling.core.errors import ClusterError, ConfigError, SpecslideError, StoppedError
from tiling.core.versions import software_versions

try:
    import dask
    from dask.utils import format_bytes
    from distributed import Client, Future, Nanny, Scheduler, SpecCluster, get_worker
    from distributed.core import Status
    from distributed.scheduler import KilledWorker
    from distributed.security import Security
    from distributed.system import MEMORY_LIMIT
except ImportError as error:
    raise ConfigError("cluster", f"Dask is not installed ({error})", "pip install 'specslide[dask]'") from None

log = logging.getLogger(__name__)

Job = TypeVar("Job")
Result = TypeVar("Result")
Answer = tuple[Result | None, str | None]
"""What a task gives: its result, or the reason why there is none."""

_POLL_S = 0.2
_LOOK_FOR_WORKERS_S = 2.0
_MEMORY_NEWS_S = 1.0  # how much later than a worker's end the news may come that it was ended for its use of memory
_TELL_S = 1.0  # how often a worker tells how far it is
_CONNECT_S = 30.0
_ANSWER_S = 5.0
_MOST_TRIES = 20  # of a slide that never was what its worker was at; such a thing ends too
_MEMORY_TOPIC = "worker-restart-memory"  # of Dask's nannies
_QUEUES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster"}
_OURS = {  # what dask-jobqueue's classes take and is decided here, or is deprecated there
    "asynchronous", "base_class_kwargs", "config_name", "dashboard_address", "env_extra", "extra", "header_skip",
    "host", "job_cls", "job_extra", "job_kwargs", "kwargs", "loop", "n_workers", "name", "nanny", "protocol",
    "scheduler", "scheduler_cls", "security", "silence_logs", "worker_command",
}  # fmt: skip
_CHATTER = ("distributed", "distributed.client", "dask_jobqueue", "tornado.application", "asyncio")
_NO_DASHBOARD = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
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
_DASK = {
    # A lost worker's slide comes back to us at once, rather than be handed to the next worker to lose.
    "distributed.scheduler.allowed-failures": 0,
    # No slide waits at a worker: it goes to the first that is idle, and is not suspected of another's end.
    "distributed.scheduler.worker-saturation": 1.0,
    # What an adaptive cluster believes of slides before it has seen one: that each is worth a worker.
    "distributed.scheduler.unknown-task-duration": "5 minutes",
    # Results are a few numbers: nothing is to be spilled, and a worker waits for no memory, but is ended.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.profile.enabled": False,
    # No pages for browsers.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}


def run_on_cluster(
    task: Task[Job, Result],
    order: Sequence[int],
    config: ClusterConfig,
    watch: Watch[Job, Result],
    devices: Sequence[str] = (),
) -> None:
    """Run `task` on the jobs of `watch` in that order, and give each its outcome.

    `devices` are the GPUs of this machine that tasks need, each with a worker of its own. Raises ClusterError if the
    cluster cannot be reached, is lost, or has no worker for longer than the configuration says; ConfigError for
    settings that dask-jobqueue does not take; StoppedError as `Watch.look` does. What is complete stays in any case.
    """
    if not order:
        return
    with _quiet(), dask.config.set(_DASK), _cluster(config, len(order), devices) as (client, refusals):
        slides = _Slides(client, task, order, config, watch, refusals, gpu=bool(devices))
        try:
            slides.run()
        finally:
            slides.cancel()


def job_script(config: ClusterConfig, *, gpu: bool = False) -> str:
    """The script of one job of a queue, as it would be submitted. Raises ConfigError for settings it does not take."""
    cluster = _queue_class(config)
    options = {k: v for k, v in _queue_options(config, gpu).items() if k not in _options_of(cluster)}
    with _refused(config):
        script: str = cluster.job_cls("<scheduler>", name="<worker>", **options).job_script()
    return script


# --- the slides of one run ------------------------------------------------------------------------------------------


class _Slides(Generic[Job, Result]):
    """The slides that are under way, and what their workers tell of them."""

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
        self._overdrawn: set[str] = set()
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
        """Give every slide its outcome."""
        self._client.subscribe_topic(self._topic, lambda event: self._inbox.put(partial(self._told, event[1])))
        self._client.subscribe_topic(
            _MEMORY_TOPIC, lambda event: self._inbox.put(partial(self._overdrew, event[1]["worker"]))
        )
        for number in self._order:
            self._submit(number)
        while len(self._watch.outcomes) < len(self._order):
            with suppress(Empty):
                self._inbox.get(timeout=_POLL_S)()
                while True:  # all that has come meanwhile
                    self._inbox.get_nowait()()
            self._judge()
            self._watch.look()
            self._look_for_workers()

    def cancel(self) -> None:
        """Take back what is not finished; a worker notices when it next tells how far it is."""
        left = [future for number, future in self._futures.items() if number not in self._watch.outcomes]
        with suppress(OSError, ValueError, TimeoutError):  # the scheduler may be gone
            self._client.cancel(left, force=True)

    def _submit(self, number: int) -> None:
        self._submitted[number] += 1
        future = self._client.submit(
            _work, self._task, self._watch.jobs[number], number, self._topic, _version(),
            key=f"slide-{self._topic[-32:]}-{number}-{self._submitted[number]}",
            priority=self._priority[number], pure=False, retries=0, resources=self._resources,
        )  # fmt: skip
        self._futures[number] = future
        self._await(number, future)

    def _await(self, number: int, future: Future[Answer[Result]]) -> None:
        future.add_done_callback(lambda done: self._inbox.put(partial(self._done, number, done)))

    def _told(self, news: Mapping[str, Any]) -> None:
        """A worker tells how far it is with a slide."""
        if news["slide"] not in self._watch.outcomes:
            self._at.setdefault(news["worker"], set()).add(news["slide"])
        self._limits[news["worker"]] = news["memory_limit"]
        if news["total"]:
            self._watch.at(news["slide"], news["done"], news["total"])

    def _overdrew(self, worker: str) -> None:
        """A worker was ended for its use of memory: so would be the next that takes what it was working on."""
        self._overdrawn.add(worker)
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

    def _judge(self) -> None:
        """Decide what becomes of slides whose worker is lost."""
        for number in list(self._unanswered):
            self._unanswered.remove(number)
            self._done(number, self._futures[number])
        now = time.monotonic()
        for number, (until, error) in list(self._lost.items()):
            worker = error.last_worker
            if worker.address in self._overdrawn and self._was_at(number, worker.address):
                self._end(number, _memory_reason(worker.memory_limit))
            elif now >= until:
                del self._lost[number]
                self._try_again(number, worker.address, error.allowed_failures + 1)

    def _try_again(self, number: int, worker: str, losses: int) -> None:
        if self._was_at(number, worker):
            self._losses[number] += losses
        if self._losses[number] > self._config.retries or self._submitted[number] > _MOST_TRIES:
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

    def _look_for_workers(self) -> None:
        """Raise ClusterError if the scheduler is lost, or has had no worker for too long."""
        now = time.monotonic()
        if now - self._looked < _LOOK_FOR_WORKERS_S:
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


# --- on a worker ----------------------------------------------------------------------------------------------------


def _work(task: Task[Job, Result], job: Job, number: int, topic: str, version: str) -> Answer[Result]:
    """Run a task on a worker. An error that a person understands is an answer: Dask has nothing to do with it."""
    if version != _version():
        fix = "install the same version everywhere"
        return None, str(ClusterError("a worker", f"has specslide {_version()} instead of {version}", fix))
    worker = get_worker()
    key = worker.get_current_task()
    use_one_thread()
    _take_device(worker.name)
    told = 0.0

    def tell(done: int, total: int) -> None:
        limit = worker.memory_manager.memory_limit
        news = {"slide": number, "worker": worker.address, "done": done, "total": total, "memory_limit": limit}
        worker.log_event(topic, news)

    def progress(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told < _TELL_S:
            return
        told = time.monotonic()
        state = worker.state.tasks.get(key)
        if state is None or state.state == "cancelled":  # who asked for it has stopped, or is gone
            raise StoppedError("a worker", "is told to leave this slide")
        tell(done, total)

    tell(0, 0)
    try:
        return task(job, progress), None
    except (SpecslideError, StoppedError) as error:
        return None, str(error)
    except SystemExit as error:  # Dask would let it end the worker
        return None, f"unexpected SystemExit: {error}"


def _take_device(name: object) -> None:
    """Give this worker one of the GPUs that its job has, before anything uses one: the worker of the same number."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    number = re.search(r"-(\d+)$", str(name))
    if len(visible) > 1 and number is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[int(number[1]) % len(visible)]


@cache
def _version() -> str:
    return software_versions().get("specslide", "of no known version")


def dask_setup(worker: object) -> None:
    """Called by Dask as a worker of this machine starts: a Ctrl-C at the terminal is for the first process alone."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


# --- clusters -------------------------------------------------------------------------------------------------------


@contextmanager
def _cluster(config: ClusterConfig, slides: int, devices: Sequence[str]) -> Iterator[tuple[Client, Sequence[str]]]:
    """A client of the cluster, and a list that tells why the queue has refused a job; all is closed afterwards."""
    refusals: list[str] = []
    if config.kind == "scheduler":
        with _client(config, config.at) as client:
            yield client, refusals
        return
    with ExitStack() as stack:
        with _refused(config):
            if config.kind == "local":
                cluster = stack.enter_context(_local(config, slides, devices))
            else:
                security = stack.enter_context(_keys(config)) if config.tls else None
                cluster = stack.enter_context(_queue(config, bool(devices), security, refusals))
        yield stack.enter_context(_client(config, cluster)), refusals


@contextmanager
def _client(config: ClusterConfig, place: str | SpecCluster) -> Iterator[Client]:
    try:
        client = Client(place, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, TypeError, ValueError) as error:  # TypeError: tls:// without keys
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        fix = f"start one with `dask scheduler`, and workers with `dask worker {config.at} --nthreads 1`"
        raise ClusterError(config.at, f"no scheduler can be reached ({reason})", fix) from None
    try:
        yield client
    finally:
        client.close(timeout=2)


def _local(config: ClusterConfig, slides: int, devices: Sequence[str]) -> SpecCluster:
    count = min(slides, config.most_workers or len(devices) or default_workers(), len(devices) or slides)
    options: dict[str, Any] = {
        "nthreads": 1,
        "memory_limit": config.memory or MEMORY_LIMIT // count,
        "host": "127.0.0.1",
        "dashboard": False,
        "preload": [__name__],
        "silence_logs": logging.CRITICAL,
    }
    workers = {
        number: {
            "cls": Nanny,
            "options": options | ({"env": {"CUDA_VISIBLE_DEVICES": devices[number]}} if devices else {}),
        }
        for number in range(count)
    }
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0} | _NO_DASHBOARD}
    return SpecCluster(workers=workers, scheduler=scheduler)


@contextmanager
def _keys(config: ClusterConfig) -> Iterator[Security]:
    """Keys made for one run, in a folder that the nodes of the queue see and other users do not.

    After a kill -9 the folder stays. It opens nothing once that run's scheduler and workers are gone, and nobody else
    can know that they are: runs last for days, and locks may not reach from node to node.
    """
    made = Security.temporary()
    shared = Path(config.queue.get("shared_temp_directory") or ".").absolute()
    with tempfile.TemporaryDirectory(prefix=".specslide-keys-", dir=shared) as folder:  # of mode 700
        files = {}
        for role in ("scheduler", "worker", "client"):
            for name, pem in made.get_tls_config_for_role(role).items():
                if pem is not None and "\n" in pem:
                    key = "tls_ca_file" if name == "ca_file" else f"tls_{role}_{name}"
                    files[key] = Path(folder) / f"{key}.pem"
                    files[key].write_text(pem)
        yield Security(require_encryption=True, **{key: str(file) for key, file in files.items()})


def _queue(config: ClusterConfig, gpu: bool, security: Security | None, refusals: list[str]) -> SpecCluster:
    cluster_class = _queue_class(config)
    command = cluster_class.job_cls.submit_command
    if shutil.which(command) is None:
        fix = "run it on a machine that may submit jobs"
        raise ClusterError(config.at, f"{command} is not on this machine", fix)

    options = _queue_options(config, gpu)
    cluster = cluster_class(
        job_cls=_telling(cluster_class.job_cls, refusals), silence_logs=logging.CRITICAL, security=security, **options
    )
    cluster.adapt(minimum=config.min_workers, maximum=config.workers, worker_key=_job_of)
    return cluster


def _queue_class(config: ClusterConfig) -> Any:
    """dask-jobqueue's class of clusters. Raises ConfigError if it is not installed."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        import dask_jobqueue
    except ImportError as error:
        raise ConfigError("cluster", f"Dask is not installed ({error})", "pip install 'specslide[dask]'") from None
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:  # importing it makes these signals end the process, with code 0
            signal.signal(number, handler)
    return getattr(dask_jobqueue, _QUEUES[config.kind])


def _telling(job_class: Any, refusals: list[str]) -> type:
    """The class of jobs, which tells why the queue refuses one; Dask would only try again."""

    class Job(job_class):  # type: ignore[misc]
        async def start(self) -> None:
            try:
                await super().start()
            except (RuntimeError, OSError, ValueError) as error:
                self.status = Status.failed
                refusals.append(f"{job_class.submit_command} refused the job ({_last_words(str(error))})")
                raise

    return Job


def _job_of(worker: Any) -> str:
    """The job that a worker is in, by their names `<cluster>-<job>` or `<cluster>-<job>-<process>`."""
    found = re.fullmatch(r"(.*?-\d+)(-\d+)?", str(worker.name))
    return found[1] if found is not None else str(worker.name)


def _queue_options(config: ClusterConfig, gpu: bool) -> dict[str, Any]:
    """What dask-jobqueue is given. Raises ConfigError naming a setting that it does not take."""
    cluster = _queue_class(config)
    known = set().union(*(_options_of(taker) for taker in (cluster, *cluster.job_cls.__mro__[:2])))
    sections = {"queue": config.queue} | ({"gpu_queue": config.gpu_queue} if gpu else {})
    for section, settings in sections.items():
        for name, value in settings.items():
            key = f"cluster.{section}.{name}"
            if name not in known:
                raise ConfigError(key, "is not a setting", f"the settings are {', '.join(sorted(known))}")
            if name == "walltime" and not isinstance(value, str):  # YAML reads 12:00:00 as a number, to base 60
                raise ConfigError(key, f"{value!r} is refused", 'write it in quotes, such as "12:00:00"')
    options = config.queue | (config.gpu_queue if gpu else {})
    for name in ("cores", "memory"):
        if options.get(name) is None:
            raise ConfigError(f"cluster.queue.{name}", "is missing", "say what one job is to have")
    return (
        {"job_name": "specslide"}
        | options
        | {
            "processes": options.get("processes") or options["cores"],
            "worker_extra_args": [*options.get("worker_extra_args", ()), "--nthreads", "1", "--no-dashboard"],
            "job_script_prologue": [*options.get("job_script_prologue", ()), *_exports()],
            "scheduler_options": _NO_DASHBOARD | options.get("scheduler_options", {}),
        }
    )


def _options_of(taker: type) -> set[str]:
    return set(inspect.signature(taker).parameters) - _OURS


def _exports() -> list[str]:
    """The lines by which the workers of a job get what is set here of theirs."""
    return [
        f"export DASK_{name.upper().replace('.', '__').replace('-', '_')}={shlex.quote(str(value))}"
        for name, value in _DASK.items()
        if name.startswith("distributed.worker.")
    ]


@contextmanager
def _refused(config: ClusterConfig) -> Iterator[None]:
    """What Dask and dask-jobqueue say of settings, and of machines, as errors of ours."""
    try:
        yield
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"cluster {config.at}", f"is refused ({_last_words(str(error))})", "correct it") from None
    except (OSError, RuntimeError) as error:
        fix = "look at the machine's memory, disk and network"
        raise ClusterError(config.at, f"cannot be started ({_last_words(str(error))})", fix) from None


def _last_words(text: str) -> str:
    """The last line of a message that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no reason is given")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Dask's log to itself: what matters of it is reported with the slide or the run."""
    loggers = [logging.getLogger(name) for name in _CHATTER]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
