from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from tiling import TileStore
from tiling.core.errors import InputError
from training import TrainConfig, samples_from_images, samples_from_stores
from training.data.dataset import Batch, TileDataset, loader_workers, read_image
from training.data.dataset import whole_batch as whole_batch
from training.data.samplers import Shuffled
from training.data.samples import Split
from training.evaluation.perturbations import DrawnShift, shifted_copies

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


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_deep_pictures_keep_their_grey_levels(tmp_path: Path, bits: int) -> None:
    random = np.random.default_rng(0)
    deep = np.clip(random.normal(2 ** (bits - 1), 2 ** (bits - 4), (64, 64)), 0, 2**bits - 1).astype(np.uint16)
    deep[0, 0] = 2**bits - 1
    cv2.imwrite(str(tmp_path / "p.png"), deep)
    assert np.array_equal(np.array(PIL.Image.open(tmp_path / "p.png")), deep), "as another library reads it"
    np.testing.assert_array_equal(read_image(tmp_path / "p.png", 64)[..., 0], deep >> (bits - 8))


def test_pictures_of_other_numbers_are_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "p.tiff"), np.full((8, 8, 3), 0.5, np.float32))
    with pytest.raises(InputError, match=r"p\.tiff: has pixels of float32"):
        read_image(tmp_path / "p.tiff", 8)


def test_pictures_are_shrunk_by_area(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    cv2.imwrite(str(tmp_path / "p.png"), stripes)
    assert (read_image(tmp_path / "p.png", 16) == 100).all()
    with pytest.raises(InputError, match=r"lost\.png"):
        read_image(tmp_path / "lost.png", 16)


@pytest.mark.parametrize("missing", [2, 40, 700])
def test_a_jpeg_that_was_not_copied_whole_is_refused(tmp_path: Path, missing: int) -> None:
    """OpenCV would fill it up with grey."""
    path, pixels = tmp_path / "p.jpg", np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    assert cv2.imwrite(str(path), pixels)
    data = path.read_bytes()
    path.write_bytes(data + b"more")
    read_image(path, 40)
    for damaged in (data[:-missing], data[: len(data) // 2] + data[len(data) // 2 + missing :]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"p\.jpg: is a damaged JPEG.*copy it again"):
            read_image(path, 40)


def test_batches_of_stores_are_the_stores_own_tiles(
    cohort: Cohort, random_tiles: RandomTiles, tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores, manifest = cohort()
    samples = samples_from_stores(stores, manifest, tiny)
    indices = np.random.default_rng(0).permutation(len(samples))
    reads: list[int] = []
    read = TileStore.read

    def counted(
        store: TileStore, rows: NDArray[np.int64], out: NDArray[np.uint8], places: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        reads.append(len(rows))
        return read(store, rows, out, places)

    monkeypatch.setattr(TileStore, "read", counted)
    tiles, labels, named, _ = TileDataset(Split("all", samples, indices, 16)).__getitems__(list(range(20)))
    assert named.tolist() == indices[:20].tolist()
    assert sum(reads) == 20
    assert len(reads) == len(np.unique(samples.source[indices[:20]])), "one read a store"
    for tile, label, i in zip(tiles.numpy(), labels.tolist(), indices[:20], strict=True):
        np.testing.assert_array_equal(tile, random_tiles(8, int(samples.source[i]))[samples.row[i]])
        assert label == samples.label[i]


@pytest.mark.parametrize("kind", ["stores", "images"])
def test_any_number_of_workers_delivers_the_same_batches(
    kind: str, cohort: Cohort, image_table: Path, tiny: TrainConfig
) -> None:
    """Tiles, labels and indices of two epochs of balanced draws are alike."""
    samples = samples_from_stores(*cohort(), tiny) if kind == "stores" else samples_from_images(image_table, tiny)
    indices = samples.where("train")
    split = Split("all", samples, indices, samples.tile_px)
    dataset = pickle.loads(pickle.dumps(TileDataset(split, shift=DrawnShift(3))))  # noqa: S301 - our own

    def batches(workers: int) -> list[Batch]:
        sampler = Shuffled(len(indices), seed=5, draws=22, levels=samples.levels(["class", "slide"], indices))
        loader = DataLoader(
            dataset, batch_size=5, sampler=sampler, num_workers=workers, persistent_workers=workers > 0,
            collate_fn=whole_batch,
        )  # fmt: skip
        found = []
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            found += list(loader)
        return found

    alone = batches(0)
    assert [len(batch.labels) for batch in alone] == [5, 5, 5, 5, 2] * 2
    assert alone[0].indices.tolist() != alone[5].indices.tolist()
    for batch in alone:
        assert (batch.tiles.dtype, batch.labels.dtype, batch.indices.dtype) == (torch.uint8, torch.int64, torch.int64)
        assert batch.labels.tolist() == samples.label[batch.indices].tolist()
        assert set(samples.split[batch.indices]) == {"train"}
        shifts = [shift(batch.tiles.numpy()) for shift in shifted_copies().values()]
        assert any(np.array_equal(batch.shifted, shifted) for shifted in shifts)
    drawn = {tuple(np.array_equal(b.shifted, s(b.tiles.numpy())) for s in shifted_copies().values()) for b in alone}
    assert len(drawn) > 4, "not always the same"
    for workers in (1, 2):
        for a, b in zip(alone, batches(workers), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_in_order_tiles_are_the_whole_store(cohort: Cohort, tiny: TrainConfig) -> None:
    samples = samples_from_stores(*cohort(annotated=False), tiny)
    tiles = TileDataset(samples.split_of("all", 16))
    assert len(tiles) == 48
    expected = np.concatenate([TileStore(path).read(slice(None)) for path in samples.sources])
    np.testing.assert_array_equal(tiles.__getitems__(list(range(48))).tiles, expected)
    one = tiles[17]
    assert one.indices.tolist() == [17]
    np.testing.assert_array_equal(one.tiles, expected[17:18])


@pytest.mark.parametrize(
    ("asked", "device", "processes", "workers"),
    [(None, "cpu", 1, 0), (0, "cuda", 1, 0), (3, "cpu", 1, 3), (None, "cuda", 1, 16), (None, "cuda", 4, 9),
     (None, "cuda", 64, 1)],
)  # fmt: skip
def test_workers_by_device(
    asked: int | None, device: str, processes: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(40)), raising=False)
    assert loader_workers(asked, device, processes) == workers
