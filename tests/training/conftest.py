"""Pictures, tables, stores and settings that the tests of training share; helpers are fixtures that give functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from tiling.core.artefact import atomic_folder, locked_folder
from tiling.grid import Grid, Raster, Tiles
from tiling.stores.codec import TileCodec
from tiling.stores.store import SlideFacts, StoreAttributes
from tiling.stores.write import write_columns, write_tiles
from training import TrainConfig
from training.fit import Training


@pytest.fixture
def tiny() -> TrainConfig:
    """A run of seconds: timm's network for tests, from random weights, on pictures of 32 px."""
    return TrainConfig(
        backbone="test_resnet", weights="none", input_px=32, epochs=2, batch_size=8, learning_rate=3e-3,
        bootstrap_resamples=50, val_fraction=0.25, test_fraction=0.25,
    )  # fmt: skip


@pytest.fixture
def write_table(tmp_path: Path) -> Callable[[Sequence[Sequence[object]]], Path]:
    """Writes rows, the names first, as `table.csv`."""

    def write(rows: Sequence[Sequence[object]]) -> Path:
        path = tmp_path / "table.csv"
        path.write_text("\n".join(",".join(map(str, row)) for row in rows) + "\n")
        return path

    return write


@pytest.fixture
def image_table(tmp_path: Path) -> Path:
    """48 pictures of 12 cases; those of the class "dark" are darker, so that a network can learn it."""
    random = np.random.default_rng(0)
    lines = ["path,case_id,label"]
    (tmp_path / "images").mkdir()
    for number in range(48):
        dark = number % 2 == 1
        picture = random.integers(0, 120, (32, 32, 3)) + (0 if dark else 120)
        assert cv2.imwrite(str(tmp_path / f"images/{number}.png"), picture.astype(np.uint8))
        lines.append(f"images/{number}.png,case{number // 4},{'dark' if dark else 'bright'}")
    path = tmp_path / "index.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


StoreMaker = Callable[..., Path]


@pytest.fixture
def make_store(tmp_path: Path) -> StoreMaker:
    """Makes the finished lossless store `stores/<slide_id>.zarr` of given tiles (N, T, T, 3), four in a row."""

    def make(
        slide_id: str,
        tiles: NDArray[np.uint8],
        annotation: Mapping[str, Sequence[float]] | None = None,
        mpp: float = 0.5,
        sha256: str | None = None,
        icc: str = "none",
    ) -> Path:
        count, side = tiles.shape[:2]
        fractions = {name: np.array(values, dtype=np.float32) for name, values in (annotation or {}).items()}
        slide = SlideFacts(
            slide_id=slide_id, sha256=sha256 or slide_id, width=4 * side, height=4 * side, mpp=mpp, vendor="test",
            objective_power=None, level_downsamples=(1.0,),
        )  # fmt: skip
        grid = Grid(width0=4 * side, height0=4 * side, slide_mpp=mpp, tile_px=side, tile_px0=side, stride_px0=side)
        attributes = StoreAttributes(
            slide=slide, mpp=mpp, mask_px0=1, thumbnail_px0=1, quality=(), annotation=tuple(fractions),
            config={"codec": "lossless", "icc": icc}, config_sha256="", software={},
            grid=grid,
        )  # fmt: skip
        columns = {f"annotation/{name}": values for name, values in fractions.items()}
        placed = Tiles(
            grid,
            x0=(np.arange(count) % 4 * side).astype(np.int32),
            y0=(np.arange(count) // 4 * side).astype(np.int32),
            columns=columns | {"tissue": np.ones(count, dtype=np.float32)},
        )
        mask, thumbnail = Raster(np.ones((4, 4), dtype=bool), 1), Raster(np.zeros((4, 4, 3), np.uint8), 1)
        final, codec = tmp_path / "stores" / f"{slide_id}.zarr", TileCodec.parse("lossless")
        with locked_folder(final), atomic_folder(final) as partial:
            write_tiles(partial, side, codec, map(codec.encode, tiles))
            write_columns(partial, placed, {"mask": mask, "thumbnail": thumbnail}, attributes)
        return final

    return make


@pytest.fixture(scope="session")
def random_tiles() -> Callable[[int, int], NDArray[np.uint8]]:
    """Makes tiles of noise, uint8 (count, 16, 16, 3), from a count and a seed."""
    return lambda count, seed: np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def cohort(
    make_store: StoreMaker,
    write_table: Callable[[Sequence[Sequence[object]]], Path],
    random_tiles: Callable[[int, int], NDArray[np.uint8]],
) -> Callable[..., tuple[Path, Path]]:
    """Makes stores and manifest of `cases` slides of 8 tiles; the first half of each slide's tiles is tumour."""

    def make(*, annotated: bool = True, cases: int = 6) -> tuple[Path, Path]:
        rows = [("slide_path", "slide_id", "case_id", "label", "scanner")]
        for s in range(cases):
            columns = {"tumour": [1.0, 0.9, 0.5, 0.6, 0.0, 0.0, 0.2, 0.0]} if annotated else None
            store = make_store(f"s{s}", random_tiles(8, s), columns)
            rows.append((f"s{s}.svs", f"s{s}", f"case{s}", "tumour" if s % 2 else "benign", f"scanner{s % 2}"))
        return store.parent, write_table(rows)

    return make


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Arranges for something to happen in the middle of a step, once."""

    def arrange(step: int, happen: Callable[[], object]) -> None:
        whole = Training._step

        def disturbed(training: Training, batch: Any) -> Tensor:
            if training.progress.step == step:
                monkeypatch.setattr(Training, "_step", whole)
                happen()
            return whole(training, batch)

        monkeypatch.setattr(Training, "_step", disturbed)

    return arrange
