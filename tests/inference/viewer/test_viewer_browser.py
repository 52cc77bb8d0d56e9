"""The viewer as a pathologist uses it: in a browser, by mouse and keyboard, its policy in force."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Page

from inference.viewer.cohort import Cohort, find_cohort
from inference.viewer.pictures import Pictures
from inference.viewer.run import leading_to
from inference.viewer.server import make_app
from inference.viewer.site import Site
from pipeline.demo.synthetic import write_pyramid
from tests.inference.viewer.conftest import (
    BLACK,
    SIZE0,
    TILE0,
    TOKEN,
    Places,
    Served,
    black_tile,
    serving,
    write_heatmap,
)
from tests.inference.viewer.test_stores import write_features_of
from tests.tiling.icc_files import by_pillow
from tests.tiling.test_icc import PROFILE, write_slide
from tiling import Slide, TileStore
from tiling.annotations.rasterize import read_polygons
from tiling.grid import Frame
from tiling.manifest import ManifestRow

READY = "body[data-ready]"


@pytest.fixture
def opened(browser: Browser, served: Served) -> Iterator[Page]:
    """The list of slides, and the certainty that nothing was asked of others and nothing went wrong."""
    with browser.new_page(viewport={"width": 1200, "height": 800}, reduced_motion="reduce") as page:
        asked: list[str] = []
        said: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{served.address}/?token={TOKEN}")
        page.wait_for_selector(READY)
        yield page
        assert [url for url in asked if not url.startswith(("data:", "blob:", served.address))] == []
        assert said == []


@pytest.fixture
def slide(opened: Page) -> Page:
    """The first slide."""
    opened.get_by_role("link", name="one", exact=True).click()
    return drawn(opened)


def drawn(page: Page) -> Page:
    """The page when its tiles are there."""
    page.wait_for_selector(READY)
    until(page, "[...document.querySelectorAll('.leaflet-tile')].every(t => t.complete)")
    until(page, "document.querySelectorAll('.leaflet-tile-loaded').length > 0")
    page.wait_for_timeout(400)  # tiles fade in
    return page


def until(page: Page, what: str) -> None:
    """Wait until JavaScript is true of the page; its policy keeps the browser's driver from waiting by itself."""
    for _ in range(100):
        if page.evaluate(what):
            return
        page.wait_for_timeout(50)
    pytest.fail(what)


def pixels(page: Page) -> NDArray[np.int16]:
    with Image.open(io.BytesIO(page.locator("#map").screenshot())) as image:
        return np.asarray(image.convert("RGB")).astype(np.int16)


