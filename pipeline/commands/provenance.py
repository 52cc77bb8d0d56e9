"""Where a result comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline import console


def provenance(
    artefact: Annotated[Path, typer.Argument(help="A heatmap, store, model or evaluation, or any file in one.")],
    search: Annotated[
        list[Path] | None, typer.Option(help="Folder to look for what it was made from; may be repeated.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Every source, hash and setting, however many.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the chain as JSON.")] = False,
) -> None:
    """The chain from a result back to its slide, its model and the data that was trained on, on one page.

    What it was made from is looked for in the study that it lies in, wherever that was moved. What is not there is
    named by its hash. A file that was changed after it was made is refused, and so is one that nothing vouches for.

    Examples:

    `specslide provenance results/heatmaps/slide_1/overlay.png`

    `specslide provenance slide_1/heatmap.geojson --search results`

    `specslide provenance results/heatmaps/slide_1 --full > chain.txt`
    """
    from pipeline.provenance import lines_of, page_of, trace

    chain = trace(artefact, search or ())
    if as_json:
        console.say(json.dumps(chain.record(), indent=1, ensure_ascii=False))
        return
    for line in lines_of(chain) if full else page_of(chain):
        console.say(line)
    if not full:
        console.note("shortened; --full prints every source, hash and setting")
