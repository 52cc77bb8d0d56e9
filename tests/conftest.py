"""What the tests of every package share."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.demo.synthetic import make_slide


def pytest_configure() -> None:
    """No power fails in a test, so that nothing waits for the disk."""
    os.fsync = lambda fd: None


@pytest.fixture(scope="session")
def data_dir() -> Callable[[str], Path]:
    """Finds a file or folder of the development data; skips the test, naming it, where there is none."""

    def find(name: str) -> Path:
        places = [Path(__file__).resolve().parents[2] / "shared" / "data"]
        if "SPECSLIDE_DATA" in os.environ:
            places.append(Path(os.environ["SPECSLIDE_DATA"]))
        for place in places:
            if (place / name).exists():
                return place / name
        pytest.skip(f"lacks {name}: looked in ../shared/data and $SPECSLIDE_DATA")

    return find


@pytest.fixture(scope="session")
def svs(data_dir: Callable[[str], Path]) -> Path:
    """A real Aperio SVS, 2220 x 2967 px, 0.499 mpp."""
    return data_dir("slides/CMU-1-Small-Region.svs")


@pytest.fixture(scope="session")
def dicom(data_dir: Callable[[str], Path]) -> Path:
    """The same slide as a folder of DICOM files."""
    return data_dir("slides/CMU-1-Small-Region-dicom")


@pytest.fixture
def crashing(dicom: Path, tmp_path: Path) -> Path:
    """A slide that ends OpenSlide 4.0.1 with SIGSEGV: every other offset of its table of frames lies behind its end."""
    (tmp_path / "bad").mkdir()
    data = bytearray(max(dicom.iterdir(), key=lambda path: path.stat().st_size).read_bytes())
    for high_byte in range(2743, 3252, 8):
        data[high_byte] = 255
    (tmp_path / "bad" / "slide.dcm").write_bytes(data)
    return tmp_path / "bad"


@pytest.fixture(scope="session")
def ndpi(data_dir: Callable[[str], Path]) -> Path:
    """A real Hamamatsu NDPI in fluorescence."""
    return data_dir("slides/fluorescence-dapi.ndpi")


@pytest.fixture(scope="session")
def ome(data_dir: Callable[[str], Path]) -> Path:
    """A real OME-TIFF crop of a carcinoma."""
    return data_dir("slides/carcinoma-crop.ome.tif")


@pytest.fixture(scope="session")
def small_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic slide of 1024 x 1024 px at 0.5 mpp."""
    path = tmp_path_factory.mktemp("small") / "small.tif"
    make_slide(path, seed=1, tumour=True, size_px=(1024, 1024))
    return path


@pytest.fixture(scope="session", autouse=True)
def _commands_are_built_once() -> Iterator[None]:
    """Typer's test runner builds the tree of all commands anew for each call: a tenth of a second."""
    import typer.main
    import typer.testing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", cache(typer.main.get_command))
        yield


@contextmanager
def in_this_process() -> Iterator[None]:
    """Slides are worked on here: the processes that may be lost, see test_crash.py, would load torch once more."""
    from pipeline.execution.pool import run_slides

    def here(*arguments: Any, **options: Any) -> Any:
        return run_slides(*arguments, **options | {"workers": 0})

    with pytest.MonkeyPatch.context() as patch:
        for module in ("jobs", "tile_jobs", "tuning"):
            patch.setattr(f"pipeline.execution.{module}.run_slides", here)
        yield


@pytest.fixture
def one_process() -> Iterator[None]:
    """Commands compute in this process."""
    with in_this_process():
        yield


@contextmanager
def pictures_left_out() -> Iterator[None]:
    """Figures are made but not drawn, which is half the time of a small training or heatmap; see test_figures.py."""
    nothing = io.BytesIO()
    Image.new("RGB", (1, 1)).save(nothing, "PNG")
    with pytest.MonkeyPatch.context() as patch:
        for module in ("training.evaluation.figures", "inference.exports.png"):
            patch.setattr(f"{module}.drawn", lambda _: nothing.getvalue())
        yield


@pytest.fixture
def undrawn() -> Iterator[None]:
    """Figures are pictures of one pixel."""
    with pictures_left_out():
        yield
