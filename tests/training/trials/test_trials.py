"""The plan of trials, their records, and what is chosen among them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from training.selection.rules import Quantities
from training.trials.choice import as_grid, choose, chosen_lines, fixed_lines, rule_lines, t_interval
from training.trials.config import PARTS, Run, Setting, TrialConfig, candidates, plain, planned
from training.trials.records import VALIDATION, RunRecord, packed, read_record, record_path, run_key, unpacked

SMALL: dict[str, Any] = {
    "sd_lambdas": (1, 5), "weight_decays": (0.1, 0.2), "l2s": (0.01, 0.1), "rate_shares": (0.3, 1),
    "epoch_shares": (1, 0.5),
}  # fmt: skip


# the plan


def test_a_method_s_settings_are_the_values_of_its_grids_side_by_side() -> None:
    methods = ("erm", "undertrained", "sd", "sd+l2", "sd+weight_decay+strong", "late_sd", "gamma_sd", "least_squares",
               "stain_norm+light")  # fmt: skip
    config = TrialConfig(methods=methods, seeds=2, augment="light", **SMALL)
    found = {method: candidates(method, config) for method in methods}
    light: dict[str, Any] = {"augment": "light"}
    assert found["erm"] == [Setting(**light)]
    assert found["undertrained"] == [
        Setting(rate_share=0.3, **light), Setting(epoch_share=0.5, **light),
    ]  # fmt: skip
    assert found["sd"] == [Setting(sd_lambda=1, **light), Setting(sd_lambda=5, **light)]
    assert found["sd+l2"] == [Setting(sd_lambda=1, l2=0.01, **light), Setting(sd_lambda=5, l2=0.1, **light)]
    assert found["sd+weight_decay+strong"][1] == Setting(sd_lambda=5, weight_decay=0.2, augment="strong")
    assert found["late_sd"][0] == Setting(sd_lambda=1, sd_start=0.5, **light)
    assert found["gamma_sd"][0] == Setting(sd_lambda=1, sd_gamma=(0.44, 2.5), **light)
    assert found["least_squares"][0] == Setting(sd_lambda=1, least_squares=True, **light)
    assert found["stain_norm+light"] == [Setting(stain="macenko", augment="light")]
    runs = planned(config)
    assert len(runs) == len(set(runs)) == 2 * (1 + 2 + 2 + 2 + 2 + 2 + 2 + 2 + 1)
    assert runs[0] == plain(config, 0) == Run(0, Setting(augment="light"))
    assert [run.seed for run in runs] == [0] * 16 + [1] * 16


def test_every_part_makes_a_setting() -> None:
    for part in PARTS:
        config = TrialConfig(methods=(part,))
        assert len(candidates(part, config)) == (5 if PARTS[part].grids else 1)


def test_grids_of_different_sizes_are_refused_where_both_are_used() -> None:
    with pytest.raises(ValidationError, match=r"weight_decays 1"):
        TrialConfig(methods=("sd", "weight_decay"), sd_lambdas=(1, 5), weight_decays=(1,))
    assert TrialConfig(methods=("sd", "erm", "strong"), sd_lambdas=(5, 1)).sd_lambdas == (1, 5)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (Setting(), "-"), (Setting(20.0, weight_decay=0.5), "lambda 20, weight decay 0.5 (lr × wd 0.005)"),
        (Setting(rate_share=0.1), "0.1 of the learning rate"), (Setting(epoch_share=0.5), "0.5 of the epochs"),
        (Setting(l2=1e-3, augment="strong", stain="macenko"), "L2 0.001, strong, macenko"),
        (Setting(5, 0.5, (0.44, 2.5)), "lambda 5, from 50% of the steps, gamma 0.44 and 2.5"),
        (Setting(5, least_squares=True), "lambda 5, least squares"),
    ],
)  # fmt: skip
def test_a_setting_in_words(setting: Setting, words: str) -> None:
    assert setting.words(0.01) == words


# records


@pytest.mark.parametrize("count", [1, 8, 13])
def test_flags_are_packed_and_unpacked(count: int) -> None:
    flags = np.random.default_rng(count).random(count) < 0.5
    np.testing.assert_array_equal(unpacked(packed(flags)), flags)
    assert packed(np.array([True] + [False] * 4)) == "5:80"


def record(seed: int, setting: Setting, loss: float, auroc: float, right: Sequence[int] = (1, 1, 0, 0)) -> RunRecord:
    seen = Quantities(log_loss=loss, auroc=auroc, balanced_accuracy=0.9)
    flags = {VALIDATION: packed(np.array(right, bool))}
    tests = {"external": {"balanced_accuracy": auroc / 2}}
    return RunRecord(key="k", run=Run(seed, setting), validation=seen, tests=tests, right=flags, seconds=seed + 1.0)


def test_a_record_is_read_as_it_was_written_or_not_at_all(tmp_path: Path) -> None:
    one = record(3, Setting(5.0, sd_gamma=(0.1, 0.2)), 0.3, 0.9)
    path = record_path(tmp_path, one.key)
    assert read_record(path) is None
    path.parent.mkdir()
    path.write_text(one.model_dump_json(exclude_defaults=True))
    assert read_record(path) == one
    other = path.with_name("other.json")
    other.write_text(path.read_text())
    assert read_record(other) is None, "of another run"
    path.write_text(path.read_text()[:-9])
    assert read_record(path) is None


def test_a_key_is_of_run_settings_and_tiles() -> None:
    run = Run(0, Setting())
    keys = {
        run_key(run, {"epochs": 3}, "tiles"), run_key(run, {"epochs": 4}, "tiles"),
        run_key(run, {"epochs": 3}, "other"),
        run_key(Run(1, Setting()), {"epochs": 3}, "tiles"), run_key(Run(0, Setting(1.0)), {"epochs": 3}, "tiles"),
    }  # fmt: skip
    assert len(keys) == 5
    assert run_key(run, {"epochs": 3}, "tiles") in keys
    assert run_key(Run(0, Setting(l2=0.0)), {"epochs": 3}, "tiles") in keys


# what is chosen

LOSSES = {Setting(): (1.0, 1.0, 1.0), Setting(1): (0.3, 0.3, 0.1), Setting(5): (0.2, 0.2, 0.2)}
AUROCS = {Setting(): (0.50, 0.52, 0.54), Setting(1): (0.60, 0.60, 0.60), Setting(5): (0.70, 0.66, 0.90)}
CONFIG = TrialConfig(methods=("erm", "sd"), sd_lambdas=(1, 5), seeds=3)


def grid() -> dict[str, dict[Setting, Sequence[RunRecord]]]:
    """Three seeds; lambda 5 has the least validation loss for the first two, lambda 1 for the last."""
    right = {Setting(): (1, 1, 0, 0), Setting(1): (1, 0, 1, 0), Setting(5): (0, 0, 1, 1)}
    records = {
        run: record(run.seed, run.setting, LOSSES[run.setting][run.seed], AUROCS[run.setting][run.seed],
                    right[run.setting])
        for run in planned(CONFIG)
    }  # fmt: skip
    return {method: dict(of) for method, of in as_grid(records, CONFIG).items()}


def test_the_errors_of_plain_training_are_looked_at() -> None:
    shares = {
        setting: (of[0].validation.where_right, of[0].validation.where_wrong)
        for by_setting in grid().values()
        for setting, of in by_setting.items()
    }
    assert shares == {Setting(): (1.0, 0.0), Setting(1): (0.5, 0.5), Setting(5): (0.0, 1.0)}


def test_each_seed_chooses_by_its_own_validation() -> None:
    assert choose(grid()["sd"], "log_loss") == [Setting(5), Setting(5), Setting(1)]
    plainly, decoupling = chosen_lines(grid(), "log_loss").values()
    assert decoupling.chosen == {Setting(5): 2, Setting(1): 1}
    np.testing.assert_allclose(decoupling.values("external"), [0.35, 0.33, 0.30])
    expected = stats.ttest_rel([0.35, 0.33, 0.30], [0.25, 0.26, 0.27])
    span = expected.confidence_interval(0.95)
    gain = decoupling.gain(plainly, "external")
    assert gain is not None
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.2 / 3, span.low, span.high))
    assert plainly.gain(None, "external") is None
    assert decoupling.seconds == 2.0
    assert decoupling.values(VALIDATION, "log_loss").tolist() == [0.2, 0.2, 0.1]
    fixed = {line.setting: line.chosen.total() for line in fixed_lines(grid())}
    assert fixed == {Setting(): 3, Setting(1): 1, Setting(5): 2}


def test_a_rule_chooses_among_all_methods_too() -> None:
    assert rule_lines(grid(), ("log_loss",))["log_loss"].chosen == {Setting(5): 2, Setting(1): 1}
    assert rule_lines(grid(), ("tolerance",))["tolerance"].chosen == {Setting(5): 3}


def test_an_interval_is_students_t() -> None:
    values = np.array([0.5, 0.6, 0.55, 0.7])
    found = t_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=values.mean(), scale=values.std(ddof=1) / 2)
    assert (found.mean, found.low, found.high) == pytest.approx((0.5875, low, high))
    assert str(t_interval(np.array([0.5]))) == "0.500"
    assert t_interval(np.array([0.5])).signed() == "+0.500"
