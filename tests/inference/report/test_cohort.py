"""The page opens without a network, and no name breaks it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from inference.report.cohort import write_cohort_index
from inference.summary import read_summary
from tiling.core.errors import InputError
from tiling.core.pages import Picture, Section, write_page


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


SLIDE = {
    "slide_id": "s", "sha256": "cd" * 32, "width": 512, "height": 512, "mpp": 0.5, "vendor": "test",
    "objective_power": None, "level_downsamples": [1.0],
}  # fmt: skip
GRID = {"width0": 512, "height0": 512, "slide_mpp": 0.5, "tile_px": 32, "tile_px0": 32, "stride_px0": 32}
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


def result(
    folder: Path, name: str, top: float | None, *, report: bool = True, unlike: dict[str, object] | None = None
) -> None:
    """A folder as specslide heatmap leaves it, of what the index reads."""
    (folder / name).mkdir(parents=True)
    (folder / name / "slide.json").write_text(text_of(top, unlike))
    if report:
        (folder / name / "report.html").touch()


def text_of(top: float | None, unlike: dict[str, object] | None = None) -> str:
    scores = {"top5_mean": top, "mean": top, "fraction_above_threshold": top}
    summary = {
        "format": "specslide-heatmap", "version": 2, "scores": scores, "classes": ["benign", "tumour"],
        "positive_class": "tumour", "tiles": 1200, "threshold": 0.5, "made_from": {"model_sha256": "ab" * 32},
        "out_of_distribution": unlike, "slide": SLIDE, "grid": GRID,
    }  # fmt: skip
    return json.dumps(summary)


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


def test_the_index_warns_of_slides_unlike_what_the_model_has_seen(tmp_path: Path) -> None:
    result(tmp_path, "like", 0.2, unlike={"share": 0.004, "warning": None})
    result(tmp_path, "unlike", 0.9, unlike={"share": 1.0, "warning": "This <whole> slide lies outside."})
    result(tmp_path, "none", None, unlike={"share": None, "warning": None})
    result(tmp_path, "untold", 0.1)
    write_cohort_index(tmp_path, {})
    text = Parsed(tmp_path / "index.html").text
    assert "unlike tumour" not in text
    for words in ("100%", "0%", "Unlike what the model has seen", "This <whole> slide lies outside."):
        assert words in text
    assert not (tmp_path / "not_analysed.json").exists()


def test_results_under_way_are_not_listed(tmp_path: Path) -> None:
    for name in ("a", ".b.partial", ".c.replaced"):
        result(tmp_path, name, 0.5)
    write_cohort_index(tmp_path, {})
    assert {link.split("/")[0] for link in Parsed(tmp_path / "index.html").links} == {"a"}


def test_what_failed_stays_in_the_index_until_there_is_a_result(tmp_path: Path) -> None:
    """Several jobs that share the slides, one after the other; then one of the slides is tried again."""
    result(tmp_path, "a", 0.5)
    write_cohort_index(tmp_path, {"b": "is cut short"})
    write_cohort_index(tmp_path, {"c": "has no scale"})
    page = Parsed(tmp_path / "index.html").text
    assert "is cut short" in page
    assert "has no scale" in page
    result(tmp_path, "b", 0.5)
    write_cohort_index(tmp_path, {"a": "holds another result"})
    page = Parsed(tmp_path / "index.html").text
    assert "is cut short" not in page
    assert "has no scale" in page
    assert "holds another result" in page, "the result that is there is an older one"
    (tmp_path / "not_analysed.json").write_text("[torn")
    write_cohort_index(tmp_path, {})
    assert "Not analysed" not in Parsed(tmp_path / "index.html").text


def test_jobs_that_finish_together_leave_an_index_of_all(tmp_path: Path) -> None:
    def job(number: int) -> None:
        result(tmp_path, f"s{number:02}", 0.5)
        write_cohort_index(tmp_path, {f"bad{number:02}": "is cut short"})

    with ThreadPoolExecutor(8) as jobs:
        list(jobs.map(job, range(24)))
    page = Parsed(tmp_path / "index.html")
    assert {link for link in page.links if link.endswith("report.html")} == {f"s{n:02}/report.html" for n in range(24)}
    assert all(f"bad{number:02}" in page.text for number in range(24))
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"index.html", "not_analysed.json"}


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
    assert [path.name for path in tmp_path.iterdir()] == ["not_analysed.json"], "which another job's index will tell"


def odd(**changes: object) -> str:
    summary = json.loads(text_of(0.5)) | changes
    return json.dumps({key: value for key, value in summary.items() if value is not None})


ODD = {
    "keys missing": json.dumps({"format": "specslide-heatmap"}),
    "deep": "[" * 100_000,
    "empty": "",
    "another type": odd(tiles="many"),
    "names no model": odd(made_from={}),
    "model is a number": odd(made_from={"model_sha256": 7}),
    "infinite": odd(scores={"top5_mean": float("inf"), "mean": 0.5, "fraction_above_threshold": 0.5}),
    "not a number": odd(threshold=float("nan")),
    "negative": odd(tiles=-1),
    "endless slide": odd(grid=GRID | {"width0": 10**30}),
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_an_odd_summary_is_passed_over_and_refused_by_name(tmp_path: Path, text: str) -> None:
    result(tmp_path, "a", 0.5)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "slide.json").write_text(text)
    (tmp_path / "not_analysed.json").write_text(text)
    write_cohort_index(tmp_path, {})
    assert {link.split("/")[0] for link in Parsed(tmp_path / "index.html").links} == {"a"}
    with pytest.raises(InputError, match="odd") as caught:
        read_summary(tmp_path / "odd")
    assert len(str(caught.value)) < len(str(tmp_path)) + 400
