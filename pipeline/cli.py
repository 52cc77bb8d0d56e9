"""The command line: `main` runs the commands of pipeline.commands."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer

from pipeline import console
from pipeline.commands.suggestions import SuggestingCommand, SuggestingGroup
from pipeline.console import LogFormat
from tiling.core.errors import SpecslideError, StoppedError

COMMANDS: dict[str, str] = {
    name: f"{name.replace('-', '_')}.{name.replace('-', '_')}"
    for name in (
        "info", "manifest", "tile", "label", "embed", "train", "tune", "evaluate", "stress", "models", "heatmap",
        "view", "export-model", "evaluate-slides", "tiles", "init", "run", "status", "provenance", "verify", "doctor",
        "demo", "slurm",
    )
}  # fmt: skip
"""The module in pipeline.commands and the function in it, by command, in the order of their use, which --help keeps."""
GROUPS: dict[str, tuple[str, dict[str, str]]] = {
    "import": (
        "What other tools have made: stores, features, heatmaps, pictures.",
        {
            "histoprep": "histoprep.histoprep", "features": "features.import_features",
            "results": "results.import_results", "pictures": "pictures.import_pictures",
            "model": "import_model.import_model",
        },
    ),
    "export": (
        "What specslide has made, for other tools.",
        {
            "features": "features.export_features", "dicom": "dicom.export_dicom", "qupath": "qupath.export_qupath",
        },
    ),
    "study": (
        "Studies of what networks learn.",
        {"shortcut": "shortcut.shortcut", "external": "external.external", "bags": "external.bags"},
    ),
}  # fmt: skip
"""The same of each group of commands, with what it says of itself."""
_GROUP: dict[str, Any] = {"cls": SuggestingGroup, "suggest_commands": False, "no_args_is_help": True}
_LAST = {"allow_interspersed_args": False}  # what follows slurm's command is that command's own


def command_line(word: str | None = None) -> typer.Typer:
    """The command line; of its commands only the one that a word names, if any has that name, or the group.

    The settings of all the others take a third of the time until a command starts. `slurm` needs them: it checks the
    command that it is given.
    """
    app = typer.Typer(
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"]},
        rich_markup_mode="markdown",
        help="Whole slides to tile stores, models and cancer heatmaps. For research use only.",
        **_GROUP,
    )
    app.callback()(_options)
    every = word == "slurm" or word not in {*COMMANDS, *GROUPS}
    for name, (text, commands) in GROUPS.items():
        if every or name == word:
            group = typer.Typer(help=text, **_GROUP)
            _add(group, commands)
            app.add_typer(group, name=name)
    _add(app, COMMANDS if every else {name: place for name, place in COMMANDS.items() if name == word})
    return app


def _add(app: typer.Typer, commands: Mapping[str, str]) -> None:
    for name, place in commands.items():
        module, function = place.split(".")
        found = getattr(import_module(f"pipeline.commands.{module}"), function)
        settings = _LAST if name == "slurm" else None
        app.command(name, cls=SuggestingCommand, context_settings=settings)(found)


def __getattr__(name: str) -> typer.Typer:
    """`app`, the whole command line, made when it is asked for."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _whole()


@cache
def _whole() -> typer.Typer:
    return command_line()


def main() -> None:
    """Run the command line; whatever the user can mend ends in one sentence and exit code 1.

    A training that a signal has stopped ends with 75 (EX_TEMPFAIL): its state is saved, the same command goes on.
    """
    try:
        command_line(next((word for word in sys.argv[1:] if not word.startswith("-")), None))(prog_name="specslide")
    except (SpecslideError, StoppedError) as error:
        if isinstance(error, StoppedError):
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # all is saved: a second Ctrl-C ends what is left, silently
        console.show_error(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        console.show_error(f"{error.filename or 'the file system'}: {error.strerror or error}")
        sys.exit(1)


def _show_version(asked: bool) -> None:
    if asked:
        console.say(f"specslide {version('specslide')}")
        raise typer.Exit


def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is done.")] = False,
    log_format: Annotated[
        LogFormat,
        typer.Option(
            help="Standard error: bars on a terminal and else plain lines (auto), plain lines, or a line of JSON each."
        ),
    ] = "auto",
    shown: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    console.start_logging(verbose, log_format)


if __name__ == "__main__":
    main()
