"""The verb against scikit-learn, on models whose answers are known: the darker a tile, the likelier it is "dark"."""

from __future__ import annotations

import csv
import importlib
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import sklearn.metrics
import torch
from numpy.typing import NDArray

from tiling.core.artefact import DONE, content_hash, folder_faults, state
from tiling.core.errors import ConfigError, InputError, ModelError, OutputError, SpecslideError
from training import Samples, TrainConfig, load_model, samples_from_images, train
from training.data.dataset import TileDataset
from training.data.samples import Split
from training.evaluation.bootstrap import Interval
from training.evaluation.evaluate import (
    choose_tiles,
    evaluate_models,
    group_summaries,
    labelled_tiles,
)
from training.evaluation.metrics import METRIC_NAMES
from training.evaluation.predictions import Predictions, predictions_of
from training.evaluation.results import Group, ModelResult, compare, measure_groups, worse_than_chance
from training.models.classifier import TileModel, make_classifier
from training.models.info import ModelInfo
from training.recipes import evaluation_recipe

ImageTable = Callable[..., Path]
EXACT = 1e-9


class Darkness(TileModel):
    """Says "dark" with a probability that falls with the tile's mean, steeply or not; or nothing finite."""

    steepness = 8.0

    def predict(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        light = tiles.mean(axis=(1, 2, 3)) / 255
        dark = 1 / (1 + np.exp(self.steepness * (light - 0.5)))
        values = {"dark": dark, "bright": 1 - dark}
        return np.stack([values[name] for name in self.info.classes], axis=1).astype(np.float32)


class Unsure(Darkness):
    steepness = 1.0


class Broken(Darkness):
    steepness = float("nan")


def info(**changes: Any) -> ModelInfo:
    values: dict[str, Any] = {
        "backbone": "test_resnet", "classes": ("bright", "dark"), "positive_class": "dark", "input_px": 32,
        "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "mpp": 1.0, "tile_px": 32, "temperature": 1.0,
        "threshold": 0.45, "best_epoch": 1, "training": {"sd_lambda": 0.01, "sd_reduction": "sum"}, "data": {},
        "metrics": {}, "hashes": {}, "software": {},
    } | changes  # fmt: skip
    return ModelInfo.model_validate(values)


def model(kind: type[TileModel] = Darkness, **changes: Any) -> TileModel:
    return kind(make_classifier("test_resnet", 2, 32, 32).eval(), info(**changes), "0" * 64, torch.device("cpu"))


@pytest.fixture
def table(tmp_path: Path) -> ImageTable:
    """Makes `index.csv` of 40 tiles of 10 cases, whose labels follow their darkness with errors."""

    def make(*columns: str, label: Callable[[int, bool], str] | None = None, split: str = "") -> Path:
        random = np.random.default_rng(0)
        facts: dict[str, Callable[[int], str]] = {
            "site": lambda case: "ABC"[case % 3],
            "scanner": lambda case: "" if case < 4 else "P1000",
        }
        lines = [",".join(["path", "case_id", "label", *columns, *(["split"] if split else [])])]
        for i in range(40):
            light = float(random.uniform(20, 235))
            dark = light + random.normal(0, 60) < 128
            picture = np.clip(random.normal(light, 5, (32, 32, 3)), 0, 255).astype(np.uint8)
            assert cv2.imwrite(str(tmp_path / f"{i}.png"), picture)
            name = label(i, dark) if label else ("dark" if dark else "bright")
            rest = [facts[column](i // 4) for column in columns] + ([split] if split else [])
            lines.append(",".join([f"{i}.png", f"case{i // 4}", name, *rest]))
        path = tmp_path / "index.csv"
        path.write_text("\n".join(lines) + "\n")
        return path

    return make


def everything(samples: Samples) -> Split:
    return choose_tiles(samples, "all", Path())


def expected(p: NDArray[np.float64], dark: NDArray[np.bool_], threshold: float) -> dict[str, float]:
    """scikit-learn's metrics of probabilities of "dark" (N,)."""
    return {
        "auroc": sklearn.metrics.roc_auc_score(dark, p),
        "average_precision": sklearn.metrics.average_precision_score(dark, p),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(dark, p >= threshold),
        "log_loss": sklearn.metrics.log_loss(dark, np.stack([1 - p, p], axis=1)),
        "brier": sklearn.metrics.brier_score_loss(dark, p),
    }


def test_figures_equal_scikit_learn_in_all_and_in_each_group(table: ImageTable, tmp_path: Path) -> None:
    samples = labelled_tiles(info(), images=table("site", "scanner"))
    done: list[tuple[int, int]] = []
    found = evaluate_models(
        [model(), model(Unsure, threshold=0.52)], everything(samples), tmp_path / "out",
        by=("site", "scanner", "case"), resamples=50, batch_size=16, progress=lambda n, total: done.append((n, total)),
    )  # fmt: skip
    assert done == [(n, 80) for n in (16, 32, 40, 56, 72, 80)]
    light = TileDataset(everything(samples)).__getitems__(list(range(40))).tiles.numpy().mean(axis=(1, 2, 3)) / 255
    dark = samples.label == 1
    for result, steepness, threshold in zip(found.models, (8, 1), (0.45, 0.52), strict=True):
        p = (1 / (1 + np.exp(steepness * (light - 0.5)))).astype(np.float32).astype(np.float64)
        groups = {"site": samples.site, "scanner": np.where(samples.scanner == "", "unknown", samples.scanner)}
        chosen = [(result.overall, np.ones(40, dtype=bool))]
        chosen += [(g, groups[by] == name) for by in groups for name, g in result.groups[by].items()]
        assert len(chosen) == 1 + 3 + 2
        for group, rows in chosen:
            assert (group.tiles, group.cases) == (rows.sum(), len(np.unique(samples.case_id[rows])))
            for name, value in expected(p[rows], dark[rows], threshold).items():
                # 1 - p is rounded to float32 by itself, so losses differ in the eighth digit
                tolerance = 1e-6 if name in ("log_loss", "brier") else EXACT
                assert group.metrics[name].value == pytest.approx(value, abs=tolerance), name

    names = {"commit.json", "evaluation.json", "evaluation.md", "evaluation.html", "predictions.csv", "comparison.png"}
    pictures = {f"{m}_{what}.png" for m in "AB" for what in ("performance", "gallery", "site", "scanner", "case")}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names | pictures
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record["models"][1]["overall"]["metrics"]["auroc"]["value"] == found.models[1].overall.metrics["auroc"].value
    assert record["models"][0]["worst"]["site"] == found.models[0].worst("site")
    assert record["differences"]["ece"]["value"] == found.differences["ece"].value
    page = (tmp_path / "out" / "evaluation.md").read_text()
    assert "For research use only" in page
    for text in (
        "B minus A",
        "## A by site",
        "## B by case",
        "| P1000 |",
        str(found.models[0].overall.metrics["auroc"]),
    ):
        assert text in page
    shown = (tmp_path / "out" / "evaluation.html").read_text()
    assert all(f'src="{picture}"' in shown for picture in pictures)
    assert "<h2>A by site</h2>" in shown
    assert str(tmp_path) not in shown + page + json.dumps(record), "no path of a machine"
    with (tmp_path / "out" / "predictions.csv").open() as f:
        written = list(csv.DictReader(f))
    assert [float(row["A_prob_dark"]) for row in written] == pytest.approx(
        1 / (1 + np.exp(8 * (light - 0.5))), abs=1e-5
    )


def test_a_group_of_one_case_has_no_interval(table: ImageTable, tmp_path: Path) -> None:
    samples = labelled_tiles(info(), images=table())
    found = evaluate_models([model()], everything(samples), tmp_path / "out", by=["case"], resamples=20)
    (result,) = found.models
    assert all(group.metrics["log_loss"].low is None for group in result.groups["case"].values())
    assert result.overall.metrics["log_loss"].low is not None
    worst = result.worst("case")["log_loss"]
    losses = {name: group.metrics["log_loss"].value or 0.0 for name, group in result.groups["case"].items()}
    assert losses[worst] == max(losses.values())
    best_ranked = result.worst("case")["balanced_accuracy"]
    values = [group.metrics["balanced_accuracy"].value for group in result.groups["case"].values()]
    assert result.groups["case"][best_ranked].metrics["balanced_accuracy"].value == min(
        value for value in values if value is not None
    )


def test_a_model_is_no_better_than_itself(table: ImageTable, tmp_path: Path) -> None:
    samples = labelled_tiles(info(), images=table())
    turned = model(classes=("dark", "bright"))  # the same model, its classes in another order
    found = evaluate_models([model(), turned], everything(samples), tmp_path / "out", resamples=30)
    for name, gain in found.differences.items():
        assert (gain.value, gain.low, gain.high, gain.above_zero) == (0, 0, 0, 0.5), name
    assert found.models[0].overall == found.models[1].overall


@pytest.mark.parametrize(("high", "said"), [(0.3, True), (0.5, False), (None, False)])
def test_labels_that_look_swapped_are_said(high: float | None, said: bool) -> None:
    group = Group(9, 9, {}, {"auroc": Interval(0.2, None if high is None else 0.1, high)})
    result = ModelResult("B", "0" * 64, "resnet", 0.5, 1.0, group, {})
    assert [note.startswith("B: the AUROC") for note in worse_than_chance([result])] == [True] * said


def test_a_comparison_is_paired() -> None:
    """On cases that differ far more than the models do, the interval of the difference is the narrow one."""
    random = np.random.default_rng(0)
    labels = np.tile([0, 1], 100)
    hard = np.repeat(random.uniform(0.1, 0.9, 20), 10)
    p = np.where(labels == 1, hard, 1 - hard)
    a, b = (
        Predictions(np.stack([1 - q, q], axis=1), labels, np.repeat(np.arange(20).astype(str), 10), ("x", "y"), 0.5, 1)
        for q in (p, np.clip(p + np.where(labels == 1, 0.02, -0.02), 0, 1))
    )
    gain = compare(a, b, resamples=200)["brier"]
    (whole,) = measure_groups(a, np.full(200, "all"), resamples=200).values()
    alone = whole.metrics["brier"]
    assert None not in (gain.low, gain.high, alone.low, alone.high)
    assert (gain.high or 0) - (gain.low or 0) < 0.2 * ((alone.high or 0) - (alone.low or 0))
    assert (gain.value or 0) < 0
    assert gain.above_zero == 0


def test_the_test_split_of_training_is_found_again(
    image_table: Path, tiny: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = image_table.read_text().splitlines()
    rows = [lines[0] + ",site", *(f"{line},{'XY'[i // 4 % 2]}" for i, line in enumerate(lines[1:]))]
    image_table.write_text("\n".join(rows) + "\n")
    config = tiny.model_copy(update={"epochs": 1})
    samples = samples_from_images(image_table, config, mpp=2.0)
    result = train(samples, tmp_path / "run", config)
    pictures = {f"{split}_{what}.png" for split in ("val", "test") for what in ("performance", "gallery")}
    assert {p.name for p in (tmp_path / "run" / "pictures").iterdir()} == pictures
    trained = load_model(result.model)
    again = labelled_tiles(trained.info, images=image_table)
    assert again.split.tolist() == samples.split.tolist()
    chosen = choose_tiles(again, "test", image_table)
    out = tmp_path / "out"
    found = evaluate_models([trained], chosen, out, by=["site"], resamples=50, seed=config.seed)
    for name, interval in result.metrics["test"].items():
        assert found.models[0].overall.metrics[name].value == pytest.approx(interval.value, abs=1e-6)
    assert found.notes == ()
    rows = image_table.read_text().splitlines()
    image_table.write_text("\n".join(rows[:-4]) + "\n")  # no longer what it was trained on
    for mpp, notes in ((None, 1), (2.0, 0)):
        chosen = choose_tiles(labelled_tiles(trained.info, images=image_table, mpp=mpp), "all", image_table)
        said = evaluate_models([trained], chosen, tmp_path / f"{notes}", resamples=0).notes
        assert sum("taken to be at 2 µm/px" in note for note in said) == notes

    recorded = {(g.split, g.name): g for g in trained.info.groups}
    assert {group.column for group in trained.info.groups} == {"site"}
    for name, group in found.models[0].groups["site"].items():
        assert recorded["test", name].tiles == group.tiles
        assert recorded["test", name].metrics["brier"].value == pytest.approx(group.metrics["brier"].value, abs=1e-6)
    assert set(trained.info.ece_before) == {"val", "test"}
    card = (result.model / "README.md").read_text()
    assert "ECE before" in card
    assert "test, site" in card

    with caplog.at_level(logging.WARNING):
        found = evaluate_models([trained], everything(again), out, resamples=0)
    assert "of train and" in found.notes[0]
    assert found.notes[0] in (out / "evaluation.md").read_text()
    assert "its figures are too good" in caplog.text
    image_table.write_text("\n".join(rows[:-4]) + "\n")  # other data: its split is not the training's
    other = labelled_tiles(trained.info, images=image_table)
    with pytest.raises(InputError, match="--split all"):
        choose_tiles(other, "test", image_table)


def test_data_of_one_class_leave_ranking_undefined(table: ImageTable, tmp_path: Path) -> None:
    samples = labelled_tiles(info(), images=table(label=lambda i, dark: "dark"))
    assert samples.classes == ("bright", "dark")
    assert (samples.label == 1).all()
    (result,) = evaluate_models([model()], everything(samples), tmp_path / "out", resamples=20).models
    assert result.overall.metrics["auroc"].value is None
    assert result.overall.metrics["log_loss"].value is not None
    assert result.overall.tiles_per_class == {"bright": 0, "dark": 40}
    assert (
        json.loads((tmp_path / "out" / "evaluation.json").read_text())["models"][0]["overall"]["metrics"]["auroc"][
            "value"
        ]
        is None
    )


def refusal(error: type[SpecslideError], *words: str) -> Callable[[pytest.ExceptionInfo[SpecslideError]], None]:
    def check(caught: pytest.ExceptionInfo[SpecslideError]) -> None:
        assert type(caught.value) is error
        for word in (*words, ";"):  # and what to do about it
            assert word in str(caught.value)
        assert "\n" not in str(caught.value)

    return check


def test_labels_the_model_does_not_know_are_refused(table: ImageTable) -> None:
    path = table(label=lambda i, dark: "grey" if i == 7 else "dark")
    with pytest.raises(InputError) as caught:
        labelled_tiles(info(), images=path)
    refusal(InputError, str(path), "'grey'", "bright, dark")(caught)


@pytest.mark.parametrize(
    ("split", "words"), [("tset", ("'tset'", "train, val, test or all")), ("val", ("no tile of the split val",))]
)
def test_a_split_that_is_not_there_is_refused(table: ImageTable, split: str, words: tuple[str, ...]) -> None:
    path = table(split="test")
    samples = labelled_tiles(info(), images=path)
    assert len(choose_tiles(samples, "test", path)) == len(choose_tiles(samples, "all", path)) == 40
    with pytest.raises(SpecslideError) as caught:
        choose_tiles(samples, split, path)
    refusal(ConfigError if split == "tset" else InputError, *words)(caught)


@pytest.mark.parametrize(
    ("by", "second", "error", "words"),
    [
        ("site", None, InputError, ("--by site", "no tile's site is known")),
        ("hospital", None, ConfigError, ("'hospital'", "site, scanner, case")),
        (None, {"classes": ("bright", "grey"), "positive_class": "grey"}, ModelError, ("bright, grey", "bright, dark")),
        (None, {"positive_class": "bright"}, ModelError, ("positive bright", "positive dark")),
        (None, {"mpp": 2.0}, ModelError, ("2 µm/px", "same scale")),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_written(
    table: ImageTable, tmp_path: Path, by: str | None, second: dict[str, Any] | None, error: type[SpecslideError],
    words: tuple[str, ...],
) -> None:  # fmt: skip
    samples = labelled_tiles(info(), images=table())
    models = [model()] + ([model(**second)] if second else [])
    with pytest.raises(SpecslideError) as caught:
        evaluate_models(models, everything(samples), tmp_path / "out", by=[by] if by else [])
    refusal(error, *words)(caught)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("count", [0, 3])
def test_one_model_or_two(table: ImageTable, tmp_path: Path, count: int) -> None:
    samples = labelled_tiles(info(), images=table())
    with pytest.raises(ConfigError, match=r"^models: "):
        evaluate_models([model()] * count, everything(samples), tmp_path / "out")


@pytest.mark.parametrize(
    ("mpp", "side", "own", "words"),
    [
        (0.5, 32, {"mpp": 0.51}, None),
        (0.5, 32, {"mpp": 0.6}, ("0.5 µm/px", "0.6", "--mpp 0.6 --tile-px 32")),
        (0.5, 24, {"mpp": 0.5}, ("24 px", "32 px")),
        (0.5, 32, {"mpp": None}, ("does not say at what scale", "--mpp")),
    ],
)
def test_stores_of_another_scale_are_refused(
    make_store: Callable[..., Path], write_table: Callable[..., Path], tmp_path: Path, mpp: float, side: int,
    own: dict[str, Any], words: tuple[str, ...] | None,
) -> None:  # fmt: skip
    tiles = np.random.default_rng(0).integers(0, 255, (4, side, side, 3), dtype=np.uint8)
    for name in "ab":
        make_store(name, tiles if name == "a" else tiles[::-1], mpp=mpp)
    rows = [("slide_path", "slide_id", "label", "scanner"), ("a.svs", "a", "dark", "X"), ("b.svs", "b", "bright", "Y")]
    manifest = write_table(rows)
    if words is None:
        samples = labelled_tiles(info(**own), stores=tmp_path / "stores", manifest=manifest)
        chosen = everything(samples)
        found = evaluate_models([model(**own)], chosen, tmp_path / "out", by=["scanner"], resamples=5)
        assert set(found.models[0].groups["scanner"]) == {"X", "Y"}
        return
    with pytest.raises(ModelError) as caught:
        labelled_tiles(info(**own), stores=tmp_path / "stores", manifest=manifest)
    refusal(ModelError, *words)(caught)


def test_images_of_another_scale_are_refused_only_if_it_is_given(table: ImageTable) -> None:
    path = table()
    with pytest.raises(ModelError, match=r"32 px.*3 µm"):
        labelled_tiles(info(), images=path, mpp=3.0)
    assert labelled_tiles(info(), images=path, mpp=1.02).mpp == 1.02
    assert labelled_tiles(info(tile_px=16), images=path).mpp == 1.0


@pytest.mark.parametrize("given", [(), ("stores",), ("manifest",), ("images", "stores"), ("images", "manifest")])
def test_data_are_named_once(given: tuple[str, ...], tmp_path: Path) -> None:
    options: dict[str, Any] = dict.fromkeys(given, tmp_path)
    with pytest.raises(ConfigError, match=r"--stores.*--manifest.*--images"):
        labelled_tiles(info(), **options)


def test_settings_of_a_later_version_are_passed_over(table: ImageTable) -> None:
    later = info(training={"sd_lambda": 0.01, "sd_reduction": "sum", "of_a_later_version": 3, "where": "focus > 3"})
    assert len(labelled_tiles(later, images=table())) == 40, "a filter of stores says nothing of images"


def test_a_failed_evaluation_does_not_look_complete(
    table: ImageTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, out = labelled_tiles(info(), images=table("site")), tmp_path / "out"
    chosen = everything(samples)
    evaluate_models([model(), model(Unsure)], chosen, out, by=["site"], resamples=5)
    before = content_hash(out)

    def fail(*args: object) -> None:
        raise OutputError(out, "cannot be written (No space left on device)")

    with pytest.raises(ModelError, match="finite"):
        evaluate_models([model(Broken)], chosen, out, resamples=5)
    module = importlib.import_module("training.evaluation.evaluate")
    with monkeypatch.context() as patch:
        patch.setattr(module, "prediction_table", fail)
        with pytest.raises(OutputError):
            evaluate_models([model()], chosen, out, resamples=5)
    assert content_hash(out) == before, "the earlier one stays"
    assert folder_faults(out) == []
    evaluate_models([model()], chosen, out, resamples=5)
    assert (out / "evaluation.json").exists()
    assert not (out / "comparison.png").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("there", ["nothing", "an evaluation"])
def test_what_somebody_else_put_there_is_never_deleted(table: ImageTable, tmp_path: Path, there: str) -> None:
    chosen, out = everything(labelled_tiles(info(), images=table())), tmp_path / "out"
    out.mkdir()
    if there == "an evaluation":
        evaluate_models([model()], chosen, out, resamples=5)
    (out / "mine.txt").write_text("kept")
    with pytest.raises(OutputError, match="out"):
        evaluate_models([model()], chosen, out, resamples=5)
    assert (out / "mine.txt").read_text() == "kept"


def test_python_leaves_the_recipe(table: ImageTable, tmp_path: Path) -> None:
    samples = labelled_tiles(info(), images=table("site"))
    evaluate_models([model()], samples.split_of("all"), tmp_path / "out", by=["site"], resamples=5, seed=3)
    recipe = evaluation_recipe({"model": "0" * 64}, samples.split_of("all"), by=["site"], resamples=5, seed=3)
    assert state(tmp_path / "out", recipe) == DONE
    other = evaluation_recipe({"model": "0" * 64}, samples.split_of("all"), by=["site"], resamples=6, seed=3)
    assert state(tmp_path / "out", other) == ("changed", "resamples was 5, is 6")
    relabelled = replace(samples, label=1 - samples.label).split_of("all")
    other = evaluation_recipe({"model": "0" * 64}, relabelled, by=["site"], resamples=5, seed=3)
    assert state(tmp_path / "out", other) == ("changed", "not made from the same tiles")


def test_the_same_evaluation_gives_the_same_bytes(table: ImageTable, tmp_path: Path) -> None:
    samples = labelled_tiles(info(), images=table("site"))
    for name, size in (("a", 7), ("b", 40)):
        chosen = everything(samples)
        evaluate_models([model()], chosen, tmp_path / name, by=["site"], resamples=20, batch_size=size)
    a, b = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "ab")
    assert a == b


def test_group_summaries_are_of_known_columns_only(table: ImageTable) -> None:
    samples = labelled_tiles(info(), images=table("scanner"))
    tiles = everything(samples)
    p = model().predict(TileDataset(tiles).__getitems__(list(range(40))).tiles.numpy()).astype(np.float64)
    found = group_summaries(tiles, predictions_of(tiles, p, 0.45, 1), resamples=5)
    assert [(g.column, g.name, g.tiles) for g in found] == [("scanner", "P1000", 24), ("scanner", "unknown", 16)]
    assert set(found[0].metrics) == set(METRIC_NAMES)
    nothing = everything(replace(samples, scanner=np.full(40, "")))
    assert group_summaries(nothing, predictions_of(nothing, p, 0.45, 1)) == ()
