"""Embeddings and a model of slide labels are added to a finished study: nothing else is made again."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from pipeline import run
from pipeline.study.config import load_study
from pipeline.study.plan import plan
from pipeline.study.run import StudyReport
from pipeline.study.status import read_status
from tests.pipeline.conftest import listing
from tiling.stores.features import FeatureStore, feature_path
from training import load_bag_model

BAGS = {"train": {"epochs": 2, "batch_size": 2, "head_dim": 8, "bootstrap_resamples": 10, "threads": 1}}


def test_bags_join_a_finished_study_and_remake_nothing_else(study: StudyReport, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(study.out.parent, work)
    settings = yaml.safe_load((work / "study.yaml").read_text())
    (work / "study.yaml").write_text(yaml.safe_dump(settings | {"bags": BAGS}))
    config = load_study(work / "study.yaml")
    before = {name: files for name, files in listing(config.out).items() if name.split("/")[0] in KEPT}
    wanted = {step.name: step.state for step in plan(config) if step.state != "done" and step.stage != "report"}
    assert set(wanted) == {"bags", *(f"features/{row}.features.zarr" for row in names(config.out))}
    report = run(config)
    assert not report.failed
    assert {name: files for name, files in listing(config.out).items() if name.split("/")[0] in KEPT} == before
    model = load_bag_model(config.out / "bags" / "model")
    (first, *others) = (FeatureStore(feature_path(config.out / "features", row)) for row in names(config.out))
    assert model.info.encoder == first.encoder
    assert len(first) + sum(map(len, others)) > 0
    assert "Slides by their labels alone" in (config.out / "index.html").read_text()
    made = listing(config.out / "bags"), listing(config.out / "features")
    run(config)
    assert (listing(config.out / "bags"), listing(config.out / "features")) == made
    assert all(step.state == "done" for step in plan(config))
    assert "bags" in {step.name for step in read_status(config.out).items}


KEPT = ("stores", "training", "heatmaps", "evaluation")


def names(out: Path) -> list[str]:
    return sorted(path.name.removesuffix(".zarr") for path in (out / "stores").glob("*.zarr"))
