"""The model card says what was measured; older model folders, which say less, still have one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from training.evaluation.bootstrap import Interval
from training.evaluation.metrics import METRIC_NAMES
from training.evaluation.tables import markdown_table
from training.models.card import model_card
from training.models.classifier import make_classifier
from training.models.folder import load_model, save_model
from training.models.info import GroupSummary, ModelInfo, read_info

VALUE = Interval(value=0.8765, low=0.7654, high=0.9876)
ALL = dict.fromkeys(METRIC_NAMES, VALUE)


def info(**changes: Any) -> ModelInfo:
    values: dict[str, Any] = {
        "backbone": "test_resnet", "classes": ("benign", "tumour"), "positive_class": "tumour", "input_px": 32,
        "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "mpp": 0.5, "tile_px": 32, "temperature": 0.73,
        "threshold": 0.4, "best_epoch": 3, "training": {"sd_lambda": 0.01, "sd_reduction": "sum", "seed": 7},
        "data": {"test": {"cases": 5, "slides": 6, "tiles": 700, "tiles_per_class": {"benign": 400, "tumour": 300}}},
        "metrics": {"test": ALL}, "hashes": {}, "software": {"torch": "2.13"},
    } | changes  # fmt: skip
    return ModelInfo.model_validate(values)


def group(column: str, name: str) -> GroupSummary:
    values = {"split": "test", "column": column, "name": name, "cases": 2, "tiles": 30, "metrics": ALL}
    return GroupSummary.model_validate(values)


def lines_with(card: str, text: str) -> list[str]:
    return [line for line in card.splitlines() if text in line]


def test_card_says_what_was_measured() -> None:
    before = {"test": Interval(value=0.2222, low=0.1111, high=0.3333)}
    card = model_card(info(ece_before=before, groups=(group("site", "Oulu"), group("scanner", "P1000"))))
    assert "For research use only" in card
    assert lines_with(card, "| test | 5 | 6 | 700 | 400 | 300 |")
    assert len(lines_with(card, "0.876 (0.765-0.988)")) == 4, "the split, the site, the scanner, and ECE after"
    (row,) = lines_with(card, "0.222")
    assert row == "| test | 0.222 (0.111-0.333) | 0.876 (0.765-0.988) |"
    for text in (
        "| Oulu | 2 | 30 |",
        "| P1000 | 2 | 30 |",
        "0.73",
        "- seed: 7",
        "calls tumour",
        "torch 2.13",
        "Limits",
    ):
        assert text in card


def test_card_without_sites_or_calibration_says_so() -> None:
    card = model_card(info())
    assert "Neither sites nor scanners" in card
    assert "ECE before" not in card


def test_card_says_what_averages_are_of() -> None:
    assert "average precision are those of tumour" in model_card(info())
    three = info(classes=("a", "b", "c"), positive_class="c", data={})
    assert "mean over the classes of one against the rest" in model_card(three)


def test_card_says_whether_sites_were_split() -> None:
    by_case, by_site = (model_card(info(training=info().training | {"group": group})) for group in ("case", "site"))
    assert "tested on cases from where the training cases came from" in by_case
    assert "tested on sites it was not trained on" in by_site
    assert ("Nor is any site." in by_case, "Nor is any site." in by_site) == (False, True)


def test_undefined_metrics_are_named_so() -> None:
    missing = Interval(value=None, low=None, high=None, undefined=9)
    card = model_card(info(metrics={"val": {"auroc": missing}}, ece_before={"val": missing}))
    assert card.count("undefined (a class is missing)") == 2


@pytest.mark.parametrize("name", ["a|b", "a\nb", "| --- |"])
def test_names_cannot_break_a_table(name: str) -> None:
    lines = markdown_table(["site", "tiles"], [[name, "3"]]).splitlines()
    assert len(lines) == 3
    assert lines[2].replace("\\|", "").count("|") == 3


def test_a_model_of_an_earlier_version_still_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = make_classifier("test_resnet", 2, 32, 32).eval()
    new = info(ece_before={"test": VALUE}, groups=(group("site", "Oulu"),))
    save_model(tmp_path / "model", network, new, model_card(new))
    assert load_model(tmp_path / "model").info.groups == new.groups
    assert load_model(tmp_path / "model").info.ece_before == new.ece_before
    record = json.loads((tmp_path / "model" / "model.json").read_text())
    for field in ("ece_before", "groups"):
        del record[field]
    (tmp_path / "model" / "model.json").write_text(json.dumps(record))
    old = read_info(tmp_path / "model")
    assert (old.ece_before, old.groups) == ({}, ())
    assert model_card(old)
