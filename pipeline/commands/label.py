"""Annotations into finished stores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.outcomes import show_outcomes
from tiling.core.errors import InputError, SpecslideError


def label(
    stores: Annotated[list[Path], typer.Argument(help="Tile stores (*.zarr).")],
    annotations: Annotated[
        Path, typer.Option(help="QuPath GeoJSON, ASAP XML or label image; or a folder of them, named by slide_id.")
    ],
) -> None:
    """Give finished stores the annotation columns of a file instead of their own; the tiles are not touched.

    A label image's classes are named in `<its name>.classes.json`: {"1": "tumour"}.

    Example: `specslide label stores/a.zarr --annotations a.geojson`
    """
    from pipeline.execution.jobs import find_annotation
    from tiling.stores.label import label_store

    if len(stores) > 1 and not annotations.is_dir():
        raise InputError(annotations, f"is one annotation for {len(stores)} stores", "pass a folder of them")
    rows = []
    for store in stores:
        slide_id = store.name.removesuffix(".zarr")
        found = find_annotation(annotations, slide_id) if annotations.is_dir() else annotations
        try:
            if found is None:
                raise InputError(annotations, f"holds no annotation of {slide_id}", f"add {slide_id}.geojson")
            report = label_store(store, found)
            rows.append((slide_id, ", ".join(report.classes) or "none", "kept" if report.reused else "labelled"))
        except SpecslideError as error:
            rows.append((slide_id, "", str(error)))
    show_outcomes(f"classes of {len(stores)} stores", rows)
