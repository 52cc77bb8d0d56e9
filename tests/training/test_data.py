from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from tiling import TileStore
from tiling.errors import InputError
from training import TrainConfig, samples_from_stores
from training.data import Tiles, as_it_is, read_image

Cohort = Callable[..., tuple[Path, Path]]
RandomTiles = Callable[[int, int], NDArray[np.uint8]]


def picture(path: Path, shape: tuple[int, ...], value: int, dtype: type) -> Path:
    assert cv2.imwrite(str(path), np.full(shape, value, dtype=dtype))
    return path


@pytest.mark.parametrize(
    ("shape", "value", "dtype", "expected"),
    [
        ((8, 8), 90, np.uint8, 90),  # grey
        ((20, 12), 0x8080, np.uint16, 0x80),  # a radiograph of 16 bits
        ((8, 8, 4), 50, np.uint8, 50),  # with alpha
        ((3, 5, 3), 60, np.uint8, 60),  # smaller than asked for
    ],
)
def test_any_picture_becomes_rgb(
    tmp_path: Path, shape: tuple[int, ...], value: int, dtype: type, expected: int
) -> None:
    image = read_image(picture(tmp_path / "p.png", shape, value, dtype), 8)
    assert image.shape == (8, 8, 3)
    assert image.dtype == np.uint8
    assert abs(image.astype(int) - expected).max() <= 1


def test_pictures_are_shrunk_by_area(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    cv2.imwrite(str(tmp_path / "p.png"), stripes)
    assert (read_image(tmp_path / "p.png", 16) == 100).all()
    with pytest.raises(InputError, match=r"lost\.png"):
        read_image(tmp_path / "lost.png", 16)


def test_batches_of_stores_are_the_stores_own_tiles(
    cohort: Cohort, random_tiles: RandomTiles, tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores, manifest = cohort()
    samples = samples_from_stores(stores, manifest, tiny)
    indices = np.random.default_rng(0).permutation(len(samples))
    reads: list[int] = []
    read = TileStore.read

    def counted(store: TileStore, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        reads.append(len(rows))
        return read(store, rows)

    monkeypatch.setattr(TileStore, "read", counted)
    tiles, labels, named = Tiles(samples, indices, 16).__getitems__(list(range(20)))
    assert named.tolist() == indices[:20].tolist()
    assert sum(reads) == 20
    assert len(reads) == len(np.unique(samples.source[indices[:20]])), "one read a store"
    for tile, label, i in zip(tiles.numpy(), labels.tolist(), indices[:20], strict=True):
        np.testing.assert_array_equal(tile, random_tiles(8, int(samples.source[i]))[samples.row[i]])
        assert label == samples.label[i]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_deliver_the_same_batches(workers: int, cohort: Cohort, tiny: TrainConfig) -> None:
    stores, manifest = cohort()
    samples = samples_from_stores(stores, manifest, tiny)
    dataset = pickle.loads(pickle.dumps(Tiles(samples, np.arange(len(samples)), 16)))  # noqa: S301 - our own
    loader = DataLoader(dataset, batch_size=5, num_workers=workers, collate_fn=as_it_is)
    tiles = np.concatenate([batch.tiles.numpy() for batch in loader])
    np.testing.assert_array_equal(
        tiles, Tiles(samples, np.arange(len(samples)), 16).__getitems__(list(range(42))).tiles
    )
