"""The report of a slide: whole in one file, fetches nothing, believes no name, and says what was not analysed."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from PIL import Image

from inference.config import PredictConfig
from inference.heatmap import make_heatmap
from inference.maps.scores import SlideScores, areas_mm2, slide_scores
from inference.ood import ood_columns
from inference.predict import predict_slide
from inference.prediction import Prediction
from inference.report.evidence import AROUND_PX, Evidence, ShownTile, extremes, gather_evidence
from inference.report.pictures import svg_path
from inference.report.report import in_words, number_text, report_html
from tests.inference.conftest import MakePrediction
from tiling import TileStore, TilingConfig, tile_slide
from tiling.core.text import threshold_text
from tiling.grid import Raster
from tiling.quality import METRICS
from tiling.stores.store import SlideFacts
from training import TileModel, load_model

HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a&b'c", "</style><svg onload=alert(1)>",
    "a\u202eb\x1b[2J",
]  # fmt: skip
SOFTWARE = {"python": "3", "specslide": "0"}
PLACES = [(0, 0), (64, 0), (128, 64), (192, 128)]


class Page(HTMLParser):
    """The tags with their attributes, and the text, of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text, self._skipped = "", ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._skipped = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._skipped = ""

    def handle_data(self, data: str) -> None:
        self.text += "" if self._skipped else data + " "

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def scores_of(prediction: Prediction) -> SlideScores:
    p = prediction.probabilities[:, prediction.positive]
    areas = areas_mm2(p, prediction.threshold, prediction.tiles)
    return slide_scores(p, prediction.threshold, areas)


def shown_tile(row: int, value: int) -> ShownTile:
    return ShownTile(row, np.full((64, 64, 3), value, np.uint8))


def page_of(prediction: Prediction, **evidence: Any) -> str:
    return report_html(prediction, scores_of(prediction), Evidence(**evidence), SOFTWARE)


@pytest.fixture
def prediction(make_prediction: MakePrediction) -> Prediction:
    return make_prediction(PLACES, [0.9, 0.2, 0.6, 0.1], left_out={"no_tissue": 6, "outside_roi": 2, "undecodable": 0})


