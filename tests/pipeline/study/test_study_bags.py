"""Embeddings and a model of slide labels are added to a finished study: nothing else is made again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import yaml
from sklearn.metrics import roc_auc_score

import inference
from inference import embed
from inference.exports import TABLE
from pipeline import run
from pipeline.provenance import lines_of, trace
from pipeline.study.config import StudyConfig, load_study
from pipeline.study.plan import plan
from pipeline.study.run import StudyReport
from pipeline.study.status import read_status
from tests.pipeline.conftest import listing
from tiling.core.errors import StoreError
from tiling.manifest import read_manifest
from tiling.stores.features import FeatureStore, feature_path
from training import load_bag_model

BAGS = {"epochs": 2, "batch_size": 2, "head_dim": 8, "bootstrap_resamples": 10, "threads": 1}


def with_bags(study: StudyReport, tmp_path: Path, **changes: Any) -> StudyConfig:
    """A copy of a finished study, with a section `bags`."""
    work = tmp_path / "work"
    shutil.copytree(study.out.parent, work)
    settings = yaml.safe_load((work / "study.yaml").read_text())
    (work / "study.yaml").write_text(yaml.safe_dump(settings | {"bags": {"train": BAGS | changes}}))
    return load_study(work / "study.yaml")


def test_bags_join_a_finished_study_and_remake_nothing_else(study: StudyReport, tmp_path: Path) -> None:
    config = with_bags(study, tmp_path)
    before = {name: files for name, files in listing(config.out).items() if name.split("/")[0] in KEPT}
    wanted = {step.name: step.state for step in plan(config) if step.state != "done" and step.stage != "report"}
    held_out = [row.slide_id for row in read_manifest(config.manifest) if row.split == "test"]
    shown = {TESTED, *(f"bag-heatmaps/{slide_id}" for slide_id in held_out)}
    assert set(wanted) == {"bags", *shown, *(f"features/{row}.features.zarr" for row in names(config.out))}
    report = run(config)
    assert not report.failed
    after = {name: files for name, files in listing(config.out).items() if name.split("/")[0] in KEPT}
    assert {name: files for name, files in after.items() if not name.startswith(TESTED)} == before
    model = load_bag_model(config.out / "bags" / "model")
    (first, *others) = (FeatureStore(feature_path(config.out / "features", row)) for row in names(config.out))
    assert model.info.encoder == first.encoder
    assert len(first) + sum(map(len, others)) > 0
    page = (config.out / "index.html").read_text()
    assert "Slides by their labels alone" in page
    record = json.loads((config.out / "study.json").read_bytes())
    assert [heatmap.slide_id for heatmap in report.bag_heatmaps] == held_out
    for heatmap in report.bag_heatmaps:
        store = FeatureStore(feature_path(config.out / "features", heatmap.slide_id))
        found = model.explain([np.insert(store.read(), 0, 0, axis=1)])
        assert heatmap.bag == pytest.approx(found.probabilities[model.info.positive], abs=1e-6)
        assert record["bags"][heatmap.slide_id] == {"tiles": len(store), "probability": heatmap.bag}
        table = pyarrow.parquet.read_table(heatmap.folder / TABLE)
        np.testing.assert_allclose(table["attention"], found.attention, atol=1e-6)
        alone = table[f"prob_{model.info.positive_class}"]
        np.testing.assert_allclose(alone, found.tiles[:, model.info.positive], atol=1e-6)
        assert f"bag-heatmaps/{heatmap.slide_id}/report.html" in page
        chain = "\n".join(lines_of(trace(heatmap.folder)))
        assert "is not here" not in chain
        assert all(f"{kind} " in chain for kind in ("features", "store", "slide", "model"))
    assert report.bag_slides is not None
    tested = json.loads((report.bag_slides / "slides.json").read_bytes())
    labels = {row.slide_id: row.label for row in read_manifest(config.manifest)}
    score = {heatmap.slide_id: heatmap.bag for heatmap in report.bag_heatmaps}
    truth = [labels[slide_id] == model.info.positive_class for slide_id in held_out]
    expected = roc_auc_score(truth, [score[slide_id] for slide_id in held_out])
    assert tested["score"] == "bag_probability"
    assert tested["scores"]["bag_probability"]["auroc"]["value"] == pytest.approx(expected)
    assert tested["froc"]["of"] == "attention times the slide's probability"
    assert "evaluation/bag-slides/slides.html" in page
    chain = "\n".join(lines_of(trace(report.bag_slides)))
    assert "is not here" not in chain
    assert all(f"{kind} " in chain for kind in ("heatmap", "features", "model"))
    made = listing(config.out)
    assert not any(run(config).trained)
    assert {name: of for name, of in listing(config.out).items() if name != "ledger.jsonl"} == {
        name: of for name, of in made.items() if name != "ledger.jsonl"
    }
    assert all(step.state == "done" for step in plan(config))
    assert {"bags", *shown} <= {item.name for item in read_status(config.out).items if item.progress == "done"}


def test_a_slide_whose_features_fail_costs_itself_alone_and_no_path_is_told(
    study: StudyReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_bags(study, tmp_path)
    lost = next(row.slide_id for row in read_manifest(config.manifest) if row.split == "test")
    whole = embed.embed_slide

    def damaged(source: Path, *arguments: Any, **options: Any) -> Any:
        if options["slide_id"] == lost:
            raise StoreError(source, "is damaged", "tile it again")
        return whole(source, *arguments, **options)

    monkeypatch.setattr(inference, "embed_slide", damaged)
    report = run(config)
    assert set(report.failed) == {f"features/{lost}.features.zarr"}
    assert lost not in {heatmap.slide_id for heatmap in report.bag_heatmaps}
    assert report.bag_slides is None or lost not in (report.bag_slides / "slides.json").read_text()
    assert report.bag_heatmaps
    told = [(config.out / name).read_text() for name in ("study.json", "ledger.jsonl", "index.html")]
    assert not any(str(tmp_path) in text for text in told)


def test_bags_that_cannot_be_learned_cost_the_study_nothing_else(study: StudyReport, tmp_path: Path) -> None:
    config = with_bags(study, tmp_path, where="tissue > 2")
    report = run(config)
    assert set(report.failed) == {"bags"}
    assert not report.bag_heatmaps
    assert not (config.out / "bag-heatmaps").exists()
    assert str(tmp_path) not in (config.out / "study.json").read_text()


TESTED = "evaluation/bag-slides"
KEPT = ("stores", "training", "heatmaps", "evaluation")


def names(out: Path) -> list[str]:
    return sorted(path.name.removesuffix(".zarr") for path in (out / "stores").glob("*.zarr"))
