"""A command as a Slurm job: the script that runs it, and `sbatch` that takes the script. Knows no command.

`srun` starts the command, so that Slurm's signal before the time limit goes to the command itself and not to the shell.
A command that the signal has ended is put back into the queue, and goes on from what it has done.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tiling.core.errors import ConfigError
from tiling.core.versions import RESEARCH_USE

_NAME = r"^[\w.,:@+-]+$"
_SECONDS = {1: (60,), 2: (60, 1), 3: (3600, 60, 1)}  # of 10, 10:30 and 1:10:30
_SECONDS_WITH_DAYS = (3600, 60, 1)  # of 2-12, 2-12:30 and 2-12:30:00, after the days


class SlurmConfig(BaseModel):
    """What a job asks of Slurm; None leaves it to the cluster's defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    partition: str | None = Field(None, pattern=_NAME)
    """Queue of the cluster."""
    qos: str | None = Field(None, pattern=_NAME)
    """Quality of service."""
    account: str | None = Field(None, pattern=_NAME)
    """Whom the time is charged to."""
    time: str | None = None
    """Time limit: 90 (minutes), 8:00:00 or 2-12 (days-hours), in any of Slurm's forms; 0: none."""
    cpus: int | None = Field(None, ge=1)
    """Cores of each process."""
    mem: str | None = Field(None, pattern=r"^[1-9]\d*[KMGT]?$")
    """Memory of a node, in MiB unless a letter follows: 16G."""
    gpus: int | None = Field(None, ge=1)
    """GPUs of a node; training gets a process for each."""
    processes: int = Field(1, ge=1)
    """Processes on a node, which compute together."""
    array: int | None = Field(None, ge=1, le=100_000)
    """Tasks that share the slides of tile or heatmap, or the runs of tune. None: a job and no array."""
    at_once: int | None = Field(None, ge=1)
    """Tasks of the array that run at the same time, at most."""
    prelude: tuple[str, ...] = ()
    """Lines of shell that the job runs first, such as `module load cuda`; may be repeated."""
    notice_s: int = Field(120, ge=1, le=65_535)
    """Seconds before the time limit at which Slurm asks the command to stop; it may do so up to 60 s earlier."""
    requeues: int = Field(100, ge=0)
    """How often a job may go back into the queue: one that gets nowhere must not do so for ever."""
    further: tuple[str, ...] = ()
    """More of sbatch's options, `--name` or `--name=value`."""

    @field_validator("time")
    @classmethod
    def _is_time(cls, value: str | None) -> str | None:
        if value is not None:
            seconds_of(value)
        return value

    @field_validator("further")
    @classmethod
    def _are_options(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if not re.fullmatch(r"--[a-z][a-z-]*(=[^\x00-\x1f\x7f]*)?", value):
                raise ValueError(f"{value!r} is no option of sbatch; write --name or --name=value")
        return values

    @field_validator("prelude")
    @classmethod
    def _are_lines(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        for line in lines:
            if not line.isprintable() or not line.strip() or line.lstrip().startswith("#SBATCH"):
                raise ValueError(f"{line!a} is no line of shell; pass each line by itself")
        return lines

    @model_validator(mode="after")
    def _notice_in_time(self) -> SlurmConfig:
        if self.time is not None and 0 < seconds_of(self.time) <= self.notice_s:
            reason = "all of it is within the notice of {notice_s} s; ask for more time, or for a shorter notice"
            raise PydanticCustomError("time", reason, {"notice_s": self.notice_s})
        if self.at_once is not None and self.array is None:
            raise PydanticCustomError("at_once", "there is no array whose tasks it could hold back")
        return self


def seconds_of(time: str) -> int:
    """Seconds of a Slurm time limit, in any of the forms of `man sbatch`. Raises ValueError."""
    days, dash, rest = time.rpartition("-")
    parts = rest.split(":")
    if (
        not all(part.isascii() and part.isdigit() for part in (*parts, days or "0"))
        or len(parts) > 3
        or time[:1] == "-"
    ):
        raise ValueError(f"{time!r} is no time; write minutes, hours:minutes:seconds, or days-hours:minutes:seconds")
    units = _SECONDS_WITH_DAYS if dash else _SECONDS[len(parts)]
    return int(days or 0) * 86_400 + sum(int(part) * unit for part, unit in zip(parts, units, strict=False))


def job_script(name: str, command: Sequence[str], config: SlurmConfig) -> str:
    """The bash script of a job called `name` that runs `command`; the words of the command are quoted.

    In an array, `--part I/N` is added to the command, and I is the number of the task.
    """
    words = shlex.join(command)
    if config.array is not None:
        words += f' --part "$SLURM_ARRAY_TASK_ID/{config.array}"'
    # Since Slurm 22.05 the cores that sbatch is asked for do not reach srun by themselves.
    cores = "" if config.cpus is None else f"--cpus-per-task={config.cpus} "
    lines = [
        "#!/bin/bash",
        f"# Written by `specslide slurm`. {RESEARCH_USE}",
        *(f"#SBATCH {option}" for option in _options(name, config)),
        *config.prelude,  # before -u, which the modules of many clusters do not stand
        "set -u",
        "",
        "code=0",
        "# shellcheck disable=SC1003,SC2016 # words are meant to arrive unchanged",
        f"srun {cores}{words} || code=$?",
        "",
        "# 75: the command was signalled and has saved its state. 138 (128 + USR1): the signal has ended it.",
        "# Either way the same command goes on from what is done.",
        'case "$code" in',
        "  75 | 138)",
        f'    if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {config.requeues} ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
        "    ;;",
        "esac",
        'exit "$code"',
        "",
    ]
    return "\n".join(lines)


def submit_script(script: str) -> str:
    """Give a script to `sbatch`; returns the job's number. Raises ConfigError if it is not taken."""
    if shutil.which("sbatch") is None:
        raise ConfigError("sbatch", "is not there", "submit where Slurm is, or save what is printed without --submit")
    done = subprocess.run(["sbatch", "--parsable"], input=script, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise ConfigError("sbatch", f"did not take the job: {reason}", "see `specslide slurm --help`")
    return done.stdout.strip().partition(";")[0]  # the cluster's name may follow


def _tasks(config: SlurmConfig) -> str | None:
    """The tasks of an array, as sbatch counts them."""
    together = "" if config.at_once is None else f"%{config.at_once}"
    return None if config.array is None else f"1-{config.array}{together}"


def _options(name: str, config: SlurmConfig) -> Iterator[str]:
    """sbatch's options; Slurm reads quotes in them as a shell does."""
    asked = {
        "job-name": name, "partition": config.partition, "qos": config.qos, "account": config.account,
        "time": config.time,
        "cpus-per-task": config.cpus, "mem": config.mem, "ntasks-per-node": config.processes,
        "gpus-per-node": config.gpus, "array": _tasks(config),
    }  # fmt: skip
    yield from (f"--{key}={value}" for key, value in asked.items() if value is not None)
    # Of one job that runs several times, the log is one.
    yield from ("--requeue", "--open-mode=append", f"--signal=USR1@{config.notice_s}")
    for option in config.further:
        key, equals, value = option.partition("=")
        yield f"{key}{equals}{shlex.quote(value) if value else ''}"
