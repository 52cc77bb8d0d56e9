"""Pictures of packed data sets, to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import console
from pipeline.commands.options import Overwrite


def import_pictures(
    files: Annotated[
        list[Path], typer.Argument(help="Parquet with pictures in it, WebDataset tar files, or folders of such.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the pictures and of index.csv.")],
    overwrite: Overwrite = False,
) -> None:
    """Unpack the pictures of Hugging Face's Parquet and of WebDataset tar files, with a table for `train --images`.

    Pictures stay as they are, byte for byte. Names of classes, splits and other columns are taken along. Nothing is
    unpickled.

    Examples:

    `specslide import pictures data/train-*.parquet data/test-*.parquet --out tiles`

    `specslide import pictures shards/train-000*.tar --out tiles`
    """
    from training.data.import_pictures import import_pictures as verb

    report = verb(files, out, overwrite=overwrite)
    counts = ", ".join(f"{count:,} {name or 'without a label'}" for name, count in report.labels.items())
    done = "kept" if report.reused else "made"
    console.say(f"{report.index} ({done}): {report.pictures:,} pictures; {counts}")
    console.say(f"to train on them: specslide train --images {report.index} --out RUN")
