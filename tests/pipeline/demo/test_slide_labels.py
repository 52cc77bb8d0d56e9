"""The demo of slide labels, in small: from slides to heatmaps of attention, without an annotation or a network."""

from __future__ import annotations

import csv
import socket
from pathlib import Path

import pytest

from pipeline.demo import slide_labels
from pipeline.demo.slide_labels import run_slide_labels
from training.models.info import read_bag_info


@pytest.mark.usefixtures("one_process")
def test_the_demo_of_slide_labels_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(slide_labels, "SLIDES", 6)
    monkeypatch.setattr(slide_labels, "SIZE_PX", (1024, 1024))
    small = {"epochs": 1, "batch_size": 2, "bootstrap_resamples": 5, "head_dim": 8, "threads": 1}
    monkeypatch.setattr(slide_labels, "TRAIN", slide_labels.TRAIN.model_copy(update=small))
    lines: list[str] = []
    report = run_slide_labels(tmp_path / "demo", seed=2, say=lines.append)
    with (tmp_path / "demo/cohort/manifest.csv").open() as file:
        held_out = [row["slide_id"] for row in csv.DictReader(file) if row["split"] == "test"]
    assert [heatmap.slide_id for heatmap in report.heatmaps] == held_out
    assert all((heatmap.folder / "report.html").exists() for heatmap in report.heatmaps)
    index = (tmp_path / "demo/heatmaps/index.html").read_text()
    assert all(f"{slide_id}/report.html" in index for slide_id in held_out)
    assert report.tested.noun == "bag"
    assert report.tested.models[0].overall.tiles == len(held_out)
    assert read_bag_info(report.model).encoder.name == "tf_efficientnet_lite0"
    assert len(lines) == 4
    again = run_slide_labels(tmp_path / "demo", seed=2, say=lines.append)
    assert all(heatmap.reused for heatmap in again.heatmaps)
