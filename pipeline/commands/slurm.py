"""Commands as jobs of a Slurm cluster."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands.settings import Settings, options_of, settings_of
from pipeline.execution.slurm import SlurmConfig, job_script, submit_script
from tiling.core.errors import ConfigError

WRAPPED = ("tile", "embed", "train", "tune", "evaluate", "stress", "heatmap", "run")
_NOT_RESUMED = ("evaluate", "stress")  # a job that was too short for them would be so again
_IN_PARTS = ("tile", "embed", "tune", "heatmap")
_OF_CLUSTER = ("cluster", "cluster_config", "worker_memory")  # each of them asks for one


@options_of(SlurmConfig, without=("processes", "further", "prelude"))
def slurm(
    context: typer.Context,
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND ARGUMENTS [-- SBATCH_OPTIONS]",
            help=f"{', '.join(WRAPPED)}: one of them and its arguments; after a `--`, more of sbatch's options.",
        ),
    ],
    settings: Settings,
    prelude: Annotated[
        list[str] | None,
        typer.Option(help="A line of shell that the job runs first, such as `module load cuda`; may be repeated."),
    ] = None,
    executable: Annotated[
        str | None, typer.Option(help="What runs specslide on the nodes; default: this installation.")
    ] = None,
    submit: Annotated[bool, typer.Option("--submit", help="Give the script to sbatch instead of printing it.")] = False,
) -> None:
    """Print the sbatch script that runs another command as a job; with --submit, submit it.

    Slurm's options stand before the command, the command's own behind it, where they are checked as the command checks
    them. Shortly before its time limit the command is asked to stop; the job then goes back into the queue, and the
    command goes on from what it has done. Training is one job; slides, and the runs of tune, can be shared among the
    tasks of an array.

    Examples:

    `specslide slurm --partition cpu --time 4:00:00 --cpus 8 --array 20 tile --manifest slides.csv --out stores`

    `specslide slurm --time 1-0 --gpus 4 --cpus 8 --submit train --images index.csv --out run -- --exclude=node07`

    `specslide slurm --gpus 1 --prelude "module load cuda" evaluate run/model --images index.csv --out test`

    `specslide slurm --time 60 --executable "apptainer run specslide.sif" run study.yaml > job.sh`
    """
    split = command.index("--") if "--" in command else len(command)
    (name, *arguments), further = command[:split] or [""], command[split + 1 :]
    options = _checked(context, name, arguments)
    asks = next((f"--{key.replace('_', '-')}" for key in _OF_CLUSTER if options.get(key) is not None), None)
    if "array" in settings and (name not in _IN_PARTS or asks is not None):
        shares = f"{asks}: a cluster shares the slides out itself"
        what = f"{name}, which is one job" if name not in _IN_PARTS else shares
        raise ConfigError("--array", f"cannot be had with {what}", "leave it out")
    settings |= {"processes": settings.get("gpus", 1) if name == "train" else 1, "further": further}
    settings |= {"prelude": prelude or ()} | ({"requeues": 0} if name in _NOT_RESUMED else {})
    config = settings_of(SlurmConfig, settings, "slurm options")
    if hidden := [word for word in (name, *arguments, *further) if not word.isprintable()]:
        raise ConfigError(f"slurm {name}", f"{hidden[0]!a} holds characters that are not seen", "leave them out")
    script = job_script(f"specslide-{name}", [*_executable(executable), name, *arguments], config)
    if submit:
        typer.echo(f"job {submit_script(script)}")
    else:
        typer.echo(script, nl=False)


def _checked(context: typer.Context, name: str, arguments: list[str]) -> dict[str, Any]:
    """The options of the command, parsed and checked by itself: what it refuses is refused now and not in the queue.

    Raises ConfigError for another command, and what the command's own parser raises.
    """
    if name not in WRAPPED:
        raise ConfigError(f"slurm {name}", "is no command that runs as a job", f"use one of {', '.join(WRAPPED)}")
    root: Any = context.find_root()
    parsed = root.command.commands[name].make_context(name, ["--check", *arguments], parent=root)
    if parsed.params.get("part") is not None:
        raise ConfigError("--part", "is what --array gives to each task", "leave it out")
    parsed.command.invoke(parsed)  # checks, and does nothing
    options: dict[str, Any] = parsed.params
    return options


def _executable(given: str | None) -> list[str]:
    """The words that run specslide: those given, or this installation, wherever the job starts. Raises ConfigError."""
    if given is None:
        script = Path(sys.executable).with_name("specslide")
        return [str(script)] if script.exists() else [sys.executable, "-m", "specslide"]
    try:
        words = shlex.split(given)
    except ValueError as error:
        raise ConfigError("--executable", f"cannot be read ({error})", "close its quotes") from None
    if not words:
        raise ConfigError("--executable", "is empty", "name a program")
    return words
