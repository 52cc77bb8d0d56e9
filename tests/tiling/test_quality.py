"""Quality columns on tiles whose values are known."""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import erf
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tiling import TileStore, TilingConfig, tile_slide
from tiling.core.errors import ConfigError
from tiling.quality import MAX_BLUR_PX, METRICS, blur_px, measurer, quality, stain_amounts

SIDE = 64
U8 = NDArray[np.uint8]


def flat(*colour: int) -> U8:
    return np.full((SIDE, SIDE, 3), colour, np.uint8)


def halves(left: tuple[int, int, int], right: tuple[int, int, int]) -> U8:
    tile = flat(*left)
    tile[:, SIDE // 2 :] = right
    return tile


MEASURED = tuple(name for name in METRICS if name != "pen")  # which the whole slide shows, not a tile

WHITE, BLACK, PINK, GREEN = (250, 250, 250), (0, 0, 0), (220, 140, 180), (30, 150, 60)


@pytest.mark.parametrize(
    ("tile", "expected"),
    [
        (flat(*WHITE), {"focus": 0, "white": 1, "black": 0, "saturation": 0}),
        (flat(*BLACK), {"focus": 0, "white": 0, "black": 1, "saturation": 0}),
        (flat(*PINK), {"focus": 0, "white": 0, "black": 0, "saturation": 93 / 255}),
        (flat(255, 0, 0), {"saturation": 1, "white": 0, "black": 0}),
        (halves(WHITE, BLACK), {"white": 0.5, "black": 0.5}),
        (halves(PINK, GREEN), {"white": 0, "black": 0}),
        (flat(226, 226, 226), {"white": 1}),
        (flat(225, 255, 255), {"white": 0}),
        (flat(29, 29, 29), {"black": 1}),
        (flat(30, 0, 0), {"black": 0}),
    ],
)
def test_known_tiles(tile: U8, expected: dict[str, float]) -> None:
    found = quality(tile)
    assert tuple(found) == MEASURED
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=2e-3)


def test_focus_is_the_variance_of_the_laplacian() -> None:
    """One bright pixel of height h: the 4-neighbour Laplacian is -4h once and h four times."""
    tile = flat(0, 0, 0)
    tile[20, 20] = 100
    expected = (16 * 100**2 + 4 * 100**2) / SIDE**2
    assert quality(tile)["focus"] == pytest.approx(expected)


def test_blur_lowers_the_focus() -> None:
    sharp = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    blurred = [np.asarray(cv2.GaussianBlur(sharp, (0, 0), sigma), np.uint8) for sigma in (0.7, 1.5, 3)]
    values = [quality(tile)["focus"] for tile in (sharp, *blurred)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 100 * values[-1]


# ------------------------------------------------------------------------------------------------------------- blur


def edges(sigma_px: float, low: int, high: int) -> U8:
    """Grey levels (256, 256) that rise and fall between upright edges 32 pixels apart, each blurred, in closed form."""
    across = (np.arange(256) + 0.5) % 64 - 32  # -32 to 32, over and over
    far = np.abs(across) - 16
    rise = [(1 - erf(x / max(sigma_px, 1e-9) / 2**0.5)) / 2 for x in far]
    return np.tile(np.rint(low + (high - low) * np.array(rise)), (256, 1)).astype(np.uint8)


def spots(seed: int, count: int, side: int = 256) -> U8:
    """Sharp dark discs, as nuclei are, on a light ground."""
    rng, picture = np.random.default_rng(seed), np.full((side, side), 225, np.uint8)
    for x, y, radius, level in rng.integers((0, 0, 4, 60), (side, side, 12, 160), (count, 4)).tolist():
        cv2.circle(picture, (x, y), radius, level, -1)
    return picture


def blurred(picture: U8, sigma_px: float) -> U8:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma_px), np.uint8) if sigma_px else picture


def noisy(picture: U8, sigma: float) -> U8:
    noise = np.random.default_rng(1).normal(0, sigma, picture.shape)
    return np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("sigma_px", "low", "high"),
    [
        (0, 0, 0.41),
        (0.5, 0.48, 0.55),
        (0.8, 0.77, 0.86),
        (1, 0.97, 1.04),
        (1.5, 1.45, 1.57),
        (2, 1.95, 2.1),
        (3, 3, 3.7),
    ],
)
def test_blur_is_the_sigma_of_an_edge(sigma_px: float, low: float, high: float) -> None:
    """Whichever way it runs and whatever its height; a pixel is as soft as about a third of one."""
    for picture in (edges(sigma_px, 10, 245), edges(sigma_px, 10, 245).T, edges(sigma_px, 150, 200)):
        assert low <= blur_px(picture) <= high


@pytest.mark.parametrize("count", [5, 40, 300])
@pytest.mark.parametrize("after", [lambda p: p, lambda p: noisy(p, 3), lambda p: decoded(p, 60)])
def test_blur_depends_on_neither_content_nor_noise(count: int, after: Callable[[U8], U8]) -> None:
    """Sparse and dense, clean, noisy or compressed: one threshold tells sharp from blurred by 2 px."""
    picture = spots(0, count)
    found = [blur_px(after(blurred(picture, sigma_px))) for sigma_px in (0, 1, 2, 3, 4)]
    assert found == sorted(found)
    assert found[0] < 0.5 < 1.2 < found[2]
    assert found[2] == pytest.approx(2, rel=0.3)


