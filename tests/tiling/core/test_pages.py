"""Pages of Markdown: what is said is shown, and nothing that users name becomes more than text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from tiling.core.pages import markdown_page

TEXT = """# Evaluation

**For research use only. Not for diagnostic use.**

**Two** classes.

| class | tiles |
| --- | --- |
| <b>x</b> [y](http://a.example/) ![z](http://a.example/z.png) <http://b.example> | 1,200 |

## By site
"""


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_headings_tables_and_pictures_are_there() -> None:
    page = markdown_page(TEXT, ["a b.png"])
    assert re.search(r"<h1>Evaluation</h1>.*<strong>Two</strong>.*<td>1,200</td>.*<h2>By site</h2>", page, re.DOTALL)
    tags = Tags(page).found
    assert [of["src"] for tag, of in tags if tag == "img"] == ["a%20b.png"]
    assert sum(tag == "table" for tag, _ in tags) == 1
    assert page.count("Not for diagnostic use") == 2, "at its top and its end"


def test_what_users_name_is_text() -> None:
    tags = Tags(markdown_page(TEXT)).found
    assert {tag for tag, _ in tags}.isdisjoint({"b", "a", "img", "script"})
    assert "&lt;b&gt;x&lt;/b&gt;" in markdown_page(TEXT)
