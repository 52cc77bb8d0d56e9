"""HistoPrep's functions: a stand-in for the package, and the package itself where it is installed."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tiling import histoprep
from tiling.core.errors import ConfigError

PACKAGES = ("histoslice", "histoprep")


def picture() -> NDArray[np.uint8]:
    glass = np.full((80, 80, 3), (244, 243, 245), np.uint8)
    glass += np.random.default_rng(0).integers(0, 4, glass.shape, np.uint8)
    return np.asarray(cv2.circle(glass, (40, 40), 20, (200, 120, 170), -1), np.uint8)


@pytest.fixture(params=PACKAGES)
def stand_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """One of the packages as a module that remembers what it was called with; the other is absent."""
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, f"{name}.functional", None)
    functions = ModuleType(f"{request.param}.functional")
    monkeypatch.setitem(sys.modules, request.param, ModuleType(request.param))
    monkeypatch.setitem(sys.modules, functions.__name__, functions)
    return functions


def test_tissue_is_called_with_the_slide_readers_defaults(stand_in: ModuleType) -> None:
    calls = []

    def get_tissue_mask(image: NDArray[np.uint8], **options: float) -> tuple[int, NDArray[np.uint8]]:
        calls.append(options)
        return 200, (image[..., 1] < 200).astype(np.uint8)

    stand_in.__dict__["get_tissue_mask"] = get_tissue_mask
    mask = histoprep.tissue(picture())
    assert calls == [{"multiplier": 1.05, "sigma": 0.0}]
    assert mask.dtype == np.bool_
    assert mask[40, 40]
    assert not mask[0, 0]


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, f"{name}.functional", None)
    with pytest.raises(ConfigError, match=r"histoprep: .*'specslide\[histoprep\]'"):
        histoprep.tissue(picture())


@pytest.mark.skipif(not any(map(importlib.util.find_spec, PACKAGES)), reason="lacks histoslice or histoprep")
def test_the_real_detection() -> None:
    mask = histoprep.tissue(picture())
    yy, xx = np.mgrid[:80, :80]
    np.testing.assert_array_equal(mask, (picture()[..., 1] < 180) & (np.hypot(xx - 40, yy - 40) < 22))


@pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")  # histoprep 2.0.5's own
@pytest.mark.skipif(not any(map(importlib.util.find_spec, PACKAGES)), reason="lacks histoslice or histoprep")
def test_the_real_metrics() -> None:
    """Closed forms: shares of pixels, means, and the Laplacian's standard deviation."""
    tile = picture()
    found = histoprep.tile_metrics(tile)(tile)
    grey = cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY)
    assert found["background"] == pytest.approx((~histoprep.tissue(tile)).mean(), abs=0.04), "blurred first"
    assert found["laplacian_std"] == pytest.approx(cv2.Laplacian(grey, cv2.CV_64F).std(), rel=1e-4)
    assert found["red_mean"] == pytest.approx(tile[..., 0].mean(), abs=0.5)
    assert found["gray_q50"] == pytest.approx(np.median(grey[histoprep.tissue(tile)]), abs=1)
    assert all(isinstance(value, float) for value in found.values())


def test_a_histoprep_too_old_for_its_numpy_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise TypeError("only 0-dimensional arrays can be converted to Python scalars")

    functions = ModuleType("histoslice.functional")
    functions.__dict__.update(get_tissue_mask=lambda *a, **k: (180, np.zeros((80, 80))), get_image_metrics=refuse)
    monkeypatch.setitem(sys.modules, "histoslice", ModuleType("histoslice"))
    monkeypatch.setitem(sys.modules, "histoslice.functional", functions)
    with pytest.raises(ConfigError, match=r"^histoprep: .*numpy .*pip install"):
        histoprep.tile_metrics(picture())(picture())
