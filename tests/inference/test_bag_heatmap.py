"""Heatmaps by models of bags: attention is the map, named so, beside instance probabilities and the slide's own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import tifffile
import torch
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner, Result

from inference import EncoderConfig, embed_slide, load_encoder
from inference.bag_heatmap import make_bag_heatmap, predict_bag
from inference.config import EvaluateSlidesConfig
from inference.evaluation.evaluate_slides import evaluate_slides
from inference.summary import read_summary
from pipeline import cli
from pipeline.provenance import lines_of, trace
from tests.inference.conftest import write_model
from tests.inference.evaluation.test_evaluate_slides import write_annotation
from tests.tiling.stores.test_features import made
from tests.training.mil.conftest import bag_of
from tiling.core.errors import ModelError
from tiling.stores.features import FeatureStore
from training import load_bag_model
from training.mil.heads import HeadShape
from training.mil.model import BagClassifier
from training.models.card import model_card
from training.models.folder import save_model
from training.models.info import BagInfo


def write_bag_model(folder: Path, encoder: Any, head: str = "attention", **changes: Any) -> Path:
    """A model folder of bags with random weights, of that encoder's features."""
    torch.manual_seed(0)
    network = BagClassifier(head, HeadShape(encoder.dim, 2, 8, 0)).eval()
    info = BagInfo.model_validate(
        {
            "classes": ("benign", "tumour"), "positive_class": "tumour", "mpp": encoder.mpp, "tile_px": encoder.tile_px,
            "temperature": 2.0, "threshold": 0.4, "best_epoch": 1, "data": {},
            "training": {"sd_lambda": 0.01, "sd_reduction": "sum"},
            "metrics": {}, "hashes": {}, "software": {}, "head": head, "head_dim": 8, "dropout": 0, "bag": "slide",
            "encoder": encoder,
        } | changes
    )  # fmt: skip
    save_model(folder, network, info, model_card(info))
    return folder


pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture(scope="module")
def place(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `disc.tif`, its features by the tile classifier `encoder`, and the model of bags `bags`."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "disc.tif").symlink_to(slide)
    encoder = load_encoder(EncoderConfig(encoder=str(write_model(folder / "encoder"))))
    embed_slide(folder / "disc.tif", encoder, folder / "features")
    write_bag_model(folder / "bags", encoder.record)
    return folder


def heatmap(place: Path, *arguments: object) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return CliRunner().invoke(cli.app, ["heatmap", *map(str, arguments)], env={"COLUMNS": "300"})


def test_what_is_shown_and_said_is_what_the_model_explains(place: Path, tmp_path: Path) -> None:
    store, model = FeatureStore(place / "features" / "disc.features.zarr"), load_bag_model(place / "bags")
    expected = model.explain([np.insert(store.read(), 0, 0, axis=1)])
    report = make_bag_heatmap(store.path, model, tmp_path)
    assert report.bag == pytest.approx(float(expected.probabilities[1]), abs=1e-6)
    table = pyarrow.parquet.read_table(report.folder / "predictions.parquet").to_pydict()
    np.testing.assert_allclose(table["attention"], expected.attention, atol=1e-7)
    np.testing.assert_allclose(table["relative_attention"], expected.attention / expected.attention.max(), atol=1e-6)
    np.testing.assert_allclose(table["prob_tumour"], expected.tiles[:, 1], atol=1e-6)
    assert sum(table["attention"]) == pytest.approx(1, abs=1e-5)
    assert table["minx"] == store.tiles.x0.tolist()
    summary = read_summary(report.folder)
    assert summary.bag is not None
    assert summary.bag.probability == report.bag == summary.suspicion
    assert "attention" in summary.bag.map
    assert summary.numbers()["bag_probability"] == report.bag
    assert summary.scores.mean == pytest.approx(float(expected.tiles[:, 1].mean()), abs=1e-6)
    page = (report.folder / "report.html").read_text()
    assert f"calibrated probability of {report.bag:.3f} of tumour" in page
    assert "attention is no probability" in page.replace("\n", " ")
    assert "Probability of tumour, from 0 to 1" not in page
    tile = json.loads((report.folder / "heatmap.geojson").read_text())["features"][0]
    assert {"attention", "relative_attention", "prob_tumour"} <= tile["properties"]["measurements"].keys()


def test_from_a_slide_on_the_way_as_from_its_features(place: Path, tmp_path: Path) -> None:
    formats = ["--formats", "ometiff,geojson,png,asap,omezarr"]
    done = heatmap(place, "disc.tif", "--model", "bags", "--encoder", "encoder", "--out", tmp_path / "slide", *formats)
    assert done.exit_code == 0, done.output
    done = heatmap(place, "features", "--model", "bags", "--out", tmp_path / "features", *formats)
    assert done.exit_code == 0, done.output
    ours, theirs = (tmp_path / name / "disc" for name in ("slide", "features"))
    for name in ("predictions.csv", "heatmap.geojson", "regions.geojson", "overlay.png", "heatmap.png"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    assert "Most attended" in (ours / "report.html").read_text()  # features have no pixels to show
    with tifffile.TiffFile(ours / "heatmap.ome.tif") as tiff:
        assert "attention relative to the largest" in str(tiff.ome_metadata)
        assert np.nanmax(tiff.asarray()) == pytest.approx(1)
    region = json.loads((ours / "regions.geojson").read_text())["features"][0]
    assert region["properties"]["measurements"]["max_relative_attention"] == pytest.approx(1)
    assert (tmp_path / "slide" / "features" / "disc.features.zarr" / "commit.json").exists()
    again = heatmap(place, "disc.tif", "--model", "bags", "--encoder", "encoder", "--out", tmp_path / "slide", *formats)
    assert "kept" in again.output
    assert "slide" in (tmp_path / "slide" / "index.html").read_text()


def test_the_chain_leads_from_the_heatmap_to_the_slide(place: Path, tmp_path: Path) -> None:
    done = heatmap(place, "disc.tif", "--model", "bags", "--encoder", "encoder", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    chain = list(lines_of(trace(tmp_path / "disc", [tmp_path, place])))
    kinds = [line.split()[0] for line in chain if ", sha256 " in line]
    assert kinds == ["heatmap", "features", "slide", "model", "data", "model", "data"]  # of the encoder, and of bags


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["disc.tif", "--model", "bags"], "--encoder"),
        (["disc.tif", "--model", "bags", "--encoder", "other"], "encoder.*sha256"),
        (["features", "--model", "bags", "--model", "bags"], "one --model"),
        (["features", "--model", "bags", "--tta"], "tta"),
        (["features", "--model", "others"], "mpp was"),
    ],
)
def test_refused_by_what_is_the_matter(place: Path, tmp_path: Path, arguments: list[str], named: str) -> None:
    if not (place / "other").exists():
        write_model(place / "other", seed=1)
        known = load_bag_model(place / "bags").info.encoder
        write_bag_model(place / "others", known.model_copy(update={"mpp": 2.0}))
    done = heatmap(place, *arguments, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert re.search(named, f"{done.output} {done.exception}", re.DOTALL)
    assert not list(tmp_path.rglob("slide.json"))


def test_a_slide_without_tiles_is_no_finding(place: Path, tmp_path: Path) -> None:
    model = load_bag_model(place / "bags")
    empty = made(
        tmp_path / "e.features.zarr", np.empty((0, model.info.encoder.dim), np.float32), encoder=model.info.encoder
    )
    report = make_bag_heatmap(empty, model, tmp_path / "out", slide_id="e")
    assert (report.tiles, report.bag) == (0, None)
    assert "not a negative result" in (report.folder / "report.html").read_text()


def test_features_of_another_encoder_are_refused(place: Path, tmp_path: Path) -> None:
    other = made(tmp_path / "a.features.zarr", bag_of(0, 9, 1))
    with pytest.raises(ModelError, match=r"dim was|name was"):
        make_bag_heatmap(other, load_bag_model(place / "bags"), tmp_path / "out")


def test_chunks_change_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, model = FeatureStore(place / "features" / "disc.features.zarr"), load_bag_model(place / "bags")
    whole = predict_bag(store, model)
    monkeypatch.setattr("inference.bag_heatmap.CHUNK_TILES", 17)
    chunked = predict_bag(store, model)
    assert whole.bag is not None
    assert chunked.bag is not None
    np.testing.assert_allclose(chunked.bag.attention, whole.bag.attention, atol=1e-6)
    np.testing.assert_allclose(chunked.bag.probabilities, whole.bag.probabilities, atol=1e-6)
    np.testing.assert_allclose(chunked.probabilities, whole.probabilities, atol=1e-6)


def test_slides_are_tested_by_what_the_bag_says_and_attention_by_annotations(place: Path, tmp_path: Path) -> None:
    """AUROC of the bags' probabilities, and within positive slides of attention, against scikit-learn."""
    model, scores, inside = load_bag_model(place / "bags"), [], []
    encoder, lines = model.info.encoder, ["slide_path,slide_id,case_id,label,annotation"]
    for number in range(6):
        features = np.random.default_rng(number).normal(size=(9, encoder.dim)).astype(np.float32)
        store = made(tmp_path / f"{number}.features.zarr", features, encoder=encoder)
        report = make_bag_heatmap(store, model, tmp_path / "heatmaps", slide_id=f"s{number}")
        scores.append(report.bag)
        label, note = "benign", ""
        if number % 2:
            table = pyarrow.parquet.read_table(report.folder / "predictions.parquet").to_pandas()
            label, note, side = "tumour", f"{number}.geojson", int(table["width"][0])
            corners = table[["minx", "miny"]].to_numpy()[[number, number + 2, 0]].tolist()
            # the third tile is lesion to a quarter: neither
            boxes = [(x, y, x + side // part, y + side) for (x, y), part in zip(corners, (1, 1, 4), strict=True)]
            write_annotation(tmp_path / note, *boxes)
            rows = np.arange(1, 9)
            columns = table[["attention", "prob_tumour"]].to_numpy()[rows]
            inside.append([roc_auc_score((rows == number) | (rows == number + 2), values) for values in columns.T])
        lines.append(f"s{number}.svs,s{number},c{number},{label},{note}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    config = EvaluateSlidesConfig(resamples=20)
    found = evaluate_slides(tmp_path / "heatmaps", tmp_path / "labels.csv", tmp_path / "out", config)
    expected = roc_auc_score([number % 2 for number in range(6)], scores)
    assert found.score == "bag_probability"
    assert found.scores["bag_probability"].auroc.value == pytest.approx(expected)
    assert found.attention is not None
    assert found.attention.slides == 3
    of_both = [found.attention.auroc.value, found.attention.probability_auroc.value]
    assert of_both == pytest.approx(np.mean(inside, axis=0))
    page = (tmp_path / "out" / "slides.md").read_text()
    assert f"| attention | {found.attention.auroc} |" in page
