"""The training loop: it goes on where it was stopped, its batch is the global one, and nothing broken is learned."""

from __future__ import annotations

import csv
import hashlib
import importlib
import io
import json
import logging
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import balanced_accuracy_score
from sklearn.utils.class_weight import compute_class_weight
from torch import Generator, Tensor, nn

from tiling.core.errors import ConfigError, ModelError, StoppedError
from training import TrainConfig, load_model, samples_from_images, train
from training import fit as fit_module
from training.augmentations import AUGMENTATIONS
from training.data.dataset import TileDataset
from training.data.loaders import TrainBatches
from training.data.samplers import Shuffled
from training.evaluation.perturbations import SHIFTS, DrawnShift
from training.fit import Training
from training.losses import consistency_penalty
from training.optim import update_ema

EVERYTHING: dict[str, object] = {
    "epochs": 4, "augment": "light", "ema_decay": 0.9, "clip_norm": 1.0, "accumulate": 2, "class_weights": "balanced",
    "label_smoothing": 0.05, "sd_gamma": (0.5, 1.0), "sd_lambda": 0.1, "weight_decay": 0.01, "layer_decay": 0.8,
    "l2": 1e-3, "consistency": 0.5,
}  # fmt: skip


class Killed(BaseException):
    """What a kill -9 looks like from inside: nothing catches it, nothing is written after it."""


def weights_of(out: Path) -> dict[str, Tensor]:
    return load_file(out / "model" / "weights.safetensors")


