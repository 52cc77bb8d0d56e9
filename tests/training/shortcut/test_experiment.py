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
from scipy import stats

from tiling.core.artefact import folder_faults, read_commit
from tiling.core.errors import ConfigError, InputError, ModelError, OutputError
from tiling.core.settings import load_settings
from training import TrainConfig, samples_from_images
from training.data.samples import Samples
from training.shortcut import experiment as study
from training.shortcut.config import (
    TESTS,
    VALIDATION,
    Grid,
    Run,
    RunRecord,
    Setting,
    ShortcutConfig,
    as_grid,
    candidates,
    choose,
    planned,
    run_of,
)
from training.shortcut.experiment import read_tiles, run_key, split_of, study_recipe, study_shortcut, train_run
from training.shortcut.report import chosen_lines, fixed_lines, study_markdown, study_table, t_interval

SMALL = ShortcutConfig(
    confounder="brightness", amount=0.5, strength=1.0, seeds=2, methods=("erm", "sd"), sd_lambdas=(0.1,), epochs=3,
    batch_size=8, learning_rate=3e-3,
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
    return {record["key"]: (record["run"], record["metrics"]) for record in records}


# the whole study


def test_a_perfect_shortcut_is_all_that_noise_teaches(samples: Samples) -> None:
    config = SMALL.model_copy(update={"epochs": 8})
    data = read_tiles(samples, config)
    metrics = train_run(Run(0, Setting()), "key", data, config).metrics
    expected = {VALIDATION: 1.0, "in_distribution": 1.0, "unconfounded": 0.5, "clean": 0.5, "reversed": 0.0}
    assert {name: of["balanced_accuracy"] for name, of in metrics.items()} == expected
    assert metrics["reversed"]["auroc"] == 0.0


def test_a_study_is_complete_and_does_not_depend_on_its_workers(samples: Samples, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    lines = study_shortcut(samples, tmp_path / "one", SMALL, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert [line.method for line in lines] == ["erm", "sd"]
    names = sorted(p.name for p in (tmp_path / "one").iterdir() if not p.name.startswith("."))
    assert names == ["commit.json", "examples.png", "runs", "study.csv", "study.md", "study.png"]
    for name, content in figures(tmp_path / "one").items():
        picture = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None, name
        assert picture.std() > 5
    assert folder_faults(tmp_path / "one") == []
    assert read_commit(tmp_path / "one").recipe == study_recipe(read_tiles(samples, SMALL), SMALL)
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

    def counted(run: Run, *arguments: Any) -> RunRecord:
        trained.append(run)
        return train_run(run, *arguments)

    def stop_after_two(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(study, "train_run", counted)
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


def test_methods_of_a_seed_differ_in_nothing_else(samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lambda of nothing and a decay of nothing leave the very network that plain training gives."""
    data = read_tiles(samples, SMALL)
    plain, next_seed = (train_run(Run(seed, Setting()), "", data, SMALL).metrics for seed in (0, 1))
    for setting in (Setting(sd_lambda=1e-30), Setting(weight_decay=1e-30)):
        assert train_run(Run(0, setting), "", data, SMALL).metrics == plain
    assert next_seed != plain
    for changed in (Setting(sd_lambda=1.0), Setting(weight_decay=100.0)):
        assert train_run(Run(0, changed), "", data, SMALL).metrics != plain


def test_spectral_decoupling_sets_in_when_it_is_to(samples: Samples) -> None:
    data = read_tiles(samples, SMALL)
    run = Run(0, Setting(sd_lambda=10.0))
    early, late = (train_run(run, "", data, SMALL.model_copy(update={"sd_start": s})).metrics for s in (0.0, 0.99))
    plain = train_run(Run(0, Setting()), "", data, SMALL).metrics
    assert late == plain  # 18 steps, and 0.99 of them rounds to 18: none is left
    assert early != plain


def test_a_network_that_diverges_is_refused(samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "logits_of", lambda network, tiles: np.full((len(tiles), 2), np.nan))
    with pytest.raises(ModelError, match=r"seed=0.*learning_rate"):
        train_run(Run(0, Setting()), "", read_tiles(samples, SMALL), SMALL)


@pytest.mark.parametrize("run", [Run(0, Setting(), "strong"), Run(0, Setting(), "none", True)])
def test_augmented_and_normalised_runs_are_their_own(samples: Samples, run: Run) -> None:
    config = SMALL.model_copy(update={"epochs": 1, "stain_norm": "reinhard"})
    data = read_tiles(samples, config)
    assert train_run(run, "", data, config).metrics != train_run(Run(0, Setting()), "", data, config).metrics


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
    monkeypatch.setattr(study, "LARGEST", 80 * 32 * 32 * 3 - 1)
    with pytest.raises(InputError, match=r"80 tiles.*32 px"):
        study_shortcut(samples, out, SMALL)
    monkeypatch.undo()
    monkeypatch.setattr(study, "missing_package", lambda: "install it")
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
        ("methods", ["sd", "sd"]), ("seeds", 0), ("sd_lambdas", [0]), ("sd_lambdas", []), ("sd_lambdas", [1, 1]),
        ("sd_lambdas", [float("inf")]), ("weight_decays", [-1]), ("sd_start", 1), ("epochs", 0), ("batch_size", 1),
        ("learning_rate", 0), ("val_fraction", 0.9), ("amount", float("inf")), ("seed", 3),
    ],
)  # fmt: skip
def test_bad_settings_are_named(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        load(None, {key: value})


def test_settings_come_from_a_file_and_options(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("strength: 0.95\nsd_lambdas: [1, 20]\nepochs: 4\n")
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


def test_the_grid_is_the_whole_product_and_no_network_is_trained_twice() -> None:
    config = ShortcutConfig(
        methods=("erm", "weight_decay", "sd", "sd+weight_decay", "stain_norm", "strong", "sd+strong"),
        sd_lambdas=(1, 5), weight_decays=(0.1, 0.2, 0.3), seeds=2,
    )  # fmt: skip
    sizes = {method: len(candidates(method, config)) for method in config.methods}
    assert list(sizes.values()) == [1, 3, 2, 6, 1, 1, 2]
    runs = planned(config)
    assert len(runs) == len(set(runs)) == 2 * 16
    assert [run.seed for run in runs] == [0] * 16 + [1] * 16
    assert run_of("sd+strong", Setting(5, 0), 1) == Run(1, Setting(5, 0), "strong")
    assert run_of("stain_norm", Setting(), 0) == Run(0, Setting(), "none", True)
    assert run_of("sd+weight_decay", Setting(5, 0.1), 0) == Run(0, Setting(5, 0.1))


def test_a_key_holds_what_decides_a_run_and_nothing_else(samples: Samples) -> None:
    data, run = read_tiles(samples, SMALL), Run(0, Setting())
    key = run_key(run, data, SMALL)
    for field, value in (
        ("methods", ("strong",)), ("seeds", 7), ("sd_lambdas", (3.0,)), ("weight_decays", (3.0,)), ("tolerance", 0.1),
    ):  # fmt: skip
        assert run_key(run, data, SMALL.model_copy(update={field: value})) == key
    usual, named = ({"confounder": "hue", "amount": amount} for amount in (None, 10.0))
    assert run_key(run, data, SMALL.model_copy(update=usual)) == run_key(run, data, SMALL.model_copy(update=named))
    others = [
        ("confounder", "hue"), ("amount", 0.4), ("strength", 0.9), ("stain_norm", "reinhard"), ("sd_start", 0.5),
        ("backbone", "test_byobnet"), ("input_px", 48), ("learning_rate", 1e-3), ("epochs", 4), ("batch_size", 16),
        ("val_fraction", 0.2), ("test_fraction", 0.3),
    ]  # fmt: skip
    assert {name for name, _ in others} | study.STUDY_ONLY == set(ShortcutConfig.model_fields)
    keys = {run_key(run, data, SMALL.model_copy(update={field: value})) for field, value in others}
    keys |= {run_key(replace(run, **change), data, SMALL) for change in (
        {"seed": 1}, {"setting": Setting(1)}, {"setting": Setting(0, 1)}, {"augment": "strong"}, {"stain": True},
    )}  # fmt: skip
    keys.add(run_key(run, replace(data, identity="other"), SMALL))
    assert len(keys | {key}) == len(others) + 5 + 1 + 1


def test_each_seed_splits_the_cases_anew_and_whole(samples: Samples) -> None:
    data = read_tiles(samples, SMALL)
    splits = [split_of(data, SMALL, seed) for seed in range(3)]
    for split in splits:
        assert sorted(np.concatenate(list(split.values())).tolist()) == list(range(80))
        cases = [set(samples.case_id[indices]) for indices in split.values()]
        assert sum(map(len, cases)) == len(set.union(*cases)) == 40
    assert len({tuple(split["test"]) for split in splits}) == 3


# what is made of the records


def record(run: Run, accuracy: Mapping[str, float], loss: float) -> RunRecord:
    of = {name: {"balanced_accuracy": value, "auroc": value / 2} for name, value in accuracy.items()}
    of[VALIDATION] = {"balanced_accuracy": 0.9, "auroc": 0.8, "log_loss": loss}
    return RunRecord(key="k", run=run, metrics=of, seconds=run.seed + 1.0)


@pytest.fixture
def grid() -> Grid:
    """Three seeds; lambda 5 has the least validation loss for the first two, lambda 1 for the last."""
    config = ShortcutConfig(methods=("weight_decay", "sd"), sd_lambdas=(1, 5), weight_decays=(0.1,), seeds=3)
    unconfounded = {(0.0, 0.1): (0.50, 0.52, 0.54), (1.0, 0.0): (0.60, 0.60, 0.60), (5.0, 0.0): (0.70, 0.66, 0.90)}
    loss = {(0.0, 0.1): (1.0, 1.0, 1.0), (1.0, 0.0): (0.3, 0.3, 0.1), (5.0, 0.0): (0.2, 0.2, 0.2)}
    records = {
        run: record(run, dict.fromkeys(TESTS, unconfounded[run.setting][run.seed]), loss[run.setting][run.seed])
        for run in planned(config)
    }
    return as_grid(records, config)


def test_settings_are_chosen_by_the_validation_loss_of_each_seed(grid: Grid) -> None:
    assert choose(grid["sd"]) == [Setting(5), Setting(5), Setting(1)]
    decay, decoupling = chosen_lines(grid)
    assert decoupling.chosen == {Setting(5): 2, Setting(1): 1}
    assert decoupling.values("unconfounded", "balanced_accuracy").tolist() == [0.70, 0.66, 0.60]
    expected = stats.ttest_rel([0.70, 0.66, 0.60], [0.50, 0.52, 0.54])
    span = expected.confidence_interval(0.95)
    gain = decoupling.gains["unconfounded"]
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.4 / 3, span.low, span.high))
    assert decay.gains["unconfounded"].mean == 0
    assert decoupling.seconds == 2.0
    fixed = {(line.method, line.setting): line for line in fixed_lines(grid)}
    assert fixed["sd", Setting(1)].gains["reversed"].mean == pytest.approx(0.08)
    assert [fixed["sd", Setting(value)].chosen.total() for value in (1, 5)] == [1, 2]


def test_an_interval_is_students_t() -> None:
    values = np.array([0.5, 0.6, 0.55, 0.7])
    found = t_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=values.mean(), scale=values.std(ddof=1) / 2)
    assert (found.mean, found.low, found.high) == pytest.approx((0.5875, low, high))
    assert str(t_interval(np.array([0.5]))) == "0.500"


@pytest.mark.parametrize(
    ("aurocs", "tolerance", "expected"),
    [
        ((0.90, 0.89, 0.86), 0.02, Setting(1)), ((0.90, 0.89, 0.88), 0.02, Setting(5)),
        ((0.90, 0.89, 0.88), 0.0, Setting(0, 1)),
        ((0.80, 0.84, 0.90), 0.0, Setting(5)), ((0.1, 0.2, 0.3), 0.5, Setting(5)),
    ],
)  # fmt: skip
def test_the_second_rule_takes_the_strongest_that_costs_little(
    aurocs: Sequence[float], tolerance: float, expected: Setting
) -> None:
    settings = (Setting(0, 1), Setting(1), Setting(5))
    by_setting = {}
    for setting, auroc in zip(settings, aurocs, strict=True):
        metrics = {VALIDATION: {"auroc": auroc + 1e-9 * (setting.sd_lambda == 5), "log_loss": 0.0}}
        by_setting[setting] = [RunRecord(key="k", run=Run(0, setting), metrics=metrics, seconds=1.0)]
    assert choose(by_setting, tolerance) == [expected]
    assert choose(by_setting) == [settings[0]]


def test_the_table_holds_every_setting(grid: Grid) -> None:
    rows = list(csv.DictReader(io.StringIO(study_table(grid, tolerance=0.02))))
    assert [(row["rule"], row["method"], row["sd_lambda"], row["weight_decay"]) for row in rows] == [
        ("best", "weight_decay", "", ""), ("best", "sd", "", ""), ("strongest", "weight_decay", "", ""),
        ("strongest", "sd", "", ""), ("fixed", "weight_decay", "0", "0.1"), ("fixed", "sd", "1", "0"),
        ("fixed", "sd", "5", "0"),
    ]  # fmt: skip
    assert [row["seeds_that_chose_it"] for row in rows] == ["3", "3", "3", "3", "3", "1", "2"]
    best, strongest, fixed = rows[1], rows[3], rows[6]
    assert float(best["unconfounded_balanced_accuracy"]) == pytest.approx(1.96 / 3, abs=1e-6)
    assert float(best["unconfounded_auroc"]) == pytest.approx(0.98 / 3, abs=1e-6)
    assert float(best["gain_unconfounded"]) == pytest.approx(0.4 / 3, abs=1e-6)
    assert float(fixed["validation_log_loss"]) == pytest.approx(0.2)
    assert float(fixed["validation_auroc"]) == pytest.approx(0.8)
    assert float(strongest["gain_unconfounded"]) == pytest.approx(0.7 / 3, abs=1e-6)  # all tie in AUROC: lambda 5


def test_the_markdown_says_what_was_done(grid: Grid) -> None:
    config = ShortcutConfig(methods=("weight_decay", "sd"), sd_lambdas=(1, 5), weight_decays=(0.1,), seeds=3)
    text = study_markdown(grid, config, ("benign", "cancer"))
    for part in (
        "or research use only", "probability 0.95", "exactly if it is\ncancer", "| sd | lambda 5 (3) | 0.753",
        "| sd | lambda 1 (1); lambda 5 (2) | 0.653", "+0.133", "| sd | lambda 5 | 2 | 0.200 | 0.800 |",
    ):  # fmt: skip
        assert part in text
    rows = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert rows == [9] * 8 + [12] * 5
