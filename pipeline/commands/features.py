"""Features from and for other programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.commands.options import Overwrite
from pipeline.commands.outcomes import show_outcomes
from tiling.core.errors import SpecslideError
from tiling.core.text import counted


def import_features(
    files: Annotated[list[Path], typer.Argument(help="Files of CLAM, TRIDENT, STAMP or slide2vec, one per slide.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the feature stores.")],
    slide_mpp: Annotated[
        float | None, typer.Option(min=0.001, max=1000, help="Micrometres per level-0 pixel, if the files lack it.")
    ] = None,
    tile_px: Annotated[
        int | None, typer.Option(min=1, help="Side of a tile as the encoder saw it, pixels, if the files lack it.")
    ] = None,
    tile_px0: Annotated[
        int | None, typer.Option(min=1, help="Side of a tile, level-0 pixels, if the files lack it.")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="The encoder's name, if the files lack it.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Feature stores of what other tools computed: HDF5 of CLAM, TRIDENT and STAMP, and slide2vec's .pt and .npz.

    Rows keep their order. A scale that a file lacks is asked for. Needs `pip install 'specslide[features]'`.

    Examples:

    `specslide import features trident/features_uni_v1/*.h5 --slide-mpp 0.25 --encoder uni --out features`

    `specslide import features slide2vec/tile_embeddings/*.pt --out features`
    """
    from inference.import_features import import_features as verb

    def made(path: Path) -> str:
        report = verb(
            path, out, slide_mpp=slide_mpp, tile_px=tile_px, tile_px0=tile_px0, encoder=encoder, overwrite=overwrite
        )
        return f"{counted(report.tiles, 'tile')}, {report.dim} features, {'kept' if report.reused else 'made'}"

    show_outcomes(f"features in {out}", _each(files, made))


def export_features(
    stores: Annotated[list[Path], typer.Argument(help="Feature stores (*.features.zarr).")],
    to: Annotated[Literal["clam", "stamp", "anndata"], typer.Option(help="What reads them; clam: TRIDENT too.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the files.")],
    overwrite: Overwrite = False,
) -> None:
    """Features for other programs: the HDF5 of CLAM and TRIDENT, or STAMP, or anndata's h5ad.

    Needs `pip install 'specslide[features]'`.

    Example: `specslide export features features/*.features.zarr --to clam --out clam/h5_files`
    """
    from inference.export_features import export_features as verb

    rows = _each(stores, lambda path: verb(path, to, out, overwrite=overwrite).name)
    show_outcomes(f"features for {to} in {out}", rows)


def _each(paths: Sequence[Path], make: Callable[[Path], str]) -> list[tuple[str, str, str]]:
    """The rows of the summary table: what `make` says of each path, or why it failed."""
    rows = []
    for path in paths:
        try:
            rows.append((path.name, make(path), ""))
        except SpecslideError as error:
            rows.append((path.name, "", str(error)))
    return rows
