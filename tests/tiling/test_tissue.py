"""The tissue mask on painted pictures whose truth is known."""

from __future__ import annotations

import sys
from types import ModuleType

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from tiling import overview
from tiling.config import TissueConfig
from tiling.glass import background_colour, optical_density
from tiling.ink import ink_mask
from tiling.overview import Overview
from tiling.tissue import INK, TOO_SMALL, find_tissue, given_tissue, is_bright_field, sized, smoothed

MPP = 8.0
SIDE = 200
U8 = NDArray[np.uint8]
GLASS = {"white": (245, 245, 244), "grey": (205, 206, 208), "pinkish": (243, 231, 236), "lamp": (250, 245, 228)}
STAINS = {"eosin": (225, 150, 185), "haematoxylin": (110, 80, 150), "pale": (228, 205, 220), "dab": (150, 100, 60)}


def slide(glass: tuple[int, int, int], stain: tuple[int, int, int] | None, seed: int = 0) -> U8:
    """Glass with a disc of tissue of radius 60 in the middle, and a little noise."""
    picture = np.full((SIDE, SIDE, 3), glass, np.uint8)
    if stain:
        cv2.circle(picture, (100, 100), 60, stain, -1)
    noise = np.random.default_rng(seed).integers(-2, 3, (SIDE, SIDE, 1))
    return np.clip(picture.astype(int) + noise, 0, 255).astype(np.uint8)


def tissue_mask(picture: U8, mpp: float, config: TissueConfig) -> NDArray[np.bool_]:
    return find_tissue(Overview.plain(picture), mpp, config).tissue


def clean_mask(mask: NDArray[np.bool_], mpp: float, config: TissueConfig) -> NDArray[np.bool_]:
    return sized(smoothed(mask, mpp, config), mpp, config)


def is_ink(colour: tuple[int, ...]) -> bool:
    flat = np.full((40, 40, 3), colour, np.uint8)
    return bool(ink_mask(flat, Overview.plain(flat).texture, MPP).any())


def disc(radius: int) -> NDArray[np.bool_]:
    yy, xx = np.mgrid[:SIDE, :SIDE]
    return np.asarray((xx - 100) ** 2 + (yy - 100) ** 2 <= radius**2)


@pytest.mark.parametrize("stain", STAINS)
@pytest.mark.parametrize("glass", GLASS)
def test_stained_tissue_is_found_on_any_glass(glass: str, stain: str) -> None:
    if stain == "pale" and glass in ("grey", "pinkish"):
        picture = slide(GLASS[glass], (205, 165, 190))
    else:
        picture = slide(GLASS[glass], STAINS[stain])
    mask = tissue_mask(picture, MPP, TissueConfig())
    assert mask.shape == (SIDE, SIDE)
    assert mask.dtype == np.bool_
    assert mask[disc(56)].all()
    assert not mask[~disc(64)].any()


@pytest.mark.parametrize("glass", GLASS)
def test_bare_glass_has_no_tissue(glass: str) -> None:
    assert not tissue_mask(slide(GLASS[glass], None), MPP, TissueConfig()).any()


def test_a_shadow_on_the_glass_is_not_tissue() -> None:
    picture = slide(GLASS["white"], None).astype(np.float64)
    picture *= np.linspace(1, 0.6, SIDE)[None, :, None]
    assert not tissue_mask(picture.astype(np.uint8), MPP, TissueConfig()).any()


@pytest.mark.parametrize("black", [(0, 0, 0), (12, 10, 14), (35, 30, 38)])
def test_a_black_border_is_not_tissue(black: tuple[int, int, int]) -> None:
    picture = slide(GLASS["white"], STAINS["eosin"])
    picture[:20], picture[-20:], picture[:, :20], picture[:, -20:] = black, black, black, black
    mask = tissue_mask(picture, MPP, TissueConfig())
    assert mask[disc(56)].all()
    assert not mask[~disc(64)].any()


@pytest.mark.parametrize("light", [(0, 0, 255), (0, 255, 0), (255, 0, 0), (90, 20, 200)])
def test_fluorescence_has_no_tissue(light: tuple[int, int, int]) -> None:
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    for number in range(40):
        cv2.circle(picture, (5 * number, (37 * number) % SIDE), 4, light, -1)
    assert not is_bright_field(picture)
    assert not tissue_mask(picture, MPP, TissueConfig()).any()


