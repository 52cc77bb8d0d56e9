"""HistoPrep's own functions on our pixels, from histoprep or its MIT fork histoslice, whichever is installed.

The only importer of either; both keep the functions under the same names. The extra `specslide[histoprep]` brings
histoslice.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.core.errors import ConfigError

_PACKAGES = ("histoslice", "histoprep")
_MULTIPLIER = 1.05
"""What HistoPrep's SlideReader multiplies Otsu's threshold with by default."""


def tissue(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """HistoPrep's tissue detection on an RGB picture uint8 (h, w, 3), with its SlideReader's defaults: bool (h, w).

    Grey levels below Otsu's threshold, so ink and black borders count as tissue. Raises ConfigError without the extra.
    """
    _, mask = _functions().get_tissue_mask(picture, multiplier=_MULTIPLIER, sigma=0.0)
    return np.asarray(mask) > 0


def tile_metrics(picture: NDArray[np.uint8]) -> Callable[[NDArray[np.uint8]], dict[str, float]]:
    """A function that measures HistoPrep's metrics of a tile uint8 (h, w, 3): background, laplacian_std, gray_mean, ...

    As its `save_regions(save_metrics=True)`: the tissue in a tile is what is darker than the threshold found on the
    whole slide, here on the slide in small, `picture`. Raises ConfigError without the extra; what measures raises it
    too, for a histoprep too old for its numpy.
    """
    functions = _functions()
    threshold, _ = functions.get_tissue_mask(picture, multiplier=_MULTIPLIER, sigma=0.0)

    def measure(tile: NDArray[np.uint8]) -> dict[str, float]:
        _, mask = functions.get_tissue_mask(tile, threshold=threshold)
        try:
            metrics = functions.get_image_metrics(tile, tissue_mask=mask)
        except TypeError as error:  # histoprep 2.0.5 under numpy 2.4
            fix = "pip install 'specslide[histoprep]', or 'numpy<2.4'"
            raise ConfigError("histoprep", f"cannot measure tiles with this numpy ({error})", fix) from None
        return {name: float(value) for name, value in metrics.items()}

    return measure


def _functions() -> Any:
    """The module of HistoPrep's functions."""
    for package in _PACKAGES:
        try:
            return importlib.import_module(f"{package}.functional")
        except ModuleNotFoundError as error:
            if error.name not in (package, f"{package}.functional"):
                raise ConfigError(package, f"is installed without {error.name}", f"pip install {error.name}") from None
    raise ConfigError("histoprep", "is not installed", "pip install 'specslide[histoprep]'")
