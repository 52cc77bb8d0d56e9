"""What a newcomer adds from outside: one object and one row, used through `specslide tile`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline import cli
from tiling import TileStore
from tiling.core.arrays import BoolArray, UInt8Array
from tiling.slides.reader import Level
from tiling.slides.readers import READERS
from tiling.tissue import METHODS, Scene


class NumpyReader:
    """Slides that are arrays, uint8 (h, w, 3), in `*.npy`."""

    vendor, mpp_xy, compression = "numpy", (0.5, 0.5), "NONE"
    objective_power = bounds = plane = None

    def __init__(self, entry: Path) -> None:
        self.pixels = np.load(entry)
        self.levels = (Level(self.pixels.shape[1], self.pixels.shape[0], 1.0),)

    def read(self, x0: int, y0: int, level: int, width: int, height: int) -> UInt8Array:
        found = self.pixels[y0 : y0 + height, x0 : x0 + width]
        out = np.full((height, width, 3), 255, np.uint8)
        out[: found.shape[0], : found.shape[1]] = found
        return out

    def icc_profile(self) -> None: ...

    def close(self) -> None: ...


def everywhere(scene: Scene) -> BoolArray:
    return np.ones(scene.picture.shape[:2], np.bool_)


def tiled(slide: Path, out: Path, *options: str) -> TileStore:
    words = ["tile", str(slide), "--out", str(out), "--tissue", "everywhere", *options]
    CliRunner().invoke(cli.app, words, catch_exceptions=False, standalone_mode=False)
    return TileStore(out / f"{slide.stem}.zarr")


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes would not have the rows."""
    monkeypatch.setattr("pipeline.execution.pool.default_workers", lambda: 0)


@pytest.fixture
def pixels() -> UInt8Array:
    return np.random.default_rng(0).integers(120, 240, (256, 320, 3), np.uint8)


def test_a_reader_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixels: UInt8Array) -> None:
    monkeypatch.setitem(READERS, "numpy", lambda path, entry: NumpyReader(entry) if entry.suffix == ".npy" else None)
    monkeypatch.setitem(METHODS, "everywhere", everywhere)
    np.save(tmp_path / "case.npy", pixels)
    store = tiled(tmp_path / "case.npy", tmp_path, "--tile-px", "64", "--codec", "lossless")
    assert (store.slide.vendor, len(store)) == ("numpy", 20)
    for (x, y), found in zip(store.tiles.places(), store.read(slice(None)), strict=True):
        np.testing.assert_array_equal(found, pixels[y : y + 64, x : x + 64])


def test_a_tissue_method_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_slide: Path) -> None:
    monkeypatch.setitem(METHODS, "everywhere", everywhere)
    store = tiled(small_slide, tmp_path)
    assert store.attributes.config["tissue"]["method"] == "everywhere"
    assert store.mask.values.all()
