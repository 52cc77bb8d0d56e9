"""The command line: `main` runs the commands of pipeline.commands."""

from __future__ import annotations

import signal
import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer

from pipeline import console
from pipeline.commands.demo import demo
from pipeline.commands.dicom import export_dicom
from pipeline.commands.doctor import doctor
from pipeline.commands.embed import embed
from pipeline.commands.evaluate import evaluate
from pipeline.commands.evaluate_slides import evaluate_slides
from pipeline.commands.export_model import export_model
from pipeline.commands.external import bags, external
from pipeline.commands.features import export_features, import_features
from pipeline.commands.heatmap import heatmap
from pipeline.commands.histoprep import histoprep
from pipeline.commands.import_model import import_model
from pipeline.commands.info import info
from pipeline.commands.init import init
from pipeline.commands.label import label
from pipeline.commands.manifest import manifest
from pipeline.commands.models import models
from pipeline.commands.pictures import import_pictures
from pipeline.commands.provenance import provenance
from pipeline.commands.qupath import export_qupath
from pipeline.commands.results import import_results
from pipeline.commands.run import run
from pipeline.commands.shortcut import shortcut
from pipeline.commands.slurm import slurm
from pipeline.commands.status import status
from pipeline.commands.stress import stress
from pipeline.commands.suggestions import SuggestingCommand, SuggestingGroup
from pipeline.commands.tile import tile
from pipeline.commands.tiles import tiles
from pipeline.commands.train import train
from pipeline.commands.tune import tune
from pipeline.commands.verify import verify
from pipeline.commands.view import view
from pipeline.console import LogFormat
from tiling.core.errors import SpecslideError, StoppedError

_GROUP: dict[str, Any] = {"cls": SuggestingGroup, "suggest_commands": False, "no_args_is_help": True}
app = typer.Typer(
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    rich_markup_mode="markdown",
    help="Whole slides to tile stores, models and cancer heatmaps. For research use only.",
    **_GROUP,
)
imports = typer.Typer(help="What other tools have made: stores, features, heatmaps, pictures.", **_GROUP)
exports = typer.Typer(help="What specslide has made, for other tools.", **_GROUP)
studies = typer.Typer(help="Studies of what networks learn.", **_GROUP)

app.add_typer(imports, name="import")
app.add_typer(exports, name="export")
app.add_typer(studies, name="study")
for _command in (
    info, manifest, tile, label, embed, train, tune, evaluate, stress, models, heatmap, view, export_model,
    evaluate_slides, tiles, init, run, status, provenance, verify, doctor, demo,
):  # fmt: skip  # in the order of their use, which --help keeps
    app.command(cls=SuggestingCommand)(_command)
_LAST = {"allow_interspersed_args": False}  # what follows slurm's command is that command's own
app.command(cls=SuggestingCommand, context_settings=_LAST)(slurm)
imports.command(cls=SuggestingCommand)(histoprep)
imports.command("features", cls=SuggestingCommand)(import_features)
imports.command("results", cls=SuggestingCommand)(import_results)
imports.command("pictures", cls=SuggestingCommand)(import_pictures)
imports.command("model", cls=SuggestingCommand)(import_model)
exports.command("features", cls=SuggestingCommand)(export_features)
exports.command("dicom", cls=SuggestingCommand)(export_dicom)
exports.command("qupath", cls=SuggestingCommand)(export_qupath)
studies.command(cls=SuggestingCommand)(shortcut)
studies.command(cls=SuggestingCommand)(external)
studies.command(cls=SuggestingCommand)(bags)


def main() -> None:
    """Run the command line; whatever the user can mend ends in one sentence and exit code 1.

    A training that a signal has stopped ends with 75 (EX_TEMPFAIL): its state is saved, the same command goes on.
    """
    try:
        app(prog_name="specslide")
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


@app.callback()
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
