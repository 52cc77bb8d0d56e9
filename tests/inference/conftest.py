"""Models, slides and predictions that the tests of inference share; read only unless copied."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from playwright.sync_api import Browser, sync_playwright

from inference.prediction import Prediction
from pipeline.demo.synthetic import write_pyramid
from tiling import Grid
from tiling.grid import Raster, Tiles
from tiling.stores.store import SlideFacts
from training import ModelInfo, TileModel, load_model
from training.models.card import model_card
from training.models.classifier import make_classifier
from training.models.folder import save_model

GRID = Grid(width0=256, height0=192, slide_mpp=0.5, tile_px=64, tile_px0=64, stride_px0=64)
MakeModel = Callable[..., Path]
MakePrediction = Callable[..., Prediction]


# Nothing of the browser's own may look for a network; its sandbox does not start for root.
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The Chromium that is there; a test that asks for it is skipped where there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("lacks Chromium: looked on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()


def picture(side: int = 512) -> NDArray[np.uint8]:
    """White glass with one textured pink disc, uint8 (side, side, 3)."""
    pixels = np.full((side, side, 3), 244, np.uint8)
    cv2.circle(pixels, (side // 2, side // 2), int(side * 0.4), (222, 140, 180), -1)
    random = np.random.default_rng(0)
    for x, y in random.integers(side // 4, 3 * side // 4, (side, 2)).tolist():
        cv2.circle(pixels, (x, y), 3, (120, 80, int(random.integers(100, 200))), -1)
    return pixels


def write_model(folder: Path, *, broken: bool = False, seed: int = 0, **changes: Any) -> Path:
    """A model folder with random weights, of tiles of 32 px at 0.5 mpp unless changed; `broken` has NaN weights."""
    torch.manual_seed(seed)
    network = make_classifier("test_resnet", 2, 32, 32).eval()
    if broken:
        with torch.no_grad():
            for weight in network.backbone.parameters():
                weight.fill_(torch.nan)
    info = ModelInfo.model_validate(
        {
            "backbone": "test_resnet", "classes": ("benign", "tumour"), "positive_class": "tumour", "input_px": 32,
            "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "mpp": 0.5, "tile_px": 32, "temperature": 1.0,
            "threshold": 0.5, "best_epoch": 1, "training": {"sd_lambda": 0.01, "sd_reduction": "sum"}, "data": {},
            "metrics": {}, "hashes": {}, "software": {},
        } | changes
    )  # fmt: skip
    save_model(folder, network, info, model_card(info))
    return folder


@pytest.fixture(autouse=True)
def _nothing_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test knows what fitted into another's memory: many share one model."""
    monkeypatch.setattr("inference.backends.FITTING", {})


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Makes the model folder `<name>` in the test's own folder; see `write_model`."""
    return lambda name="model", **changes: write_model(tmp_path / name, **changes)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model of tiles of 32 px at 0.5 mpp."""
    return write_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="session")
def model(model_folder: Path) -> TileModel:
    """That model, loaded."""
    return load_model(model_folder)


@pytest.fixture(scope="session")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """512 x 512 px at 0.5 mpp, two levels, one disc of tissue."""
    path = tmp_path_factory.mktemp("slides") / "disc.tif"
    write_pyramid(path, picture(), mpp=0.5, levels=2)
    return path


@pytest.fixture(scope="session")
def glass(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of 512 x 512 px at 0.5 mpp without tissue."""
    path = tmp_path_factory.mktemp("slides") / "glass.tif"
    write_pyramid(path, np.full((512, 512, 3), 244, np.uint8), mpp=0.5)
    return path


@pytest.fixture
def make_prediction() -> MakePrediction:
    """Makes a prediction on a slide of 256 x 192 px: tiles of 64 px at given corners, with given probabilities."""

    def make(places: list[tuple[int, int]], positive: list[float], **changes: Any) -> Prediction:
        p = np.array(positive, np.float32).reshape(-1)
        facts = SlideFacts(
            slide_id="s1", sha256="ab" * 32, width=256, height=192, mpp=0.5, vendor="test", objective_power=None,
            level_downsamples=(1.0,),
        )  # fmt: skip
        corners = np.array(places, np.int32).reshape(-1, 2)
        fields: dict[str, Any] = {
            "slide": facts,
            "tiles": Tiles(changes.pop("grid", GRID), corners[:, 0], corners[:, 1]),
            "probabilities": np.stack([1 - p, p], 1).astype(np.float32),
            "classes": ("benign", "tumour"),
            "positive": 1,
            "threshold": 0.5,
            "thumbnail": Raster(np.full((96, 128, 3), 230, np.uint8), 2.0),
            "provenance": {"model_sha256": "cd" * 32, "backbone": "test_resnet"},
        }
        return Prediction(**(fields | changes))

    return make