def test_a_black_picture_has_no_tissue() -> None:
    assert not tissue_mask(np.zeros((50, 50, 3), np.uint8), MPP, TissueConfig()).any()


PENS = {
    "green": (30, 150, 60), "blue": (30, 60, 200), "cyan": (40, 180, 210), "red": (220, 20, 25), "black": (25, 25, 28),
    "dark green": (10, 90, 50), "navy": (20, 30, 110), "yellow": (250, 225, 40), "orange": (255, 130, 10),
    "magenta": (235, 10, 140), "purple": (110, 15, 190),
}  # fmt: skip


@pytest.mark.parametrize("pen", PENS)
def test_pen_is_not_tissue(pen: str) -> None:
    picture = slide(GLASS["white"], STAINS["eosin"])
    picture = np.asarray(cv2.line(picture, (10, 20), (190, 20), PENS[pen], 9), np.uint8)
    mask = tissue_mask(picture, MPP, TissueConfig())
    assert not mask[:35].any()
    assert mask[disc(56)].all()


@pytest.mark.parametrize("stain", STAINS)
def test_stains_are_not_pen(stain: str) -> None:
    assert not is_ink(STAINS[stain])


@pytest.mark.parametrize(
    ("vector", "maximum"),
    [((0.65, 0.70, 0.29), 2.0), ((0.07, 0.99, 0.11), 1.6), ((0.27, 0.57, 0.78), 2.0)],
    ids=["haematoxylin", "eosin", "dab"],
)
def test_no_amount_of_a_stain_is_pen(vector: tuple[float, ...], maximum: float) -> None:
    """Ruifrok and Johnston's vectors (2001), from nothing to a dense section's mean over 8 um."""
    amounts = np.linspace(0, maximum, 60)[:, None]
    colours = (np.exp(-amounts * np.array(vector)) * 245).astype(np.uint8)
    assert not any(is_ink(tuple(colour)) for colour in colours.tolist())


def test_printed_fiducials_are_not_tissue() -> None:
    """Rows of black dots, a ring and text, drawn with soft edges and saved as JPEG."""
    picture = slide(GLASS["white"], STAINS["eosin"])
    for x in range(10, SIDE, 16):
        cv2.circle(picture, (x, 8), 4, (28, 26, 30), -1, cv2.LINE_AA)
        cv2.circle(picture, (x, SIDE - 9), 5, (70, 70, 74), 2, cv2.LINE_AA)
    cv2.putText(picture, "A1-07", (4, 34), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (40, 40, 40), 1, cv2.LINE_AA)
    printed = cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 80])[1], cv2.IMREAD_COLOR)
    mask = tissue_mask(np.asarray(printed, np.uint8), MPP, TissueConfig())
    assert mask[disc(56)].all()
    assert not mask[~disc(72)].any(), "JPEG at this scale spreads colour over 16 pixels"


