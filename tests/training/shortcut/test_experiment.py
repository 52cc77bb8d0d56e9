from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from tiling.core.artefact import folder_faults, read_commit
from tiling.core.errors import ConfigError, InputError, OutputError
from tiling.core.settings import load_settings
from training import TrainConfig, samples_from_images
from training.data.samples import Samples
from training.selection.rules import Quantities
from training.shortcut import experiment as study
from training.shortcut.config import TESTS, ShortcutConfig
from training.shortcut.experiment import (
    ShortcutTrials,
    clear_tiles,
    key_of,
    report_shortcut,
    study_recipe,
    study_shortcut,
)
from training.shortcut.report import study_markdown, study_table
from training.trials import tiles as trial_tiles
from training.trials import trainer
from training.trials.choice import Grid, as_grid
from training.trials.config import Run, Setting, plain, planned
from training.trials.records import VALIDATION, RunRecord, packed
from training.trials.study import Study
from training.trials.tiles import read_tiles

SMALL = ShortcutConfig(
    confounder="brightness", amount=0.5, strength=1.0, seeds=2, methods=("erm", "sd"), sd_lambdas=(0.1,), epochs=3,
    batch_size=8, learning_rate=3e-3, shifts=("brightness", "noise"),
)  # fmt: skip


@pytest.fixture
def table(tmp_path: Path, write_table: Callable[[Sequence[Sequence[object]]], Path]) -> Path:
    """80 pictures of 40 cases, all of the same grey noise: their labels are to be had from nothing they show."""
    random = np.random.default_rng(0)
    rows: list[list[object]] = [["path", "case_id", "label"]]
    for number in range(80):
        assert cv2.imwrite(str(tmp_path / f"{number}.png"), random.integers(80, 120, (32, 32, 3)).astype(np.uint8))
        rows.append([f"{number}.png", f"case{number // 2}", "cancer" if number % 2 else "benign"])
    return write_table(rows)


@pytest.fixture
def samples(table: Path) -> Samples:
    return samples_from_images(table, TrainConfig())


def load(path: Path | None, overrides: Mapping[str, object] | None) -> ShortcutConfig:
    return load_settings(ShortcutConfig, path, overrides, "study settings")


def figures(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in ("study.png", "examples.png")}


def metrics_of(out: Path) -> dict[str, Any]:
    """By key, all of a record but how long it took."""
    records = [json.loads(path.read_text()) for path in (out / "runs").iterdir()]
    return {record["key"]: {name: of for name, of in record.items() if name != "seconds"} for record in records}


# the whole study


def test_a_perfect_shortcut_is_all_that_noise_teaches(samples: Samples) -> None:
    config = SMALL.model_copy(update={"epochs": 8})
    record = ShortcutTrials(read_tiles(samples), config)(Run(0, Setting()), "key")
    expected = {"in_distribution": 1.0, "unconfounded": 0.5, "clean": 0.5, "reversed": 0.0}
    assert {name: of["balanced_accuracy"] for name, of in record.tests.items()} == expected
    assert record.tests["reversed"]["auroc"] == 0.0
    seen = record.validation
    assert seen.balanced_accuracy == 1.0
    assert set(seen.shifted) == {"brightness -0.5", "brightness +0.5", "noise +0.5"}
    assert record.right[VALIDATION] == packed(np.ones(12, np.bool_))


