"""The study of other hospitals: small ones from end to end, and what is made of records."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics

from tiling.core.artefact import folder_faults
from tiling.core.errors import InputError
from training import TrainConfig, samples_from_images
from training.data.samples import Samples
from training.evaluation.bootstrap import bootstrap_interval
from training.evaluation.metrics import balanced_accuracy
from training.external import experiment
from training.external.config import ExternalConfig
from training.external.experiment import ExternalTrials, metrics_of, report_external, study_external
from training.external.report import case_interval, gain_over, rivals_of, study_markdown, study_table
from training.selection.rules import Quantities, Shifted
from training.trials.choice import as_grid, chosen_lines
from training.trials.config import Run, Setting, planned
from training.trials.records import VALIDATION, RunRecord, packed, unpacked
from training.trials.study import SetFacts, Study
from training.trials.tiles import read_tiles

SMALL = ExternalConfig(
    methods=("weight_decay", "sd"), seeds=2, sd_lambdas=(1,), weight_decays=(0.1,), epochs=8, batch_size=8,
    shifts=("brightness",), augment="none", learning_rate=3e-3,
)  # fmt: skip


def hospital(folder: Path, name: str, seed: int, cancer_is_bright: bool) -> Path:
    """40 pictures of 20 cases; brightness follows the label at one hospital, and says nothing at others."""
    random = np.random.default_rng(seed)
    lines = ["path,case_id,label,site"]
    for number in range(40):
        cancer = number // 2 % 2
        bright = cancer if cancer_is_bright else random.integers(2)
        picture = random.integers(60, 100, (32, 32, 3)) + 80 * bright
        assert cv2.imwrite(str(folder / f"{name}{number}.png"), picture.astype(np.uint8))
        lines.append(f"{name}{number}.png,{name}{number // 2},{'cancer' if cancer else 'benign'},{name}")
    path = folder / f"{name}.csv"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> tuple[Samples, Samples, Samples]:
    """One to train on, another, and more of the first."""
    folder = tmp_path_factory.mktemp("hospitals")
    tables = (hospital(folder, "home", 0, True), hospital(folder, "away", 1, False), hospital(folder, "more", 2, True))
    home, away, more = (samples_from_images(table, TrainConfig(), to_train=not n) for n, table in enumerate(tables))
    return home, away, more


@pytest.fixture(scope="module")
def made(hospitals: tuple[Samples, Samples, Samples], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study; read only."""
    out = tmp_path_factory.mktemp("made") / "study"
    home, away, more = hospitals
    grid = study_external(home, away, out, SMALL, inside=more)
    assert {method: [len(of) for of in by.values()] for method, by in grid.items()} == {"weight_decay": [2], "sd": [2]}
    return out


# the study


def test_a_study_tells_home_from_away(made: Path) -> None:
    assert folder_faults(made) == []
    assert {path.name for path in made.iterdir() if not path.name.startswith(".")} == {
        "commit.json", "runs", "study.json", "study.csv", "study.md", "study.png",
    }  # fmt: skip
    records = [RunRecord.model_validate_json(path.read_bytes()) for path in (made / "runs").iterdir()]
    assert len(records) == 2 * 3, "plain training too"
    for record in records:
        assert record.tests["inside"]["balanced_accuracy"] > 0.9
        assert record.tests["external"]["balanced_accuracy"] < 0.75
    text = (made / "study.md").read_text()
    for part in (
        "or research use only",
        "40 external tiles of\n20 cases",
        "| sd | weight_decay |",
        "| away | positive |",
    ):
        assert part in text
    picture = cv2.imread(str(made / "study.png"))
    assert picture is not None
    assert picture.std() > 5


