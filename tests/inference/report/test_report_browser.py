"""The report as a person uses it: in a browser, with its policy in force, by mouse and keyboard."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from inference.heatmap import make_heatmap
from tests.inference.conftest import write_model
from tiling.core.pages import Section, markdown_page, write_page
from training import load_model
from training.evaluation.tables import markdown_table


@pytest.fixture(scope="module")
def report(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a slide of 512 x 512 px, predicted in its middle."""
    folder = tmp_path_factory.mktemp("report")
    return make_heatmap(slide, load_model(write_model(folder / "model")), folder).folder / "report.html"


@pytest.fixture
def opened(browser: Browser, report: Path) -> Iterator[Page]:
    """The page, and the certainty that it asked for nothing and that its policy stopped nothing of its own."""
    with browser.new_page(viewport={"width": 900, "height": 1200}) as page:
        asked: list[str] = []
        said: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(report.as_uri())
        yield page
        assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
        assert said == []


def opacity(page: Page) -> float:
    return float(page.evaluate("getComputedStyle(document.getElementById('heat')).opacity"))


def test_the_slider_fades_the_heatmap(opened: Page) -> None:
    slider = opened.get_by_label("Opacity of the heatmap")
    assert (slider.input_value(), opacity(opened)) == ("55", 0.55)
    slider.fill("0")
    assert (opacity(opened), opened.locator("#shown").inner_text()) == (0, "0%")
    slider.press("ArrowRight")
    assert (opacity(opened), opened.locator("#shown").inner_text()) == (0.01, "1%")
    slider.press("End")
    assert (opacity(opened), opened.locator("#shown").inner_text()) == (1, "100%")


@pytest.mark.parametrize("width", [900, 380])
def test_the_heatmap_lies_on_the_slide_in_any_window(opened: Page, width: int) -> None:
    """The layers share their corner and scale; on a telephone nothing is wider than the window."""
    opened.set_viewport_size({"width": width, "height": 1200})
    slide, heat = (opened.locator(name).bounding_box() for name in ("#slide", "#heat"))
    assert slide is not None
    assert heat is not None
    assert (heat["x"], heat["y"]) == pytest.approx((slide["x"], slide["y"]), abs=0.5)
    assert (heat["width"], heat["height"]) == pytest.approx((slide["width"], slide["height"]), abs=0.5)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(
    ("label", "layer"), [("Outline of what the model calls tumour", "contour"), ("Numbers of the tiles", "places")]
)
def test_a_layer_is_hidden_and_shown_by_the_keyboard(opened: Page, label: str, layer: str) -> None:
    box, drawn = opened.get_by_role("checkbox", name=label), opened.locator(f"#{layer}")
    box.focus()
    seen = []
    for shown in (True, False, True):
        assert (box.is_checked(), drawn.is_visible()) == (shown, shown)
        seen.append(pixels(opened.locator(".stack").screenshot()))
        opened.keyboard.press("Space")
    with_it, without, again = seen
    changed, left = ((np.abs(with_it - other).max(-1) > 60).mean() for other in (without, again))
    assert 0.0005 < changed < 0.5
    assert left == 0


@pytest.mark.parametrize("width", [900, 380])
def test_lines_lie_on_their_tiles_in_any_window(opened: Page, width: int) -> None:
    """Numbers at the middles of their tiles, which are 32 px of a slide of 512, and as large as in any window."""
    opened.set_viewport_size({"width": width, "height": 1200})
    slide, caption = opened.locator("#slide").bounding_box(), opened.locator(".tiles figcaption").first.inner_text()
    number, outline = opened.locator("#places text").first, opened.locator("#contour .inner").bounding_box()
    mark = number.bounding_box()
    assert slide is not None
    assert mark is not None
    assert outline is not None
    x, y = (int(found) + 16 for found in re.findall(r"[xy] (\d+)", caption))
    scale = slide["width"] / 512
    middle = (mark["x"] + mark["width"] / 2 - slide["x"], mark["y"] + mark["height"] / 2 - slide["y"])
    assert middle == pytest.approx((x * scale, y * scale), abs=2)
    assert number.evaluate("e => getComputedStyle(e).fontSize") == "14px"
    lines = [(outline["x"] - slide["x"]) / scale, (outline["x"] - slide["x"] + outline["width"]) / scale]
    assert all(min(line % 32, -line % 32) * scale < 3 for line in lines), "along the edges of tiles"


def test_what_is_not_analysed_shows_the_slide_alone(opened: Page) -> None:
    """At full opacity the corner, which is glass, looks as it does without the heatmap, and the middle does not."""
    slider, stack = opened.get_by_label("Opacity of the heatmap"), opened.locator(".stack")
    pictures = []
    for value in ("0", "100"):
        slider.fill(value)
        pictures.append(pixels(stack.screenshot()))
    bare, full = pictures
    middle = bare.shape[0] // 2, bare.shape[1] // 2
    assert np.abs(bare[5, 5] - full[5, 5]).max() == 0
    assert np.abs(bare[middle] - full[middle]).max() > 20


def pixels(png: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB")).astype(np.int16)


@pytest.mark.parametrize("of_markdown", [False, True])
def test_on_a_telephone_a_table_scrolls_and_breaks_no_number(
    browser: Browser, tmp_path: Path, of_markdown: bool
) -> None:
    columns, row = ("slide", "class", "tiles", "top 5%", "mean", "share"), ("her2st_B4", "idc", "1,299", *["0.713"] * 3)
    path = tmp_path / "index.html"
    write_page(path, "Slides", [Section("Slides", columns=columns * 2, rows=(row * 2,))])
    if of_markdown:
        path.write_text(markdown_page("# Slides\n\n" + markdown_table(columns * 2, [row * 2])))
    with browser.new_page(viewport={"width": 380, "height": 800}) as page:
        page.goto(path.as_uri())
        page.evaluate("document.fonts.ready")
        lines = page.evaluate(
            "[...document.querySelectorAll('td')].map((cell) => { const all = document.createRange();"
            "all.selectNodeContents(cell); return all.getClientRects().length; })"
        )
        assert lines == [1] * 12
        assert page.evaluate("document.documentElement.scrollWidth") <= 380
