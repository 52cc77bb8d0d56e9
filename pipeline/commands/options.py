"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what was made otherwise or is damaged.")]
SlideMpp = Annotated[
    float | None, typer.Option(min=0.001, help="Micrometres per pixel of the slides, where their files do not say.")
]
WhereOption = Annotated[
    str | None, typer.Option(help="Which tiles of the stores, by their columns: `focus > 20 and pen < 0.05`.")
]


def listed(text: str | None) -> list[str] | None:
    """The parts between commas."""
    return None if text is None else [part.strip() for part in text.split(",")]
