"""The page opens without a network, and no name breaks it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from pipeline.ledger import without_paths
from pipeline.page import Picture, Section, write_cohort_index, write_page


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


def result(folder: Path, name: str, top: float | None, *, report: bool = True) -> None:
    """A folder as specslide heatmap leaves it, of what the index reads."""
    scores = {"top5_mean": top, "mean": top, "fraction_above_threshold": top}
    summary = {
        "format": "specslide-heatmap", "scores": scores, "positive_class": "tumour", "tiles": 1200, "threshold": 0.5,
        "made_from": {"model_sha256": "ab" * 32},
    }  # fmt: skip
    (folder / name).mkdir(parents=True)
    (folder / name / "slide.json").write_text(json.dumps(summary))
    if report:
        (folder / name / "report.html").touch()


def test_the_index_of_a_cohort_opens_every_report(tmp_path: Path) -> None:
    for name, top in (("a", 0.2), ("b#1", 0.9), ("c", None)):
        result(tmp_path, name, top)
    result(tmp_path, "earlier", 0.5, report=False)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "slide.json").write_text("no heatmap")
    write_cohort_index(tmp_path, {"bad": "cannot be <read>"})
    page = Parsed(tmp_path / "index.html")
    reports = [link for link in page.links if link.endswith("report.html")]
    assert reports[:3] == ["b#1/report.html", "a/report.html", "c/report.html"], "the most suspicious first"
    assert "earlier/overlay.png" in page.links
    assert all((tmp_path / link).exists() for link in reports)
    for words in ("4 slides", "Not analysed", "cannot be <read>", "0.900", "none", "1,200", "ab" * 6):
        assert words in page.text
    assert page.text.index("b#1") < page.text.index("earlier")
    assert "model/" not in page.links


@pytest.mark.parametrize("name", [name for name in HOSTILE if "/" not in name])
def test_the_index_believes_no_name(tmp_path: Path, name: str) -> None:
    result(tmp_path, name, 0.5)
    write_cohort_index(tmp_path, {name: name})
    page = Parsed(tmp_path / "index.html")
    assert "script" not in page.tags
    assert f"{name}/report.html" in page.links
    assert page.text.count(name) >= 4


def test_without_results_there_is_no_index(tmp_path: Path) -> None:
    write_cohort_index(tmp_path, {"bad": "reason"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("{source}: is not a slide; pass a slide", "secret x.svs: is not a slide; pass a slide"),
        ("{source}, too coarse for 0.5 µm/px", "secret x.svs, too coarse for 0.5 µm/px"),
        ("/home/ann/roi/b.geojson: marks no area", "b.geojson: marks no area"),
        ("disc full and/or slow", "disc full and/or slow"),
    ],
)
def test_a_reason_tells_nothing_of_the_machine(tmp_path: Path, reason: str, shown: str) -> None:
    source = str(tmp_path / "a folder" / "secret x.svs")
    assert without_paths(reason.format(source=source), Path(source).parent) == shown
