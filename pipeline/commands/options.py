"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.parts import Part, parse_part

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what was made otherwise or is damaged.")]
SlideMpp = Annotated[
    float | None, typer.Option(min=0.001, help="Micrometres per pixel of the slides, where their files do not say.")
]
WhereOption = Annotated[
    str | None, typer.Option(help="Which tiles of the stores, by their columns: `focus > 20 and pen < 0.05`.")
]
PartOption = Annotated[
    Part | None, typer.Option(parser=parse_part, metavar="I/N", help="Do the I-th of N shares of the slides only.")
]


def listed(text: str | None) -> list[str] | None:
    """The parts between commas."""
    return None if text is None else [part.strip() for part in text.split(",")]