def box(where: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Left, top, right and lower edge of what is true."""
    rows, columns = np.nonzero(where)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def ids(page: Page) -> list[str]:
    return page.locator("tbody th").all_inner_texts()


def test_the_address_loses_its_token(opened: Page) -> None:
    assert TOKEN not in opened.url
    assert opened.evaluate("document.cookie") == "", "scripts do not see it"


def test_the_browser_is_led_to_the_address_by_a_file_of_the_users_own(browser: Browser, served: Served) -> None:
    """With it, no one else sees the token among the arguments of the browser."""
    with leading_to(f"{served.address}/?token={TOKEN}") as file, browser.new_page() as page:
        path = Path(file.removeprefix("file://"))
        assert TOKEN not in file
        assert [one.stat().st_mode & 0o077 for one in (path, path.parent)] == [0, 0]
        page.goto(file)
        page.wait_for_selector(READY)
        assert ids(page) == ["one", "two"]
    assert not path.exists()


def test_the_list_is_sorted_searched_and_filtered(opened: Page) -> None:
    assert ids(opened) == ["one", "two"]
    head = opened.get_by_role("button", name="score")
    head.click()
    assert ids(opened) == ["two", "one"]
    assert opened.locator("th[data-column=score]").get_attribute("aria-sort") == "ascending"
    opened.get_by_role("button", name="slide", exact=True).click()
    assert ids(opened) == ["one", "two"]
    opened.get_by_label("Search").fill("beni")
    assert ids(opened) == ["two"]
    opened.get_by_label("Search").fill("")
    opened.get_by_label("Show").select_option("called")
    assert ids(opened) == ["one"]
    until(opened, "[...document.images].every(i => i.complete && i.naturalWidth > 100)")


def test_labels_and_scores_are_counted_at_a_threshold(opened: Page) -> None:
    table = opened.locator("#confusion table")
    assert table.locator("td.number").all_inner_texts() == ["1", "0", "0", "1"]
    opened.locator("#confusion input").fill("0.01")
    assert table.locator("td.number").all_inner_texts() == ["1", "0", "1", "0"]


def test_by_keyboard_from_the_list_to_the_next_slide_and_back(opened: Page) -> None:
    opened.keyboard.press("Tab")
    opened.keyboard.press("ArrowDown")
    opened.keyboard.press("Enter")
    drawn(opened)
    assert opened.locator("h1").inner_text() == "one (tumour)"
    opened.keyboard.press("n")
    opened.wait_for_url("**/slide.html?slide=1*")
    drawn(opened)
    assert opened.locator("h1").inner_text() == "two (benign)"
    zoom = opened.url.rpartition(",")[2]
    opened.locator("#map").focus()
    opened.keyboard.press("+")
    until(opened, f"!location.hash.endsWith(',{zoom}')")
    opened.keyboard.press("p")
    opened.wait_for_url("**/slide.html?slide=0*")


def test_how_overlays_look_holds_for_the_next_slide(slide: Page) -> None:
    """But not the threshold, which is the model's."""
    slide.get_by_label("Opacity", exact=True).fill("80")
    slide.get_by_label("Colours").select_option("cividis")
    slide.get_by_role("checkbox", name="Outline at the threshold").uncheck()
    slide.get_by_label("Threshold", exact=True).first.fill("0.3")
    slide.keyboard.press("Escape")
    slide.get_by_role("button", name="Next").click()
    slide.wait_for_url("**/slide.html?slide=1*")
    drawn(slide)
    assert slide.get_by_label("Opacity", exact=True).input_value() == "80"
    assert slide.get_by_label("Colours").input_value() == "cividis"
    assert not slide.get_by_role("checkbox", name="Outline at the threshold").is_checked()
    assert slide.get_by_role("checkbox", name="Tiles when zoomed in").is_checked()
    assert slide.get_by_label("Threshold", exact=True).first.input_value() == "0.5"


@pytest.mark.parametrize("zoom", [0, 1, 1.75, 2.5, 3, 4.25])
def test_the_overlay_lies_on_the_slide_at_every_zoom(slide: Page, zoom: float) -> None:
    """The edges of the one black tile and of the one yellow square over it are the same, within a pixel."""
    x, y = ((at + 0.5) * TILE0 for at in BLACK)
    slide.evaluate(f"location.hash = '{x},{y},{zoom}'")
    slide.wait_for_timeout(300)
    drawn(slide)
    for label in ("Outline at the threshold", "Tiles when zoomed in"):
        slide.get_by_role("checkbox", name=label).uncheck()
    slide.get_by_label("Opacity", exact=True).fill("0")
    bare = pixels(slide)
    slide.get_by_label("Opacity", exact=True).fill("100")
    slide.get_by_role("checkbox", name="Only at or above").check()
    full = pixels(slide)
    black = bare.max(-1) < 60
    yellow = (full[..., 0] > 200) & (full[..., 1] > 190) & (full[..., 2] < 120)
    inner = slice(0, -60), slice(60, None)  # neither buttons nor scale bar
    assert np.abs(np.subtract(box(black[inner]), box(yellow[inner]))).max() <= 1


def test_what_the_threshold_and_the_opacity_change(slide: Page) -> None:
    slide.get_by_label("Colours").select_option("cividis")
    slide.get_by_role("checkbox", name="Outline at the threshold").uncheck()
    slide.get_by_label("Opacity", exact=True).fill("0")
    bare = pixels(slide)
    slide.get_by_label("Opacity", exact=True).fill("100")
    full = pixels(slide)
    assert (np.abs(full - bare).max(-1) > 10).mean() > 0.3
    slide.get_by_role("checkbox", name="Only at or above").check()
    one = pixels(slide)
    share = (np.abs(one - bare).max(-1) > 10).sum() / (np.abs(full - bare).max(-1) > 10).sum()
    assert share == pytest.approx(1 / 72, rel=0.2), "of 72 tiles one is called"
    threshold = slide.get_by_label("Threshold").nth(0)
    threshold.focus()
    slide.locator("input[type=number]").fill("0.2")
    slide.keyboard.press("Enter")
    more = pixels(slide)
    assert (np.abs(more - bare).max(-1) > 10).sum() > 20 * (np.abs(one - bare).max(-1) > 10).sum()
    assert "of 72 tiles at or above it" in slide.locator(".share").inner_text()
    slide.keyboard.press("o")
    slide.locator("h1").click()
    slide.keyboard.press("o")
    assert np.abs(pixels(slide) - bare).max() == 0


def test_a_tile_says_its_numbers_and_is_pinned(slide: Page) -> None:
    place = slide.locator("#map").bounding_box()
    assert place is not None
    middle = (place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    x, y = ((at + 0.5) * TILE0 for at in BLACK)
    slide.evaluate(f"location.hash = '{x},{y},3'")
    slide.wait_for_timeout(300)
    slide.mouse.move(*middle)
    said = slide.locator("#panel dl").first.inner_text().split("\n")
    assert said[said.index("probability of tumour") + 1] == "0.980"
    where = [int(number) for number in re.findall(r"\d+", slide.locator("#where").inner_text())]
    assert where == pytest.approx([x, y], abs=1)
    slide.mouse.click(*middle)
    picture = slide.get_by_role("img", name="The pinned tile at full resolution")
    until(slide, "document.querySelector('#panel canvas[aria-label^=The]').width === 256")
    slide.mouse.move(middle[0] - 300, middle[1])
    assert slide.locator("#panel dl").first.inner_text().split("\n") == said, "it stays when the mouse moves on"
    drawn(slide)
    with Image.open(io.BytesIO(picture.screenshot())) as image:
        dark = np.asarray(image.convert("L")) < 60
    assert dark.mean() == pytest.approx(0.25, abs=0.03), "with half a tile around it"
    slide.get_by_role("button", name="Release").click()
    assert picture.is_hidden()


def test_the_most_suspicious_tile_is_a_click_away(slide: Page) -> None:
    slide.get_by_role("button", name="1: 0.980").click()
    slide.wait_for_timeout(300)
    x, y, zoom = map(float, slide.url.rpartition("#")[2].split(","))
    assert (x, y) == pytest.approx([(at + 0.5) * TILE0 for at in BLACK], abs=2)
    assert zoom > 2
    assert slide.locator("#panel").get_by_text(f"x {BLACK[0] * TILE0}, y {BLACK[1] * TILE0}").is_visible()


def test_another_layer_is_drawn_by_its_own_numbers(slide: Page) -> None:
    slide.get_by_label("What is shown").select_option(label="probability of benign")
    until(slide, "document.querySelector('.share').textContent.startsWith('71 of 72')")
    slide.get_by_label("What is shown").select_option(label="blur")
    until(slide, "!document.querySelector('.share').textContent.startsWith('71 of 72')")


def test_a_telephone_and_the_dark(browser: Browser, served: Served) -> None:
    with browser.new_page(viewport={"width": 380, "height": 780}, color_scheme="dark") as page:
        page.goto(f"{served.address}/?token={TOKEN}")
        page.wait_for_selector(READY)
        assert page.evaluate("document.documentElement.scrollWidth") <= 380
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(map(int, ground.removeprefix("rgb(").removesuffix(")").split(","))) < 60
        page.goto(f"{served.address}/slide.html?slide=0")
        drawn(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 380
        size = page.locator("#map").bounding_box()
        assert size is not None
        assert size["height"] > 250
        page.get_by_role("button", name="Panel").click()
        assert not page.locator("#panel").is_visible()


@pytest.mark.parametrize(("width", "height", "least"), [(360, 640, 200), (667, 375, 300), (568, 320, 250)])
def test_a_small_telephone_upright_and_on_its_side(
    browser: Browser, served: Served, width: int, height: int, least: int
) -> None:
    """Nothing covers the slide, all of which is seen at first, at a height that can be used."""
    with browser.new_page(viewport={"width": width, "height": height}, reduced_motion="reduce") as page:
        page.goto(f"{served.address}/?token={TOKEN}")
        page.goto(f"{served.address}/slide.html?slide=0")
        drawn(page)
        boxes = [page.locator(name).bounding_box() for name in ("#map", "header", "#panel", "footer")]
        assert all(boxes)
        (left, top, right, lower), *others = [
            (b["x"], b["y"], b["x"] + b["width"], b["y"] + b["height"]) for b in boxes if b
        ]
        assert lower - top >= least
        for a, b, c, d in others:
            assert c <= left + 1 or a >= right - 1 or d <= top + 1 or b >= lower - 1
            assert (a >= 0, b >= 0, c <= width, d <= height + 1) == (True,) * 4
        buttons = [button.bounding_box() for button in page.locator("header button").all()]
        assert all(box and box["x"] + box["width"] <= width for box in buttons)
        whole = page.locator(".heat").bounding_box()
        assert whole is not None
        assert left <= whole["x"] + 1
        assert whole["x"] + whole["width"] <= right + 1
        assert top <= whole["y"] + 1
        assert whole["y"] + whole["height"] <= lower + 1


@pytest.mark.parametrize("place", ["1011,1000,3.25", "1700,1300,2.25", "1700,1300,3.85"])
def test_no_lines_between_tiles_between_zooms(browser: Browser, tmp_path: Path, place: str) -> None:
    """A slide of one colour is of one colour, alone and on two maps beside each other."""
    for name in "ab":
        write_pyramid(tmp_path / f"{name}.tif", np.full((2600, 3400, 3), (120, 60, 140), np.uint8), mpp=0.5, levels=3)
    with (
        serving(make_app(Site(find_cohort([tmp_path])), TOKEN)) as port,
        browser.new_page(viewport={"width": 1300, "height": 700}, reduced_motion="reduce", color_scheme="dark") as page,
    ):
        page.goto(f"http://127.0.0.1:{port}/?token={TOKEN}")
        page.goto(f"http://127.0.0.1:{port}/slide.html?slide=0#{place}")
        alone = pixels(drawn(page))
        page.get_by_label("Beside it").select_option(label="b")
        for picture in (alone, *at_once(drawn(page))):
            assert np.abs(picture[90:-90, 60:-60] - (120, 60, 140)).max() < 5


def test_a_slide_that_is_not_there_says_so(browser: Browser, served: Served) -> None:
    with browser.new_page() as page:
        page.goto(f"{served.address}/?token={TOKEN}")
        page.goto(f"{served.address}/slide.html?slide=77")
        page.get_by_text("There is no such slide.").wait_for()


def test_another_slide_under_the_heatmap_is_said(browser: Browser, places: Places, tmp_path: Path) -> None:
    write_pyramid(tmp_path / "one.tif", 255 - black_tile(), mpp=0.5, levels=2)
    site = Site(find_cohort([places.heatmaps / "one", tmp_path]))
    with serving(make_app(site, TOKEN)) as port, browser.new_page() as page:
        page.goto(f"http://127.0.0.1:{port}/?token={TOKEN}")
        page.goto(f"http://127.0.0.1:{port}/slide.html?slide=0")
        page.get_by_text("This is not the slide").wait_for()


@pytest.mark.parametrize("kind", ["stores", "features"])
def test_a_store_without_a_heatmap_shows_its_columns(
    browser: Browser, places: Places, kind: str, tmp_path: Path
) -> None:
    """Nothing is laid over it until that is asked for; then the chosen column, and the numbers of a pinned tile."""
    folder = places.stores if kind == "stores" else write_features_of(places, tmp_path / "f", thumbnail=True).parent
    store = TileStore(places.stores / "one.zarr")
    row = int(np.flatnonzero((store.tiles.x0 == BLACK[0] * TILE0) & (store.tiles.y0 == BLACK[1] * TILE0))[0])
    with serving(make_app(Site(find_cohort([folder])), TOKEN)) as port, browser.new_page() as page:
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}/?token={TOKEN}")
        page.goto(f"http://127.0.0.1:{port}/slide.html?slide=0")
        plain = pixels(drawn(page))
        page.get_by_text("Nothing was predicted").wait_for()
        page.get_by_label("Show the overlay").check()
        layers = page.get_by_label("What is shown")
        assert {"tissue", "blur"} <= set(layers.locator("option").all_inner_texts())
        layers.select_option(label="blur")
        blur = pixels(page)
        layers.select_option(label="tissue")
        assert (np.abs(pixels(page) - plain) > 30).any(axis=2).mean() > 0.2
        assert (pixels(page) != blur).any()
        page.evaluate(f"location.hash = '{(BLACK[0] + 0.5) * TILE0},{(BLACK[1] + 0.5) * TILE0},3'")
        page.wait_for_timeout(300)
        page.locator("#map").click()
        until(page, "!document.querySelector('#panel canvas[aria-label^=The]').hidden")
        numbers = page.locator("#panel dl").first.inner_text().split("\n")
        for name in ("tissue", "blur"):
            assert float(numbers[numbers.index(name) + 1]) == pytest.approx(store.tiles.columns[name][row], abs=6e-4)
        assert said == []


def test_colours_by_the_profile_are_a_click_away(browser: Browser, tmp_path: Path) -> None:
    """The map changes to the colours that littleCMS computes, and back; only where there is a profile."""
    path = write_slide(tmp_path / "a.tif", PROFILE, side=256)
    write_slide(tmp_path / "b.tif", None)
    cohort = find_cohort([tmp_path])
    site = Site(cohort, recoloured=Pictures(cohort.slides, icc="srgb"))
    with serving(make_app(site, TOKEN)) as port, browser.new_page(viewport={"width": 900, "height": 600}) as page:
        page.goto(f"http://127.0.0.1:{port}/?token={TOKEN}")
        page.goto(f"http://127.0.0.1:{port}/slide.html?slide=0")
        plain = pixels(drawn(page)).mean((0, 1))
        page.get_by_label("ICC profile").check()
        srgb = pixels(drawn(page)).mean((0, 1))
        page.get_by_label("ICC profile").uncheck()
        np.testing.assert_allclose(pixels(drawn(page)).mean((0, 1)), plain, atol=0.5)
        page.goto(f"http://127.0.0.1:{port}/slide.html?slide=1")
        drawn(page)
        assert page.get_by_label("ICC profile").is_hidden()
    assert site.get("data/1/recoloured/0/0-0.jpg") is None
    with Slide(path) as own, Slide(path, icc="srgb") as in_srgb:
        whole = [one.read_region(0, 0, 0, 512, 512).mean((0, 1)) for one in (own, in_srgb)]
    moved, wanted = srgb - plain, whole[1] - whole[0]
    assert np.abs(wanted).max() > 3
    ratio = moved @ wanted / (wanted @ wanted)
    np.testing.assert_allclose(moved, ratio * wanted, atol=1.5)


PINK = (200, 120, 160)
ROUND = PROFILE.replace(b"rXYZ", b"----").replace(b"bXYZ", b"rXYZ").replace(b"----", b"bXYZ")
"""Another profile: the red and blue of the first change places."""


def write_coloured(folder: Path) -> Cohort:
    """Slides of one colour: a and b with profiles of their own, c without; two models have looked at a."""
    for name, profile in (("a", PROFILE), ("b", ROUND), ("c", None)):
        tifffile.imwrite(
            folder / f"{name}.tif", np.full((512, 512, 3), PINK, np.uint8), tile=(256, 256), photometric="rgb",
            compression="jpeg", metadata=None, iccprofile=profile, resolution=(20_000, 20_000),
            resolutionunit="CENTIMETER",
        )  # fmt: skip
    for name in ("m", "n"):
        (folder / name).mkdir()
        write_heatmap(folder / name / "a", folder / "a.tif", "a", np.full((4, 4), 0.5, np.float32))
    return find_cohort([folder])


def in_srgb(profile: bytes) -> list[int]:
    """The one colour by a profile, as Pillow computes it."""
    return [int(value) for value in by_pillow(np.full((1, 1, 3), PINK, np.uint8), profile)[0, 0]]


def colours_of(page: Page) -> list[list[int]]:
    """The colour of the middle of each map's left and right half."""
    return [
        picture[picture.shape[0] // 2, round(picture.shape[1] * at)].tolist()
        for picture in at_once(drawn(page))
        for at in (0.35, 0.65)
    ]


def test_maps_beside_each_other_and_a_line_keep_to_the_chosen_colours(browser: Browser, tmp_path: Path) -> None:
    """Each slide by its own profile, on either side of the line too; one without is as scanned, and that is said."""
    cohort = write_coloured(tmp_path)
    site = Site(cohort, recoloured=Pictures(cohort.slides, icc="srgb"))
    with (
        serving(make_app(site, TOKEN)) as port,
        browser.new_page(viewport={"width": 1300, "height": 600}) as page,
    ):
        page.goto(f"http://127.0.0.1:{port}/?token={TOKEN}")
        page.goto(f"http://127.0.0.1:{port}/slide.html?slide=0")
        drawn(page)
        page.get_by_label("Show the overlay").uncheck()
        tick, lacking = page.get_by_label("ICC profile"), page.get_by_text("no ICC profile")
        page.get_by_label("To the right of the line").select_option(index=2)
        one, other = in_srgb(PROFILE), in_srgb(ROUND)
        assert np.abs(np.subtract(one, other)).max() > 20 < np.abs(np.subtract(one, PINK)).max()
        for beside, ticked, wanted in (
            ("b", True, [one, one, other, other]),
            ("b", False, [PINK] * 4),
            ("c", True, [one, one, PINK, PINK]),
            ("b", True, [one, one, other, other]),
        ):
            page.get_by_label("Beside it").select_option(label=beside)
            tick.set_checked(ticked)
            np.testing.assert_allclose(colours_of(page), wanted, atol=4)
            assert lacking.is_visible() == (beside == "c")
        page.goto(f"http://127.0.0.1:{port}/slide.html?slide=2")
        drawn(page)
        assert tick.is_hidden()
        page.get_by_label("Beside it").select_option(label="b")
        tick.check()
        np.testing.assert_allclose(colours_of(page), [PINK, PINK, other, other], atol=4)
        assert lacking.is_visible()
        page.goto(f"http://127.0.0.1:{port}/slide.html?slide=1")
        shown = pixels(drawn(page))
        middle = shown[shown.shape[0] // 2, shown.shape[1] // 2]
        np.testing.assert_allclose(middle, other, atol=4, err_msg="what was chosen holds for the next slide")
        assert tick.is_checked()


@pytest.fixture(scope="module")
def two_models(places: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a slide that two models have looked at: one calls its left half, the other its right half."""
    folder, half = tmp_path_factory.mktemp("two"), np.full((8, 10), 0.1, np.float32)
    half[:, :5] = 0.9
    annotated = np.zeros((8, 10), np.float32)
    annotated[:, :4] = 1
    for name, values in (("a", half), ("b", half[:, ::-1])):
        (folder / name).mkdir()
        columns = {"annotation/tumour": annotated.reshape(-1)}
        slide = places.slides / "one-file.tif"
        write_heatmap(folder / name / "one", slide, "one", np.ascontiguousarray(values), columns=columns)
    write_pyramid(folder / "other.tif", np.ascontiguousarray(black_tile()[::2, ::2]), mpp=1.0, levels=2, tile_px=240)
    other = ManifestRow(slide_path=folder / "other.tif", slide_id="other", case_id="one")
    site = Site(find_cohort([folder / "a", folder / "b"], [places.rows[0], other]))
    with serving(make_app(site, TOKEN)) as port:
        yield f"http://127.0.0.1:{port}"


def test_two_models_with_a_line_between_them(browser: Browser, two_models: str) -> None:
    """Left of the line the picture is the first model's, right of it the other's."""
    with browser.new_page(viewport={"width": 1200, "height": 800}) as page:
        page.goto(f"{two_models}/?token={TOKEN}")
        page.goto(f"{two_models}/slide.html?slide=0")
        drawn(page)
        page.get_by_label("Opacity", exact=True).fill("100")
        page.get_by_label("To the right of the line").select_option(index=2)
        page.wait_for_timeout(300)
        pictures = []
        for value in ("100", "0", "50"):
            page.get_by_label("Line between the models").fill(value)
            pictures.append(pixels(page))
        first, other, both = pictures
        middle = first.shape[1] // 2
        assert (np.abs(first - other).max(-1) > 40).mean() > 0.3
        left, right = slice(60, middle - 4), slice(middle + 4, first.shape[1] - 4)  # without buttons and the line
        assert np.abs(both[:-60, left] - first[:-60, left]).max() == 0
        assert np.abs(both[:-60, right] - other[:-60, right]).max() == 0


def at_once(page: Page) -> list[NDArray[np.int16]]:
    """What the two maps show, without their controls."""
    page.mouse.move(2, 2)  # no cross of the cursor
    page.wait_for_timeout(500)
    with Image.open(io.BytesIO(page.screenshot())) as image:
        whole = np.asarray(image.convert("RGB")).astype(np.int16)
    found = []
    for name in ("#map", "#beside"):
        place = page.locator(name).bounding_box()
        assert place is not None
        left, top, width, height = (round(place[key]) for key in ("x", "y", "width", "height"))
        found.append(whole[top + 90 : top + height - 60, left : left + width])
    width = min(picture.shape[1] for picture in found)
    return [picture[:, :width] for picture in found]


def test_two_models_and_two_slides_side_by_side_move_together(browser: Browser, two_models: str) -> None:
    """The other slide is the same picture at half the resolution, in other tiles: both show the same at one scale."""
    with browser.new_page(viewport={"width": 1300, "height": 700}, reduced_motion="reduce") as page:
        page.goto(f"{two_models}/?token={TOKEN}")
        page.goto(f"{two_models}/slide.html?slide=0#700,450,2.25")
        drawn(page)
        said = page.locator(".share").inner_text()
        assert "under the annotation 100% (sensitivity)" in said
        assert "outside it 83% are below" in said, "one column of six"
        beside = page.get_by_label("Beside it")
        beside.select_option("0,1")
        drawn(page)
        one, other = at_once(page)
        assert (np.abs(one - other).max(-1) > 40).mean() > 0.3, "each has its own heatmap"
        page.get_by_role("checkbox", name="Show the overlay").uncheck()
        one, other = (np.array(box(picture.max(-1) < 60)) for picture in at_once(page))
        assert np.abs(one - other).max() <= 1
        beside.select_option(label="other")
        drawn(page)
        for act in ("wheel", "drag", "turn"):
            page.mouse.move(350, 350)
            if act == "wheel":
                page.mouse.wheel(0, -240)
            elif act == "drag":
                page.mouse.down()
                page.mouse.move(450, 420, steps=4)
                page.mouse.up()
            else:
                page.keyboard.press("r")
                page.wait_for_timeout(500)
                page.locator("#beside").get_by_role("button", name="Turn").click()
            drawn(page)
            one, other = (np.array(box(picture.max(-1) < 60)) for picture in at_once(page))
            assert np.abs(one - other).max() <= 2, act
        beside.select_option("")
        assert page.locator("#beside").is_hidden()


def test_a_turned_picture_is_saved_as_it_is_seen(browser: Browser, two_models: str) -> None:
    """A quarter turn of the slide, its overlays and the line between two models; then as a PNG."""
    with browser.new_page(viewport={"width": 1200, "height": 800}) as page:
        page.goto(f"{two_models}/?token={TOKEN}")
        page.goto(f"{two_models}/slide.html?slide=0#640,448,2")
        drawn(page)
        place = page.locator("#map").bounding_box()
        assert place is not None
        x, y = round(place["width"] / 2), round(place["height"] / 2)
        square = np.s_[y - 200 : y + 200, x - 200 : x + 200]
        page.get_by_role("checkbox", name="Tiles when zoomed in").uncheck()
        before = pixels(page)[square]
        page.keyboard.press("r")
        drawn(page)
        after = pixels(page)[square]
        assert (np.abs(after - np.rot90(before, -1)).max(-1) > 30).mean() < 0.02, "edges lie within a pixel"
        assert page.url.endswith(",1")
        page.get_by_label("To the right of the line").select_option(index=2)
        page.wait_for_timeout(300)
        seen = pixels(page)
        with page.expect_download() as download:
            page.get_by_role("button", name="Save picture").click()
        assert download.value.suggested_filename == "one.png"
        with Image.open(download.value.path()) as image:
            saved = np.asarray(image.convert("RGB")).astype(np.int16)
        assert saved.shape[1] == seen.shape[1]
        assert seen.shape[0] + 30 < saved.shape[0] < seen.shape[0] + 120, "words below it"
        apart = np.abs(saved[: len(seen)] - seen).max(-1) > 24
        apart[:90, :50], apart[:, x - 3 : x + 3] = False, False  # buttons and the line
        assert apart.mean() < 0.02, "edges lie within a pixel"


def test_the_tissue_mask_is_outlined(slide: Page) -> None:
    """All of this slide is tissue: the line is its edge."""
    slide.get_by_role("checkbox", name="Show the overlay").uncheck()
    before = pixels(slide)
    slide.keyboard.press("t")
    slide.wait_for_timeout(300)
    after = pixels(slide)
    pink = box(np.abs(before - np.array([235, 190, 215])).max(-1) < 12)
    changed = box(np.abs(after - before).max(-1) > 60)
    assert np.abs(np.subtract(pink, changed)).max() <= 4


def test_a_polygon_is_drawn_saved_found_again_and_read_by_others(slide: Page, served: Served) -> None:
    """Three corners by the mouse; after a reload it is there, and `specslide label` reads it where it was drawn."""
    place = slide.locator("#map").bounding_box()
    assert place is not None
    slide.evaluate("location.hash = '640,512,2'")
    slide.wait_for_timeout(300)
    slide.get_by_label("Your name").fill("Ann")
    slide.get_by_label("Class").fill("tumour")
    slide.get_by_label("Note").fill("dense, dark")
    slide.get_by_role("button", name="Polygon").click()
    drawn_at = [(0.3, 0.3), (0.6, 0.35), (0.45, 0.7)]
    for x, y in drawn_at:
        slide.mouse.click(place["x"] + x * place["width"], place["y"] + y * place["height"])
    slide.keyboard.press("Enter")
    slide.get_by_text("Saved.").wait_for()
    middle_x, middle_y, zoom = map(float, slide.url.rpartition("#")[2].split(","))
    px0 = 2 ** (3 - zoom)
    expected = shapely.Polygon(
        [
            (middle_x + (x - 0.5) * place["width"] * px0, middle_y + (y - 0.5) * place["height"] * px0)
            for x, y in drawn_at
        ]
    )
    (found,) = read_polygons(served.marks / "ann" / "one.geojson", Frame(SIZE0)).items()
    assert found[0] == "tumour"
    assert found[1].symmetric_difference(expected).area < 0.03 * expected.area
    slide.reload()
    drawn(slide)
    assert slide.get_by_role("button", name="tumour (area)").is_visible()
    slide.get_by_role("button", name="Remove").click()
    slide.get_by_text("Nothing is drawn yet.").wait_for()


def test_a_point_by_the_keyboard_alone(slide: Page, served: Served) -> None:
    slide.get_by_label("Your name").fill("bob")
    slide.get_by_label("Class").fill("mitosis")
    slide.get_by_role("button", name="Point").focus()
    slide.keyboard.press("Enter")
    slide.keyboard.press("Space")
    slide.get_by_text("Saved.").wait_for()
    (feature,) = json.loads((served.marks / "bob" / "one.geojson").read_text())["features"]
    assert feature["geometry"]["coordinates"] == pytest.approx([640, 512], abs=3)
    assert feature["properties"]["metadata"]["model_sha256"] == "cd" * 32
    assert slide.locator("#panel canvas[role=img][aria-label^=The]").is_hidden(), "it pins no tile"


def test_the_pinned_tile_becomes_a_mark(slide: Page, served: Served) -> None:
    slide.get_by_label("Your name").fill("eve")
    slide.get_by_role("button", name="1: 0.980").click()
    slide.get_by_label("Class").fill("benign")
    slide.get_by_role("button", name="Pinned tile").click()
    slide.get_by_text("Saved.").wait_for()
    (area,) = read_polygons(served.marks / "eve" / "one.geojson", Frame(SIZE0)).values()
    assert area.bounds == tuple(at * TILE0 for at in (*BLACK, BLACK[0] + 1, BLACK[1] + 1))