def files_of(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def history_of(out: Path) -> list[dict[str, float]]:
    with (out / "log" / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def state_of(out: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(io.BytesIO((out / "checkpoints/last.ckpt").read_bytes()[32:]), weights_only=True)
    return state


def seal(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest() + payload


def changed(config: TrainConfig, **changes: object) -> TrainConfig:
    return TrainConfig.model_validate(config.model_dump() | changes)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of these runs' time would go into drawing."""
    verb = importlib.import_module("training.train")
    monkeypatch.setattr(verb, "write_pictures", lambda *_, **__: None)
    monkeypatch.setattr(verb, "learning_curve", lambda *_: b"")


def ask_to_stop(number: signal.Signals = signal.SIGUSR1) -> None:
    os.kill(os.getpid(), number)


def die() -> None:
    raise Killed


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_five_stops_at_random_steps_change_no_byte(
    backbone: str, image_table: Path, tiny: TrainConfig, tmp_path: Path, at_step: Callable[..., None]
) -> None:
    side = 32 if backbone == "test_resnet" else 160
    config = changed(tiny, **EVERYTHING, backbone=backbone, input_px=side, checkpoint_steps=2)
    samples = samples_from_images(image_table, config)
    train(samples, tmp_path / "whole", config)
    steps = 4 * (len(samples.where("train")) // config.batch_size)
    stops = np.sort(np.random.default_rng(len(backbone)).choice(np.arange(1, steps), 5, replace=False))
    for number, step in enumerate(stops.tolist()):  # by a signal and by a kill, in turn
        at_step(step, ask_to_stop if number % 2 else die)
        with pytest.raises(StoppedError if number % 2 else Killed):
            train(samples, tmp_path / "torn", config)
        assert not (tmp_path / "torn" / "model").exists()
    train(samples, tmp_path / "torn", config)
    assert files_of(tmp_path / "torn") == files_of(tmp_path / "whole")


def test_a_stop_while_it_validates_or_predicts_loses_nothing(
    image_table: Path, tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = samples_from_images(image_table, tiny)
    train(samples, tmp_path / "whole", tiny)
    look = Training.logits
    for call in (1, 2, 3):  # the second epoch's validation, then the prediction of validation and test
        calls = iter(range(10))

        def stopped(training: Training, *args: Any, at: int, of: Iterator[int]) -> Any:
            if next(of) == at:
                ask_to_stop(signal.SIGTERM)
            return look(training, *args)

        first = 0 if call > 1 else call  # a run that goes on has no validation left before its predictions
        monkeypatch.setattr(Training, "logits", lambda *args, at=first, of=calls: stopped(*args, at=at, of=of))
        with pytest.raises(StoppedError, match=r"SIGTERM.*6 of 6"):
            train(samples, tmp_path / "torn", tiny)
    monkeypatch.setattr(Training, "logits", look)
    monkeypatch.setattr(Training, "_step", None)  # there is no step left to do
    train(samples, tmp_path / "torn", tiny)
    assert files_of(tmp_path / "torn") == files_of(tmp_path / "whole")


def test_a_state_of_another_run_is_discarded_and_the_difference_named(
    image_table: Path, tiny: TrainConfig, tmp_path: Path, at_step: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    samples = samples_from_images(image_table, tiny)
    at_step(3, ask_to_stop)
    with pytest.raises(StoppedError):
        train(samples, tmp_path / "run", tiny)
    other = changed(tiny, learning_rate=1e-3, workers=1)
    train(samples, tmp_path / "run", other)
    assert "discarded, it is of another run: learning_rate was 0.003, is 0.001\n" in caplog.text
    train(samples, tmp_path / "fresh", changed(other, workers=0))
    assert files_of(tmp_path / "run") == files_of(tmp_path / "fresh")


class Evil:
    """Unpickled, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("fault", ["cut short", "empty", "a bit", "code", "of another run", "no record"])
def test_a_state_that_cannot_be_trusted_is_not_used(
    fault: str, image_table: Path, tiny: TrainConfig, tmp_path: Path, at_step: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    config = changed(tiny, epochs=1)
    samples, out = samples_from_images(image_table, config), tmp_path / "run"
    at_step(1, ask_to_stop)
    with pytest.raises(StoppedError):
        train(samples, out, config)
    last = out / "checkpoints" / "last.ckpt"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    other = io.BytesIO()
    torch.save(state_of(out) | {"key": "0" * 64}, other)
    faulty = {
        "cut short": last.read_bytes()[:-1000],
        "empty": b"",
        "a bit": bytes(data),
        "code": seal(pickle.dumps(Evil(tmp_path / "run-by-the-checkpoint"), protocol=2)),
        "of another run": seal(other.getvalue()),
    }
    if fault in faulty:
        last.write_bytes(faulty[fault])
    else:
        (out / "checkpoints" / "run.json").unlink()
    train(samples, out, config)
    assert not (tmp_path / "run-by-the-checkpoint").exists()
    assert "training starts anew" in caplog.text or "discarded, it does not say of which run it is" in caplog.text
    train(samples, tmp_path / "fresh", config)
    assert files_of(out) == files_of(tmp_path / "fresh")


def test_what_is_kept_of_a_stopped_run_is_the_last_state_and_the_best_weights(
    image_table: Path, tiny: TrainConfig, tmp_path: Path, at_step: Callable[..., None]
) -> None:
    samples = samples_from_images(image_table, tiny)
    at_step(4, ask_to_stop)
    with pytest.raises(StoppedError) as caught:
        train(samples, tmp_path / "run", tiny)
    assert caught.value.exit_code == 75
    assert "stopped by SIGUSR1 after step 5 of 6" in str(caught.value)
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["best-1.ckpt", "last.ckpt", "run.json"]
    state = state_of(tmp_path / "run")
    assert (state["progress"]["epoch"], state["progress"]["batch"], state["progress"]["step"]) == (1, 2, 5)
    assert json.loads((folder / "run.json").read_text())["seed"] == 0
    (folder / "best-1.ckpt").write_bytes(b"")
    at_step(5, lambda: None)
    losses = iter([9.0])  # the epochs that follow are worse, so the lost weights are those that are wanted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "log_loss", lambda *_: next(losses))
        with pytest.raises(ModelError, match=r"best-1\.ckpt"):
            train(samples, tmp_path / "run", tiny)


@pytest.mark.parametrize("parts", [2, 3])
def test_a_batch_in_parts_is_the_same_batch(parts: int, image_table: Path, tiny: TrainConfig, tmp_path: Path) -> None:
    settings = EVERYTHING | {"augment": "none", "accumulate": 1, "ema_decay": None, "epochs": 2}
    config = changed(tiny, **settings, backbone="test_efficientnet_gn")  # batch norms would see the parts
    samples = samples_from_images(image_table, config)
    train(samples, tmp_path / "whole", config)
    train(samples, tmp_path / "parts", changed(config, accumulate=parts))
    for one, other in zip(history_of(tmp_path / "whole"), history_of(tmp_path / "parts"), strict=True):
        assert other == pytest.approx(one, rel=1e-4)
    for name, value in weights_of(tmp_path / "whole").items():
        torch.testing.assert_close(weights_of(tmp_path / "parts")[name], value, rtol=1e-3, atol=1e-4)


def test_the_average_is_what_is_validated_and_saved(
    image_table: Path, tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[dict[str, Tensor]] = []

    def recorded(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
        update_ema(average, network, decay, step)
        assert (decay, step) == (0.9, len(states))
        states.append({name.removeprefix("backbone."): value.clone() for name, value in average.state_dict().items()})

    monkeypatch.setattr(fit_module, "update_ema", recorded)
    config = changed(tiny, ema_decay=0.9)
    result = train(samples_from_images(image_table, config), tmp_path / "run", config)
    saved = weights_of(tmp_path / "run")
    assert all(torch.equal(saved[name], value) for name, value in states[3 * result.best_epoch - 1].items())


def test_it_stops_when_it_gets_no_better(
    image_table: Path, tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([0.5, 0.4, 0.45, 0.4, 0.1])
    monkeypatch.setattr(fit_module, "log_loss", lambda *_: next(losses))
    config = changed(tiny, epochs=5, patience=2)
    result = train(samples_from_images(image_table, config), tmp_path / "run", config)
    assert result.best_epoch == 2
    assert [row["val_log_loss"] for row in history_of(tmp_path / "run")] == [0.5, 0.4, 0.45, 0.4]


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
def test_the_epoch_and_early_stopping_follow_the_shifted_copies_when_asked(
    image_table: Path, tiny: TrainConfig, tmp_path: Path
) -> None:
    """Oracle: the saved weights' decisions on copies that SHIFTS makes of validation, by scikit-learn."""
    config = changed(tiny, epochs=5, patience=2, learning_rate=0.03, select="stress", select_shifts=("brightness",))
    samples = samples_from_images(image_table, config)
    result = train(samples, tmp_path / "run", config)
    history = history_of(tmp_path / "run")
    values = [row["val_stress"] for row in history]
    assert result.best_epoch == 1 + int(np.argmax(values)), "the first of equals"
    assert len(history) == min(5, result.best_epoch + 2), "early stopping goes by it too"
    model, split = load_model(result.model), samples.split_of("val")
    tiles = TileDataset(split).__getitems__(list(range(len(split)))).tiles.numpy()
    views = [tiles, SHIFTS["brightness"](tiles, -0.5), SHIFTS["brightness"](tiles, 0.5)]
    called = [model.predict(view)[:, 1] >= model.info.threshold for view in views]
    expected = np.mean([balanced_accuracy_score(split.label, calls) for calls in called])
    assert max(values) == pytest.approx(expected)
    assert "shifted in brightness" in (result.model / "README.md").read_text()
    assert load_model(result.model).info.training["select"] == "stress"


def test_a_validation_that_cannot_show_it_is_refused(image_table: Path, tiny: TrainConfig, tmp_path: Path) -> None:
    lines = image_table.read_text().splitlines()
    splits = ["split"] + ["train"] * 40 + ["val"] * 8
    kept = [f"{line},{split}" for line, split in zip(lines, splits, strict=True) if split != "val" or "dark" in line]
    image_table.write_text("\n".join(kept) + "\n")
    config = changed(tiny, select="stress", test_fraction=0)
    with pytest.raises(ConfigError, match="'bright' has none"):
        train(samples_from_images(image_table, config), tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_a_compiled_backbone_learns_the_same(
    image_table: Path, tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    compile_really = torch.compile

    def compile_module(module: nn.Module, **_: object) -> Any:  # without a compiler: what is traced is run as it is
        compiled.append(module)
        return compile_really(module, backend="eager")

    monkeypatch.setattr(torch, "compile", compile_module)
    samples = samples_from_images(image_table, tiny)
    train(samples, tmp_path / "plain", tiny)
    train(samples, tmp_path / "compiled", changed(tiny, compile=True))
    assert len(compiled) == 2, "compiled by us, and again by Fabric around what it wraps"
    plain, other = weights_of(tmp_path / "plain"), weights_of(tmp_path / "compiled")
    assert plain.keys() == other.keys()
    assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_only_the_head_of_a_frozen_backbone_changes(image_table: Path, tiny: TrainConfig, tmp_path: Path) -> None:
    config = changed(tiny, freeze=True, epochs=1)
    one = train(samples_from_images(image_table, config), tmp_path / "one", config)
    more = changed(config, epochs=2, learning_rate=1e-2)
    train(samples_from_images(image_table, more), tmp_path / "two", more)
    a, b = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    assert {name for name in a if not torch.equal(a[name], b[name])} == {"fc.weight", "fc.bias"}
    assert one.best_epoch == 1


@pytest.fixture
def divided_by_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels divided by their mean: all black tiles become NaN."""

    def divided(pixels: Tensor, generator: Generator) -> Tensor:
        return pixels / pixels.mean(dim=(1, 2, 3), keepdim=True)

    monkeypatch.setitem(AUGMENTATIONS, "none", divided)


@pytest.mark.usefixtures("divided_by_mean")
@pytest.mark.parametrize("accumulate", [1, 3])
def test_logits_that_are_not_finite_stop_it_before_the_update_and_name_the_slide(
    accumulate: int, image_table: Path, tiny: TrainConfig, tmp_path: Path
) -> None:
    config = changed(tiny, augment="none", checkpoint_steps=1, accumulate=accumulate, backbone="test_efficientnet_gn")
    samples = samples_from_images(image_table, config)
    order = list(Shuffled(len(samples.where("train")), config.seed))
    black = samples.where("train")[order[2 * config.batch_size + 3]]  # in the third batch
    name = samples.slide_id[black]
    cv2.imwrite(str(image_table.parent / name), np.zeros((32, 32, 3), np.uint8))
    samples = samples_from_images(image_table, config)
    with pytest.raises(ModelError) as caught:
        train(samples, tmp_path / "run", config)
    assert str(caught.value).startswith(f"epoch 1: the logits are no longer finite at step 3, on tiles of {name};")
    state = state_of(tmp_path / "run")
    assert state["progress"]["step"] == 2
    assert all(value.isfinite().all() for value in state["weights"].values())
    with pytest.raises(ModelError, match="at step 3"):  # goes on from there, to the same end
        train(samples, tmp_path / "run", config)


def test_a_gradient_that_is_not_finite_stops_it_before_the_update(
    image_table: Path, tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights: list[dict[str, Tensor]] = []

    def overflowing(parameters: list[Tensor], clip: float | None) -> Tensor:
        weights.append({str(n): p.detach().clone() for n, p in enumerate(parameters)})
        return torch.tensor(float("inf") if len(weights) == 2 else 1.0)

    refuse = Training._refuse_non_finite

    def looked_at(training: Training, *args: Any) -> None:
        try:
            refuse(training, *args)
        finally:
            after = dict(enumerate(training.parameters))
            assert all(torch.equal(after[int(n)], value) for n, value in weights[-1].items()), "nothing was updated"

    monkeypatch.setattr(fit_module, "clip_gradients", overflowing)
    monkeypatch.setattr(Training, "_refuse_non_finite", looked_at)
    with pytest.raises(ModelError, match=r"^epoch 1: .*gradient.*step 2.* images/"):
        train(samples_from_images(image_table, tiny), tmp_path / "run", tiny)
    assert len(weights) == 2


@pytest.mark.parametrize(
    ("changes", "key", "what"),
    [
        ({"sd_gamma": (1.0, 2.0, 3.0)}, "sd_gamma", "3 .* 2 classes"),
        ({"batch_size": 64, "accumulate": 50}, "accumulate", "50 parts"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(
    changes: dict[str, object], key: str, what: str, image_table: Path, tiny: TrainConfig, tmp_path: Path
) -> None:
    config = changed(tiny, **changes)
    with pytest.raises(ConfigError, match=what) as caught:
        train(samples_from_images(image_table, config), tmp_path / "run", config)
    assert caught.value.where == key
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("world", [1, 2, 4])
def test_shares_of_all_processes_are_the_global_batches(world: int) -> None:
    shares = []
    for rank in range(world):
        batches = TrainBatches(Shuffled(27, 5), 8, world)
        batches.rank = rank
        batches.at(2, 1)
        shares.append(list(batches))
        assert len(batches) == 3
    joined = [[place for part in parts for place in part] for parts in zip(*shares, strict=True)]
    order = (2 * 27 + np.random.default_rng([5, 2]).permutation(27)).tolist()  # positions count on over epochs
    assert joined == [order[8:16], order[16:24]]


def test_a_run_says_that_it_goes_on(
    image_table: Path, tiny: TrainConfig, tmp_path: Path, at_step: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    samples = samples_from_images(image_table, tiny)
    at_step(1, ask_to_stop)
    with pytest.raises(StoppedError):
        train(samples, tmp_path / "run", tiny)
    with caplog.at_level(logging.INFO):
        train(samples, tmp_path / "run", tiny)
    assert "goes on after step 2 of 6" in caplog.text


def test_each_term_and_the_norm_are_logged_as_means_over_the_samples(
    image_table: Path, tiny: TrainConfig, tmp_path: Path
) -> None:
    config = changed(tiny, sd_lambda=0.4)
    train(samples_from_images(image_table, config), tmp_path / "sd", config)
    for row in history_of(tmp_path / "sd"):
        assert row["train_loss"] == pytest.approx(row["train_ce"] + row["train_sd"])
        assert row["train_sd"] == pytest.approx(0.4 / 2 * row["train_logit_norm"] ** 2, rel=1e-5)
    plain = changed(config, sd_lambda=0.0, epochs=1)
    train(samples_from_images(image_table, plain), tmp_path / "erm", plain)
    (row,) = history_of(tmp_path / "erm")
    assert (row["train_sd"], row["train_loss"]) == (0.0, row["train_ce"])
    assert row["train_logit_norm"] > 0


def test_l2_in_the_loss_is_the_coupled_decay_of_adam(image_table: Path, tiny: TrainConfig, tmp_path: Path) -> None:
    """Oracle: torch's Adam adds its own weight_decay * w to each gradient; without decay AdamW is Adam."""
    config = changed(tiny, l2=0.05, epochs=1, ema_decay=0.5, augment="none")
    samples = samples_from_images(image_table, config)
    train(samples, tmp_path / "loss", config)

    def coupled(groups: list[dict[str, object]], lr: float) -> torch.optim.Adam:
        return torch.optim.Adam([g | {"weight_decay": 0.05 * bool(n == 0)} for n, g in enumerate(groups)], lr=lr)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", coupled)
        train(samples, tmp_path / "adam", changed(config, l2=0.0))
    weights, expected = weights_of(tmp_path / "loss"), weights_of(tmp_path / "adam")
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-5)
    (row,) = history_of(tmp_path / "loss")
    assert row["train_loss"] > row["train_ce"] + row["train_sd"] + 0.01, "it is a part of the loss that is logged"


def test_the_penalty_on_change_looks_at_shifted_copies_of_the_batch_and_makes_them_alike(
    image_table: Path, tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = changed(tiny, consistency=4.0, augment="none", backbone="test_efficientnet_gn")
    samples = samples_from_images(image_table, config)
    seen: list[tuple[Tensor, Tensor, float]] = []

    def watched(logits: Tensor, of_copies: Tensor, weight: float) -> Tensor:
        seen.append((logits.detach().clone(), of_copies.detach().clone(), weight))
        return consistency_penalty(logits, of_copies, weight)

    monkeypatch.setattr(fit_module, "consistency_penalty", watched)
    train(samples, tmp_path / "alike", config)
    steps = len(samples.where("train")) // config.batch_size
    assert len(seen) == steps * config.epochs
    for epoch, row in enumerate(history_of(tmp_path / "alike")):
        of_epoch = [consistency_penalty(*one).item() for one in seen[epoch * steps : (epoch + 1) * steps]]
        assert row["train_loss"] == pytest.approx(row["train_ce"] + row["train_sd"] + np.mean(of_epoch), rel=1e-5)
    assert all(len(logits) == len(of_copies) == config.batch_size for logits, of_copies, _ in seen)
    train(samples, tmp_path / "plain", changed(config, consistency=0.0))
    assert len(seen) == steps * config.epochs

    def change(run: str) -> float:
        model = load_model(tmp_path / run / "model")
        tiles = TileDataset(samples.split_of("val")).__getitems__(list(range(len(samples.where("val"))))).tiles.numpy()
        plain, *copies = (model.predict(view) for view in (tiles, *(shift(tiles, 0.5) for shift in SHIFTS.values())))
        return float(np.mean([np.abs(copy - plain).mean() for copy in copies]))

    assert change("alike") < change("plain")
    monkeypatch.setattr(DrawnShift, "__call__", lambda self, tiles, position: tiles)
    seen.clear()
    train(samples, tmp_path / "same", config)
    assert all(torch.equal(logits, of_copies) for logits, of_copies, _ in seen), "rows belong together"


def test_class_weights_are_those_of_the_training_split(image_table: Path, tiny: TrainConfig) -> None:
    table = image_table.read_text().splitlines()
    image_table.write_text("\n".join([*table[:20], *(line for line in table[20:] if "dark" in line)]) + "\n")
    samples = samples_from_images(image_table, tiny)
    labels = samples.label[samples.where("train")]
    expected = compute_class_weight("balanced", classes=np.arange(2), y=labels)
    assert expected[0] > expected[1]
    assert fit_module.class_weights_of(
        samples.split_of("train"), changed(tiny, class_weights="balanced")
    ) == pytest.approx(expected)
    assert fit_module.class_weights_of(samples.split_of("train"), tiny) is None


def test_a_budget_of_tiles_is_an_epoch(image_table: Path, tiny: TrainConfig, tmp_path: Path) -> None:
    config = changed(tiny, tiles_per_epoch=40, balance=("class", "case"), epochs=1, checkpoint_steps=1)
    samples = samples_from_images(image_table, config)
    steps: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_save", lambda training: steps.append(training.progress.step))
        train(samples, tmp_path / "run", config)
    assert steps == [1, 2, 3, 4, 5], "40 tiles of the 24 there are, in batches of 8"
