"""Every output lies on the slide where its tiles were read, to within one level-0 pixel.

The slide is painted, and the model is a network set by hand whose probability of a tile is the share of paint under it.
So what each file must say of each place of the slide follows from the picture alone, and a tile that is read, or shown,
one pixel beside its place changes it by more than is allowed. Each file is read by another library than wrote it.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import ome_types
import pyarrow.parquet
import pytest
import shapely
import tifffile
import torch
import yaozarrs
import zarr
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from inference.colours import opacity
from inference.config import OutputConfig, PredictConfig
from inference.exports import formats
from inference.heatmap import make_heatmap
from inference.predict import predict_slide
from inference.prediction import Prediction
from pipeline.demo.synthetic import write_pyramid
from tiling import TilingConfig, tile_slide
from training import ModelInfo, TileModel
from training.models.classifier import TileClassifier

Floats = NDArray[np.float64]
Rectangle = tuple[int, int, int, int]
"""Left, top, right, bottom; level-0 pixels."""

BARE, FULL, GLASS = 240, 120, 255  # red of unpainted and of painted tissue, and of what lies beyond the slide
FAINT = 0.4
MODEL_MPP = 0.5
CLOSE = 0.006  # of a probability; a shift by one level-0 pixel changes those at a painted edge by at least 0.011


@dataclass(frozen=True)
class Case:
    """A painted slide, and where its tiles are by the arithmetic of the README: sides and strides in level-0 pixels."""

    size: tuple[int, int]
    slide_mpp: float
    tile_px: int
    overlap: float
    tile_px0: int
    stride_px0: int

    @property
    def corners(self) -> tuple[list[int], list[int]]:
        """Left edges and upper edges of the tiles: a tile begins every stride until the slide is covered."""
        found: tuple[list[int], list[int]] = ([0], [0])
        for places, length in zip(found, self.size, strict=True):
            while places[-1] + self.tile_px0 < length:
                places.append(places[-1] + self.stride_px0)
        return found

    @property
    def block(self) -> Rectangle:
        """2 x 2 whole tiles, painted fully."""
        side = self.tile_px0
        return 3 * side, side, 5 * side, 3 * side

    @property
    def faint(self) -> Rectangle:
        """One whole tile, painted faintly."""
        side = self.tile_px0
        return 7 * side, 2 * side, 8 * side, 3 * side

    @property
    def last(self) -> Rectangle:
        """What there is of the last tile, which reaches beyond the slide."""
        xs, ys = self.corners
        return xs[-1], ys[-1], *self.size

    def painted(self) -> NDArray[np.uint8]:
        picture = np.full((*self.size[::-1], 3), (BARE, 100, 190), np.uint8)
        side = self.tile_px0
        aslant = (side // 3, side + side // 5, side + side // 7, 2 * side + side // 2)  # on no border of tiles
        for (a, b, c, d), share in ((self.block, 1.0), (self.faint, FAINT), (self.last, 1.0), (aslant, 0.3)):
            picture[b:d, a:c, 0] = round(BARE - share * (BARE - FULL))
        return picture

    def probabilities(self) -> Floats:
        """What the model must say of each tile (rows, columns), from sums over the picture."""
        xs, ys = self.corners
        side, picture = self.tile_px0, self.painted()[..., 0].astype(np.float64)
        beyond = np.pad(picture, ((0, side), (0, side)), constant_values=GLASS)
        red = np.array([[beyond[y : y + side, x : x + side].mean() for x in xs] for y in ys])
        return np.asarray(probability(red / 255))

    def expected(self, x: Floats, y: Floats) -> Floats:
        """The heatmap at places of the slide, (len(y), len(x)): tiles weighted by distance from their nearer edges."""
        xs, ys = self.corners
        across, down = (
            np.minimum(at[:, None] - np.array(starts), np.array(starts) + self.tile_px0 - at[:, None]).clip(0)
            for at, starts in ((x, xs), (y, ys))
        )
        with np.errstate(invalid="ignore"):  # NaN where no tile lies
            return np.asarray(down @ self.probabilities() @ across.T / (down @ np.ones((len(ys), len(xs))) @ across.T))


CASES = {
    "unresampled": Case((508, 411), 0.5, 32, 0.0, 32, 32),
    "unresampled, half overlapping, two levels": Case((1101, 203), 0.5, 32, 0.5, 32, 16),
    "half as large": Case((636, 572), 0.25, 32, 0.0, 64, 64),
    "half as large, half overlapping": Case((636, 572), 0.25, 32, 0.5, 64, 32),
    "half as large, a quarter overlapping": Case((636, 572), 0.25, 32, 0.25, 64, 48),
    "at no whole scale": Case((515, 407), 0.31, 32, 0.0, 52, 52),
    "at no whole scale, half overlapping": Case((515, 407), 0.31, 32, 0.5, 52, 26),
    "small tiles, two levels": Case((2103, 78), 0.5, 8, 0.0, 8, 8),
}


def probability(red: Floats | Tensor) -> Floats | Tensor:
    """Of a mean red from 0 to 1."""
    return (0.02 + 0.96 * (BARE / 255 - red) / ((BARE - FULL) / 255)).clip(0.02, 0.98)


class ShareOfPaint(nn.Module):
    """Pictures (B, 3, T, T) -> logits (B, 2) whose softmax is the share of paint."""

    def forward(self, pixels: Tensor) -> Tensor:
        p = torch.as_tensor(probability(pixels[:, 0].mean((1, 2))))
        return torch.stack([1 - p, p], 1).log()


def paint_model(tile_px: int) -> TileModel:
    info = ModelInfo(
        backbone="paint", classes=("bare", "painted"), positive_class="painted", input_px=tile_px, mean=(0, 0, 0),
        std=(1, 1, 1), mpp=MODEL_MPP, tile_px=tile_px, temperature=1.0, threshold=0.5, training={}, best_epoch=1,
        data={}, metrics={}, hashes={"weights.safetensors": "ab" * 32}, software={},
    )  # fmt: skip
    network = TileClassifier(ShareOfPaint(), tile_px, info.mean, info.std).eval()
    return TileModel(network, info, "cd" * 32, torch.device("cpu"))


@dataclass(frozen=True)
class Made:
    """A case with its files."""

    case: Case
    folder: Path
    prediction: Prediction


def write_painted(folder: Path, case: Case) -> Path:
    """The slide of a case, lossless, in two levels."""
    path = folder / "painted.tif"
    write_pyramid(path, case.painted(), mpp=case.slide_mpp, levels=2, tile_px=64, compression="none")
    return path


@pytest.fixture(scope="module", params=list(CASES.values()), ids=list(CASES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    case, place = request.param, tmp_path_factory.mktemp("painted")
    path = write_painted(place, case)
    model, config = paint_model(case.tile_px), PredictConfig(overlap=case.overlap, min_tissue=0)
    report = make_heatmap(path, model, place / "out", config, outputs=OutputConfig(formats=formats()))
    return Made(case, report.folder, predict_slide(path, model, config))


# ------------------------------------------------------------------------------------------------ what is stored


def places_of(case: Case) -> list[tuple[int, int]]:
    xs, ys = case.corners
    return [(x, y) for y in ys for x in xs]


def test_tables_name_the_tiles_and_what_was_read_there(made: Made) -> None:
    table = pyarrow.parquet.read_table(made.folder / "predictions.parquet").to_pydict()
    with (made.folder / "predictions.csv").open(newline="") as f:
        lines = list(csv.DictReader(f))
    sides = {made.case.tile_px0}
    for columns in (table, {name: [float(line[name]) for line in lines] for name in list(lines[0])[1:]}):
        assert list(zip(columns["minx"], columns["miny"], strict=True)) == places_of(made.case)
        assert set(columns["width"]) == set(columns["height"]) == sides
        np.testing.assert_allclose(columns["prob_painted"], made.case.probabilities().ravel(), atol=CLOSE)


def test_tile_objects_are_the_tiles(made: Made) -> None:
    features = json.loads((made.folder / "heatmap.geojson").read_text())["features"]
    side = made.case.tile_px0
    for (x, y), feature in zip(places_of(made.case), features, strict=True):
        assert shapely.geometry.shape(feature["geometry"]).equals(shapely.box(x, y, x + side, y + side))
    measured = [feature["properties"]["measurements"]["prob_painted"] for feature in features]
    np.testing.assert_allclose(measured, made.case.probabilities().ravel(), atol=CLOSE)


@pytest.mark.parametrize(
    "name", ["unresampled", "half as large, half overlapping", "at no whole scale, half overlapping"]
)
def test_a_store_says_the_same_of_the_same_places(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    path, model = write_painted(tmp_path, case), paint_model(case.tile_px)
    tiling = TilingConfig(
        mpp=MODEL_MPP, tile_px=case.tile_px, overlap=case.overlap, min_tissue=0, codec="lossless"
    )  # fmt: skip
    stored = predict_slide(tile_slide(path, tmp_path, tiling).store, model, PredictConfig(min_tissue=0))
    direct = predict_slide(path, model, PredictConfig(overlap=case.overlap, min_tissue=0))
    assert list(zip(stored.tiles.x0.tolist(), stored.tiles.y0.tolist(), strict=True)) == places_of(case)
    np.testing.assert_array_equal(stored.probabilities, direct.probabilities)
    np.testing.assert_allclose(stored.probabilities[:, 1], case.probabilities().ravel(), atol=CLOSE)


def test_a_store_of_the_slides_own_tiles_says_the_same(tmp_path: Path) -> None:
    """JPEG tiles copied without encoding them again: those that lie wholly on the slide."""
    case = CASES["unresampled"]
    path, model = tmp_path / "painted.tif", paint_model(case.tile_px)
    write_pyramid(path, case.painted(), mpp=case.slide_mpp, tile_px=case.tile_px, quality=95, subsampling=(1, 1))
    tiling = TilingConfig(mpp=MODEL_MPP, tile_px=case.tile_px, min_tissue=0, codec="source")
    stored = predict_slide(tile_slide(path, tmp_path, tiling).store, model, PredictConfig(min_tissue=0))
    direct = predict_slide(path, model, PredictConfig(min_tissue=0))
    whole = (direct.tiles.x0 + case.tile_px0 <= case.size[0]) & (direct.tiles.y0 + case.tile_px0 <= case.size[1])
    np.testing.assert_array_equal(np.array(stored.tiles.places()).T, np.array(direct.tiles.places()).T[:, whole])
    np.testing.assert_array_equal(stored.probabilities, direct.probabilities[whole])
    np.testing.assert_allclose(
        direct.probabilities[whole, 1], case.probabilities().ravel()[whole], atol=2 * CLOSE
    )  # JPEG's


# ---------------------------------------------------------------------------------------------- probability maps


def check_level(case: Case, values: NDArray[np.float32], first: tuple[float, float], pixel: float, parts: int) -> None:
    """A level of a map against the slide.

    `first` is the corner (x, y) of its first pixel and `pixel` its pixels' side, level-0 pixels, as the file says; a
    pixel is the mean of `parts` x `parts` of the finest.
    """
    side = pixel / parts
    assert first == pytest.approx((0, 0), abs=1e-6), "every level begins in the slide's corner"
    assert case.overlap or side == pytest.approx(case.tile_px0), "a pixel is a tile, from corner to corner"
    x, y = (start + side * np.arange(n * parts) for n, start in zip(values.shape[::-1], first, strict=True))
    fine = case.expected(x + side / 2, y + side / 2)
    assert np.isfinite(fine[np.ix_(y < case.size[1], x < case.size[0])]).all()
    fine[y > case.size[1] - 1e-6], fine[:, x > case.size[0] - 1e-6] = np.nan, np.nan  # the map ends with the slide
    expected = np.nanmean(fine.reshape(values.shape[0], parts, values.shape[1], parts), axis=(1, 3))
    np.testing.assert_allclose(values, expected, atol=CLOSE)


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_every_level_of_the_ome_tiff(made: Made) -> None:
    path, mpp = made.folder / "heatmap.ome.tif", made.case.slide_mpp
    pixels = ome_types.from_tiff(path).images[0].pixels
    plane = pixels.planes[0]
    with tifffile.TiffFile(path) as tiff:
        levels = [level.asarray() for level in tiff.series[0].levels]
    assert len(levels) == (2 if made.case.size[0] > 1000 else 1)
    assert pixels.physical_size_x is not None
    assert plane.position_x is not None
    assert plane.position_y is not None
    assert (pixels.physical_size_x_unit.value, plane.position_x_unit.value) == ("µm", "µm")
    finest = pixels.physical_size_x / mpp
    # OME's positions are of pixels' centres, from the centre of the slide's first pixel.
    first = (plane.position_x / mpp + 0.5 - finest / 2, plane.position_y / mpp + 0.5 - finest / 2)
    for values in levels:  # all begin in one corner, and say no more of their scale than their size
        parts = levels[0].shape[1] // values.shape[1]
        assert levels[0].shape == (values.shape[0] * parts, values.shape[1] * parts)
        check_level(made.case, values, first, finest * parts, parts)


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_every_level_of_the_ome_zarr(made: Made) -> None:
    path, mpp = made.folder / "heatmap.ome.zarr", made.case.slide_mpp
    yaozarrs.validate_zarr_store(path)
    group = zarr.open_group(path, mode="r")
    (scales,) = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]["multiscales"]
    assert len(scales["datasets"]) == (2 if made.case.size[0] > 1000 else 1)
    for number, dataset in enumerate(scales["datasets"]):
        scale, translation = (step[step["type"]] for step in dataset["coordinateTransformations"])
        assert scale[0] == scale[1]
        pixel = scale[0] / mpp
        first = (translation[1] / mpp + 0.5 - pixel / 2, translation[0] / mpp + 0.5 - pixel / 2)
        check_level(made.case, np.asarray(group[dataset["path"]]), first, pixel, 2**number)


# ------------------------------------------------------------------------------------------------ regions, areas


def assert_regions(made: Made, found: list[shapely.Polygon]) -> None:
    """Outlines cross a painted edge where the probability is half that of the paint: on the edge itself."""
    if made.case.overlap not in (0, 0.5):
        pytest.skip("the block's edges lie between the centres of its tiles")
    (block,) = [part for part in found if part.contains(shapely.Point(np.add(made.case.block[:2], made.case.tile_px0)))]
    assert block.bounds == pytest.approx(made.case.block, abs=1)
    corner = max(found, key=lambda part: part.bounds[2] + part.bounds[3])
    assert corner.bounds[2:] == made.case.size, "cut off at the slide's edge"
    if not made.case.overlap:
        assert corner.bounds == pytest.approx(made.case.last, abs=1)
        assert len(found) == 2


def test_regions(made: Made) -> None:
    features = json.loads((made.folder / "regions.geojson").read_text())["features"]
    assert_regions(made, [shapely.geometry.shape(feature["geometry"]) for feature in features])


def test_asap(made: Made) -> None:
    root = ElementTree.parse(made.folder / "regions.xml").getroot()
    found = []
    for annotation in root.iter("Annotation"):
        points = sorted(annotation.iter("Coordinate"), key=lambda point: int(point.attrib["Order"]))
        found.append(shapely.Polygon([(float(p.attrib["X"]), float(p.attrib["Y"])) for p in points]))
    assert_regions(made, found)


def test_areas(made: Made) -> None:
    """Against counting level-0 pixels."""
    case, scores = made.case, json.loads((made.folder / "slide.json").read_text())["scores"]
    x, y = (np.arange(length, dtype=np.float64) + 0.5 for length in case.size)
    above = case.expected(x, y) >= 0.5
    mm2 = (case.slide_mpp / 1000) ** 2
    left, top, right, bottom = case.block
    margin = case.stride_px0
    block = above[top - margin : bottom + margin, left - margin : right + margin].sum()
    near = 0.03 if case.overlap else 1e-9
    assert scores["area_above_mm2"] == pytest.approx(above.sum() * mm2, rel=near)
    assert scores["largest_region_mm2"] == pytest.approx(block * mm2, rel=near)


# -------------------------------------------------------------------------------------------------------- pictures


def run_around(marked: NDArray[np.bool_], at: int) -> tuple[int, int]:
    """Begin and end of the stretch of marked places around one."""
    assert marked[at]
    off = np.flatnonzero(~marked)
    before, after = off[off < at], off[off > at]
    return int(before[-1]) + 1 if len(before) else 0, int(after[0]) if len(after) else len(marked)


def ends_of(lines: NDArray[np.bool_]) -> tuple[float, float]:
    """The middles of the first and the last of the stretches of marked places."""
    places = np.flatnonzero(lines)
    parts = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    return float(parts[0].mean()) + 0.5, float(parts[-1].mean()) + 0.5


@dataclass(frozen=True)
class Picture:
    """A PNG with the slide somewhere in it."""

    pixels: NDArray[np.uint8]
    left: float
    top: float
    pixel0: float
    """Level-0 pixels spanned by one of the picture."""

    @classmethod
    def of(cls, made: Made, name: str) -> Picture:
        """Found by what bounds it: the overview is the widest opaque stretch, the map without it has a grey frame."""
        with Image.open(made.folder / name) as image:
            pixels = np.asarray(image, np.uint8)
        opaque = pixels[..., 3] == 255
        if name == "overlay.png":
            middle = len(opaque) // 2
            across = run_around(opaque[middle], opaque.shape[1] // 3)
            down = run_around(opaque[:, sum(across) // 2], middle)
            (left, right), (top, bottom) = map(float, across), map(float, down)
        else:
            grey = (pixels[..., 3] > 100) & (np.ptp(pixels[..., :3], -1) < 20) & (pixels[..., 0] > 90)
            (left, right), (top, bottom) = (ends_of(count > 0.6 * count.max()) for count in (grey.sum(0), grey.sum(1)))
        height, width = made.prediction.thumbnail.values.shape[:2]
        assert bottom - top == pytest.approx((right - left) * height / width, abs=4)
        return cls(pixels, left, top, width * made.prediction.thumbnail.downsample / (right - left))

    def row(self, y0: float) -> NDArray[np.int64]:
        """The colours (width, 3) at that height of the slide."""
        return self.pixels[round(self.top + y0 / self.pixel0), :, :3].astype(np.int64)

    def column(self, x0: float) -> NDArray[np.int64]:
        return self.pixels[:, round(self.left + x0 / self.pixel0), :3].astype(np.int64)

    @property
    def tolerance(self) -> float:
        """A level-0 pixel, or what the picture's own pixels and the line that frames it leave open."""
        return max(1.0, 1.5 * self.pixel0)


