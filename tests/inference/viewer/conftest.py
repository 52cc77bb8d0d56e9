"""A cohort of two slides with known numbers, and what serves it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray
from starlette.types import ASGIApp

from inference.exports import TABLE
from inference.exports.tables import write_parquet
from inference.maps.scores import slide_scores
from inference.prediction import Prediction
from inference.summary import HeatmapSummary
from inference.viewer.cohort import find_cohort
from inference.viewer.marks import MarkFolder
from inference.viewer.server import make_app
from inference.viewer.site import Site
from pipeline.demo.synthetic import write_pyramid
from tiling import Slide, TilingConfig, tile_slide
from tiling.core.artefact import Recipe, atomic_folder
from tiling.grid import Grid, Raster, Tiles
from tiling.manifest import ManifestRow
from tiling.tile import slide_facts

TILE0, SIZE0 = 128, (1280, 1024)
BLACK = (5, 3)  # column and row of the one tile that is black on the slide
TOKEN = "a-token-for-tests"


def black_tile() -> NDArray[np.uint8]:
    """A pink slide on which one tile is black, uint8 (1024, 1280, 3)."""
    pixels = np.full((SIZE0[1], SIZE0[0], 3), (235, 190, 215), np.uint8)
    pixels[BLACK[1] * TILE0 : (BLACK[1] + 1) * TILE0, BLACK[0] * TILE0 : (BLACK[0] + 1) * TILE0] = 0
    return pixels


def write_heatmap(folder: Path, slide: Path, slide_id: str, values: NDArray[np.float32], **changes: Any) -> Prediction:
    """The folder of a heatmap of a slide: the probability `values` (rows, columns) of each tile, NaN for none."""
    with Slide(slide) as opened:
        facts = slide_facts(opened, slide_id)
    grid = Grid(
        width0=facts.width, height0=facts.height, slide_mpp=facts.mpp, tile_px=TILE0, tile_px0=TILE0, stride_px0=TILE0
    )
    whole, known = Tiles.all_of(grid), np.isfinite(values).reshape(-1)
    p = values.reshape(-1)[known]
    fields: dict[str, Any] = {
        "slide": facts, "tiles": whole.only(known), "probabilities": np.stack([1 - p, p], 1).astype(np.float32),
        "classes": ("benign", "tumour"), "positive": 1, "threshold": 0.5,
        "thumbnail": Raster(np.full((8, 8, 3), 200, np.uint8), 160.0),
        "provenance": {"model_sha256": "cd" * 32, "backbone": "test_resnet"},
        "columns": {"entropy": (1 - np.abs(2 * p - 1)).astype(np.float32)},
    }  # fmt: skip
    prediction = Prediction(**(fields | changes))
    summary = HeatmapSummary(
        slide=facts, grid=grid, tiles=len(p), classes=prediction.classes, positive_class=prediction.positive_class,
        threshold=prediction.threshold, scores=slide_scores(prediction.positives, prediction.threshold),
        made_from=json.loads(json.dumps(prediction.provenance)),
    )  # fmt: skip
    with atomic_folder(folder, Recipe("heatmap", {"slide": facts.sha256})) as partial:
        write_parquet(prediction, partial / TABLE)
        summary.write(partial)
    return prediction


@dataclass(frozen=True)
class Places:
    """Where the cohort lies."""

    slides: Path
    heatmaps: Path
    stores: Path
    rows: tuple[ManifestRow, ...]


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """Slides `one`, whose black tile is sure and whose others are not, and `two`, with little; read only."""
    folder = tmp_path_factory.mktemp("viewed")
    (folder / "slides").mkdir()
    (folder / "heatmaps").mkdir()
    values = np.linspace(0.05, 0.45, 80, dtype=np.float32).reshape(8, 10)
    values[:, 9] = np.nan  # not analysed
    values[BLACK[1], BLACK[0]] = 0.98
    for name, of in (("one", values), ("two", values * np.float32(0.1))):
        path = folder / "slides" / f"{name}-file.tif"
        write_pyramid(path, black_tile(), mpp=0.5, levels=2)
        write_heatmap(folder / "heatmaps" / name, path, name, of)
    tile_slide(
        folder / "slides" / "one-file.tif", folder / "stores", TilingConfig(mpp=0.5, tile_px=TILE0), slide_id="one"
    )
    rows = tuple(
        ManifestRow(slide_path=folder / "slides" / f"{name}-file.tif", slide_id=name, case_id=name, label=label)
        for name, label in (("one", "tumour"), ("two", "benign"))
    )
    return Places(folder / "slides", folder / "heatmaps", folder / "stores", rows)


@pytest.fixture(scope="session")
def site(places: Places) -> Iterator[Site]:
    """The cohort's site."""
    site = Site(find_cohort([places.heatmaps, places.stores], places.rows), drawable=True)
    yield site
    site.pictures.close()


def got(site: Site, address: str) -> bytes:
    """What an address of the site holds."""
    answer = site.get(address)
    assert answer is not None, address
    return answer.data


@dataclass(frozen=True)
class Served:
    """A server of this process."""

    address: str
    port: int
    marks: Path


@contextmanager
def serving(app: ASGIApp) -> Iterator[int]:
    """An application behind a real server, in a thread; yields its port."""
    config = uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def served(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The site behind a real server."""
    marks = tmp_path_factory.mktemp("marks")
    with serving(make_app(site, TOKEN, marks=MarkFolder(marks))) as port:
        yield Served(f"http://127.0.0.1:{port}", port, marks)