@pytest.mark.parametrize(("wall", "wall_um"), [((225, 150, 185), 3), ((232, 190, 210), 6)], ids=["stained", "pale"])
def test_fat_is_tissue(wall: tuple[int, int, int], wall_um: int) -> None:
    """Empty cells of 70 um between thin walls, seen at 8 um a pixel."""
    fine = np.full((SIDE * 8, SIDE * 8, 3), GLASS["white"], np.uint8)
    for x in range(320, 1281, 70):
        cv2.line(fine, (x, 320), (x, 1280), wall, wall_um)
        cv2.line(fine, (320, x), (1280, x), wall, wall_um)
    picture = np.asarray(cv2.resize(fine, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)
    mask = tissue_mask(picture, MPP, TissueConfig())
    assert mask[44:156, 44:156].mean() > 0.97
    assert not mask[:36].any()


# --------------------------------------------------------------------------------------------------------- methods

DETECTING: tuple[str, ...] = ("local", "specslide", "otsu", "hsv")


@pytest.mark.parametrize("method", DETECTING)
@pytest.mark.parametrize("stain", ["eosin", "haematoxylin", "dab"])
@pytest.mark.parametrize("glass", GLASS)
def test_every_method_finds_stained_tissue_and_no_border_or_ink(glass: str, stain: str, method: str) -> None:
    picture = slide(GLASS[glass], STAINS[stain])
    picture[:14] = (12, 10, 14)
    picture = np.asarray(cv2.line(picture, (10, 185), (190, 185), PENS["green"], 9), np.uint8)
    mask = tissue_mask(picture, MPP, TissueConfig(method=method))
    assert mask[disc(56)].all()
    assert not mask[~disc(64)].any()


@pytest.mark.parametrize("method", DETECTING)
@pytest.mark.parametrize("glass", GLASS)
def test_no_method_finds_tissue_on_bare_glass(glass: str, method: str) -> None:
    assert not tissue_mask(slide(GLASS[glass], None), MPP, TissueConfig(method=method)).any()


@pytest.mark.parametrize("method", [*DETECTING, "histoprep"])
def test_areas_apply_to_every_method(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "histoslice", ModuleType("histoslice"))
    functions = ModuleType("histoslice.functional")
    functions.__dict__["get_tissue_mask"] = lambda image, multiplier, sigma: (
        1,
        (image[..., 1] < 200).astype(np.uint8),
    )
    monkeypatch.setitem(sys.modules, "histoslice.functional", functions)
    picture = slide(GLASS["white"], STAINS["eosin"])
    cv2.circle(picture, (100, 100), 9, GLASS["white"], -1)
    cv2.circle(picture, (20, 20), 6, STAINS["eosin"], -1)
    small = {"min_object_um2": 0, "max_hole_um2": 0}
    for config, there in ((TissueConfig(method=method), False), (TissueConfig(method=method, **small), True)):
        mask = tissue_mask(picture, MPP, config)
        assert mask[20, 20] == there
        assert mask[100, 100] != there


def test_a_mask_of_the_users_is_no_detection() -> None:
    with pytest.raises(ValueError, match="mask detects nothing"):
        tissue_mask(slide(GLASS["white"], None), MPP, TissueConfig(method="mask"))


@pytest.mark.parametrize(("radius", "kept"), [(6, False), (14, True)])
def test_small_objects_are_dropped(radius: int, kept: bool) -> None:
    """20,000 um2 at 8 um a pixel are 312 pixels: a disc of radius 10."""
    mask = disc(radius)
    assert clean_mask(mask, MPP, TissueConfig()).any() == kept


def test_what_fills_a_small_slide_is_no_speck() -> None:
    """15 x 19 pixels of 8 um are less than the smallest piece of tissue."""
    light = cells([(215, 150, 190), (120, 70, 150)], 2)[:30, :38]
    assert find_tissue(Overview.of(light.astype(np.uint8)), MPP, TissueConfig()).tissue.all()


@pytest.mark.parametrize(("radius", "filled"), [(6, True), (14, False)])
def test_small_holes_are_filled(radius: int, filled: bool) -> None:
    mask = disc(60) & ~disc(radius)
    assert clean_mask(mask, MPP, TissueConfig())[100, 100] == filled


def test_the_areas_are_micrometres() -> None:
    """The same disc is small at 4 um a pixel and large at 16."""
    mask = disc(12)
    assert not clean_mask(mask, 4.0, TissueConfig()).any()
    assert clean_mask(mask, 16.0, TissueConfig()).any()


def test_zero_areas_keep_everything() -> None:
    config = TissueConfig(min_object_um2=0, max_hole_um2=0)
    cleaned = clean_mask((disc(60) & ~disc(12)) | disc(3), MPP, config)
    assert cleaned[100, 100]
    assert not cleaned[100, 92]
    assert cleaned[100, 80]


@pytest.mark.parametrize("glass", GLASS)
def test_background_is_the_glass(glass: str) -> None:
    colour = background_colour(slide(GLASS[glass], STAINS["haematoxylin"]))
    assert np.abs(colour - GLASS[glass]).max() <= 2


@pytest.mark.parametrize("method", DETECTING)
@pytest.mark.parametrize("strip_rows", [8, 24, 192])
def test_strips_of_work_leave_no_trace(method: str, strip_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = slide(GLASS["lamp"], STAINS["eosin"], seed=3)
    picture[20:180:9] = cv2.blur(picture, (1, 5))[20:180:9]
    whole, background = tissue_mask(picture, MPP, TissueConfig(method=method)), background_colour(picture)
    monkeypatch.setattr(overview, "_STRIP_ROWS", strip_rows)
    np.testing.assert_array_equal(tissue_mask(picture, MPP, TissueConfig(method=method)), whole)
    np.testing.assert_array_equal(background_colour(picture), background)


def test_background_is_the_median_of_its_commonest_colour() -> None:
    picture = np.full((40, 40, 3), (232, 233, 234), np.uint8)
    picture[:15] = (236, 236, 235)  # of the same upper bits: 600 pixels of 1600
    np.testing.assert_array_equal(background_colour(picture), np.median(picture.reshape(-1, 3), axis=0))


def test_background_without_glass_is_white() -> None:
    assert background_colour(np.full((50, 50, 3), STAINS["haematoxylin"], np.uint8)).tolist() == [255, 255, 255]


def test_optical_density_obeys_beer_lambert() -> None:
    levels = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, 2)
    density = optical_density(levels, np.array([255.0, 240.0, 200.0]))
    expected = -np.log((levels.astype(float) + 1) / np.array([256.0, 241.0, 201.0]))
    assert density.dtype == np.float32
    np.testing.assert_allclose(density, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 3)])
