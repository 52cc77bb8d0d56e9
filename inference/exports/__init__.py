"""The files of a heatmap: `EXPORTS`, one row a file. A new one is a function and a row.

Importing the table is cheap: a writer loads what it needs when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference.exports.content import Content

TABLE, OVERLAY = "predictions.parquet", "overlay.png"


@dataclass(frozen=True)
class Export:
    """One file, or folder, of a heatmap."""

    file: str
    about: str
    write: Callable[[Content, Path], None]
    """Writes the file at a path. Raises OSError."""
    always: bool = False
    """Whether it is written unasked; the others are the choices of `--formats`."""


def formats() -> tuple[str, ...]:
    """The names of the exports that are written if asked for, in the table's order."""
    return tuple(name for name, export in EXPORTS.items() if not export.always)


def formats_help() -> str:
    """The names of the formats with what they are, in a line."""
    return "; ".join(f"{name}: {EXPORTS[name].about}" for name in formats())


def write_exports(content: Content, folder: Path) -> None:
    """Write into a folder what is always written, and the formats asked for. Raises OSError."""
    for name, export in EXPORTS.items():
        if export.always or name in content.config.formats:
            export.write(content, folder / export.file)


def _parquet(content: Content, path: Path) -> None:
    from inference.exports.tables import write_parquet

    write_parquet(content.prediction, path)


def _csv(content: Content, path: Path) -> None:
    from inference.exports.tables import write_csv

    write_csv(content.prediction, path)


def _tile_objects(content: Content, path: Path) -> None:
    from inference.exports.geojson import write_geojson

    write_geojson(content.prediction, path)


def _overlay(content: Content, path: Path) -> None:
    from inference.exports.png import overlay_png

    path.write_bytes(overlay_png(content.prediction, content.truth))


def _png(content: Content, path: Path) -> None:
    from inference.exports.png import heatmap_png

    path.write_bytes(heatmap_png(content.prediction))


def _layer(content: Content, path: Path) -> None:
    from inference.exports.png import write_layer

    write_layer(content.prediction, path)


def _regions(content: Content, path: Path) -> None:
    from inference.exports.geojson import write_regions

    write_regions(content.prediction, content.regions, path)


def _ome_tiff(content: Content, path: Path) -> None:
    from inference.exports.ome_tiff import write_ometiff
    from tiling.core.files import sha256_json

    identity = [content.prediction.slide.model_dump(mode="json"), content.prediction.provenance]
    write_ometiff(content.map, path, sha256_json(identity))


def _ome_zarr(content: Content, path: Path) -> None:
    from inference.exports.ome_zarr import write_omezarr

    write_omezarr(content.map, path)


def _labels(content: Content, path: Path) -> None:
    from inference.exports.label_map import write_labels

    write_labels(content.prediction, path)


def _asap(content: Content, path: Path) -> None:
    from inference.exports.asap import write_asap

    write_asap(content.prediction, content.regions, path)


EXPORTS: dict[str, Export] = {
    "parquet": Export(TABLE, "the tiles' probabilities", _parquet, always=True),
    "csv": Export("predictions.csv", "the tiles' probabilities", _csv, always=True),
    "qupath": Export("heatmap.geojson", "the tiles as QuPath objects", _tile_objects, always=True),
    "overlay": Export(OVERLAY, "the heatmap over the slide", _overlay, always=True),
    "png": Export("heatmap.png", "the heatmap without the slide", _png),
    "layer": Export("heatmap-layer.png", "the map alone, to be laid over the slide, and its place", _layer),
    "geojson": Export("regions.geojson", "regions as QuPath annotations", _regions),
    "ometiff": Export("heatmap.ome.tif", "the probability map as OME-TIFF", _ome_tiff),
    "omezarr": Export("heatmap.ome.zarr", "the probability map as OME-Zarr", _ome_zarr),
    "labels": Export("labels.tif", "the class called at each place as a label image, and the classes' names", _labels),
    "asap": Export("regions.xml", "regions as ASAP annotations", _asap),
}
