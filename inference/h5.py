"""h5py, an extra: HDF5 is how other programs keep features."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from tiling.core.errors import ConfigError


def require_h5py() -> Any:
    """The module h5py. Raises ConfigError where it is not installed."""
    if find_spec("h5py") is None:
        raise ConfigError("features", "HDF5 needs h5py, which is not installed", "pip install 'specslide[features]'")
    import h5py

    return h5py
