"""A tuning: ordinary runs, what each shows, the model that a rule takes, and nothing trained twice."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from pipeline.provenance import artefacts_in, trace
from tests.pipeline.conftest import listing
from tiling.core.artefact import folder_faults
from tiling.core.errors import ConfigError, InputError, ModelError, OutputError, SpecslideError, StoppedError
from training import Samples, TrainConfig, TuneConfig, load_model, samples_from_images, train, tune
from training.data.dataset import TileDataset
from training.evaluation.perturbations import SHIFTS
from training.models.info import read_info
from training.selection.attempts import attempts, found
from training.selection.rules import RULES
from training.tune import TuneResult, conclude

verb = importlib.import_module("training.tune")
BASE = TrainConfig(
    backbone="test_resnet", weights="none", input_px=32, epochs=1, batch_size=8, learning_rate=3e-3,
    bootstrap_resamples=5, val_fraction=0.25, test_fraction=0.25, seed=3,
)  # fmt: skip
CONFIG = TuneConfig(rule="stress", penalties=("none", "sd"), sd_lambdas=(20.0,), augments=(), seeds=2)
PLAIN, SD = "plain_lr-0.003_light", "sd_lambda-20_lr-0.003_light"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """48 pictures of 12 cases, of two classes that differ a little in brightness."""
    folder = tmp_path_factory.mktemp("pictures")
    random, lines = np.random.default_rng(0), ["path,case_id,label"]
    for number in range(48):
        picture = random.integers(0, 230, (32, 32, 3)) + 20 * (number % 2)
        assert cv2.imwrite(str(folder / f"{number}.png"), picture.astype(np.uint8))
        lines.append(f"{number}.png,case{number // 4},{'ab'[number % 2]}")
    (folder / "index.csv").write_text("\n".join(lines) + "\n")
    return samples_from_images(folder / "index.csv", BASE, mpp=1.0)


@pytest.fixture(scope="module")
def tuned(samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> TuneResult:
    """A finished tuning of two candidates under two seeds."""
    counts: list[tuple[int, int]] = []
    result = tune(samples, tmp_path_factory.mktemp("tuned") / "out", CONFIG, BASE, progress=lambda *n: counts.append(n))
    assert counts == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    return result


def shown(out: Path, name: str, seed: int) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / "runs" / name / f"seed-{seed}" / "quantities.json").read_text())
    return record


def never(*_: object, **__: object) -> None:
    raise AssertionError("nothing is to be trained or predicted")


def test_each_candidate_is_an_ordinary_run_under_the_same_seeds_and_split(samples: Samples, tuned: TuneResult) -> None:
    runs = tuned.model.parent / "runs"
    assert sorted(run.relative_to(runs).as_posix() for run in runs.glob("*/*")) == sorted(
        f"{name}/seed-{seed}" for name in (PLAIN, SD) for seed in (3, 4)
    )
    same = BASE.model_copy(update={"sd_lambda": 20.0, "seed": 4, "split_seed": 3})
    assert train(samples, runs / SD / "seed-4", same).reused
    splits = {run: (run / "split.csv").read_text() for run in runs.glob("*/*")}
    assert len(set(splits.values())) == 1


def test_what_a_run_shows_is_scikit_learns_of_its_models_decisions(samples: Samples, tuned: TuneResult) -> None:
    seen = shown(tuned.model.parent, SD, 4)
    model, split = load_model(tuned.model.parent / "runs" / SD / "seed-4" / "model"), samples.split_of("val")
    assert seen["model"] == model.sha256
    tiles = TileDataset(split).__getitems__(list(range(len(split)))).tiles.numpy()

    def called(view: Any) -> Any:
        return model.predict(view)[:, 1] >= model.info.threshold

    plain, quantities = called(tiles), seen["quantities"]
    assert quantities["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(split.label, plain))
    assert quantities["auroc"] == pytest.approx(roc_auc_score(split.label, model.predict(tiles)[:, 1]))
    assert seen["right"] == "".join(str(int(hit)) for hit in plain == split.label)
    assert len(quantities["shifted"]) == 7 * 2 + 3, "both directions where there are two"
    for name, copy in quantities["shifted"].items():
        shift, strength = name.split()
        shifted = called(SHIFTS[shift](tiles, float(strength)))
        assert abs(float(strength)) == 0.5
        assert copy["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(split.label, shifted))
        assert copy["agreement"] == pytest.approx(np.mean(shifted == plain))


def test_the_model_of_the_best_candidate_and_seed_says_how_it_was_chosen(tuned: TuneResult) -> None:
    out = tuned.model.parent

    def stress(name: str, seed: int) -> float:
        seen = shown(out, name, seed)["quantities"]
        every = [seen["balanced_accuracy"], *(copy["balanced_accuracy"] for copy in seen["shifted"].values())]
        return float(np.mean(every))

    means = {name: np.mean([stress(name, seed) for seed in (3, 4)]) for name in (PLAIN, SD)}
    best = max(means, key=lambda name: means[name])
    seed = max((3, 4), key=lambda seed: stress(best, seed))
    source = out / "runs" / best / f"seed-{seed}" / "model"
    assert (tuned.tuning.chosen.name, tuned.tuning.seed) == (best, seed)
    for name in ("weights.safetensors", "novelty.safetensors"):
        assert (out / "model" / name).read_bytes() == (source / name).read_bytes()
    info = load_model(out / "model").info
    assert info.model_copy(update={"selection": None}) == read_info(source)
    assert info.selection is not None
    assert (info.selection.rule, info.selection.candidates, info.selection.seeds) == ("stress", 2, 2)
    assert info.selection.others.keys() == RULES.keys()
    card = (out / "model" / "README.md").read_text()
    assert f"Chosen as {best}" in card
    assert RULES["stress"].text in card


def test_table_page_and_figure_hold_every_candidate(tuned: TuneResult) -> None:
    out = tuned.model.parent
    with (out / "tune.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["candidate"] for row in rows] == [PLAIN, SD], "the weakest regularisation first"
    for row in rows:
        seen = [shown(out, row["candidate"], seed)["quantities"]["log_loss"] for seed in (3, 4)]
        assert float(row["log_loss"]) == pytest.approx(np.mean(seen), abs=1e-6)
    assert sorted(rule for row in rows for rule in row["taken_by"].split()) == sorted(RULES), "each takes one"
    page = (out / "tune.md").read_text()
    assert f"**{tuned.tuning.chosen.name}**" in page
    assert page.count("| plain_lr-0.003_light |") == 1
    picture = cv2.imread(str(out / "tune.png"))
    assert picture is not None
    assert picture.std() > 5


def test_all_of_it_is_vouched_for_and_leads_back_to_the_pictures(samples: Samples, tuned: TuneResult) -> None:
    out = tuned.model.parent
    artefacts = list(artefacts_in(out))
    assert len(artefacts) == 2 + 4 * 2, "the tuning, its model, the runs and theirs"
    assert [fault for folder in artefacts for fault in folder_faults(folder)] == []
    for path in (out / "model", out / "model" / "README.md", out):
        (data,) = trace(path).made_from
        assert (data.kind, data.missing, len(data.made_from)) == ("data", "", len(samples))


def test_another_rule_trains_and_predicts_nothing(
    samples: Samples, tuned: TuneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tuned.model.parent
    before = listing(out)
    for name in ("train", "predict_views"):
        monkeypatch.setattr(verb, name, never)
    takes = {rule: one.name for rule, one in tuned.tuning.takes.items()}
    for rule in RULES:
        again = tune(samples, out, CONFIG.model_copy(update={"rule": rule}), BASE)
        assert again.tuning.chosen.name == takes[rule]
        selection = read_info(out / "model").selection
        assert selection is not None
        assert (selection.rule, selection.chosen) == (rule, takes[rule])
    few = tune(samples, out, CONFIG.model_copy(update={"shifts": ("hue",)}), BASE)
    assert [sorted(one[0].shifted) for one in few.tuning.seen.values()] == [["hue +0.5", "hue -0.5"]] * 2
    tune(samples, out, CONFIG, BASE)
    assert listing(out) == before


def test_a_stopped_tuning_goes_on_and_ends_with_the_same_bytes(
    samples: Samples, tuned: TuneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def train_two(samples: Samples, out: Path, *settings: Any, **more: Any) -> Any:
        calls.append(out)
        if len(calls) == 3:
            raise StoppedError(out, "stopped by SIGTERM", "run the same command again to go on")
        return train(samples, out, *settings, **more)

    with monkeypatch.context() as patch:
        patch.setattr(verb, "train", train_two)
        with pytest.raises(StoppedError):
            tune(samples, tmp_path / "out", CONFIG, BASE)
    with pytest.raises(OutputError, match="2 of 4 runs"):
        conclude(samples, tmp_path / "out", CONFIG, BASE)
    assert not (tmp_path / "out" / "model").exists()
    calls.clear()
    (tmp_path / "out" / "runs" / PLAIN / "seed-3" / "quantities.json").write_text("{")
    calls.append(Path())
    monkeypatch.setattr(verb, "train", train_two)
    calls.append(Path())
    calls.append(Path())
    tune(samples, tmp_path / "out", CONFIG, BASE)
    assert [call.relative_to(tmp_path / "out/runs").as_posix() for call in calls[3:]] == [
        f"{PLAIN}/seed-3", f"{PLAIN}/seed-4", f"{SD}/seed-4",
    ], "of the first only what it shows is found again"  # fmt: skip
    assert listing(tmp_path / "out") == listing(tuned.model.parent)


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (lambda record: None, True),
        (lambda record: record["quantities"]["shifted"].pop("hue +0.5"), False),
        (lambda record: record.update(right=record["right"][1:]), False),
        (lambda record: record.update(quantities=None), False),
        (lambda record: record.update(quantities=None, failure="diverged", model=""), True),
        (lambda record: record.update(model="0" * 64), False),
        (lambda record: record.update(recipe="0" * 64), False),
        (lambda record: record.update(more=1), False),
    ],
)
def test_what_was_shown_counts_if_it_is_whole_and_of_this_model(
    samples: Samples, tuned: TuneResult, tmp_path: Path, damage: Callable[[dict[str, Any]], object], kept: bool
) -> None:
    one = attempts(tuned.model.parent, CONFIG, BASE)[0]
    record = shown(tuned.model.parent, PLAIN, 3)
    damage(record)
    (tmp_path / "model").symlink_to(one.folder / "model")
    (tmp_path / "quantities.json").write_text(json.dumps(record))
    assert (found(replace(one, folder=tmp_path), samples) is not None) == kept


def diverging(*names: str) -> Callable[..., Any]:
    def fails(samples: Samples, out: Path, *settings: Any, **more: Any) -> Any:
        if out.parent.name in names:
            raise ModelError("epoch 1", "the logits are no longer finite", "train with a lower learning_rate")
        return train(samples, out, *settings, **more)

    return fails


def test_a_candidate_that_diverges_is_a_row_and_not_chosen(
    samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG.model_copy(update={"seeds": 1, "rule": "log_loss"})
    monkeypatch.setattr(verb, "train", diverging(PLAIN))
    result = tune(samples, tmp_path / "out", config, BASE)
    assert result.tuning.chosen.name == SD
    with (tmp_path / "out" / "tune.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["candidate"] == PLAIN)
    assert (row["auroc"], row["taken_by"], row["failure"]) == ("", "", "epoch 1: the logits are no longer finite")
    assert f"{PLAIN} failed" in (tmp_path / "out" / "tune.md").read_text()
    monkeypatch.setattr(verb, "train", never)
    with pytest.raises(ModelError, match="errors"):
        tune(samples, tmp_path / "out", config.model_copy(update={"rule": "errors"}), BASE)
    monkeypatch.setattr(verb, "train", diverging(PLAIN, SD))
    with pytest.raises(ModelError, match="every candidate"):
        tune(samples, tmp_path / "none", config, BASE)


def test_what_cannot_be_tuned_is_refused_before_anything_is_written(samples: Samples, tmp_path: Path) -> None:
    one_sided = replace(samples, split=np.where((samples.split == "val") & (samples.label == 1), "", samples.split))
    refused: list[tuple[type[SpecslideError], str, Samples, TrainConfig]] = [
        (InputError, "val holds no tile of 'b'", one_sided, BASE),
        (ConfigError, "--part", samples, BASE.model_copy(update={"devices": 2})),
    ]
    for kind, words, given, base in refused:
        with pytest.raises(kind, match=words):
            tune(given, tmp_path / "out", CONFIG, base)
    assert not (tmp_path / "out").exists()


def test_a_model_that_was_trained_in_the_folder_is_never_replaced(
    samples: Samples, tuned: TuneResult, tmp_path: Path
) -> None:
    train(samples, tmp_path / "out", BASE)
    (tmp_path / "out" / "runs").symlink_to(tuned.model.parent / "runs")
    before = listing(tmp_path / "out")
    with pytest.raises(OutputError, match="model: was trained here"):
        tune(samples, tmp_path / "out", CONFIG, BASE)
    assert listing(tmp_path / "out") == before
