"""Annotations into finished stores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.outcomes import show_outcomes
from pipeline.commands.settings import Settings, options_of, settings_of
from tiling.annotations.classes import ClassRules
from tiling.core.errors import InputError, SpecslideError


@options_of(ClassRules, names={"order": "annotation_order", "cut_out": "annotation_cut_out"})
def label(
    stores: Annotated[list[Path], typer.Argument(help="Tile stores (*.zarr).")],
    annotations: Annotated[
        Path, typer.Option(help="Annotation, as for `tile --annotations`; or a folder of them, named by slide_id.")
    ],
    settings: Settings,
) -> None:
    """Give finished stores the annotation columns of a file instead of their own; the tiles are not touched.

    A label image's classes are named in `<its name>.classes.json`: {"1": "tumour"}.

    Example: `specslide label stores/a.zarr --annotations a.geojson`
    """
    from tiling.annotations.find import find_annotations
    from tiling.stores.label import label_store

    if not annotations.exists():
        raise InputError(annotations, "does not exist", "correct the path")
    if len(stores) > 1 and not annotations.is_dir():
        raise InputError(annotations, f"is one annotation for {len(stores)} stores", "pass a folder of them")
    rules = settings_of(ClassRules, settings, "label options")
    rows = []
    ids = [store.name.removesuffix(".zarr") for store in stores]
    within = find_annotations(annotations, dict.fromkeys(ids)).of if annotations.is_dir() else {ids[0]: annotations}
    for slide_id, store in zip(ids, stores, strict=True):
        try:
            if slide_id not in within:
                raise InputError(annotations, f"holds no annotation of {slide_id}", f"add {slide_id}.geojson")
            report = label_store(store, within[slide_id], rules)
            rows.append((slide_id, ", ".join(report.classes) or "none", "kept" if report.reused else "labelled"))
        except SpecslideError as error:
            rows.append((slide_id, "", str(error)))
    show_outcomes(f"classes of {len(stores)} stores", rows)
