"""Clusters of Dask workers: processes of this machine, jobs of a queue, or the workers of a scheduler that runs.

Functions and slides travel as pickles: whoever can talk to a scheduler can run programs as the user of its workers.
Workers of this machine listen to this machine alone, and those of a queue ask for keys (TLS). A scheduler at `tcp://`
asks nobody anything: start one only in a network that you trust, or at `tls://`, with the keys where Dask's own
configuration says (`distributed.comm.tls`).
"""

from __future__ import annotations

import inspect
import logging
import re
import shlex
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pipeline.execution.dask_config import ClusterConfig
from pipeline.execution.pool import default_workers
from tiling.core.errors import ClusterError, ConfigError
from tiling.core.signals import SENT_TO_ALL

try:
    from distributed import Client, Nanny, Scheduler, SpecCluster
    from distributed.core import Status
    from distributed.security import Security
    from distributed.system import MEMORY_LIMIT
except ImportError as error:
    raise ConfigError("cluster", f"Dask is not installed ({error})", "pip install 'specslide[dask]'") from None

CONNECT_S = 30.0
_CHATTER = ("distributed", "distributed.client", "dask_jobqueue", "tornado.application", "asyncio")
_QUEUES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster"}
_OURS = {  # what dask-jobqueue's classes take and is decided here, or is deprecated there
    "asynchronous", "base_class_kwargs", "config_name", "dashboard_address", "env_extra", "extra", "header_skip",
    "host", "job_cls", "job_extra", "job_kwargs", "kwargs", "loop", "n_workers", "name", "nanny", "protocol",
    "scheduler", "scheduler_cls", "security", "silence_logs", "worker_command",
}  # fmt: skip
NO_DASHBOARD = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
SETTINGS = {
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
"""Of Dask itself."""


def job_script(config: ClusterConfig, *, gpu: bool = False) -> str:
    """The script of one job of a queue, as it would be submitted. Raises ConfigError for settings it does not take."""
    cluster = _queue_class(config)
    options = {k: v for k, v in _queue_options(config, gpu).items() if k not in _options_of(cluster)}
    with _refused(config):
        script: str = cluster.job_cls("<scheduler>", name="<worker>", **options).job_script()
    return script


@contextmanager
def open_cluster(config: ClusterConfig, slides: int, devices: Sequence[str]) -> Iterator[tuple[Client, Sequence[str]]]:
    """Context with a client of the cluster, and a list of the reasons why the queue has refused jobs."""
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
        client = Client(place, timeout=CONNECT_S, set_as_default=False)
    except (OSError, TypeError, ValueError) as error:  # TypeError: tls:// without keys
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        fix = f"start one with `dask scheduler`, and workers with `dask worker {config.at} --nthreads 1`"
        raise ClusterError(config.at, f"no scheduler can be reached ({reason})", fix) from None
    try:
        yield client
    finally:
        client.close(timeout=2)


def _local(config: ClusterConfig, slides: int, devices: Sequence[str]) -> SpecCluster:
    count = min(slides, config.max_workers or len(devices) or default_workers(), len(devices) or slides)
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
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0} | NO_DASHBOARD}
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
        job_cls=_reporting_refusals(cluster_class.job_cls, refusals),
        silence_logs=logging.CRITICAL,
        security=security,
        **options,
    )
    cluster.adapt(minimum=config.min_workers, maximum=config.workers, worker_key=job_of)
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


def _reporting_refusals(job_class: Any, refusals: list[str]) -> type:
    """The class of jobs, which reports why the queue refuses one; Dask would only try again."""

    class Job(job_class):  # type: ignore[misc]
        async def start(self) -> None:
            try:
                await super().start()
            except (RuntimeError, OSError, ValueError) as error:
                self.status = Status.failed
                refusals.append(f"{job_class.submit_command} refused the job ({_last_words(str(error))})")
                raise

    return Job


def job_of(worker: Any) -> str:
    """The queue's job of a worker, from its name `<cluster>-<job>` or `<cluster>-<job>-<process>`."""
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
            "scheduler_options": NO_DASHBOARD | options.get("scheduler_options", {}),
        }
    )


def _options_of(taker: type) -> set[str]:
    return set(inspect.signature(taker).parameters) - _OURS


def _exports() -> list[str]:
    """The lines by which the workers of a job get what is set here of theirs."""
    exported = {
        f"DASK_{name.upper().replace('.', '__').replace('-', '_')}": value
        for name, value in SETTINGS.items()
        if name.startswith("distributed.worker.")
    }
    exported["PYTHONSAFEPATH"] = 1  # the folder that a job starts in may hold modules of our packages' names
    return [f"export {name}={shlex.quote(str(value))}" for name, value in exported.items()]


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


def dask_setup(worker: object) -> None:
    """Called by Dask as a worker of this machine starts: a Ctrl-C at the terminal is for the first process alone."""
    for number in SENT_TO_ALL:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def quiet() -> Iterator[None]:
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
