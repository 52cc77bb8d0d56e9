"""The viewer as files: what the server says, whole or not at all, and shown by any web server under any prefix."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from playwright.sync_api import Browser, Page

from inference.viewer.cohort import find_cohort
from inference.viewer.export import export_site
from inference.viewer.pictures import Pictures
from inference.viewer.site import Site
from tests.inference.viewer.conftest import Places, got
from tests.inference.viewer.test_viewer_browser import PINK, READY, ROUND, drawn, ids, in_srgb, write_coloured
from tests.tiling.test_icc import PROFILE
from tiling.core.errors import OutputError


def quiet(done: int, total: int) -> None:
    assert 0 <= done <= total


@pytest.fixture(scope="module")
def plain(places: Places) -> Iterator[Site]:
    """A site without drawing."""
    site = Site(find_cohort([places.heatmaps, places.stores], places.rows))
    yield site
    site.pictures.close()


@pytest.fixture(scope="module")
def exported(plain: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web") / "a prefix" / "view"
    export_site(plain, folder, quiet)
    return folder


def test_the_files_are_what_the_server_says(exported: Path, plain: Site, places: Places) -> None:
    files = {path.relative_to(exported).as_posix(): path for path in exported.rglob("*") if path.is_file()}
    assert set(files) == {*plain.addresses(), "commit.json"}
    for address in plain.addresses():
        assert files[address].read_bytes() == got(plain, address), address
    for path in files.values():
        assert b"one-file" not in path.read_bytes()
        assert str(places.slides).encode() not in path.read_bytes()


def test_the_same_again_writes_nothing_and_strangers_stay(exported: Path, plain: Site, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in exported.rglob("*")}
    export_site(plain, exported, quiet)
    assert {path: path.stat().st_mtime_ns for path in exported.rglob("*")} == before
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="something else"):
        export_site(plain, tmp_path, quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_another_cohort_replaces_an_export(exported: Path, places: Places, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "view")
    site = Site(find_cohort([places.heatmaps / "two"], places.rows[1:]))
    assert export_site(site, folder, quiet) == len(list(site.addresses()))
    assert not (folder / "data" / "1").exists()


@contextmanager
def on_the_web(folder: Path, browser: Browser) -> Iterator[tuple[Page, str]]:
    """A page, the address of a folder on a web server, and the certainty that nothing goes wrong."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    handler.func.log_message = lambda *_: None  # type: ignore[attr-defined]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with browser.new_page(viewport={"width": 1200, "height": 800}) as page:
            said: list[str] = []
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            yield page, f"http://127.0.0.1:{server.server_port}"
            assert said == []
        server.shutdown()


def test_it_works_behind_a_prefix_without_specslide(exported: Path, browser: Browser) -> None:
    with on_the_web(exported.parents[1], browser) as (page, address):
        page.goto(f"{address}/a%20prefix/view/")
        page.wait_for_selector(READY)
        assert ids(page) == ["one", "two"]
        page.get_by_role("link", name="one", exact=True).click()
        drawn(page)
        page.get_by_role("button", name="1: 0.980").click()
        page.get_by_role("img", name="The pinned tile").wait_for()
        assert not page.get_by_text("Marks").is_visible()


def test_it_holds_the_colours_that_were_asked_for(browser: Browser, tmp_path: Path) -> None:
    """Each slide's by its own profile, in one folder once and in another in both; the page says which."""
    (tmp_path / "of").mkdir()
    cohort = write_coloured(tmp_path / "of")
    for name, recoloured in (("once", None), ("both", Pictures(cohort.slides))):
        site = Site(cohort, Pictures(cohort.slides, icc="srgb"), recoloured=recoloured)
        export_site(site, tmp_path / "web" / name, quiet)
    once, both = tmp_path / "web" / "once" / "data", tmp_path / "web" / "both" / "data"
    for number, wanted in enumerate((in_srgb(PROFILE), in_srgb(ROUND), PINK)):
        for tile in (once / f"{number}/1/0-0.jpg", both / f"{number}/1/0-0.jpg", both / f"{number}/0/0-0.jpg"):
            np.testing.assert_allclose(simplejpeg.decode_jpeg(tile.read_bytes())[99, 99], wanted, atol=3)
    own = sorted(both.glob("*/recoloured/1/*.jpg"))
    assert [path.parts[-4] for path in own] == ["0"] * 4 + ["1"] * 4
    for tile in own:
        np.testing.assert_allclose(simplejpeg.decode_jpeg(tile.read_bytes())[99, 99], PINK, atol=3)
    assert not list(once.glob("*/recoloured"))
    with on_the_web(tmp_path / "web", browser) as (page, address):
        for name, number, switch, words in (
            ("once", 0, False, "Colours in sRGB"), ("once", 2, False, "no ICC profile"), ("both", 0, True, None),
        ):  # fmt: skip
            page.goto(f"{address}/{name}/slide.html?slide={number}")
            drawn(page)
            assert page.get_by_label("ICC profile").is_visible() == switch
            note = page.locator("#panel .note[role=status]")
            assert words in note.inner_text() if words else not note.is_visible()
