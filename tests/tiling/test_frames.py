"""Slides of which only a part was scanned: OpenSlide says which; a TIFF of that part alone is the other oracle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import PIL.Image
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from pipeline import cli
from pipeline.demo.synthetic import write_pyramid
from tests.scn import write_scn
from tests.tiling.squares import squares
from tiling import TileStore, TilingConfig, tile_slide
from tiling.annotations.rasterize import class_masks
from tiling.core.errors import StoreError
from tiling.grid import Bounds, Frame, Raster
from tiling.slides.openslide_reader import OpenSlideReader
from tiling.slides.slide import Slide
from tiling.stores.label import label_store
from tiling.stores.store import SlideFacts

CORNER0, SIZE0 = (256, 128), (1200, 900)  # of the scanned part; on borders of tiles and of the mask's pixels
SMALL = TilingConfig(mpp=2.0, tile_px=64, min_tissue=0.1, codec="lossless")


def part(width: int = 512, height: int = 384) -> NDArray[np.uint8]:
    """Tinted glass with a disc of tissue on it, and tissue in the corner."""
    y, x = np.mgrid[:height, :width]
    tissue = ((x - 300) ** 2 + (y - 200) ** 2 < 120**2) | (x + y < 150)
    noise = np.random.default_rng(0).integers(0, 12, (height, width, 1))
    return (np.where(tissue[..., None], (205, 120, 170), (236, 232, 240)) + noise).astype(np.uint8)


@pytest.fixture(scope="module")
def scn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scn(tmp_path_factory.mktemp("slides") / "scan.scn", part(), corner0=CORNER0, size0=SIZE0, mpp=2.0)


@pytest.fixture(scope="module")
def store(scn: Path, tmp_path_factory: pytest.TempPathFactory) -> TileStore:
    return TileStore(tile_slide(scn, tmp_path_factory.mktemp("stores"), SMALL).store)


def test_the_bounds_are_openslides(scn: Path, store: TileStore) -> None:
    with openslide.OpenSlide(str(scn)) as oracle:
        declared = [int(oracle.properties[f"openslide.bounds-{name}"]) for name in ("x", "y", "width", "height")]
    assert declared == [*CORNER0, 512, 384]
    bounds = Bounds(x0=declared[0], y0=declared[1], width0=declared[2], height0=declared[3])
    with Slide(scn) as slide:
        assert slide.frame == Frame(SIZE0, bounds)
    assert store.slide.bounds == bounds
    assert store.slide.frame() == Frame(SIZE0, bounds)
    shown = CliRunner().invoke(cli.app, ["info", str(scn)], env={"COLUMNS": "200"}).output
    assert "512 x 384 px, from x 256, y 128 on" in shown


def test_a_part_is_tiled_as_if_it_were_all(scn: Path, store: TileStore, tmp_path: Path) -> None:
    """What lies around it changes no pixel of the mask and no tile; places count from the corner of the whole."""
    write_pyramid(tmp_path / "part.tif", part(), mpp=2.0, levels=2, compression="none")
    alone = TileStore(tile_slide(tmp_path / "part.tif", tmp_path, SMALL).store)
    assert len(store) == len(alone) >= 20
    assert store.tiles.places() == [(x + CORNER0[0], y + CORNER0[1]) for x, y in alone.tiles.places()]
    np.testing.assert_array_equal(store.read(slice(None)), alone.read(slice(None)))
    np.testing.assert_allclose(store.tiles.columns["tissue"], alone.tiles.columns["tissue"], atol=1e-6)
    rows, columns = store.slide.frame().pixels(4)
    np.testing.assert_array_equal(store.mask.values[rows, columns], alone.mask.values)
    assert store.mask.values.sum() == alone.mask.values.sum()


def test_nothing_is_read_outside_what_was_scanned(scn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parts of the overview, and tiles that a mask of the whole picture would keep."""
    (tmp_path / "all.geojson").write_text(
        '{"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": '
        "[[[-900, -900], [2000, -900], [2000, 2000], [-900, 2000], [-900, -900]]]}}"
    )
    reads, read = [], OpenSlideReader.read

    def noted(self: OpenSlideReader, x0: int, y0: int, level: int, width: int, height: int) -> NDArray[np.uint8]:
        reads.append((x0, y0, width * 2**level, height * 2**level))
        return read(self, x0, y0, level, width, height)

    monkeypatch.setattr(OpenSlideReader, "read", noted)
    monkeypatch.setattr("tiling.slides.slide._READ_PX", 64)
    config = TilingConfig.model_validate(SMALL.model_dump() | {"min_tissue": 0, "tissue": {"method": "mask"}})
    report = tile_slide(scn, tmp_path, config, tissue_file=tmp_path / "all.geojson")
    assert report.tiles == 8 * 6, "all tiles of the part"
    for x0, y0, width0, height0 in reads:
        assert x0 < CORNER0[0] + 512 and x0 + width0 > CORNER0[0], "columns of the part"  # noqa: PT018
        assert y0 < CORNER0[1] + 384 and y0 + height0 > CORNER0[1], "rows of the part"  # noqa: PT018