def edges_of(colours: NDArray[np.int64], start: float, pixel0: float, inside: float) -> tuple[float, float]:
    """Where the colour at `inside` begins and ends along a line, level-0 pixels."""
    at = round(start + inside / pixel0)
    return tuple((edge - start) * pixel0 for edge in run_around(np.abs(colours - colours[at]).max(-1) <= 3, at))  # type: ignore[return-value]


def lines_of(colours: NDArray[np.int64], start: float, pixel0: float, near: float) -> float:
    """The middle of the black line nearest to a place, level-0 pixels."""
    dark = np.flatnonzero(colours.max(-1) < 60)
    parts = np.split(dark, np.flatnonzero(np.diff(dark) > 1) + 1)
    middles = np.array([(part.mean() + 0.5 - start) * pixel0 for part in parts])
    return float(middles[np.abs(middles - near).argmin()])


@pytest.mark.parametrize("name", ["overlay.png", "heatmap.png"])
def test_pictures(made: Made, name: str) -> None:
    case, picture = made.case, Picture.of(made, name)
    if case.overlap not in (0, 0.5):
        pytest.skip("the block's edges lie between the centres of its tiles")
    left, top, right, bottom = case.block
    across, down = picture.row((top + bottom) / 2), picture.column((left + right) / 2)
    found = [lines_of(across, picture.left, picture.pixel0, edge) for edge in (left, right)]
    found += [lines_of(down, picture.top, picture.pixel0, edge) for edge in (top, bottom)]
    assert found == pytest.approx([left, right, top, bottom], abs=picture.tolerance), "outline of the block"
    if case.overlap:
        return
    left, top, right, bottom = case.faint
    middle = ((left + right) / 2, (top + bottom) / 2)
    x_edges = edges_of(picture.row(middle[1]), picture.left, picture.pixel0, middle[0])
    y_edges = edges_of(picture.column(middle[0]), picture.top, picture.pixel0, middle[1])
    assert x_edges + y_edges == pytest.approx((left, right, top, bottom), abs=picture.tolerance), "the faint tile"
    probability = 0.02 + 0.96 * FAINT
    colour = 255 * np.array(colormaps["viridis"](probability)[:3])
    if name == "overlay.png":
        share = 0.55 * float(opacity(np.array(probability)))
        colour = share * colour + (1 - share) * np.array([BARE - FAINT * (BARE - FULL), 100, 190])
    shown = picture.row(middle[1])[round(picture.left + middle[0] / picture.pixel0)]
    np.testing.assert_allclose(shown, colour, atol=4)


def test_the_reports_heatmap(made: Made) -> None:
    """One pixel of the picture in the page is one of the overview."""
    if made.case.overlap:
        pytest.skip("its tiles have no edges to see")
    page = (made.folder / "report.html").read_text()
    (data,) = re.findall(r'id="heat"[^>]*src="data:image/png;base64,([^"]+)"', page)
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        pixels = np.asarray(image.convert("RGB"), np.int64)
    height, width = made.prediction.thumbnail.values.shape[:2]
    pixel0 = made.prediction.thumbnail.downsample * width / pixels.shape[1]
    assert pixels.shape[1] / pixels.shape[0] == pytest.approx(width / height, rel=0.02)
    left, top, right, bottom = made.case.faint
    middle = ((left + right) / 2, (top + bottom) / 2)
    x_edges = edges_of(pixels[int(middle[1] / pixel0)], 0, pixel0, middle[0])
    y_edges = edges_of(pixels[:, int(middle[0] / pixel0)], 0, pixel0, middle[1])
    assert x_edges + y_edges == pytest.approx((left, right, top, bottom), abs=max(1.0, pixel0))
