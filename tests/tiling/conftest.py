"""Stores that the tests of tiling share; read only unless copied."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.demo.synthetic import write_pyramid
from tiling import TilingConfig, tile_slide

Hashes = dict[str, str]


@pytest.fixture(scope="session")
def small_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pyramid TIFF of 700 x 520 px at 0.5 mpp: white glass, one pink disc with some texture."""
    picture = np.full((520, 700, 3), 244, np.uint8)
    cv2.circle(picture, (340, 260), 230, (222, 140, 180), -1)
    random = np.random.default_rng(0)
    for x, y in random.integers(60, 460, (400, 2)).tolist():
        cv2.circle(picture, (x + 80, y), 4, (120, 80, 160), -1)
    path = tmp_path_factory.mktemp("slides") / "small.tif"
    write_pyramid(path, picture, mpp=0.5, levels=2)
    return path


@contextmanager
def ram_folder(otherwise: Path) -> Iterator[Path]:
    """A folder in memory, where the system has such a thing: hundreds of jobs, and none waits for a disk."""
    if not Path("/dev/shm").is_dir():
        yield otherwise
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture(scope="session", params=["lossless", "jpeg:90"])
def codec(request: pytest.FixtureRequest) -> str:
    """Both kinds of store."""
    return str(request.param)


@pytest.fixture(scope="session")
def finished(small_slide: Path, codec: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the small slide: 16-px tiles, more than three shards of them."""
    out = tmp_path_factory.mktemp("stores")
    config = TilingConfig(mpp=0.5, tile_px=16, codec=codec, min_tissue=0.1)
    return tile_slide(small_slide, out, config).store


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of that store, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / finished.name))


@pytest.fixture
def file_hashes() -> Callable[[Path], Hashes]:
    """Gives the sha256 of every file below a folder, hidden ones too, by relative path."""

    def hashes(folder: Path) -> Hashes:
        return {
            p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in folder.rglob("*")
            if p.is_file()
        }

    return hashes


@pytest.fixture
def noise_tiles() -> NDArray[np.uint8]:
    """300 tiles of 8 px: more than one shard."""
    return np.random.default_rng(0).integers(0, 256, (300, 8, 8, 3), np.uint8)
