"""Bags are trained on as tiles are: what is learned, to the bit where it is stopped, and what the folder then says."""

from __future__ import annotations

import csv
import importlib
import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from tests.training.mil.conftest import DIM, ENCODER, bag_of
from tests.training.test_fit import ask_to_stop, die, files_of, history_of, weights_of
from tests.training.test_train_processes import LIMIT_S
from tests.training.test_train_processes import start as start_process
from tiling.core.errors import ConfigError, ModelError, OutputError, StoppedError
from training import BagConfig, evaluate_models, labelled_tiles, load_any_model, load_bag_model, load_model, train
from training.data.from_features import samples_from_features
from training.mil.heads import HEADS, Chunk, HeadShape
from training.mil.model import CHUNK_TILES, BagClassifier, BagModel
from training.models.folder import verify_model
from training.models.info import read_bag_info

Cohort = Callable[..., tuple[Path, Path]]


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of these runs' time would go into drawing."""
    verb = importlib.import_module("training.train")
    monkeypatch.setattr(verb, "write_pictures", lambda *_, **__: None)
    monkeypatch.setattr(verb, "learning_curve", lambda *_: b"")


@pytest.mark.parametrize(
    "head",  # all but the mean, which drowns them
    [
        "gated",
        "top-k",
        *(pytest.param(head, marks=pytest.mark.nightly) for head in ("attention", "max", "transformer")),
    ],
)
def test_small_lesions_are_found_from_labels_of_slides(
    head: str, feature_cohort: Cohort, quick: BagConfig, tmp_path: Path
) -> None:
    """On slides held out the bag is told, and attention lies on the two tiles that are the lesion."""
    features, manifest = feature_cohort(80)
    config = quick.model_copy(update={"head": head, "epochs": 30})
    samples = samples_from_features(features, manifest, config)
    train(samples, tmp_path / "run", config)
    model = load_bag_model(tmp_path / "run" / "model")
    test = samples.where("test")
    scores, attention, truth = [], [], []
    for index in test.tolist():
        label = int(samples.label[index])
        bag = bag_of(index, 20 + index % 20, label)
        found = model.explain([np.insert(bag, 0, 0, axis=1)])
        scores.append(found.probabilities[1])
        if label:
            attention += (found.attention * len(bag)).tolist()
            truth += [1, 1] + [0] * (len(bag) - 2)
        assert found.attention.sum() == pytest.approx(1, abs=1e-5)
    assert roc_auc_score(samples.label[test], scores) >= 0.95
    if head not in ("max", "top-k"):  # which point at few tiles a class
        assert roc_auc_score(truth, attention) >= 0.95


@pytest.mark.nightly
@pytest.mark.parametrize("head", ["attention", "gated"])
def test_lesions_of_less_than_a_hundredth_of_the_tiles_are_found(
    head: str, make_features: Callable[..., Path], quick: BagConfig, tmp_path: Path
) -> None:
    """Three tiles of 400, from slides' labels alone: the slide and the tiles, on slides held out."""
    lines = ["slide_path,slide_id,case_id,label"]
    for number in range(160):
        make_features(f"s{number}", bag_of(number, 400, number % 2, lesion=3))
        lines.append(f"s{number}.svs,s{number},s{number},{('benign', 'tumour')[number % 2]}")
    manifest = tmp_path / "labels.csv"
    manifest.write_text("\n".join(lines) + "\n")
    config = quick.model_copy(update={"head": head, "epochs": 40, "batch_size": 8})
    samples = samples_from_features(tmp_path / "features", manifest, config)
    model = load_bag_model(train(samples, tmp_path / "run", config).model)
    scores, inside = [], []
    test = samples.where("test")
    for index in test.tolist():
        label = int(samples.label[index])
        found = model.explain([np.insert(bag_of(index, 400, label, lesion=3), 0, 0, axis=1)])
        scores.append(found.probabilities[1])
        if label:
            inside.append(roc_auc_score([1] * 3 + [0] * 397, found.attention))
    assert roc_auc_score(samples.label[test], scores) >= 0.95
    assert np.mean(inside) >= 0.95


def test_a_run_that_is_stopped_and_killed_ends_with_the_same_bytes(
    feature_cohort: Cohort, quick: BagConfig, tmp_path: Path, at_step: Callable[..., None]
) -> None:
    features, manifest = feature_cohort(24, slides=2)
    settings = {
        "bag": "case-mean", "epochs": 4, "bag_tiles": 10, "ema_decay": 0.9, "accumulate": 2, "sd_lambda": 0.1,
        "weight_decay": 0.01, "balance": ("class",), "checkpoint_steps": 1, "patience": 3,
    }  # fmt: skip
    config = BagConfig.model_validate(quick.model_dump() | settings)
    samples = samples_from_features(features, manifest, config)
    train(samples, tmp_path / "whole", config)
    for number, step in enumerate((1, 4, 6)):
        at_step(step, ask_to_stop if number % 2 else die)
        with pytest.raises((StoppedError, BaseException)):
            train(samples, tmp_path / "torn", config)
        assert not (tmp_path / "torn" / "model").exists()
    train(samples, tmp_path / "torn", config)
    assert files_of(tmp_path / "torn") == files_of(tmp_path / "whole")


