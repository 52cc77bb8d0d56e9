"""What the viewer says of a tile's model: the occlusion map of the pixels that the heatmap was made of."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser

from inference.occlusion import occlusion_map
from inference.viewer.cohort import find_cohort
from inference.viewer.explainer import Explainer
from inference.viewer.pictures import Pictures
from inference.viewer.server import make_app
from inference.viewer.site import Site
from pipeline.demo.synthetic import write_pyramid
from tests.inference.viewer.conftest import SIZE0, TILE0, TOKEN, Places, got, serving, write_heatmap
from tests.tiling.test_icc import PROFILE, write_slide
from tiling import Slide
from tiling.core.arrays import Float32Array, UInt8Array
from tiling.core.errors import ModelError

MODEL = "cd" * 32  # of the cohort's heatmaps
COLUMN, ROW = 4, 2


def darkest(tiles: UInt8Array) -> Float32Array:
    """A model that looks at the detail of the left half."""
    return np.asarray(0.2 + tiles[:, :, :64].std(axis=(1, 2, 3)) / 200, np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`slides/speckled.tif`, noise all over, and its heatmap."""
    folder = tmp_path_factory.mktemp("explained")
    for name in ("slides", "heatmaps"):
        (folder / name).mkdir()
    slide = folder / "slides" / "speckled.tif"
    noise = np.random.default_rng(0).integers(90, 250, (*SIZE0[::-1], 3), np.uint8)
    write_pyramid(slide, noise, mpp=0.5, levels=2)
    write_heatmap(folder / "heatmaps" / "speckled", slide, "speckled", np.full((8, 10), 0.6, np.float32))
    return folder


def site_of(*paths: Path, explainer: Explainer | None = None) -> Site:
    return Site(find_cohort(list(paths)), explainer=explainer)


def test_it_is_the_map_of_the_tile_as_the_slide_has_it(folder: Path) -> None:
    site = site_of(folder, explainer=Explainer({MODEL: darkest}))
    with Slide(folder / "slides" / "speckled.tif") as slide:
        tile = slide.read_scaled(COLUMN * TILE0, ROW * TILE0, (TILE0, TILE0), (TILE0, TILE0))
    found = np.frombuffer(got(site, f"data/0/0/occlusion-{ROW * 10 + COLUMN}.bin"), "<f4")
    assert found[0] == darkest(tile[None])[0]
    np.testing.assert_array_equal(found[1:].reshape(TILE0, TILE0), occlusion_map(tile, darkest))
    assert found[1:].reshape(TILE0, TILE0)[:, :64].min() > 0
    assert b'"occlusion":{"for"' in got(site, "data/0/slide.json")
    assert site.get("data/0/0/occlusion-80.bin") is None
    assert site.get("data/0/1/occlusion-0.bin") is None
    assert not [address for address in site.addresses() if "occlusion" in address], "nothing of it is exported"


def test_nothing_is_offered_where_it_cannot_be_had(folder: Path, places: Places) -> None:
    """Without a model, by another model, without pixels, and of a store without heatmap."""
    known = Explainer({MODEL: darkest})
    for site in (
        site_of(folder),
        site_of(folder, explainer=Explainer({"ab" * 32: darkest})),
        site_of(folder / "heatmaps", explainer=known),
        site_of(places.stores, explainer=known),
    ):
        assert site.get("data/0/0/occlusion-0.bin") is None
        assert b'"occlusion":null' in got(site, "data/0/slide.json")


def test_a_store_is_looked_at_where_the_slide_is_not(places: Places) -> None:
    site = Site(find_cohort([places.heatmaps, places.stores], places.rows[:0]), explainer=Explainer({MODEL: darkest}))
    number = next(n for n, shown in enumerate(site.cohort.slides) if shown.store is not None)
    assert site.get(f"data/{number}/0/occlusion-0.bin") is not None


def test_it_sees_the_colours_that_the_heatmap_was_made_in(tmp_path: Path) -> None:
    for name in ("slides", "heatmaps"):
        (tmp_path / name).mkdir()
    path = write_slide(tmp_path / "slides" / "coloured.tif", PROFILE)
    changes = {"provenance": {"model_sha256": MODEL, "backbone": "test_resnet", "icc": "srgb"}}
    write_heatmap(tmp_path / "heatmaps" / "coloured", path, "coloured", np.full((4, 4), 0.6, np.float32), **changes)
    cohort, seen = find_cohort([tmp_path]), list[UInt8Array]()

    def keep(tiles: UInt8Array) -> Float32Array:
        seen.append(tiles[0].copy())
        return darkest(tiles)

    site = Site(
        cohort, Pictures(cohort.slides), recoloured=Pictures(cohort.slides, icc="srgb"),
        explainer=Explainer({MODEL: keep}),
    )  # fmt: skip
    got(site, "data/0/0/occlusion-5.bin")
    with Slide(path, icc="srgb") as slide:
        np.testing.assert_array_equal(seen[0], slide.read_scaled(TILE0, TILE0, (TILE0, TILE0), (TILE0, TILE0)))


def test_who_asks_meanwhile_is_told_to_ask_again_and_the_same_is_not_computed_twice() -> None:
    begun, go_on, asked = threading.Event(), threading.Event(), list[int]()

    def slow(tiles: UInt8Array) -> Float32Array:
        asked.append(len(tiles))
        begun.set()
        assert go_on.wait(20)
        return np.zeros(len(tiles), np.float32)

    explainer, tile = Explainer({MODEL: slow}), np.zeros((16, 16, 3), np.uint8)
    thread = threading.Thread(target=explainer.explain, args=(MODEL, tile))
    thread.start()
    assert begun.wait(20)
    with pytest.raises(ModelError, match="busy"):
        explainer.explain(MODEL, tile + 1)
    go_on.set()
    thread.join(20)
    known = len(asked)
    explainer.explain(MODEL, tile)
    assert len(asked) == known


def test_a_reader_asks_by_a_button(browser: Browser, folder: Path) -> None:
    """Only of a pinned tile; its picture turns orange where the model looks, and grey elsewhere."""
    site = site_of(folder, explainer=Explainer({MODEL: darkest}))
    with serving(make_app(site, TOKEN)) as port, browser.new_page(viewport={"width": 1200, "height": 1000}) as page:
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}/?token={TOKEN}")
        page.goto(f"http://127.0.0.1:{port}/slide.html?slide=0")
        page.wait_for_selector("body[data-ready]")
        button = page.get_by_role("button", name="What does the model look at?")
        assert button.is_hidden()
        page.locator(".ranked button").first.click()
        button.click()
        page.get_by_text("blurring that part lowers its probability of tumour").wait_for()
        page.get_by_text("in the heatmap it is 0.600").wait_for()
        shot = page.get_by_role("img", name="The pinned tile at full resolution").screenshot()
        with Image.open(io.BytesIO(shot)) as image:
            drawn = np.asarray(image.convert("RGB")).astype(int)
        side = len(drawn)
        inner = slice(round(side * 0.28), round(side * 0.72))
        left, right = (drawn[inner, round(side * a) : round(side * b)] for a, b in ((0.28, 0.45), (0.63, 0.72)))
        assert (left[..., 0] - left[..., 2]).mean() > 60, "orange"
        assert np.abs(right - right.mean(axis=2, keepdims=True)).max() < 30, "grey"
        assert button.is_hidden()
        page.get_by_role("button", name="Release").click()
        assert page.get_by_text("blurring that part").is_hidden()
        assert said == []
