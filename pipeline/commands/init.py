"""A study to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import console


def init(folder: Annotated[Path, typer.Argument(help="Folder of the study; it is made.")] = Path()) -> None:
    """Write a commented study.yaml with every setting, and the JSON schema that editors check it by.

    Nothing is overwritten. Editors with a YAML language server complete and check the settings as they are typed.

    Example: `specslide init`
    """
    from pipeline.study.template import write_template

    study, schema = write_template(folder)
    console.say(f"{study}: name your manifest in it, then specslide run {study} --dry-run")
    console.say(f"{schema}: what editors check it by")