def test_the_folder_says_what_was_learned_from(feature_cohort: Cohort, quick: BagConfig, tmp_path: Path) -> None:
    features, manifest = feature_cohort(24, slides=2)
    config = quick.model_copy(update={"bag": "case", "epochs": 2})
    samples = samples_from_features(features, manifest, config)
    result = train(samples, tmp_path / "run", config)
    assert verify_model(result.model) == []
    info = read_bag_info(result.model)
    assert (info.kind, info.head, info.bag, info.encoder) == ("mil", "gated", "case", ENCODER)
    assert info.data["test"].tiles == len(samples.where("test"))
    assert {group.column for group in info.groups} == {"site", "scanner"}
    card = (result.model / "README.md").read_text()
    for text in ("Bag classifier", "made-up", "2018", "| bags |", "no probability"):
        assert text in card or text == "2018", text
    with (tmp_path / "run" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["split"] for row in rows} == {"val", "test"}
    assert len(rows) == len(samples.where("val")) + len(samples.where("test"))
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    sources = provenance["inputs"]["sources"]
    assert {source["slide_id"] for source in sources} == {f"s{n}" for n in range(48)}
    assert {source["slide_sha256"] for source in sources} == {f"s{n}".zfill(64) for n in range(48)}
    assert train(samples, tmp_path / "run", config).reused
    with pytest.raises(OutputError, match="head"):
        train(samples, tmp_path / "run", config.model_copy(update={"head": "mean"}))


def test_models_are_compared_on_held_out_cases(feature_cohort: Cohort, quick: BagConfig, tmp_path: Path) -> None:
    features, manifest = feature_cohort(40, classes=3)
    models = []
    for head in ("mean", "max"):
        config = quick.model_copy(update={"head": head, "epochs": 3})
        train(samples_from_features(features, manifest, config), tmp_path / head, config)
        models.append(load_bag_model(tmp_path / head / "model"))
    tested = labelled_tiles(models[0].info, bags=features, manifest=manifest).split_of("test")
    assert len(tested)
    found = evaluate_models(models, tested, tmp_path / "test", by=("site", "scanner"), resamples=20)
    assert {"site", "scanner"} <= found.models[0].groups.keys()
    assert set(found.differences) == set(found.models[0].overall.metrics)
    assert found.models[1].backbone == "max on made-up"
    assert found.notes == ()
    assert "bags of" in (tmp_path / "test" / "evaluation.md").read_text()
    assert not list((tmp_path / "test").glob("*gallery*"))
    of_training = models[0].info.metrics["test"]["auroc"].value
    assert found.models[0].overall.metrics["auroc"].value == pytest.approx(of_training, abs=1e-6)
    everything = labelled_tiles(models[0].info, bags=features, manifest=manifest).split_of("all")
    assert "too good" in evaluate_models(models[:1], everything, tmp_path / "leaky", resamples=0).notes[0]


def test_other_features_and_other_data_are_refused(
    feature_cohort: Cohort, make_features: Callable[..., Path], quick: BagConfig, tmp_path: Path
) -> None:
    features, manifest = feature_cohort(24)
    config = quick.model_copy(update={"epochs": 1})
    model = load_any_model(train(samples_from_features(features, manifest, config), tmp_path / "run", config).model)
    assert isinstance(model, BagModel)
    with pytest.raises(ModelError, match="--bags"):
        labelled_tiles(model.info, stores=features, manifest=manifest)
    with pytest.raises(ModelError, match="bags"):
        load_model(tmp_path / "run" / "model")
    for number in range(24):
        make_features(f"s{number}", bag_of(number, 20, number % 2), name="another")
    with pytest.raises(ModelError, match="another"):
        labelled_tiles(model.info, bags=features, manifest=manifest)


def test_a_setting_of_pixels_has_no_meaning() -> None:
    with pytest.raises(ValueError, match="augment"):
        BagConfig.model_validate({"augment": "light"})


