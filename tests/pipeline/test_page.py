"""The page opens without a network, and no name breaks it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from pipeline.page import Picture, Section, write_page


class Parsed(HTMLParser):
    """The tags, links and text of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [unquote(value) for name, value in attrs if name in ("href", "src") and value]

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = ["<script>alert(1)</script>", 'a"b', "a&b", "a'b", "µ–癌", "100%", "a#b?c=d"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_shown_as_they_are(tmp_path: Path, name: str) -> None:
    picture = Picture(tmp_path / name.replace("/", "_") / "overlay.png", name)
    page = tmp_path / "index.html"
    write_page(page, name, [Section(name, name, (name,), ((name, 1),), (picture,))])
    parsed = Parsed(page)
    assert "script" not in parsed.tags
    assert parsed.text.count(name) >= 6
    assert set(parsed.links) == {f"{name.replace('/', '_')}/overlay.png"}


def test_it_says_what_it_is_for_and_asks_no_network(tmp_path: Path) -> None:
    write_page(tmp_path / "index.html", "study", [Section("Empty")])
    text = (tmp_path / "index.html").read_text()
    assert "For research use only" in text
    assert "://" not in text
    assert 'charset="utf-8"' in text


def test_a_section_without_rows_has_no_table(tmp_path: Path) -> None:
    write_page(tmp_path / "index.html", "study", [Section("Data", columns=("a", "b"))])
    assert "table" not in Parsed(tmp_path / "index.html").tags