def decoded(picture: U8, jpeg_quality: int) -> U8:
    data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), np.uint8)


@pytest.mark.parametrize(
    "picture",
    [
        np.full((SIDE, SIDE), 240, np.uint8),
        np.tile(np.linspace(220, 240, SIDE), (SIDE, 1)).astype(np.uint8),  # a lamp's gradient
        noisy(np.full((256, 256), 240, np.uint8), 0.5),
        np.random.default_rng(0).integers(0, 256, (4, 256), np.uint8),
        np.random.default_rng(0).integers(0, 256, (256, 1), np.uint8),
    ],
)
def test_without_structure_the_blur_is_the_most(picture: U8) -> None:
    """Plain glass, and what is too small to tell."""
    assert blur_px(picture) == MAX_BLUR_PX


def test_texture_as_fine_as_a_pixel_is_sharp() -> None:
    """Nuclei at a coarse scale: grey levels 4 pixels apart differ no more than those 2 pixels apart."""
    coarse = cv2.resize(spots(0, 4000, 2048), (128, 128), interpolation=cv2.INTER_AREA)
    assert blur_px(np.asarray(coarse, np.uint8)) == 0


# ----------------------------------------------------------------------------------------------------------- stains


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ((255, 255, 255), (0, 0, 0)),
        ((220, 140, 180), (0.02809, 0.364307, 0.384727)),
        ((110, 80, 150), (1.183184, 0.213261, 0.210316)),
        ((150, 100, 60), (0.063903, 0, 1.854903)),
        ((30, 30, 30), (2.589838, 0, 1.887432)),
        ((200, 200, 120), (0, 0, 1.018096)),
    ],
)
def test_stain_amounts_are_scikit_images(colour: tuple[int, int, int], expected: tuple[float, float, float]) -> None:
    """skimage.color.rgb2hed of scikit-image, times -ln(1e-6): its unit."""
    assert stain_amounts(flat(*colour)) == pytest.approx(expected, abs=2e-5)
    assert stain_amounts(halves(colour, WHITE)) == pytest.approx([v / 2 for v in expected], abs=0.03)


@pytest.mark.parametrize("stain", range(3))
@pytest.mark.parametrize("amount", [0.1, 0.5, 1.0, 1.5])
def test_a_pure_stain_is_found_alone(stain: int, amount: float) -> None:
    """Beer-Lambert in closed form: exp(-amount * vector) of one stain gives that amount, to the rounding of 8 bits."""
    vectors = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    colour = np.rint(255 * np.exp(-amount * vectors[stain])).astype(int)
    expected = [amount if k == stain else 0.0 for k in range(3)]
    assert stain_amounts(flat(*colour.tolist())) == pytest.approx(expected, abs=0.02)


# ------------------------------------------------------------------------------------------------------------- sets


@pytest.fixture
def histoslice(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A stand-in for the package; the thresholds that its tissue detection was asked for."""
    functions, asked = ModuleType("histoslice.functional"), []

    def get_tissue_mask(image: U8, threshold: int = 77, **_: float) -> tuple[int, U8]:
        asked.append(threshold)
        return threshold, (image[..., 1] <= threshold).astype(np.uint8)

    def get_image_metrics(image: U8, tissue_mask: U8) -> dict[str, float]:
        return {"background": np.round((tissue_mask == 0).mean(), 3), "red_mean": image[..., 0].mean()}

    functions.__dict__.update(get_tissue_mask=get_tissue_mask, get_image_metrics=get_image_metrics)
    monkeypatch.setitem(sys.modules, "histoslice", ModuleType("histoslice"))
    monkeypatch.setitem(sys.modules, "histoslice.functional", functions)
    return asked


def test_sets_of_columns(histoslice: list[int]) -> None:
    both = measurer(("specslide", "histoprep"), flat(*PINK))(halves(PINK, BLACK))
    assert tuple(both) == (*MEASURED, "background", "red_mean")
    assert (both["background"], both["red_mean"], both["black"]) == (0.5, 110, 0.5)
    assert tuple(measurer(("histoprep",), flat(*PINK))(flat(*PINK))) == ("background", "red_mean")
    assert set(histoslice) == {77}, "the threshold of the slide is used for every tile"


def test_histopreps_columns_are_stored(histoslice: list[int], small_slide: Path, tmp_path: Path) -> None:
    config = TilingConfig(mpp=0.5, tile_px=64, codec="lossless", quality=("histoprep", "specslide"))
    store = TileStore(tile_slide(small_slide, tmp_path, config).store)
    assert set(store.quality) == {*METRICS, "background", "red_mean"}
    np.testing.assert_allclose(store.quality["red_mean"], store.read(slice(None))[..., 0].mean((1, 2)), rtol=1e-5)


def test_histopreps_columns_need_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("histoslice", "histoprep"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, f"{name}.functional", None)
    with pytest.raises(ConfigError, match="is not installed; pip install"):
        measurer(("histoprep",), flat(*PINK))


@pytest.mark.parametrize("side", [1, 2, 3, 15, 17])
def test_tiny_tiles_have_values(side: int) -> None:
    found = quality(np.full((side, side, 3), 255, np.uint8))
    assert found["white"] == 1
    assert all(np.isfinite(value) for value in found.values())