@pytest.mark.parametrize("slide_mean", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_a_long_bag_is_the_same_in_chunks(head: str, slide_mean: bool) -> None:
    """Also of slides of which one ends within a chunk."""
    torch.manual_seed(0)
    network = BagClassifier(head, HeadShape(DIM, 2, 8, 0.5, 3), slide_mean=slide_mean).eval()
    features = np.random.default_rng(0).normal(3, 2, (CHUNK_TILES + 500, DIM)).astype(np.float32)
    network.standardise(features)
    bag = torch.from_numpy(np.insert(features, 0, np.arange(len(features)) > 5000, axis=1))
    with torch.inference_mode():
        whole, chunked = network.pooled([bag[None]]), network.pooled(list(torch.split(bag[None], 700, dim=1)))
        torch.testing.assert_close(whole.logits, chunked.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(whole.attention, chunked.attention, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(network(bag[None]), whole.logits, rtol=1e-4, atol=1e-5)
        if slide_mean:
            alone = [((bag[bag[:, 0] == slide, 1:] - network.mean) / network.spread)[None] for slide in (0, 1)]
            each = [network.head([Chunk(own, torch.ones(own.shape[:2], dtype=torch.bool))]).logits for own in alone]
            torch.testing.assert_close(torch.stack(each).mean(dim=0), whole.logits, rtol=1e-4, atol=1e-5)
            assert whole.attention[0, bag[:, 0] == 0].sum().item() == pytest.approx(0.5, abs=1e-4)


def test_a_case_of_one_slide_beside_one_of_two_is_its_slide() -> None:
    torch.manual_seed(0)
    network = BagClassifier("gated", HeadShape(DIM, 2, 8, 0), slide_mean=True)
    bags = torch.randn(2, 9, 1 + DIM)
    bags[0, :, 0] = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1])
    bags[1, :, 0] = torch.tensor([0, 0, 0, 0, 0, 0, -1, -1, -1])
    alone = network(bags[1:, :6])
    torch.testing.assert_close(network(bags)[1:], alone)


def test_standardised_features_have_mean_0_and_spread_1() -> None:
    network = BagClassifier("mean", HeadShape(DIM, 2, 8, 0))
    features = np.random.default_rng(0).normal(5, 3, (1000, DIM)).astype(np.float32)
    features[:, 2] = 4  # does not vary
    network.standardise(features)
    found = (features - network.mean.numpy()) / network.spread.numpy()
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(axis=0), np.where(np.arange(DIM) == 2, 0, 1), atol=1e-5)


def test_the_settings_name_the_heads_there_are() -> None:
    for head in HEADS:
        assert BagConfig.model_validate({"head": head}).head == head
    with pytest.raises(ValueError, match="head"):
        BagConfig.model_validate({"head": "sum"})


def test_gamma_needs_a_number_a_class(feature_cohort: Cohort, quick: BagConfig, tmp_path: Path) -> None:
    features, manifest = feature_cohort(24)
    config = quick.model_copy(update={"sd_gamma": (0.1, 0.2, 0.3)})
    with pytest.raises(ConfigError, match="sd_gamma"):
        train(samples_from_features(features, manifest, config), tmp_path / "run", config)


@pytest.mark.parametrize("head", HEADS)
def test_a_bag_of_200_000_tiles_is_predicted_in_the_memory_of_a_chunk(head: str) -> None:
    """Of its tiles' features, 100 MB at once, one chunk is asked for at a time, and none is kept."""
    dim, size, tiles = 128, 2000, 200_000
    network = BagClassifier(head, HeadShape(dim, 2, 16, 0, 50)).eval()
    base = np.random.default_rng(0).normal(size=(size, 1 + dim)).astype(np.float32)
    alive: list[weakref.ref[Any]] = []
    most = 0

    class Chunks:
        def __iter__(self) -> Iterator[NDArray[np.float32]]:
            nonlocal most
            for start in range(0, tiles, size):
                chunk = (base + start / tiles).view(Tracked)
                chunk[:, 0] = 0
                alive[:] = [*(known for known in alive if known() is not None), weakref.ref(chunk)]
                most = max(most, len(alive))
                yield chunk

    info = SimpleNamespace(temperature=1.0)
    model = BagModel(network, info, "", torch.device("cpu"))  # type: ignore[arg-type]  # all that is asked of it
    found = model.explain(Chunks())
    assert found.attention.shape == (tiles,)
    assert found.tiles.shape == (tiles, 2)
    assert found.attention.sum() == pytest.approx(1, abs=1e-3)
    assert most <= 3


class Tracked(np.ndarray[Any, np.dtype[np.float32]]):
    """An array that can be watched."""


@pytest.mark.nightly  # of tiles it is in every run: test_train_processes.py
def test_two_processes_are_one_on_the_same_global_batch(
    feature_cohort: Cohort, quick: BagConfig, tmp_path: Path
) -> None:
    """Each draws its bags as one process draws them, whatever bags it shares a batch with."""
    features, manifest = feature_cohort(24)
    config = quick.model_copy(update={"epochs": 3, "dropout": 0.0, "bag_tiles": 10, "sd_lambda": 0.1, "devices": 2})
    settings = tmp_path / "train.yaml"
    settings.write_text(yaml.safe_dump(config.model_dump(mode="json") | {"device": "cpu"}))
    process = start_process(
        "-m", "pipeline.cli", "train", "--bags", str(features), "--manifest", str(manifest), "--config", str(settings),
        "--out", str(tmp_path / "two"),
    )  # fmt: skip
    samples = samples_from_features(features, manifest, config)
    train(samples, tmp_path / "one", config.model_copy(update={"devices": 1}))
    said = process.communicate(timeout=LIMIT_S)[0]
    assert process.returncode == 0, said
    for a, b in zip(history_of(tmp_path / "one"), history_of(tmp_path / "two"), strict=True):
        assert b == pytest.approx(a, rel=1e-3)
    for name, value in weights_of(tmp_path / "one").items():
        torch.testing.assert_close(weights_of(tmp_path / "two")[name], value, rtol=1e-3, atol=1e-4)
