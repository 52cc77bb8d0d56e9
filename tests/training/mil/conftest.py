"""Feature stores of a made-up encoder, and cohorts of them with a label a slide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tiling.core.artefact import Recipe, atomic_folder, locked_folder
from tiling.grid import Grid, Tiles
from tiling.stores.features import Encoder, FeatureAttributes, feature_path
from tiling.stores.store import SlideFacts
from tiling.stores.write_features import write_feature_columns, write_features
from training import BagConfig

DIM = 6
ENCODER = Encoder(name="made-up", kind="timm", sha256="0" * 64, tile_px=64, mpp=0.5, input_px=64, dim=DIM)


@pytest.fixture
def quick() -> BagConfig:
    """A run of a second."""
    return BagConfig(
        head_dim=16, epochs=30, batch_size=4, learning_rate=5e-3, bootstrap_resamples=50, val_fraction=0.25,
        test_fraction=0.25,
    )  # fmt: skip


@pytest.fixture
def make_features(tmp_path: Path) -> Callable[..., Path]:
    """Makes the finished store `features/<slide_id>.features.zarr` of features (n, D)."""

    def make(slide_id: str, features: NDArray[np.float32], *, sha256: str | None = None, **encoder: Any) -> Path:
        side = int(np.ceil(np.sqrt(max(len(features), 1))))
        grid = Grid(width0=64 * side, height0=64 * side, slide_mpp=0.5, tile_px=64, tile_px0=64, stride_px0=64)
        tiles = Tiles.all_of(grid).only(np.arange(len(features)))
        tissue = np.linspace(0, 1, len(features), dtype=np.float32)
        slide = SlideFacts(
            slide_id=slide_id, sha256=sha256 or f"{slide_id:0>64}", width=grid.width0, height=grid.height0, mpp=0.5,
            vendor="test", objective_power=None, level_downsamples=(1.0,),
        )  # fmt: skip
        made_by = ENCODER.model_copy(update={"dim": features.shape[1], **encoder})
        path = feature_path(tmp_path / "features", slide_id)
        with locked_folder(path), atomic_folder(path, Recipe("features", {})) as folder:
            write_features(folder, features.shape[1], "float32", [features])
            attributes = FeatureAttributes(slide=slide, grid=grid, encoder=made_by, columns=("tissue",))
            write_feature_columns(folder, Tiles(grid, tiles.x0, tiles.y0, {"tissue": tissue}), attributes)
        return path

    return make


def bag_of(number: int, tiles: int, label: int, lesion: int = 2) -> NDArray[np.float32]:
    """Noise; of label 1 with the first tiles moved along one direction, a class may be 2 and move along another."""
    features = np.random.default_rng(number).normal(size=(tiles, DIM)).astype(np.float32)
    if label:
        features[:lesion, label - 1] += 5
    return features


@pytest.fixture
def feature_cohort(make_features: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Makes feature stores and manifest of `cases` cases of `slides` slides each, of 20 to 39 tiles.

    Every case has one label; two tiles of each slide of the positive ones are a lesion.
    """

    def make(cases: int = 24, *, slides: int = 1, classes: int = 2, splits: bool = False) -> tuple[Path, Path]:
        lines = ["slide_path,slide_id,case_id,label,site,scanner" + (",split" if splits else "")]
        for case in range(cases):
            label = case % classes
            for slide in range(slides):
                number = case * slides + slide
                make_features(f"s{number}", bag_of(number, 20 + number % 20, label))
                name = ("benign", "tumour", "other")[label]
                row = f"s{number}.svs,s{number},case{case},{name},site{case % 3},scanner{slide % 2}"
                lines.append(row + (f",{('train', 'train', 'val', 'test')[case // 2 % 4]}" if splits else ""))
        path = tmp_path / "labels.csv"
        path.write_text("\n".join(lines) + "\n")
        return tmp_path / "features", path

    return make