def test_it_opens_without_a_network_and_runs_only_its_own_lines(prediction: Prediction) -> None:
    text = page_of(prediction, highest=(shown_tile(0, 9),), lowest=(shown_tile(3, 90),))
    page = Page(text)
    assert "://" not in text
    assert not {"link", "iframe", "object", "embed", "form", "a", "base"} & {tag for tag, _ in page.tags}
    assert all(image["src"].startswith("data:image/") for image in page.named("img"))
    assert not re.search(r"url\(|@import", text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(script) < 450
    policy = next(a["content"] for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in policy
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_shown_and_not_believed(make_prediction: MakePrediction, name: str) -> None:
    usual = make_prediction(PLACES, [0.9, 0.2, 0.6, 0.1])
    facts = SlideFacts.model_validate(usual.slide.model_dump() | {"slide_id": name, "vendor": name})
    hostile = make_prediction(
        PLACES, [0.9, 0.2, 0.6, 0.1], slide=facts, classes=("benign", name), left_out={name: 3},
        provenance={"model_sha256": name, name: {name: [name]}}, columns={name: np.ones(4, np.float32)},
    )  # fmt: skip
    evidence = Evidence((shown_tile(0, 9),), (shown_tile(3, 90),), {f"q{name}": np.ones(4, np.float32)})
    texts = [report_html(p, scores_of(p), evidence, SOFTWARE | {name: name}) for p in (usual, hostile)]
    pages = [Page(text) for text in texts]
    kinds = [{(tag, *sorted(attributes)) for tag, attributes in page.tags} for page in pages]
    assert kinds[0] == kinds[1], "no tag and no attribute comes from a name"
    assert len(pages[0].named("script")) == len(pages[1].named("script")) == 1
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
    assert pages[1].text.count(shown) >= 12
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e]", texts[1])


def test_everything_is_said_for_those_who_do_not_see(prediction: Prediction) -> None:
    page = Page(page_of(prediction, highest=(shown_tile(0, 9),), lowest=(shown_tile(3, 90),)))
    assert all(image["alt"] for image in page.named("img"))
    assert page.named("html")[0]["lang"] == "en"
    assert page.named("label")[0]["for"] == page.named("input")[0]["id"] == "opacity"
    assert page.named("svg")[0]["role"] == "img"
    assert "tumour" in page.named("svg")[0]["aria-label"]
    assert all(head["scope"] in ("row", "col") for head in page.named("th"))
    assert len(page.named("h1")) == 1
    assert "width=device-width" in str(page.named("meta"))
    assert "maximum-scale" not in str(page.named("meta"))


def test_the_sections_hold_what_the_prediction_says(prediction: Prediction) -> None:
    text = Page(page_of(prediction, highest=(shown_tile(0, 9),), lowest=(shown_tile(3, 90),))).text
    for words in (
        "research use only", "calls 2 of 4 analysed tiles (50.0%) tumour", "threshold of 0.5", "4 of the 12 tiles",
        "hold too little tissue 6", "outside the region of interest 2", "ab" * 32, "cd" * 32, "test_resnet",
        "software: specslide", "0.900 x 0, y 0", "0.100 x 192, y 128",
    ):  # fmt: skip
        assert words in re.sub(r"\s+", " ", text), words
    assert "cannot be decoded" not in text, "there are none"


def test_the_histogram_counts_the_tiles(make_prediction: MakePrediction) -> None:
    text = re.sub(r"\s+", " ", Page(page_of(make_prediction(PLACES, [0.92, 0.22, 0.62, 0.12]))).text)
    counts = dict(re.findall(r"(0\.\d\d to [01]\.\d\d) (\d+)", text))
    assert {edges for edges, count in counts.items() if count != "0"} == {
        "0.90 to 0.95", "0.20 to 0.25", "0.60 to 0.65", "0.10 to 0.15",
    }  # fmt: skip
    assert len(counts) == 20


def pictures(text: str, kind: str) -> list[np.ndarray[Any, Any]]:
    found = re.findall(rf"data:image/{kind};base64,([A-Za-z0-9+/=]+)", text)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


def test_the_heatmap_lies_on_its_tiles(prediction: Prediction) -> None:
    """Two level-0 pixels a pixel of the thumbnail; viridis runs from dark blue to yellow."""
    (heat,) = pictures(page_of(prediction), "png")
    assert heat.shape == (96, 128, 4)
    expected = np.zeros((96, 128), np.bool_)
    for x, y in PLACES:
        expected[y // 2 : y // 2 + 32, x // 2 : x // 2 + 32] = True
    assert np.array_equal(heat[..., 3] > 0, expected)
    assert not heat[~expected].any()
    opacity = [heat[y // 2 + 3, x // 2 + 3, 3] / 255 for x, y in PLACES]
    assert opacity == pytest.approx([0.25 + 0.75 * p for p in (0.9, 0.2, 0.6, 0.1)], abs=0.5 / 255)
    red = [int(heat[y // 2 + 3, x // 2 + 3, 0]) for x, y in PLACES]
    green = [int(heat[y // 2 + 3, x // 2 + 3, 1]) for x, y in PLACES]
    assert np.argsort(green).tolist() == [3, 1, 2, 0]
    assert red[0] > 150


def test_the_legend_is_drawn_as_the_heatmap_is(make_prediction: MakePrediction) -> None:
    """Its ends are the colours of a tile of probability 0 and of one of 1."""
    text = page_of(make_prediction(PLACES[:2], [0.0, 1.0]))
    (heat,) = pictures(text, "png")
    stops = re.findall(r"rgba\((\d+),(\d+),(\d+),([\d.]+)\)", text)
    ends = [[*map(int, stop[:3]), round(255 * float(stop[3]))] for stop in (stops[0], stops[-1])]
    assert ends == [heat[3, 3].tolist(), heat[3, 35].tolist()]


def outlined(text: str) -> shapely.Geometry:
    """What the path of the outline surrounds; its rings are read as SVG has it, each step from the point before."""
    (path,) = re.findall(r'<path id="rings" d="([^"]*)"', text)
    rings = []
    for x, y, steps in re.findall(r"M(-?\d+),(-?\d+)l([-\d, ]+)z", path):
        moves = [[int(x), int(y)], *([int(n) for n in step.split(",")] for step in steps.split())]
        rings.append(shapely.Polygon(np.cumsum(moves, axis=0)))
    return shapely.union_all(rings)


def test_what_reaches_the_threshold_is_outlined(prediction: Prediction) -> None:
    """The tiles of 0.9 and 0.6, in level-0 pixels of the slide of 256 x 192."""
    text = page_of(prediction)
    assert outlined(text).equals(shapely.union_all([shapely.box(0, 0, 64, 64), shapely.box(128, 64, 192, 128)]))
    box = next(attributes for attributes in Page(text).named("svg") if attributes["id"] == "contour")["viewbox"]
    assert [float(number) for number in box.split()] == [0, 0, 256, 192]


def test_without_a_tile_called_nothing_is_outlined(make_prediction: MakePrediction) -> None:
    assert outlined(page_of(make_prediction(PLACES, [0.1] * 4))).is_empty
    assert outlined(page_of(make_prediction([], []))).is_empty


def test_a_path_does_not_drift() -> None:
    """Steps of a third of a unit: each corner is rounded by itself, not each step."""
    ring = np.array([[0, 0], [10 / 3, 0], [20 / 3, 0], [10, 0], [10, 10.4], [0, 10.4], [0, 0]])
    assert svg_path([ring, ring[:-1][::-1]]) == "M0,0l3,0 4,0 3,0 0,10 -10,0zM0,10l10,0 0,-10 -3,0 -4,0z"


def test_each_tile_shown_has_its_number_on_the_map(prediction: Prediction) -> None:
    text = page_of(prediction, highest=(shown_tile(0, 9), shown_tile(2, 9)), lowest=(shown_tile(3, 90),))
    marks = re.findall(r'<text x="([\d.]+)%" y="([\d.]+)%">(\d+)</text>', text)
    centres = {number: (float(x) * 2.56, float(y) * 1.92) for x, y, number in marks}
    gallery = re.findall(r"<figure><b>(\d+)</b>.*?<figcaption>(0\.\d+)<br>x (\d+), y (\d+)", text)
    assert [(number, p) for number, p, _, _ in gallery] == [("1", "0.900"), ("2", "0.600"), ("3", "0.100")]
    for number, _, x, y in gallery:
        assert centres.pop(number) == pytest.approx((int(x) + 32, int(y) + 32), abs=0.01)
    assert not centres


def test_what_was_not_analysed_is_grey(prediction: Prediction) -> None:
    overview, greyed = pictures(page_of(prediction), "jpeg")
    assert overview.shape == greyed.shape == (96, 128, 3)
    assert greyed[10, 10].mean() == pytest.approx(230, abs=4)
    assert greyed[90, 10].mean() == pytest.approx(230 // 4 + 96, abs=4)


def test_a_slide_of_which_nothing_was_analysed(make_prediction: MakePrediction) -> None:
    empty = make_prediction([], [], left_out={"no_tissue": 12})
    text = page_of(empty)
    assert "This is not a negative result" in text
    assert "0 of the 12 tiles" in text
    assert not re.search(r"\bnan\b", Page(text).text.lower())


def test_no_tile_called_is_no_proof(make_prediction: MakePrediction) -> None:
    quiet = make_prediction(PLACES, [0.1, 0.2, 0.3, 0.4])
    assert "calls 0 of 4" in in_words(quiet, scores_of(quiet))
    assert "does not show that the slide is free of tumour" in in_words(quiet, scores_of(quiet))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0"), (7.133e-10, "< 0.001"), (9.523e-05, "< 0.001"), (0.001, "0.001"), (0.10607, "0.1061"), (1.0, "1"),
        (137.94, "137.9"), (1234.5, "1,234"), (4_182_000.0, "4,182,000"),
    ],
)  # fmt: skip
def test_numbers_are_for_people(value: float, said: str) -> None:
    assert number_text(value) == said


@pytest.mark.parametrize(
    ("threshold", "said"),
    [
        (0.5, "0.5"), (0.0755087, "0.0755"), (4.2e-7, "0.00000042"), (0.9996, "0.9996"), (0.999911904, "0.9999119"),
        (1 - 2**-24, "0.9999999404"), (0, "0"), (1, "1"),
    ],
)  # fmt: skip
def test_a_threshold_keeps_its_digits(threshold: float, said: str) -> None:
    assert threshold_text(threshold) == said


def test_nothing_is_said_in_powers_of_ten(make_prediction: MakePrediction) -> None:
    columns = {"entropy": np.array([7e-10, 9e-5, 0.6, 0.1], np.float32), "focus": np.full(4, 4.1e7, np.float32)}
    usual = make_prediction(PLACES, [1e-9, 2e-7, 1e-6, 1e-5], threshold=1e-7, columns=columns)
    facts = SlideFacts.model_validate(usual.slide.model_dump() | {"mpp": 500.0})
    large = make_prediction(
        PLACES, [1e-9, 2e-7, 1e-6, 1e-5], threshold=1e-7, columns=columns, slide=facts,
        grid=usual.grid.model_copy(update={"slide_mpp": 500.0}),
    )  # fmt: skip
    for shown in (usual, large):
        assert not re.search(r"\de[-+]\d", Page(page_of(shown)).text)
    assert "area is 3,072 mm²" in in_words(large, scores_of(large)), "three tiles of 64 px of 0.5 mm"


def test_each_score_and_each_column_has_its_words(prediction: Prediction) -> None:
    """But noisy_or, which is 1 on any slide of many tiles."""
    quality = {name: np.linspace(0, 1, 4).astype(np.float32) for name in METRICS}
    text = page_of(prediction, quality=quality)
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)", row) for row in re.findall(r'<tr>(<th scope="row">.*?)</tr>', text)]
    words = {name: said for name, *_, said in rows}
    for name in set(METRICS) | set(asdict(scores_of(prediction))) - {"noisy_or"}:
        assert re.search("[a-z]{4}", words[name]), name
    assert "noisy_or" not in text


def test_what_was_not_measured_is_said(prediction: Prediction) -> None:
    """Of a slide, and of a store whose tiles were copied undecoded."""
    assert "pen marks and the like were not measured" in page_of(prediction)
    assert "not measured: a store" not in page_of(prediction, quality={"focus": np.ones(4, np.float32)})


def test_the_models_of_an_ensemble_have_rows_of_their_own(make_prediction: MakePrediction) -> None:
    models = [{"model_sha256": "ab", "hashes": {"data": "x"}}, {"model_sha256": "cd"}]
    text = page_of(make_prediction(PLACES, [0.5] * 4, provenance={"models": models, "seeds": [3, 4]}))
    rows = dict(re.findall(r'<th scope="row">([^<]*)</th><td>([^<]*)</td></tr>', text))
    assert {name: value for name, value in rows.items() if name.startswith(("models", "seeds"))} == {
        "models.1.model_sha256": "ab", "models.1.hashes.data": "x", "models.2.model_sha256": "cd",
        "seeds.1": "3", "seeds.2": "4",
    }  # fmt: skip


def test_columns_out_of_distribution_only_where_there_are_some(make_prediction: MakePrediction) -> None:
    without = make_prediction(PLACES, [0.9, 0.2, 0.6, 0.1], columns={"entropy": np.zeros(4, np.float32)})
    assert "was not measured" in page_of(without)
    columns = ood_columns(np.array([3, 0, 1.5, 2], np.float32))
    predicted = make_prediction(PLACES, [0.9, 0.2, 0.6, 0.1], columns=columns, ood_quantile=0.99)
    text = re.sub(r"\s+", " ", Page(page_of(predicted)).text)
    assert "75.0% of the analysed tiles (3 of 4) lie outside what the model has seen" in text
    assert "farther from its training tiles than 99% of its validation tiles are. Its probabilities mean little" in text
    assert "ood_ratio 0 1.75 3 distance to the training tiles: above 1 is outside" in text
    assert "trained on was not measured" not in text


def test_tiles_unlike_the_training_tiles_are_marked_and_shown(make_prediction: MakePrediction) -> None:
    columns = ood_columns(np.array([3, 0, 1.5, 0.5], np.float32))
    predicted = make_prediction(PLACES, [0.9, 0.2, 0.6, 0.1], columns=columns, ood_quantile=0.99)
    text = page_of(
        predicted, highest=(shown_tile(0, 9), shown_tile(2, 50)), lowest=(shown_tile(3, 90), shown_tile(1, 95))
    )
    captions = re.findall("<figcaption>(.*?)</figcaption>", text)
    assert [caption[:5] for caption in captions if "unlike the training tiles" in caption] == ["0.900", "0.600"]
    *_, unlike, analysed = pictures(text, "jpeg")
    for shown, bright in ((unlike, [0, 2]), (analysed, [0, 1, 2, 3])):
        means = [shown[y // 2 + 8 : y // 2 + 24, x // 2 + 8 : x // 2 + 24].mean() for x, y in PLACES]
        assert [i for i, mean in enumerate(means) if mean > 200] == bright
    few = ood_columns(np.full(4, 0.5, np.float32))
    without = page_of(make_prediction(PLACES, [0.9, 0.2, 0.6, 0.1], columns=few, ood_quantile=0.99))
    assert "unlike the training tiles" not in without
    assert len(pictures(without, "jpeg")) == 2


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ([0.5, 0.5, 0.5, 0.5, 1.5], "20% of the analysed tiles lie outside what the model has seen"),
        ([2, 2, 2, 2, 2], "This whole slide lies outside what the model has seen: every analysed tile is unlike"),
        ([0.5, 0.5, 1, 0.5, 0.5], None),
        ([], None),
    ],
)
def test_a_slide_much_of_which_is_unlike_is_warned_of_before_its_scores(
    make_prediction: MakePrediction, ratios: list[float], said: str | None
) -> None:
    places = [(x * 10, 0) for x in range(len(ratios))]
    columns = ood_columns(np.array(ratios, np.float32))
    page = Page(page_of(make_prediction(places, [0.9] * len(ratios), columns=columns, ood_quantile=0.99)))
    assert len([p for p in page.named("p") if p.get("class") == "notice"]) == (1 if said is None else 2)
    whole = said is not None and "whole slide" in said
    assert ("What follows is what the model computed, not a finding. The model calls" in page.text) is whole
    shown = len(page.named("img")) - 2  # beside slide and heatmap: what was analysed, and what of it is unlike
    assert shown == (2 if said and not whole else 1), "of a wholly unlike slide both pictures would be the same"
    if said is not None:
        assert page.text.index(said) < page.text.index("The model calls")
    if not ratios:
        assert "none can be unlike" in page.text


@pytest.mark.parametrize(
    ("count", "highest", "lowest"),
    [(20, range(19, 11, -1), range(8)), (3, [2, 1, 0], []), (9, range(8, 0, -1), [0]), (0, [], [])],
)
def test_no_tile_is_both_extremes(count: int, highest: Any, lowest: Any) -> None:
    found = extremes(np.arange(count) / 20)
    assert [part.tolist() for part in found] == [list(highest), list(lowest)]


def test_a_large_slide_makes_no_large_page(make_prediction: MakePrediction) -> None:
    """Noise, which no picture format makes smaller, and as many tiles as can be."""
    random = np.random.default_rng(0)
    noisy = make_prediction(
        [(x * 4, y * 4) for y in range(48) for x in range(64)], random.random(48 * 64).tolist(),
        thumbnail=Raster(random.integers(0, 256, (3000, 4000, 3), dtype=np.uint8), 0.064),
    )  # fmt: skip

    def noise(side: int) -> NDArray[np.uint8]:
        return random.integers(0, 256, (side, side, 3), dtype=np.uint8)

    tiles = tuple(ShownTile(i, noise(512), noise(AROUND_PX)) for i in range(8))
    assert len(page_of(noisy, highest=tiles, lowest=tiles)) < 5_000_000


@pytest.fixture
def page(slide: Path, model: TileModel, tmp_path: Path) -> str:
    """The report beside the result of a real prediction."""
    return (make_heatmap(slide, model, tmp_path).folder / "report.html").read_text(encoding="utf-8")


def test_it_is_written_beside_the_result(page: str) -> None:
    assert len(pictures(page, "jpeg")) == 2 + 16
    assert "disc: heatmap of tumour" in page


def test_the_tiles_shown_are_the_slides(slide: Path, model: TileModel, tmp_path: Path) -> None:
    """From the slide and from its lossless store the same pixels, which the store holds at that place."""
    stored = tile_slide(slide, tmp_path, TilingConfig(mpp=0.5, tile_px=32, codec="lossless")).store
    store, found = TileStore(stored), []
    for source in (slide, stored):
        prediction = predict_slide(source, model)
        evidence = gather_evidence(source, prediction)
        for tile in (*evidence.highest, *evidence.lowest):
            (place,) = [store.tiles.places().index(prediction.tiles.places()[tile.row])]
            assert np.array_equal(store.read([int(place)])[0], tile.pixels)
        found.append([tile.row for tile in (*evidence.highest, *evidence.lowest)])
        assert len(evidence.highest) == len(evidence.lowest) == 8
    assert found[0] == found[1]
    assert evidence.quality.keys() == store.quality.keys() != set()


@pytest.mark.parametrize(
    ("config", "reasons"),
    [(PredictConfig(), {"no_tissue"}), (PredictConfig(min_tissue=1.0), {"no_tissue"})],
)
def test_what_is_left_out_adds_up(
    slide: Path, model: TileModel, config: PredictConfig, reasons: set[str], tmp_path: Path
) -> None:
    stored = tile_slide(slide, tmp_path, TilingConfig(mpp=0.5, tile_px=32)).store
    counts = []
    for source in (slide, stored):
        prediction = predict_slide(source, model, config)
        grid = prediction.grid
        assert len(prediction.tiles.x0) + sum(prediction.left_out.values()) == grid.rows * grid.columns
        assert {name for name, count in prediction.left_out.items() if count} == reasons
        counts.append(prediction.left_out["no_tissue"])
    assert counts[0] == counts[1]


def test_a_filter_and_a_region_are_told_apart(slide: Path, model: TileModel, tmp_path: Path) -> None:
    stored = tile_slide(slide, tmp_path, TilingConfig(mpp=0.5, tile_px=32)).store
    store = TileStore(stored)
    middle = float(np.median(store.quality["focus"]))
    roi = tmp_path / "roi.geojson"
    corners = [[0, 0], [256, 0], [256, 512], [0, 512], [0, 0]]
    polygon = {"type": "Polygon", "coordinates": [corners]}
    roi.write_text(json.dumps({"type": "Feature", "properties": {}, "geometry": polygon}))
    prediction = predict_slide(stored, model, PredictConfig(where=f"focus > {middle}"), roi=roi)
    kept = store.quality["focus"] > middle
    assert prediction.left_out == {
        "no_tissue": store.grid.rows * store.grid.columns - len(store),
        "filtered": int((~kept).sum()),
        "outside_roi": int((kept & (store.tiles.x0 >= 256)).sum()),
        "undecodable": 0,
    }
    assert prediction.left_out["filtered"] > 0
    assert prediction.left_out["outside_roi"] > 0


def test_nothing_private_of_a_slide_gets_into_it(svs: Path, make_model: Callable[..., Path], tmp_path: Path) -> None:
    """A real SVS with date, user and file name in its description: they are looked for in the bytes."""
    data = svs.read_bytes()
    secrets = [b"Date = ", b"Time = ", b"User = ", b"Filename = ", b"ImageID = ", b"ScanScope ID = ", b"CMU-1"]
    assert all(secret in data for secret in secrets), "the slide tells of them"
    values = [re.search(secret + rb"([^|\r\n]+)", data) for secret in secrets[:-1]]
    folder = make_heatmap(svs, load_model(make_model()), tmp_path / "out", slide_id="s1").folder
    page = (folder / "report.html").read_bytes()
    for found in values:
        assert found is not None
        if len(found[1]) > 4:
            assert found[1].strip() not in page
    assert b"CMU-1" not in page
    assert str(tmp_path).encode() not in page
