"""Stores in an environment that has zarr-python and xarray, and not specslide."""

from __future__ import annotations

import json
import site
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tiling import TileStore

_OPEN = """
import json, sys
sys.path[1:1] = [sys.argv[2]]
import numpy, xarray, zarr
try:
    import specslide
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("specslide is here")
group = zarr.open_group(sys.argv[1], mode="r")
arrays = {name: a for name, a in group.members(max_depth=None) if isinstance(a, zarr.Array)}
sums = {name: [str(a.dtype), list(a.shape), float(a[...].sum(dtype=float))] for name, a in arrays.items()}
seen = xarray.open_zarr(sys.argv[1])
quality = xarray.open_zarr(sys.argv[1], group="quality")
dims = {name: list(a.dims) for name, a in {**seen.variables, **quality.variables}.items()}
equal = all(float(a.sum(dtype=float)) == sums[name][2] for name, a in seen.variables.items())
print(json.dumps([sums, dims, equal, dict(group.attrs)["slide"]["slide_id"]]))
"""


@pytest.fixture(scope="module")
def without_specslide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages as an environment without specslide has them."""
    folder = tmp_path_factory.mktemp("packages")
    for package in Path(site.getsitepackages()[0]).iterdir():
        if "specslide" not in package.name and package.suffix != ".pth":
            (folder / package.name).symlink_to(package)
    return folder


@pytest.mark.parametrize("tiles", ["unknown", "known"])
def test_everything_but_jpeg_tiles_opens(finished: Path, codec: str, without_specslide: Path, tiles: str) -> None:
    if (tiles == "known") != (codec == "lossless"):
        pytest.skip("the other codec's test")
    run = [sys.executable, "-I", "-S", "-W", "error::zarr.errors.ZarrUserWarning", "-c", _OPEN]
    done = subprocess.run([*run, finished, without_specslide], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout)
    sums, dims, equal, slide_id = found
    store = TileStore(finished)
    expected: dict[str, NDArray[Any]] = {
        "x": store.tiles.x0,
        "y": store.tiles.y0,
        "tissue": store.tiles.columns["tissue"],
    }
    expected |= {"mask": store.mask.values.astype(np.uint8), "thumbnail": store.thumbnail.values}
    expected |= {f"quality/{name}": values for name, values in store.quality.items()}
    if tiles == "known":
        expected |= {"tiles": store.read(slice(None))}
    for name, values in expected.items():
        assert sums.pop(name) == [str(values.dtype), list(values.shape), float(values.sum(dtype=float))]
    assert set(sums) == {"cut", "crc32c"}
    assert dims["mask"] == dims["cut"] == ["mask_y", "mask_x"]
    assert dims["x"] == dims["tissue"] == dims["blur"] == ["tile"]
    assert ("tiles" in dims) == (tiles == "known")
    assert equal
    assert slide_id == store.slide.slide_id
