"""The OME-TIFF, read by tifffile, Pillow, and ome-types with the OME schema; and laid over the slide."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import ome_types
import pytest
import tifffile
from PIL import Image

from inference.exports.ome_tiff import write_ometiff
from inference.maps.slide_map import ProbabilityMap, probability_map, pyramid
from tests.inference.conftest import MakePrediction
from tiling import Grid


def slide_map(make_prediction: MakePrediction, tile: int, stride: int, place: tuple[int, int]) -> ProbabilityMap:
    """A map of a slide of 40,000 x 30,000 px at 0.25 mpp with one tile."""
    grid = Grid(width0=40_000, height0=30_000, slide_mpp=0.25, tile_px=64, tile_px0=tile, stride_px0=stride)
    base = make_prediction([place], [0.75], grid=grid)
    slide = base.slide.model_copy(update={"width": 40_000, "height": 30_000, "mpp": 0.25})
    return probability_map(dataclasses.replace(base, slide=slide))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "heatmap.ome.tif"


@pytest.mark.parametrize(
    ("tile", "stride", "place"),
    [(64, 64, (0, 0)), (64, 64, (39_936, 29_888)), (256, 128, (12_800, 128)), (448, 336, (3360, 336 * 50)),
     (256, 179, (179 * 7, 179 * 100))],
)  # fmt: skip
def test_a_tile_lies_where_it_was_read(
    make_prediction: MakePrediction, path: Path, tile: int, stride: int, place: tuple[int, int]
) -> None:
    """Positions are of pixels' centres, from the centre of the slide's first pixel: OME-XML against tile corners."""
    write_ometiff(slide_map(make_prediction, tile, stride, place), path, "a")
    with tifffile.TiffFile(path) as tiff:
        assert tiff.ome_metadata is not None
        values = tiff.series[0].levels[0].asarray()
        pixels = ome_types.from_xml(tiff.ome_metadata).images[0].pixels
    for axis, corner in enumerate(place):
        size = (pixels.physical_size_x, pixels.physical_size_y)[axis]
        first = (pixels.planes[0].position_x, pixels.planes[0].position_y)[axis]
        assert size is not None
        assert first is not None
        inside = np.flatnonzero(np.isfinite(values).any(axis))
        left, right = ((first + (edge - 0.5) * size) / 0.25 + 0.5 for edge in (inside[0], inside[-1] + 1))
        assert left == pytest.approx(corner, abs=1e-6)
        assert right == pytest.approx(corner + tile, abs=1)


def test_it_is_a_compressed_pyramid_of_tiles(make_prediction: MakePrediction, path: Path) -> None:
    made = slide_map(make_prediction, 64, 64, (6400, 6400))
    write_ometiff(made, path, "a")
    expected = pyramid(made.values)
    with tifffile.TiffFile(path) as tiff:
        (series,) = tiff.series
        assert (series.kind, series.axes, str(series.dtype)) == ("ome", "YX", "float32")
        assert [level.shape for level in series.levels] == [(472, 628), (236, 314), (118, 157)]
        for level, values in zip(series.levels, expected, strict=True):
            np.testing.assert_array_equal(level.asarray(), values)
            (page,) = level.pages
            assert isinstance(page, tifffile.TiffPage)
            assert (page.is_tiled, page.tile, page.compression) == (True, (256, 256), 8)
    assert path.stat().st_size < expected[0].nbytes / 20


def test_another_library_reads_the_same_values(make_prediction: MakePrediction, path: Path) -> None:
    made = slide_map(make_prediction, 256, 256, (2560, 5120))
    write_ometiff(made, path, "a")
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), made.values)


@pytest.mark.parametrize("name", ["tumour", 'tumör "G3" <&> {0}', "癌", "a\x00b\n"])
def test_the_xml_is_valid(make_prediction: MakePrediction, path: Path, name: str) -> None:
    write_ometiff(probability_map(make_prediction([(0, 0)], [0.5], classes=("benign", name))), path, "a")
    with tifffile.TiffFile(path) as tiff:
        xml = tiff.ome_metadata
        assert {tag.name for tag in tiff.pages.first.tags}.isdisjoint({"DateTime", "Artist", "HostComputer"})
    assert xml is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ome_types.validate_xml(xml)
    image = ome_types.from_xml(xml).images[0]
    assert image.name == image.pixels.channels[0].name
    assert (image.pixels.physical_size_x, image.pixels.physical_size_x_unit.value) == (32, "µm")
    assert "research use only" in (image.description or "")


def test_equal_maps_are_equal_bytes_and_name_no_machine(make_prediction: MakePrediction, tmp_path: Path) -> None:
    """tifffile's own UUIDs are made of the machine's address and the time."""
    made = probability_map(make_prediction([(0, 0)], [0.5]))
    for name in "abc":
        write_ometiff(made, tmp_path / name, "one" if name != "c" else "other")
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_a_map_without_tiles_is_all_unknown(make_prediction: MakePrediction, path: Path) -> None:
    write_ometiff(probability_map(make_prediction([], [])), path, "a")
    assert np.isnan(tifffile.imread(path)).all()
