"""The geometry of whole stores, and that nothing in them depends on where, when or by how many they are made."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.demo.synthetic import write_pyramid
from tiling import TileStore, TilingConfig, tile_slide
from tiling.grid import Grid, Raster, Tiles, box_mean, fit_grid
from tiling.stores.store import verify_store

FileHashes = Callable[[Path], dict[str, str]]

SIZES = st.integers(1, 6000)
SCALES = st.floats(0.2, 0.6)

# -------------------------------------------------------------------------------------------------------- geometry


@given(width=SIZES, height=SIZES, slide_mpp=SCALES, times=st.floats(1, 5), tile_px=st.integers(16, 512), data=st.data())
def test_kept_tiles_hold_every_tissue_pixel_once(
    width: int, height: int, slide_mpp: float, times: float, tile_px: int, data: st.DataObject
) -> None:
    """At overlap 0 and the minimal threshold, each level-0 pixel of tissue lies in one kept tile, no more, no less."""
    grid = fit_grid((width, height), slide_mpp, (1.0,), mpp=slide_mpp * times, tile_px=tile_px)
    mask_px0 = 8 / slide_mpp
    shape = (int(np.ceil(height / mask_px0)), int(np.ceil(width / mask_px0)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    mask = rng.random(shape) < data.draw(st.sampled_from([0.02, 0.3, 1.0]))
    every = Tiles.all_of(grid)
    kept = box_mean(Raster(mask, mask_px0), every) > 0
    tiles = set(every.only(kept).places())
    assert len(tiles) == kept.sum()
    for row, column in np.argwhere(mask)[:200].tolist():
        # the centre of a mask pixel, in level-0 pixels, where the slide reaches that far
        x, y = min(int((column + 0.5) * mask_px0), width - 1), min(int((row + 0.5) * mask_px0), height - 1)
        holders = [
            (a, b) for a, b in corners_near(grid, x, y) if a <= x < a + grid.tile_px0 and b <= y < b + grid.tile_px0
        ]
        assert len(holders) == 1
        assert holders[0] in tiles


def corners_near(grid: Grid, x: int, y: int) -> list[tuple[int, int]]:
    """The corners of the grid's tiles around a level-0 point."""
    columns = [c for c in range(x // grid.stride_px0 - 1, x // grid.stride_px0 + 2) if 0 <= c < grid.columns]
    rows = [r for r in range(y // grid.stride_px0 - 1, y // grid.stride_px0 + 2) if 0 <= r < grid.rows]
    return [(c * grid.stride_px0, r * grid.stride_px0) for c in columns for r in rows]


@given(width=SIZES, height=SIZES, slide_mpp=SCALES, times=st.floats(1, 5), tile_px=st.integers(16, 512))
def test_level0_and_tile_frames_round_trip(
    width: int, height: int, slide_mpp: float, times: float, tile_px: int
) -> None:
    """A corner gives its row in the grid and back, and a length of the tile its length on the slide and back."""
    grid = fit_grid((width, height), slide_mpp, (1.0,), mpp=slide_mpp * times, tile_px=tile_px)
    x0, y0 = grid.corners()
    row, column = y0 // grid.stride_px0, x0 // grid.stride_px0
    np.testing.assert_array_equal(row * grid.columns + column, np.arange(grid.rows * grid.columns))
    assert x0.max() + grid.tile_px0 >= width
    assert y0.max() + grid.tile_px0 >= height
    assert (x0 < width).all()
    assert (y0 < height).all()
    assert grid.tile_px * grid.mpp == pytest.approx(grid.tile_px0 * grid.slide_mpp, rel=1e-12)
    assert Grid.model_validate_json(grid.model_dump_json()) == grid


@settings(max_examples=12, deadline=None)
@given(x=st.integers(40, 600), y=st.integers(40, 600), mpp=st.sampled_from([0.5, 1.0]), levels=st.integers(1, 3))
def test_a_mark_is_found_where_it_was_put(x: int, y: int, mpp: float, levels: int) -> None:
    """A dark dot at a level-0 place: mask, tile and thumbnail frames of the store all lead back to it."""
    picture = np.full((700, 700, 3), 244, np.uint8)
    cv2.circle(picture, (350, 350), 345, (230, 150, 190), -1)
    cv2.circle(picture, (x, y), 12, (60, 20, 90), -1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pyramid(folder / "s.tif", picture, mpp=0.5, levels=levels, quality=95)
        config = TilingConfig(mpp=mpp, tile_px=64, min_tissue=0, codec="lossless")
        store = TileStore(tile_slide(folder / "s.tif", folder, config).store)
        grid, tiles = store.grid, store.read(slice(None)).astype(int)
        canvas = np.full((800, 800), 255.0)
        for left, top, tile in zip(store.tiles.x0.tolist(), store.tiles.y0.tolist(), tiles, strict=True):
            whole = cv2.resize(tile.min(2).astype(np.uint8), (grid.tile_px0,) * 2, interpolation=cv2.INTER_NEAREST)
            canvas[top : top + grid.tile_px0, left : left + grid.tile_px0] = whole[: 800 - top, : 800 - left]
        found = dark_centre(canvas < 70)
        if (np.hypot(x - 350, y - 350)) < 320:  # wholly in the tissue
            np.testing.assert_allclose(found, (x, y), atol=grid.tile_px0 / grid.tile_px)
            px0 = store.attributes.mask_px0
            assert store.mask.values[int(y / px0), int(x / px0)]
        small = dark_centre(store.thumbnail.values.min(2) < 110)
        np.testing.assert_allclose(np.array(small) * store.attributes.thumbnail_px0, (x, y), atol=16)


def dark_centre(dark: NDArray[Any]) -> tuple[float, float]:
    """The mean x and y of what is marked, to the middle of its pixels."""
    rows, columns = np.nonzero(dark)
    return float(columns.mean() + 0.5), float(rows.mean() + 0.5)


# ------------------------------------------------------------------------------------------------------ invariance


@pytest.fixture
def cohort(small_slide: Path, tmp_path: Path) -> Path:
    """Three slides in a folder of their own."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.tif").write_bytes(small_slide.read_bytes() + name.encode())
    return folder


def tile_command(slides: Path, out: Path, *options: str) -> list[str]:
    names = [str(slides / f"{name}.tif") for name in ("a", "b", "c")]
    code = "from pipeline.cli import main; main()"
    return [sys.executable, "-c", code, "tile", *names, "--out", str(out), "--mpp", "1", "--tile-px", "128", *options]


def test_nothing_depends_on_workers_place_time_or_language(
    cohort: Path, tmp_path: Path, file_hashes: FileHashes
) -> None:
    elsewhere = tmp_path / "an other place é"
    elsewhere.mkdir()
    relative = Path(os.path.relpath(cohort, elsewhere))
    runs: dict[str, tuple[Path, Path, dict[str, str], str]] = {
        "plain": (cohort, tmp_path, {"TZ": "UTC", "LC_ALL": "C.UTF-8"}, "1"),
        "two workers": (cohort, tmp_path, {"TZ": "UTC", "LC_ALL": "C.UTF-8"}, "2"),
        "other": (relative, elsewhere, {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "LANG": "tr_TR.UTF-8",
                                        "PYTHONHASHSEED": "7", "USER": "nobody", "OMP_NUM_THREADS": "2"}, "2"),
    }  # fmt: skip
    found = {}
    for name, (slides, cwd, environment, workers) in runs.items():
        out = tmp_path / name
        command = tile_command(slides, out, "--workers", workers)
        done = subprocess.run(
            command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, done.stderr
        found[name] = file_hashes(out)
    assert {"a.zarr/commit.json", "b.png", "c.zarr/mask/c/0/0"} <= found["plain"].keys()
    assert found["two workers"] == found["plain"]
    assert found["other"] == found["plain"]


def test_two_jobs_on_one_folder_do_no_harm(cohort: Path, tmp_path: Path, file_hashes: FileHashes) -> None:
    """Started at once on the same slides: each store whole, the second job reuses, or says that the first is at it."""
    tile_all = tile_command(cohort, tmp_path / "alone", "--workers", "1")
    subprocess.run(tile_all, capture_output=True, timeout=100, check=True)
    out = tmp_path / "shared"
    command = tile_command(cohort, out, "--workers", "2")
    wide = os.environ | {"COLUMNS": "400"}  # so that no sentence is broken
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": wide}
    with subprocess.Popen(command, **pipes) as first, subprocess.Popen(command, **pipes) as second:
        said = [job.communicate(timeout=100)[0] for job in (first, second)]
    for job, text in zip((first, second), said, strict=True):
        assert "Traceback" not in text
        assert (job.returncode != 0) == ("is being written by another job" in text), text
    for name in ("a", "b", "c"):
        assert verify_store(out / f"{name}.zarr") == []
    assert file_hashes(out) == file_hashes(tmp_path / "alone")