def test_extreme_pictures_have_a_mask(shape: tuple[int, int]) -> None:
    picture = np.full((*shape, 3), STAINS["eosin"], np.uint8)
    assert tissue_mask(picture, MPP, TissueConfig()).shape == shape


@pytest.mark.parametrize(
    "wrong",
    [{"mask_mpp": 0}, {"mask_mpp": float("inf")}, {"mask_mpp": float("nan")}, {"mask_mpp": 1e9},
     {"min_object_um2": -1}, {"max_hole_um2": float("nan")}, {"threshold": 3},
     {"method": "magic"}],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        TissueConfig.model_validate(wrong)


# ------------------------------------------------------------------------------------------------- stains of all hues

# Optical density by channel: Landini's table of ImageJ's Colour Deconvolution; the amounts are those of routine slides.
DYES = {
    "Masson's blue": ((0.799, 0.591, 0.105), 0.7), "Masson's red": ((0.100, 0.737, 0.668), 0.7),
    "Alcian blue": ((0.875, 0.458, 0.158), 0.6), "Giemsa": ((0.835, 0.514, 0.196), 0.9),
    "AEC": ((0.274, 0.679, 0.680), 0.6), "PAS": ((0.175, 0.972, 0.155), 0.5), "light green": ((0.94, 0.30, 0.55), 0.4),
}  # fmt: skip
RIM = 3  # pixels at the edge of a piece of tissue that may go either way


def on_glass(tissue: NDArray[np.floating], glass: tuple[int, int, int] = (245, 245, 243)) -> Overview:
    """Tissue in the middle 200 x 200 of 400 x 400 pixels, as light twice as fine (400 x 400, 3); with little noise."""
    light = np.empty((800, 800, 3))
    light[:] = glass
    light[200:600, 200:600] = tissue
    noise = np.random.default_rng(0).normal(0, 1, (800, 800, 1))
    return Overview.of(np.clip(light + noise, 0, 255).astype(np.uint8))


INSIDE = (slice(100 + RIM, 300 - RIM),) * 2


def outside() -> NDArray[np.bool_]:
    far = np.ones((400, 400), np.bool_)
    far[100 - 8 : 300 + 8, 100 - 8 : 300 + 8] = False
    return far


@pytest.mark.parametrize("glass", GLASS)
@pytest.mark.parametrize("dye", DYES)
def test_tissue_is_found_whatever_its_dye(dye: str, glass: str) -> None:
    vector, amount = DYES[dye]
    thick = np.kron(np.random.default_rng(1).uniform(0.7, 1.3, (100, 100)), np.ones((4, 4)))[..., None]
    found = find_tissue(
        on_glass(np.array(GLASS[glass]) * np.exp(-amount * thick * vector), GLASS[glass]), MPP, TissueConfig()
    )
    assert found.tissue[INSIDE].mean() > 0.99
    assert not found.tissue[outside()].any()
    assert not found.ink.any()


@pytest.mark.parametrize("amount", [1.5, 2.5])
@pytest.mark.parametrize("dye", ["Masson's blue", "Alcian blue", "Giemsa", "light green"])
def test_an_island_of_a_strong_dye_is_no_ink(dye: str, amount: float) -> None:
    """As thick and thin as sections are; most of the tissue is pale, and glass lies between."""
    thick = np.kron(np.random.default_rng(1).uniform(0.7, 1.3, (100, 100)), np.ones((4, 4)))[..., None]
    thick = thick * np.array(DYES[dye][0])
    light = np.array((245, 245, 243)) * np.exp(-0.3 * thick)
    light[100:300, 100:300] = np.array((245, 245, 243)) * np.exp(-amount * thick[100:300, 100:300])
    light[90:100, 80:320] = light[300:310, 80:320] = light[80:320, 90:100] = light[80:320, 300:310] = (245, 245, 243)
    found = find_tissue(on_glass(light), MPP, TissueConfig())
    assert not found.ink.any()
    assert found.tissue[155:245, 155:245].all()


def cells(colours: list[tuple[int, int, int]], px: int, seed: int = 2) -> NDArray[np.floating]:
    """Square cells of those colours at random, 400 x 400 pixels of 4 um."""
    kinds = np.random.default_rng(seed).integers(0, len(colours), (400 // px + 1,) * 2)
    return np.kron(np.array(colours, float)[kinds], np.ones((px, px, 1)))[:400, :400]


@pytest.mark.parametrize("px", [1, 2, 4])
def test_brown_and_blue_cells_are_tissue_though_their_mean_is_grey(px: int) -> None:
    """At 8 um a pixel most are as grey as a shadow."""
    overview = on_glass(cells([(96, 72, 62), (118, 138, 164), (216, 215, 219)], px))
    found = find_tissue(overview, MPP, TissueConfig()).tissue
    assert found[INSIDE].mean() > 0.99
    assert not found[outside()].any()


def test_dense_nuclei_of_the_hue_of_blue_ink_are_tissue() -> None:
    overview = on_glass(cells([(66, 68, 122), (66, 68, 122), (150, 140, 180)], 2))
    found = find_tissue(overview, MPP, TissueConfig())
    assert found.tissue[INSIDE].mean() > 0.99
    assert not found.ink.any()


def test_eosin_on_the_glass_is_not_tissue() -> None:
    """A pink as strong as pale tissue, that fades away evenly."""
    y, x = np.mgrid[:800, :800]
    tint = 0.15 * np.exp(-(((x - 400) ** 2 + (y - 400) ** 2) / 350**2))[..., None]
    light = np.array((235, 232, 236)) * np.exp(-tint * (0.07, 0.99, 0.11))
    light[300:500, 300:500] = cells([(215, 150, 190), (120, 70, 150)], 2)[:200, :200]
    noise = np.random.default_rng(0).normal(0, 1, (800, 800, 1))
    found = find_tissue(Overview.of(np.clip(light + noise, 0, 255).astype(np.uint8)), MPP, TissueConfig()).tissue
    assert found[155:245, 155:245].all()
    far = np.ones_like(found)
    far[142:258, 142:258] = False
    assert not found[far].any()


@pytest.mark.parametrize(
    "glass", [(240, 222, 236), (228, 226, 205), (224, 222, 223)], ids=["pinkish", "yellow", "grey"]
)
def test_white_padding_is_not_the_glass(glass: tuple[int, int, int]) -> None:
    overview = on_glass(cells([(215, 150, 190), (120, 70, 150)], 2), glass)
    padded = np.full((900, 900, 3), 255, np.uint8)
    padded[250:650, 250:650] = overview.picture
    found = find_tissue(Overview.plain(padded), MPP, TissueConfig()).tissue
    assert found[350 + RIM : 550 - RIM, 350 + RIM : 550 - RIM].all()
    assert found.sum() < 1.1 * 200 * 200


def test_saturated_glass_is_no_padding() -> None:
    found = find_tissue(on_glass(cells([(235, 215, 228), (225, 200, 215)], 2), (255, 255, 255)), MPP, TissueConfig())
    assert found.tissue[INSIDE].mean() > 0.99


# ---------------------------------------------------------------------------------------------------------------- ink


def inked(pen: tuple[int, int, int]) -> Overview:
    """Tissue, with a stroke across it that goes on over the glass."""
    overview = on_glass(cells([(215, 150, 190), (120, 70, 150)], 2))
    picture = np.asarray(cv2.line(overview.picture.copy(), (10, 200), (390, 200), pen, 15), np.uint8)
    return Overview.plain(picture)


@pytest.mark.parametrize("pen", [name for name in PENS if name != "yellow"])
def test_ink_on_tissue_is_no_hole_and_on_glass_no_tissue(pen: str) -> None:
    found = find_tissue(inked(PENS[pen]), MPP, TissueConfig(max_hole_um2=0))
    assert found.tissue[INSIDE].all()
    assert not found.tissue[outside()].any()
    assert found.ink[198:203, 20:380].all()
    assert (found.cut[200, 20:80] == INK).all()
    assert not found.cut[INSIDE].any()
    without = find_tissue(inked(PENS[pen]), MPP, TissueConfig(drop_ink=True))
    assert not without.tissue[198:203].any()
    assert without.tissue[INSIDE][:80].all()


@pytest.mark.parametrize("method", ["local", "specslide", "otsu"])
@pytest.mark.parametrize("amount", [0.7, 1.5, 2.5])
@pytest.mark.parametrize("dye", ["Masson's blue", "Alcian blue", "Giemsa", "light green"])
def test_a_strong_and_even_dye_is_tissue_though_it_looks_like_ink(dye: str, amount: float, method: str) -> None:
    """There is nothing else on the slide."""
    overview = on_glass(np.array((245, 245, 243)) * np.exp(-amount * np.array(DYES[dye][0])))
    found = find_tissue(overview, MPP, TissueConfig(method=method))
    assert found.tissue[INSIDE].all()
    assert not found.tissue[outside()].any()
    assert not found.cut[outside()].any()
    if amount > 1:
        assert found.ink[INSIDE].all()
        assert not find_tissue(overview, MPP, TissueConfig(method=method, drop_ink=True)).tissue[INSIDE].any()


def test_the_users_mask_is_taken_as_drawn() -> None:
    drawn = np.zeros((400, 400), np.bool_)
    drawn[5:7, 5:7] = drawn[150:260, 150:260] = True
    drawn[170:172, 170:172] = False
    overview = inked(PENS["blue"])
    found = given_tissue(drawn, overview, MPP, TissueConfig(method="mask"))
    np.testing.assert_array_equal(found.tissue, drawn)
    assert found.ink[200, 200]
    without = given_tissue(drawn, overview, MPP, TissueConfig(method="mask", drop_ink=True))
    np.testing.assert_array_equal(without.tissue, drawn & ~found.ink)


def test_all_of_the_slide_can_be_asked_for() -> None:
    for picture in (slide(GLASS["white"], None), np.zeros((50, 60, 3), np.uint8)):
        found = find_tissue(Overview.plain(picture), MPP, TissueConfig(method="all"))
        assert found.tissue.shape == picture.shape[:2]
        assert found.tissue.all()


def test_ink_is_left_out_of_the_whole_slide_too() -> None:
    found = find_tissue(inked(PENS["blue"]), MPP, TissueConfig(method="all", drop_ink=True))
    assert found.ink[200, 200]
    np.testing.assert_array_equal(found.tissue, ~found.ink)


def test_what_is_too_small_is_said() -> None:
    picture = slide(GLASS["white"], STAINS["eosin"])
    cv2.circle(picture, (20, 20), 6, STAINS["haematoxylin"], -1)
    found = find_tissue(Overview.plain(picture), MPP, TissueConfig())
    assert (found.cut[16:25, 16:25] == TOO_SMALL).all()
    assert not found.cut[disc(70)].any()


@pytest.mark.parametrize("method", ["hsv", "local"])
def test_what_is_dark_and_outside_the_mask_is_counted(method: str) -> None:
    """Masson's blue has no hue that `hsv` takes for a stain."""
    thick = np.kron(np.random.default_rng(1).uniform(0.7, 1.3, (100, 100)), np.ones((4, 4)))[..., None]
    overview = on_glass(245 * np.exp(-0.8 * thick * DYES["Masson's blue"][0]))
    found = find_tissue(overview, MPP, TissueConfig(method=method))
    assert (found.notable_px > 35_000) == (method == "hsv")
    assert found.notable_px < 45_000