def test_a_store_that_does_not_know_its_frame_is_read_and_no_more(
    scn: Path, store: TileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As earlier versions made them: it is trained on, but where QuPath counts from nobody knows."""
    with monkeypatch.context() as patch:
        patch.setattr("tiling.slides.openslide_reader._bounds", lambda _: None)
        patch.setattr("tiling.tile.DECLARE_BOUNDS", ())
        patch.setattr(SlideFacts, "frame", lambda facts: Frame((facts.width, facts.height)))
        old = TileStore(tile_slide(scn, tmp_path, SMALL).store)
    assert old.slide.bounds is None
    np.testing.assert_array_equal(old.read([0]), store.read([0]))
    (tmp_path / "a.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(StoreError, match="earlier version"):
        label_store(old.path, tmp_path / "a.geojson")
    with pytest.raises(StoreError, match="earlier version"):
        tile_slide(scn, tmp_path, SMALL)
    assert not tile_slide(scn, tmp_path, SMALL, overwrite=True).reused
    assert TileStore(old.path).slide == store.slide


def test_facts_of_a_slide_without_bounds_are_those_of_earlier_versions(small_slide: Path, tmp_path: Path) -> None:
    """Or everything made of a store would count as made of another one."""
    facts = TileStore(tile_slide(small_slide, tmp_path, SMALL).store).slide
    names = "slide_id sha256 width height mpp vendor objective_power level_downsamples"
    assert list(facts.model_dump(mode="json")) == names.split()


@pytest.mark.parametrize(
    ("bounds", "qupath0", "scanned"),
    [
        (None, (0, 0), (0, 0, 100, 80)),
        ((10, 20, 30, 40), (10, 20), (10, 20, 30, 40)),
        ((10, 20, 300, 400), (10, 20), (10, 20, 90, 60)),  # a file that declares more than there is
        ((-10, -20, 30, 40), (-10, -20), (0, 0, 20, 20)),
        ((500, 600, 30, 40), (500, 600), (99, 79, 1, 1)),
    ],
)
def test_a_frame(
    bounds: tuple[int, int, int, int] | None, qupath0: tuple[int, int], scanned: tuple[int, int, int, int]
) -> None:
    def box(x0: int, y0: int, width0: int, height0: int) -> Bounds:
        return Bounds(x0=x0, y0=y0, width0=width0, height0=height0)

    frame = Frame((100, 80), None if bounds is None else box(*bounds))
    assert (frame.qupath0, frame.scanned) == (qupath0, box(*scanned))
    corners = np.arange(-15, 120, 5)
    x0, y0 = (values.ravel() for values in np.meshgrid(corners, corners))
    touched = np.zeros((80, 100), np.bool_)
    touched[scanned[1] : scanned[1] + scanned[3], scanned[0] : scanned[0] + scanned[2]] = True
    padded = np.pad(touched, 60)
    expected = [padded[60 + y : 70 + y, 60 + x : 70 + x].any() for x, y in zip(x0, y0, strict=True)]
    np.testing.assert_array_equal(frame.touches(squares(x0, y0, 10)), expected)
    rows, columns = frame.pixels(10)
    coarse = np.zeros((8, 10), np.bool_)
    coarse[rows, columns] = True
    np.testing.assert_array_equal(
        coarse, [[touched[y : y + 10, x : x + 10].any() for x in range(0, 100, 10)] for y in range(0, 80, 10)]
    )


# ------------------------------------------------------------------------------------------------- annotations

DISC = (300, 200)  # its middle, within the part
ON_WHOLE = tuple(a + b for a, b in zip(CORNER0, DISC, strict=True))


def square(x: int, y: int) -> list[tuple[int, int]]:
    return [(x - 64, y - 64), (x + 64, y - 64), (x + 64, y + 64), (x - 64, y + 64)]


def qupath(folder: Path, x: int, y: int) -> Path:
    geometry = {"type": "Polygon", "coordinates": [[*square(x, y), square(x, y)[0]]]}
    feature = {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": "tumour"}}}
    (folder / "a.geojson").write_text(json.dumps(feature))
    return folder / "a.geojson"


def asap(folder: Path, x: int, y: int) -> Path:
    points = "".join(f'<Coordinate Order="{n}" X="{a}" Y="{b}"/>' for n, (a, b) in enumerate(square(x, y)))
    one = f'<Annotation Name="1" Type="Polygon" PartOfGroup="tumour"><Coordinates>{points}</Coordinates></Annotation>'
    (folder / "a.xml").write_text(f"<ASAP_Annotations><Annotations>{one}</Annotations></ASAP_Annotations>")
    return folder / "a.xml"


def imagescope(folder: Path, x: int, y: int) -> Path:
    points = "".join(f'<Vertex X="{a}" Y="{b}" Z="0"/>' for a, b in square(x, y))
    region = f'<Regions><Region Type="0" NegativeROA="0"><Vertices>{points}</Vertices></Region></Regions>'
    (folder / "b.xml").write_text(f'<Annotations><Annotation Name="tumour">{region}</Annotation></Annotations>')
    return folder / "b.xml"


def picture(folder: Path, size: tuple[int, int], x: int, y: int) -> Path:
    """Four times as coarse as the slide."""
    labels = np.zeros((size[1] // 4, size[0] // 4), np.uint8)
    labels[(y - 64) // 4 : (y + 64) // 4, (x - 64) // 4 : (x + 64) // 4] = 1
    (folder / "a.classes.json").write_text('{"1": "tumour"}')
    PIL.Image.fromarray(labels).save(folder / "a.png")
    return folder / "a.png"


FILES: dict[str, Callable[[Path], Path]] = {
    "QuPath": lambda folder: qupath(folder, *DISC),
    "ASAP": lambda folder: asap(folder, *ON_WHOLE),
    "ImageScope": lambda folder: imagescope(folder, *ON_WHOLE),
    "label image of the part": lambda folder: picture(folder, (512, 384), *DISC),
    "label image of the whole": lambda folder: picture(folder, SIZE0, *ON_WHOLE),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_square_drawn_in_any_program_lies_where_it_was_drawn(
    scn: Path, store: TileStore, tmp_path: Path, kind: str
) -> None:
    """As column of a store, on a finished store, as tissue mask, and as lesion."""
    file = FILES[kind](tmp_path)
    made = TileStore(tile_slide(scn, tmp_path / "a", SMALL, annotation=file).store)
    across, down = (
        np.clip(np.minimum(at + 64, middle + 64) - np.maximum(at, middle - 64), 0, 64)
        for at, middle in zip((made.tiles.x0, made.tiles.y0), ON_WHOLE, strict=True)
    )
    np.testing.assert_allclose(made.annotations["tumour"], across * down / 64**2, atol=1e-6)
    assert made.annotations["tumour"].sum() == pytest.approx(4)

    copy = Path(shutil.copytree(store.path, tmp_path / store.path.name))
    label_store(copy, file)
    np.testing.assert_array_equal(TileStore(copy).annotations["tumour"], made.annotations["tumour"])

    config = TilingConfig.model_validate(SMALL.model_dump() | {"tissue": {"method": "mask"}})
    masked = TileStore(tile_slide(scn, tmp_path / "b", config, tissue_file=file).store).mask
    rows, columns = np.nonzero(masked.values)
    assert masked.downsample == 4
    assert (4 * columns.min(), 4 * rows.min()) == (ON_WHOLE[0] - 64, ON_WHOLE[1] - 64)
    assert (4 * columns.max() + 4, 4 * rows.max() + 4) == (ON_WHOLE[0] + 64, ON_WHOLE[1] + 64)

    lesions = class_masks(file, store.slide.frame(), Raster(np.zeros((900, 1200)), 1.0))["tumour"].values
    expected = np.zeros_like(lesions)
    expected[ON_WHOLE[1] - 64 : ON_WHOLE[1] + 64, ON_WHOLE[0] - 64 : ON_WHOLE[0] + 64] = True
    np.testing.assert_array_equal(lesions, expected)


def test_what_lies_off_the_scanned_part_is_said(scn: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On the glass, but on no part of it that was scanned."""
    report = tile_slide(scn, tmp_path, SMALL, annotation=qupath(tmp_path, 700, 600))
    assert not TileStore(report.store).annotations.get("tumour", np.zeros(1)).any()
    assert "1 of 1 outlines lie off the slide, which is 512 x 384 px" in caplog.text
