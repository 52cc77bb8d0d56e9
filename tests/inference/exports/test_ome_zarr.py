"""The OME-Zarr, read by zarr-python and validated by yaozarrs; and laid over the slide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaozarrs
import zarr

from inference.exports.ome_zarr import write_omezarr
from inference.maps.slide_map import probability_map, pyramid
from tests.inference.conftest import MakePrediction
from tests.inference.exports.test_ome_tiff import slide_map


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "heatmap.ome.zarr"


def multiscale(path: Path) -> dict[str, Any]:
    """What the group's own zarr.json says."""
    document = json.loads((path / "zarr.json").read_text())
    assert (document["zarr_format"], document["node_type"]) == (3, "group")
    assert document["attributes"]["ome"]["version"] == "0.5"
    (found,) = document["attributes"]["ome"]["multiscales"]
    return dict(found)


@pytest.mark.parametrize(
    ("tile", "stride", "place"),
    [(64, 64, (0, 0)), (64, 64, (39_936, 29_888)), (256, 128, (12_800, 128)), (448, 336, (3360, 336 * 50)),
     (256, 179, (179 * 7, 179 * 100))],
)  # fmt: skip
def test_a_tile_lies_where_it_was_read(
    make_prediction: MakePrediction, path: Path, tile: int, stride: int, place: tuple[int, int]
) -> None:
    """On every level: scale and translation of pixels' centres against the tile's corners."""
    write_omezarr(slide_map(make_prediction, tile, stride, place), path)
    group = zarr.open_group(path, mode="r")
    for dataset in multiscale(path)["datasets"]:
        values = np.asarray(group[dataset["path"]])
        scale, translation = dataset["coordinateTransformations"]
        for axis, corner in enumerate(place[::-1]):  # y, x
            size, first = scale["scale"][axis], translation["translation"][axis]
            inside = np.flatnonzero(np.isfinite(values).any(1 - axis))
            left, right = ((first + (edge - 0.5) * size) / 0.25 + 0.5 for edge in (inside[0], inside[-1] + 1))
            pixel0 = size / 0.25
            coarse = 0 if dataset["path"] == "0" else pixel0  # a coarser pixel may reach beyond the tile
            assert corner - coarse - 1e-6 <= left <= corner + 1e-6
            assert corner + tile - 1 <= right <= corner + tile + coarse + 1


def test_levels_chunks_and_codecs(make_prediction: MakePrediction, path: Path) -> None:
    made = slide_map(make_prediction, 64, 64, (6400, 6400))
    write_omezarr(made, path)
    group = zarr.open_group(path, mode="r")
    for number, values in enumerate(pyramid(made.values)):
        array = group[str(number)]
        assert isinstance(array, zarr.Array)
        metadata = array.metadata.to_dict()
        assert (metadata["zarr_format"], str(array.dtype)) == (3, "float32")
        assert list(metadata["dimension_names"]) == ["y", "x"]  # type: ignore[arg-type]
        assert max(array.chunks) <= 256
        assert np.isnan(array.fill_value)
        np.testing.assert_array_equal(np.asarray(array), values)
    assert sorted(group) == ["0", "1", "2"]


def test_the_metadata_is_valid(make_prediction: MakePrediction, path: Path) -> None:
    write_omezarr(slide_map(make_prediction, 64, 64, (6400, 6400)), path)
    yaozarrs.validate_zarr_store(path)
    found = multiscale(path)
    assert found["axes"] == [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    assert "research use only" in found["metadata"]["notice"]


def test_equal_maps_are_equal_bytes(make_prediction: MakePrediction, tmp_path: Path) -> None:
    made = probability_map(make_prediction([(0, 0)], [0.5]))
    for name in "ab":
        write_omezarr(made, tmp_path / name)
    a, b = (
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in "ab"
    )
    assert a == b
    assert a


def test_a_map_without_tiles_is_all_unknown(make_prediction: MakePrediction, path: Path) -> None:
    write_omezarr(probability_map(make_prediction([], [])), path)
    yaozarrs.validate_zarr_store(path)
    assert np.isnan(np.asarray(zarr.open_group(path, mode="r")["0"])).all()
