"""The verb `export_features`: feature stores as the files that CLAM and TRIDENT, STAMP, or anndata's users read."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np

from inference.h5 import require_h5py
from tiling.core.errors import ConfigError, OutputError
from tiling.core.files import atomic_file
from tiling.stores.features import FeatureStore

_BLOCK_ROWS = 1024


def export_features(store: Path | str, to: str, out_dir: Path | str, *, overwrite: bool = False) -> Path:
    """Write a feature store as another program's file into `out_dir`, whole or not at all.

    Args:
        store: The feature store.
        to: One of `FEATURE_EXPORTS`. `clam`: `<slide_id>.h5`, `features` float32 and `coords` int32, level-0 pixels,
            with TRIDENT's attributes. `stamp`: `<slide_id>.h5`, `feats` float16 and `coords` in micrometres, with
            STAMP's. `anndata`: `<slide_id>.h5ad`, whose `obs` are the tiles' columns and `obsm["spatial"]` their
            centres in level-0 pixels.
        out_dir: The folder.
        overwrite: Replace a file that is there already.

    Returns:
        The file.

    Raises:
        ConfigError: For another program, or a package that is not installed.
        StoreError: For a damaged store.
        OutputError: If the file is there, unless `overwrite`, or cannot be written.
    """
    if to not in FEATURE_EXPORTS:
        raise ConfigError(
            "to", f"{to!r} is no program that features are written for", f"use {', '.join(FEATURE_EXPORTS)}"
        )
    features, (write, ending) = FeatureStore(store), FEATURE_EXPORTS[to]
    path = Path(out_dir) / f"{features.slide_id}{ending}"
    if path.exists() and not overwrite:
        raise OutputError(path, "is there already", "choose another --out, or pass --overwrite")
    with atomic_file(path) as partial:
        write(features, partial)
    return path


def _clam(store: FeatureStore, path: Path) -> None:
    grid, slide = store.grid, store.slide
    attributes: dict[str, Any] = {
        "patch_size": grid.tile_px,
        "patch_size_level0": grid.tile_px0,
        "overlap": round(grid.tile_px * (1 - grid.stride_px0 / grid.tile_px0)),
        "name": store.slide_id,
        "level0_width": slide.width,
        "level0_height": slide.height,
    }
    if slide.objective_power is not None:
        attributes["level0_magnification"] = slide.objective_power
        attributes["target_magnification"] = slide.objective_power * grid.slide_mpp / grid.mpp
    with require_h5py().File(path, "w") as file:
        _write_features(file, "features", store, np.float32)
        file["features"].attrs.update({"name": store.slide_id, "encoder": store.encoder.name})
        file["coords"] = np.stack([store.tiles.x0, store.tiles.y0], 1).astype(np.int32)
        file["coords"].attrs.update(attributes)


def _stamp(store: FeatureStore, path: Path) -> None:
    grid = store.grid
    with require_h5py().File(path, "w") as file:
        _write_features(file, "feats", store, np.float16)
        places = np.stack([store.tiles.x0, store.tiles.y0], 1)
        file["coords"] = (places * grid.slide_mpp).astype(np.float32)
        file.attrs.update(
            {
                "extractor": store.encoder.name, "unit": "um", "tile_size_um": grid.mpp * grid.tile_px,
                "tile_size_px": grid.tile_px, "feat_type": "tile",
            }
        )  # fmt: skip


def _write_features(file: Any, name: str, store: FeatureStore, dtype: type[np.floating]) -> None:
    """The features as a dataset, block by block."""
    dataset = file.create_dataset(name, (len(store), store.dim), dtype)
    for start in range(0, len(store), _BLOCK_ROWS):
        block = store.read(slice(start, start + _BLOCK_ROWS)).astype(dtype)
        if not np.isfinite(block).all():
            raise ConfigError("to", f"features do not fit in {np.dtype(dtype).name}", "export them to clam or anndata")
        dataset[start : start + len(block)] = block


def _anndata(store: FeatureStore, path: Path) -> None:
    """Holds all features in memory, as whoever reads the file will."""
    if find_spec("anndata") is None:
        raise ConfigError("to", "anndata is not installed", "pip install 'specslide[features]'")
    data = store.to_anndata()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what other versions of anndata will do otherwise
        data.write_h5ad(path)


FEATURE_EXPORTS: Final[dict[str, tuple[Callable[[FeatureStore, Path], None], str]]] = {
    "clam": (_clam, ".h5"), "stamp": (_stamp, ".h5"), "anndata": (_anndata, ".h5ad"),
}  # fmt: skip
"""What features are written for, by name: the writer, and the file's ending."""