def test_tables_and_figure_are_made_again_from_records_alone(made: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for path in (made / "study.json", *(made / "runs").iterdir()):
        (tmp_path / path.relative_to(made)).write_bytes(path.read_bytes())
    grid, config = report_external(tmp_path)
    assert config == SMALL
    for name in ("study.csv", "study.md", "study.png"):
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes()
    last = next(r for r in grid["sd"][Setting(1)] if r.run.seed == 1)
    (tmp_path / "runs" / f"{last.key}.json").unlink()
    assert report_external(tmp_path)[1].seeds == 1, "only whole seeds are shown"
    first = grid["sd"][Setting(1)][0]
    (tmp_path / "runs" / f"{first.key}.json").unlink()
    with pytest.raises(InputError, match="seed"):
        report_external(tmp_path)
    with pytest.raises(InputError, match=r"study\.json"):
        report_external(tmp_path / "runs")


def test_records_name_no_case_and_no_file(made: Path) -> None:
    for path in (made / "study.json", *(made / "runs").iterdir()):
        text = path.read_text()
        assert "png" not in text
        assert "away1" not in text
    assert json.loads((made / "study.json").read_text())["sets"]["external"]["sites"] == ["away"]


def test_a_finished_run_is_not_trained_again(
    made: Path, hospitals: tuple[Samples, Samples, Samples], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home, away, more = hospitals
    (tmp_path / "runs").mkdir()
    for path in (made / "runs").iterdir():
        (tmp_path / "runs" / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(ExternalTrials, "__call__", None)
    rules = SMALL.model_copy(update={"rules": ("log_loss", "stress"), "resamples": 10})
    study_external(home, away, tmp_path, rules, inside=more)
    with pytest.raises(TypeError):
        study_external(home, away, tmp_path, SMALL.model_copy(update={"epochs": 9}), inside=more)
    with pytest.raises(TypeError):
        study_external(home, more, tmp_path, SMALL)


def test_every_setting_decides_a_run_or_the_study_alone(hospitals: tuple[Samples, Samples, Samples]) -> None:
    deciding = set(ExternalConfig.model_fields) - experiment.STUDY_ONLY
    assert deciding == {
        "shifts", "backbone", "weights", "input_px", "learning_rate", "epochs", "batch_size", "val_fraction",
    }  # fmt: skip


def test_what_is_tested_decides_nothing_of_the_network(hospitals: tuple[Samples, Samples, Samples]) -> None:
    """Threshold and choice come from validation: whatever the external data is, they are the same."""
    home, away, more = (read_tiles(samples) for samples in hospitals)
    run = Run(0, Setting())
    one = ExternalTrials(home, {"external": away}, SMALL)(run, "k")
    other = ExternalTrials(home, {"external": more}, SMALL)(run, "k")
    both = ExternalTrials(home, {"external": more, "inside": away}, SMALL)(run, "k")
    assert one.validation == other.validation
    assert one.tests["external"] == both.tests["inside"] != other.tests["external"]
    assert one.right["external"] == both.right["inside"]


def test_metrics_are_scikit_learn_s() -> None:
    random = np.random.default_rng(0)
    label = random.integers(0, 2, 50)
    positive = np.clip(0.4 * label + 0.6 * random.random(50), 0, 1)
    found = metrics_of(np.stack([1 - positive, positive], axis=1), label, 0.45)
    called = (positive >= 0.45).astype(int)
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(label, called))
    assert found["sensitivity"] == pytest.approx(metrics.recall_score(label, called))
    assert found["specificity"] == pytest.approx(metrics.recall_score(label, called, pos_label=0))
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(label, positive))


def test_what_cannot_be_studied_is_refused(hospitals: tuple[Samples, Samples, Samples], tmp_path: Path) -> None:
    home, away, _ = hospitals
    out = tmp_path / "out"
    with pytest.raises(InputError, match="shares 40 files"):
        study_external(home, home, out, SMALL)
    with pytest.raises(InputError, match="shares 40 files"):
        study_external(home, away, out, SMALL, inside=home)
    with pytest.raises(InputError, match="classes benign, tumour"):
        study_external(home, replace(away, classes=("benign", "tumour")), out, SMALL)
    assert not out.exists()


# what is made of the records

LABEL = np.array([0, 0, 0, 1, 1, 1, 0, 1, 0, 1, 1, 0])
CASE = [0, 0, 1, 2, 2, 3, 4, 5, 6, 7, 7, 1]
TESTED = SetFacts(label=packed(LABEL == 1), case=CASE, site=[0] * 6 + [1] * 6, sites=["north", "south"])
CONFIG = ExternalConfig(
    methods=("erm", "undertrained", "weight_decay", "sd"), seeds=3, sd_lambdas=(1, 5), weight_decays=(0.1, 1),
    rate_shares=(0.3, 0.1), epoch_shares=(1, 1), rules=("log_loss", "stress"), resamples=200,
)  # fmt: skip
STUDY = Study(
    kind="external study", config={}, classes=("benign", "cancer"), tiles=(99, 99), keys=[], made_with={"torch": "2"},
    sets={"external": TESTED},
)  # fmt: skip


def record(run: Run, right: Sequence[int], loss: float, stress: float) -> RunRecord:
    flags = np.array(right, bool)
    recalls = [float(flags[c == LABEL].mean()) for c in (0, 1)]
    tests = {"balanced_accuracy": sum(recalls) / 2, "auroc": 0.5, "sensitivity": recalls[1], "specificity": recalls[0],
             "ece": 0.1}  # fmt: skip
    shifted = {"hue +0.5": Shifted(balanced_accuracy=stress, agreement=stress)}
    seen = Quantities(log_loss=loss, auroc=0.9, balanced_accuracy=stress, shifted=shifted)
    return RunRecord(
        key="k", run=run, validation=seen, tests={"external": tests}, seconds=1.0,
        right={"external": packed(flags), VALIDATION: packed(np.array([True, False]))},
    )  # fmt: skip


@pytest.fixture
def grid() -> Mapping[str, Mapping[Setting, Sequence[RunRecord]]]:
    """Random answers; by log loss each method takes its first setting, by `stress` its second."""
    random = np.random.default_rng(5)
    records = {}
    for run in planned(CONFIG):
        weak = run.setting.sd_lambda == 1 or run.setting.weight_decay == 0.1 or run.setting.rate_share == 0.3
        sure = 0.9 if run.setting.sd_lambda else 0.6
        right = (random.random(12) < sure).astype(int)
        records[run] = record(run, right.tolist(), 0.1 if weak else 0.3, 0.6 if weak else 0.8)
    return as_grid(records, CONFIG)


def test_an_interval_over_cases_is_that_of_the_mean_over_seeds(
    grid: Mapping[str, Mapping[Setting, Sequence[RunRecord]]],
) -> None:
    line = chosen_lines(grid, "stress")["sd"]
    rights = [unpacked(record.right["external"]) for record in line.records]

    def mean(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        of_seeds = [balanced_accuracy(np.where(right, LABEL, 1 - LABEL), LABEL, 2, weights) for right in rights]
        return np.asarray(np.mean(of_seeds, axis=0))

    expected = bootstrap_interval(mean, np.array(CASE).astype(str), resamples=200)
    found = case_interval(np.mean(rights, axis=0), TESTED, 200)
    assert expected.low is not None
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_sd_is_held_against_the_best_rival(grid: Mapping[str, Mapping[Setting, Sequence[RunRecord]]]) -> None:
    lines = chosen_lines(grid, "stress")
    rivals = rivals_of("sd", lines)
    assert {line.method for line in rivals} == {"undertrained", "weight_decay"}
    assert rivals_of("strong+sd", lines) == [], "none sees tiles as it does"
    assert rivals_of("strong+sd", {**lines, "strong+l2": lines["erm"]}) == [lines["erm"]]
    assert rivals[0].estimate("external").mean >= rivals[1].estimate("external").mean
    gain, over_cases = gain_over(lines["sd"], rivals[0], STUDY, CONFIG)
    expected = stats.ttest_rel(lines["sd"].values("external"), rivals[0].values("external")).confidence_interval(0.95)
    assert (gain.low, gain.high) == pytest.approx((expected.low, expected.high))
    assert over_cases.value == pytest.approx(gain.mean)
    assert over_cases.low is not None
    assert over_cases.low < gain.mean


def test_page_and_table_hold_every_choice(grid: Mapping[str, Mapping[Setting, Sequence[RunRecord]]]) -> None:
    rows = list(csv.DictReader(io.StringIO(study_table(grid, STUDY, CONFIG))))
    assert [(row["rule"], row["method"]) for row in rows] == [
        *((rule, method) for rule in CONFIG.rules for method in CONFIG.methods),
        *((rule, pool) for pool in ("any", "any without SD") for rule in CONFIG.rules),
        ("fixed", "erm"), *(("fixed", method) for method in CONFIG.methods[1:] for _ in range(2)),
    ]  # fmt: skip
    strong = chosen_lines(grid, "stress")["sd"]
    assert strong.chosen == {Setting(5, augment="light"): 3}
    row = rows[7]
    assert float(row["external_balanced_accuracy"]) == pytest.approx(strong.estimate("external").mean, abs=1e-6)
    text = study_markdown(grid, STUDY, CONFIG)
    rights = np.mean([unpacked(record.right["external"]) for record in strong.records], axis=0)
    north = rights[:6][LABEL[:6] == 1].mean()
    (row_of_site,) = _rows(text, "| north | positive | 3 | 2 |")
    assert row_of_site.endswith(f"| {north:.3f} |")
    every = [of for by in grid.values() for of in by.values()]
    best = np.max([[record.tests["external"]["balanced_accuracy"] for record in of] for of in every], axis=0)
    pooled = [max((of[seed] for of in every), key=lambda r: r.validation.balanced_accuracy) for seed in range(3)]
    lost = (best - [record.tests["external"]["balanced_accuracy"] for record in pooled]).mean()
    assert f"| {lost:.3f} (" in _rows(text, "| stress | any |")[-1]


def _rows(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]