def test_a_study_is_complete_and_does_not_depend_on_its_workers(samples: Samples, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    grid = study_shortcut(samples, tmp_path / "one", SMALL, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert list(grid) == ["erm", "sd"]
    names = sorted(p.name for p in (tmp_path / "one").iterdir() if not p.name.startswith("."))
    assert names == ["commit.json", "examples.png", "runs", "study.csv", "study.json", "study.md", "study.png"]
    for name, content in figures(tmp_path / "one").items():
        picture = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None, name
        assert picture.std() > 5
    assert folder_faults(tmp_path / "one") == []
    assert read_commit(tmp_path / "one").recipe == study_recipe(read_tiles(samples), SMALL)
    page = (tmp_path / "one" / "study.md").read_bytes()
    assert report_shortcut(tmp_path / "one")[1] == SMALL
    assert (tmp_path / "one" / "study.md").read_bytes() == page
    assert folder_faults(tmp_path / "one") == [], "made again from the records, they are the same"
    (tmp_path / "one" / "study.md").write_text("as an earlier version wrote it")
    assert report_shortcut(tmp_path / "one")[1] == SMALL
    assert (tmp_path / "one" / "study.md").read_bytes() == page
    assert folder_faults(tmp_path / "one") == []
    (tmp_path / "one" / "examples.png").write_bytes(b"")
    (tmp_path / "one" / "study.md").write_text("as an earlier version wrote it")
    report_shortcut(tmp_path / "one")
    assert any("examples.png" in fault for fault in folder_faults(tmp_path / "one")), "no damage is vouched for"
    study_shortcut(samples, tmp_path / "one", SMALL)
    assert folder_faults(tmp_path / "one") == []
    for damaged in ("study.csv", next((tmp_path / "one" / "runs").iterdir()).relative_to(tmp_path / "one")):
        path = tmp_path / "one" / damaged
        intact = path.read_bytes()
        path.write_bytes(bytes([intact[0] ^ 1]) + intact[1:])
        assert len(faults := folder_faults(tmp_path / "one")) == 1
        assert str(path) in faults[0]
        path.write_bytes(intact)
    study_shortcut(samples, tmp_path / "two", SMALL, workers=2)
    assert metrics_of(tmp_path / "one") == metrics_of(tmp_path / "two")
    assert len(metrics_of(tmp_path / "one")) == 4
    assert figures(tmp_path / "one") == figures(tmp_path / "two")


def test_an_interrupted_study_goes_on(samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, trained = tmp_path / "out", []

    class Counted(ShortcutTrials):
        def __call__(self, run: Run, key: str) -> RunRecord:
            trained.append(run)
            return super().__call__(run, key)

    def stop_after_two(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(study, "ShortcutTrials", Counted)
    with pytest.raises(KeyboardInterrupt):
        study_shortcut(samples, out, SMALL, progress=stop_after_two)
    assert len(metrics_of(out)) == len(trained) == 2
    assert not (out / "study.md").exists()
    torn = next((out / "runs").iterdir())
    torn.write_bytes(torn.read_bytes()[:-9])
    study_shortcut(samples, out, SMALL)
    assert set(trained) == set(planned(SMALL))
    assert len(trained) == 5, "the two that were missing, and the torn one again"
    before = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    study_shortcut(samples, out, SMALL)
    assert len(trained) == 5
    assert {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    study_shortcut(samples, out, SMALL.model_copy(update={"seeds": 1, "methods": ("sd",)}))
    assert len(trained) == 5, "a smaller study of the same kind has all it needs"


def test_clear_tiles_are_those_that_others_decide_rightly_by_a_margin(
    samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of noise whose labels show in nothing but the brightness of half the tiles, that half is clear."""
    monkeypatch.setattr(study, "FOLDS", 2)
    data = read_tiles(samples)
    bright = np.arange(80) % 4 < 2
    tiles = np.where((bright & (data.label == 1))[:, None, None, None], data.tiles + np.uint8(100), data.tiles)
    config = SMALL.model_copy(update={"epochs": 8, "keep_clear": 2.0})
    clear = clear_tiles(replace(data, tiles=tiles), config)
    assert 20 <= len(clear.label) < 60
    bright_share = (clear.tiles[clear.label == 1].mean(axis=(1, 2, 3)) > 150).mean()
    assert bright_share > 0.8, "of all positive tiles it is half, and the dim ones look like the other class"
    assert clear.identity != data.identity
    with pytest.raises(InputError, match="keep_clear"):
        clear_tiles(data, config.model_copy(update={"epochs": 1, "keep_clear": 99.0}))


# what is refused, before anything is written


def test_what_cannot_be_studied_is_refused(samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    three = replace(samples, classes=("benign", "cancer", "other"))
    lonely = replace(samples, case_id=np.where(samples.label == 1, "one", samples.case_id))
    unknown = SMALL.model_copy(update={"backbone": "no_such_net"})
    for wrong, config, named in (
        (three, SMALL, "3 classes"), (lonely, SMALL, "no tile of 'cancer'"), (samples, unknown, "no_such_net"),
    ):  # fmt: skip
        with pytest.raises((InputError, ConfigError), match=named):
            study_shortcut(wrong, out, config)
    monkeypatch.setattr(trial_tiles, "LARGEST", 80 * 32 * 32 * 3 - 1)
    with pytest.raises(InputError, match=r"80 tiles.*32 px"):
        study_shortcut(samples, out, SMALL)
    monkeypatch.undo()
    monkeypatch.setattr(trainer, "missing_package", lambda: "install it")
    with pytest.raises(ConfigError, match="stain_norm"):
        study_shortcut(samples, out, SMALL.model_copy(update={"methods": ("stain_norm",)}))
    assert not out.exists()
    out.write_text("in the way")
    with pytest.raises(OutputError, match="out"):
        study_shortcut(samples, out, SMALL)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("confounder", "blur"), ("strength", 1.1), ("strength", float("nan")), ("methods", []), ("methods", ["adam"]),
        ("methods", ["sd", "sd"]), ("methods", ["sd+adam"]), ("rules", ["best"]), ("shifts", ["blur"]), ("shifts", []),
        ("seeds", 0), ("test_fraction", 0.9), ("weight_decays", [1, 2, 3, 4, 5, 6]),
        ("augment", "weak"), ("keep_clear", -1), ("rate_shares", [0.5, 2, 1, 1, 1]), ("l2s", [1]),
        ("sd_lambdas", [0]), ("sd_lambdas", []), ("sd_lambdas", [1, 1]),
        ("sd_lambdas", [float("inf")]), ("weight_decays", [-1]), ("sd_start", 1), ("epochs", 0), ("batch_size", 1),
        ("learning_rate", 0), ("val_fraction", 0.9), ("amount", float("inf")), ("seed", 3),
    ],
)  # fmt: skip
def test_bad_settings_are_named(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        load(None, {key: value})


def test_settings_come_from_a_file_and_options(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("strength: 0.95\nsd_lambdas: [20, 1]\nmethods: [sd]\nepochs: 4\n")
    config = load(path, {"epochs": "5", "methods": ["sd", "strong"], "seeds": None})
    assert config == ShortcutConfig(strength=0.95, sd_lambdas=(1, 20), epochs=5, methods=("sd", "strong"))
    with pytest.raises(ConfigError, match=r"0\.2.*20"):
        load(None, {"amount": 99})
    path.write_text("strenth: 0.95\n")
    with pytest.raises(ConfigError, match="strenth"):
        load(path, None)
    with pytest.raises(ValidationError):
        config.strength = 1.0  # type: ignore[misc]


# the plan


def test_a_key_holds_what_decides_a_run_and_nothing_else(samples: Samples) -> None:
    data, run = read_tiles(samples), Run(0, Setting())
    key = key_of(run, data, SMALL)
    for field, value in (
        ("methods", ("strong",)), ("seeds", 7), ("sd_lambdas", (3.0,)), ("weight_decays", (3.0,)),
        ("rules", ("errors",)),
        ("l2s", (3.0,)), ("consistencies", (3.0,)),
        ("rate_shares", (0.2,)), ("epoch_shares", (0.2,)), ("sd_start", 0.1), ("sd_gamma", (1, 2)),
        ("stain_norm", "reinhard"), ("augment", "light"), ("keep_clear", 1.0), ("positive_class", "cancer"),
    ):  # fmt: skip
        assert field in study.STUDY_ONLY
        assert key_of(run, data, SMALL.model_copy(update={field: value})) == key
    usual, named = ({"confounder": "hue", "amount": amount} for amount in (None, 10.0))
    assert key_of(run, data, SMALL.model_copy(update=usual)) == key_of(run, data, SMALL.model_copy(update=named))
    others = [
        ("confounder", "hue"), ("amount", 0.4), ("strength", 0.9), ("backbone", "test_byobnet"), ("input_px", 48),
        ("learning_rate", 1e-3), ("epochs", 4), ("batch_size", 16), ("val_fraction", 0.2), ("test_fraction", 0.3),
        ("weights", "packaged"), ("shifts", ("hue",)),
    ]  # fmt: skip
    assert {name for name, _ in others} | study.STUDY_ONLY == set(ShortcutConfig.model_fields)
    keys = {key_of(run, data, SMALL.model_copy(update={field: value})) for field, value in others}
    keys |= {key_of(replace(run, **change), data, SMALL) for change in (
        {"seed": 1}, {"setting": Setting(1)}, {"setting": Setting(weight_decay=1)},
        {"setting": Setting(stain="reinhard")},
    )}  # fmt: skip
    keys.add(key_of(run, replace(data, identity="other"), SMALL))
    assert len(keys | {key}) == len(others) + 4 + 1 + 1


# what is made of the records


def record(run: Run, accuracy: Mapping[str, float], loss: float) -> RunRecord:
    tests = {name: {"balanced_accuracy": value, "auroc": value / 2} for name, value in accuracy.items()}
    seen = Quantities(log_loss=loss, auroc=0.8, balanced_accuracy=0.9)
    right = {VALIDATION: packed(np.array([True, False]))}
    return RunRecord(key="k", run=run, validation=seen, tests=tests, right=right, seconds=run.seed + 1.0)


CONFIG = ShortcutConfig(
    methods=("weight_decay", "sd"), sd_lambdas=(1, 5), weight_decays=(0.1, 2), seeds=3, rules=("log_loss", "tolerance")
)


STUDY = Study(kind="", config={}, classes=("benign", "cancer"), tiles=(80, 80), keys=[], made_with={"torch": "2"})


@pytest.fixture
def grid() -> Grid:
    """Three seeds; lambda 5 has the least validation loss for the first two, lambda 1 for the last."""
    unconfounded = {
        Setting(weight_decay=0.1): (0.50, 0.52, 0.54), Setting(weight_decay=2): (0.40, 0.40, 0.40),
        Setting(1.0): (0.60, 0.60, 0.60), Setting(5.0): (0.70, 0.66, 0.90), Setting(): (0.5, 0.5, 0.5),
    }  # fmt: skip
    loss = {
        Setting(weight_decay=0.1): (1.0, 1.0, 1.0), Setting(weight_decay=2): (2.0, 2.0, 2.0),
        Setting(1.0): (0.3, 0.3, 0.1), Setting(5.0): (0.2, 0.2, 0.2), Setting(): (1.0, 1.0, 1.0),
    }  # fmt: skip
    records = {
        run: record(run, dict.fromkeys(TESTS, unconfounded[run.setting][run.seed]), loss[run.setting][run.seed])
        for run in planned(CONFIG)
    }
    assert plain(CONFIG, 0) in records
    return as_grid(records, CONFIG)


def test_the_table_holds_every_setting(grid: Grid) -> None:
    rows = list(csv.DictReader(io.StringIO(study_table(grid, CONFIG))))
    assert [(row["rule"], row["method"], row["setting"]) for row in rows] == [
        ("log_loss", "weight_decay", ""), ("log_loss", "sd", ""), ("tolerance", "weight_decay", ""),
        ("tolerance", "sd", ""), ("fixed", "weight_decay", "weight decay 0.1"),
        ("fixed", "weight_decay", "weight decay 2"),
        ("fixed", "sd", "lambda 1"), ("fixed", "sd", "lambda 5"),
    ]  # fmt: skip
    assert [row["seeds_that_chose_it"] for row in rows] == ["3", "3", "3", "3", "3", "0", "1", "2"]
    best, strongest, fixed = rows[1], rows[3], rows[7]
    assert float(best["unconfounded_balanced_accuracy"]) == pytest.approx(1.96 / 3, abs=1e-6)
    assert float(best["unconfounded_auroc"]) == pytest.approx(0.98 / 3, abs=1e-6)
    assert float(best["gain_unconfounded"]) == pytest.approx(0.4 / 3, abs=1e-6)
    assert float(fixed["validation_log_loss"]) == pytest.approx(0.2)
    assert float(fixed["validation_auroc"]) == pytest.approx(0.8)
    assert float(strongest["gain_unconfounded"]) == pytest.approx(
        (0.30 + 0.26 + 0.50) / 3, abs=1e-6
    )  # all tie in AUROC


def test_the_markdown_says_what_was_done(grid: Grid) -> None:
    text = study_markdown(grid, CONFIG, STUDY)
    for part in (
        "or research use only", "probability 0.95", "exactly if it is\ncancer", "| sd | lambda 5 (3) | 0.753",
        "| sd | lambda 5 (2); lambda 1 (1) | 0.653", "+0.133", "| sd | lambda 5 | 2 | 0.200 | 0.800 |",
        "lr × wd 0.02",
    ):  # fmt: skip
        assert part in text
    assert "selection by label" not in text
    rows = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert rows == [9] * 8 + [12] * 6
    clear = CONFIG.model_copy(update={"keep_clear": 1.0})
    text = study_markdown(grid, clear, STUDY.model_copy(update={"tiles": (40, 80)}))
    assert "40 of 80" in text
    assert "selection by label" in text
