"""What a plan says of a slide's area, on a painted slide whose areas are known, and how the preview shows it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.demo.synthetic import write_pyramid
from tiling import Slide, TileStore, TilingConfig, TissueConfig, tile_slide
from tiling.plan import plan_tiles
from tiling.preview import _CUT, _OUTLINE, _TILES, draw_preview
from tiling.stores.summary import TissueSummary
from tiling.tissue import INK, TOO_SMALL

SIDE, MPP = 2048, 0.5


@pytest.fixture(scope="module")
def inked_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tissue of 512 x 768 um, a piece of 100 x 100 um, and a blue stroke of 60 um across the tissue and the glass."""
    random = np.random.default_rng(0)
    picture = np.full((SIDE, SIDE, 3), 244, np.uint8)
    cells = np.kron(random.integers(0, 2, (192, 128, 1)), np.ones((8, 8, 1))) > 0
    picture[256:1792, 512:1536] = np.where(cells, (215, 150, 190), (120, 70, 150))
    picture[60:260, 1780:1980] = picture[400:600, 600:800]
    cv2.line(picture, (0, 1000), (SIDE, 1000), (30, 60, 200), 120)
    path = tmp_path_factory.mktemp("inked") / "inked.tif"
    write_pyramid(path, np.clip(picture + random.normal(0, 1, picture.shape), 0, 255).astype(np.uint8), mpp=MPP)
    return path


def mm2(width_px: float, height_px: float) -> float:
    return width_px * height_px * (MPP / 1000) ** 2


@pytest.mark.parametrize("overlap", [0, 0.5])
def test_the_areas_are_those_that_were_painted(inked_slide: Path, overlap: float) -> None:
    """What no tile shows is counted by painting the tiles over the mask, overlapping ones too."""
    with Slide(inked_slide) as slide:
        plan = plan_tiles(slide, TilingConfig(mpp=MPP, tile_px=384, overlap=overlap))
    summary = plan.summary  # masks reach two pixels of 8 um too far: 32 px
    assert summary.scanned_mm2 == pytest.approx(mm2(SIDE, SIDE), rel=0.01)
    assert summary.tissue_mm2 == pytest.approx(mm2(1024 + 2 * 32, 1536 + 2 * 32), rel=0.02)
    stroke = 120 + 2 * 68  # and 34 um on either side, where ink and what lies beside it mix
    tissue_width = 1024 + 2 * 32
    assert summary.ink_mm2 == pytest.approx(mm2(SIDE - tissue_width, stroke), rel=0.1)
    assert summary.inked_mm2 == pytest.approx(mm2(tissue_width, stroke), rel=0.1)
    assert summary.too_small_mm2 == pytest.approx(mm2(200 + 2 * 32, 200 + 2 * 32), rel=0.1)
    shown = np.zeros((SIDE, SIDE), np.bool_)
    for x, y in plan.tiles.places():
        shown[y : y + 384, x : x + 384] = True
    mask = cv2.resize(plan.mask.values.astype(np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST) > 0
    assert summary.below_min_tissue_mm2 == pytest.approx(mm2(1, float(np.count_nonzero(mask & ~shown))), abs=0.01)
    assert summary.below_min_tissue_mm2 > 0


def test_pen_is_the_share_of_a_tile_under_ink(inked_slide: Path) -> None:
    with Slide(inked_slide) as slide:
        tiles = plan_tiles(slide, TilingConfig(mpp=MPP, tile_px=128)).tiles
    under = (tiles.y0 < 1060) & (tiles.y0 + 128 > 940)
    far = (tiles.y0 > 1160) | (tiles.y0 + 128 < 840)
    assert (tiles.columns["pen"][under] > 0.3).all()
    assert not tiles.columns["pen"][far].any()
    assert under.sum() >= 8


def test_what_is_cut_is_stored_and_drawn(inked_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The legend stands below the slide: a swatch of each colour that the picture has, of areas that round away too."""
    store = TileStore(tile_slide(inked_slide, tmp_path, TilingConfig(mpp=MPP, tile_px=384)).store)
    assert store.cut is not None
    assert store.cut.values.shape == store.mask.values.shape
    down = store.cut.downsample
    assert store.cut.values[round(1000 / down), round(200 / down)] == INK
    assert store.cut.values[round(160 / down), round(1880 / down)] == TOO_SMALL
    assert not store.cut.values[store.mask.values].any()
    for _ in range(2):
        picture = draw_preview(store)
        slide, legend = np.split(picture, [picture.shape[1]])
        for colour in (_OUTLINE, _TILES, *(colour for colour, _ in _CUT.values())):
            assert (slide == colour).all(2).sum() > 100
            assert (legend == colour).all(2).sum() > 100
        monkeypatch.setattr(TissueSummary, "left_out", lambda _: {})


def test_settings_of_the_tissue_are_recorded_where_they_are_not_the_default(inked_slide: Path, tmp_path: Path) -> None:
    """So that stores made before a setting was there stay current."""
    plain = TileStore(tile_slide(inked_slide, tmp_path / "plain", TilingConfig(mpp=MPP)).store)
    settings = TilingConfig(mpp=MPP, tissue=TissueConfig(drop_ink=True, min_object_um2=0))
    dropped = TileStore(tile_slide(inked_slide, tmp_path / "dropped", settings).store)
    assert "drop_ink" not in plain.attributes.config["tissue"]
    assert dropped.attributes.config["tissue"]["drop_ink"] is True
    assert plain.attributes.tissue_summary is not None
    assert dropped.attributes.tissue_summary is not None
    assert dropped.attributes.tissue_summary.inked_mm2 == 0 < plain.attributes.tissue_summary.inked_mm2
    assert dropped.attributes.tissue_summary.too_small_mm2 == 0 < plain.attributes.tissue_summary.too_small_mm2
