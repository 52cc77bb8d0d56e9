"""What a store holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import console
from pipeline.commands.options import WhereOption


def tiles(
    store: Annotated[Path, typer.Argument(help="A tile store (*.zarr).")],
    where: WhereOption = None,
    preview: Annotated[Path | None, typer.Option(help="PNG picture of the tiles that are kept.")] = None,
) -> None:
    """Count the tiles of a store, list its columns, and draw which tiles an expression keeps.

    Example: `specslide tiles stores/a.zarr --where "blur < 1.2 and black < 0.1" --preview kept.png`
    """
    from tiling import TileStore
    from tiling.preview import write_preview
    from tiling.stores.query import column_summary, rows_where

    opened = TileStore(store)
    kept = rows_where(opened, where)
    if preview is not None:
        write_preview(opened, preview, kept)
    columns = ("column", "min", "median", "max")
    console.show_table(f"{kept.sum()} of {len(kept)} tiles kept in {store}", columns, column_summary(opened, kept))
