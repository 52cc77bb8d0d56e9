from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from pipeline.commands.train import train
from tiling.core.errors import ConfigError, ModelError
from training import TrainConfig, load_train_config


def test_defaults_without_a_file() -> None:
    assert load_train_config() == TrainConfig()


def test_overrides_beat_the_file_and_none_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("epochs: 3\nlearning_rate: 1e-4\nclasses: [benign, tumour]\n")
    config = load_train_config(path, {"epochs": 5, "seed": None})
    assert (config.epochs, config.seed, config.learning_rate) == (5, 0, 1e-4)
    assert config.classes == ("benign", "tumour")
    path.write_text("# nothing set\n")
    assert load_train_config(path) == TrainConfig()


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("epocs: 3", "epocs"),
        ("epochs: many", "epochs"),
        ("epochs: 0", "epochs"),
        ("sd_lambda: -1", "sd_lambda"),
        ("sd_lambda: .inf", "sd_lambda"),
        ("sd_lambda: .nan", "sd_lambda"),
        ("weight_decay: -0.1", "weight_decay"),
        ("sd_reduction: max", "sd_reduction"),
        ("augment: [light]", "augment"),
        ("classes: [one]", "classes"),
        ("classes: [one, one]", "classes"),
        ("val_fraction: 0", "val_fraction"),
        ("val_fraction: 0.6\ntest_fraction: 0.5", "val_fraction"),
        ("batch_size: 2.5", "batch_size"),
        ("learning_rate: null", "learning_rate"),
        ("select_shifts: [hue]", "select_shifts"),
        ("{select: stress, select_shifts: [hues]}", "select_shifts"),
        ("1: 2", "1"),
    ],
)
def test_bad_settings_name_file_and_key(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_train_config(path)
    assert caught.value.where == f"{path}: {key}"
    assert "\n" not in str(caught.value)


def test_bad_override_does_not_blame_the_file(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("epochs: 3")
    with pytest.raises(ConfigError, match="epochs: -1"):
        load_train_config(path, {"epochs": -1})


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("class_weights: heavy", "class_weights"),
        ("label_smoothing: 1", "label_smoothing"),
        ("sd_gamma: [1]", "sd_gamma"),
        ("sd_gamma: [1, .nan]", "sd_gamma.1"),
        ("sd_gamma: [1, 2, 3]\nclasses: [a, b]", "sd_gamma"),
        ("layer_decay: 0", "layer_decay"),
        ("layer_decay: 1.1", "layer_decay"),
        ("layer_decay: 0.5\nfreeze: true", "layer_decay"),
        ("clip_norm: 0", "clip_norm"),
        ("clip_norm: .inf", "clip_norm"),
        ("ema_decay: 1", "ema_decay"),
        ("patience: 0", "patience"),
        ("accumulate: 0", "accumulate"),
        ("accumulate: 9\nbatch_size: 8", "accumulate"),
        ("devices: 0", "devices"),
        ("devices: auto", "devices"),
        ("nodes: -1", "nodes"),
        ("compile: often", "compile"),
        ("checkpoint_minutes: 0", "checkpoint_minutes"),
        ("checkpoint_steps: 0", "checkpoint_steps"),
        ("loggers: [comet]", "loggers.0"),
        ("loggers: tensorboard", "loggers"),
    ],
)
def test_bad_settings_of_the_trainer_name_the_key(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_train_config(path)
    assert caught.value.where == f"{path}: {key}"


# Settings that are well formed, and refused for what is or is not there: the key, and all of them.
UNFIT: list[tuple[str, dict[str, object]]] = [
    ("backbone", {"backbone": "resnet1O"}),
    ("backbone", {"backbone": "deepseek_vit_412m_enc"}),
    ("weights", {"weights": "packaged"}),
    ("lost.pth", {"weights": "lost.pth"}),
    ("input_px", {"backbone": "test_vit", "input_px": 17}),
    ("sd_gamma", {"sd_gamma": [1, 2, 3]}),
    ("precision", {"precision": "bf16"}),
    ("positive_class", {"positive_class": "grey"}),
    ("where", {"where": "focus > 20"}),
    ("batch_size", {"batch_size": 9, "devices": 2}),
    ("accumulate", {"batch_size": 1000, "accumulate": 999}),
]
GOOD: dict[str, object] = {
    "epochs": 3, "learning_rate": 0.01, "sd_lambda": 0.5, "seed": 7, "weight_decay": 0.1, "clip_norm": 2.0,
    "ema_decay": 0.99, "label_smoothing": 0.1, "warmup": 0.2, "augment": "none", "checkpoint_steps": 9,
}  # fmt: skip


def bad_settings(random: np.random.Generator) -> tuple[str, dict[str, object]]:
    """The key at fault, and settings that are fine but for it."""
    kind = random.integers(4)
    names = list(TrainConfig.model_fields)
    name = names[random.integers(len(names))]
    if kind == 0:  # nothing is a mapping of this kind
        return name, {name: {"a": 1}}
    if kind == 1:  # a slip of the pen
        place = random.integers(len(name))
        slip = name[:place] + "zq"[random.integers(2)] + name[place:]
        return slip, {slip: 1}
    if kind == 2:
        return UNFIT[random.integers(len(UNFIT))]
    numbers = [n for n in names if TrainConfig.model_fields[n].annotation in (int, float, int | None, float | None)]
    name = numbers[random.integers(len(numbers))]
    return name, {name: [-1, float("inf"), float("nan"), "many", [1]][random.integers(5)]}


def test_two_hundred_bad_configurations_are_refused_before_anything_is_written(
    image_table: Path, tmp_path: Path
) -> None:
    random, out, path = np.random.default_rng(4), tmp_path / "run", tmp_path / "train.yaml"
    base = {"backbone": "test_resnet", "weights": "none", "input_px": 32, "device": "cpu"}
    path.touch()
    before = sorted(tmp_path.rglob("*"))
    for _ in range(200):
        key, bad = bad_settings(random)
        chosen = random.choice(list(GOOD), 3, replace=False).tolist()
        path.write_text(yaml.safe_dump(base | {name: GOOD[name] for name in chosen} | bad))
        with pytest.raises((ConfigError, ModelError)) as caught:
            train(out=out, images=image_table, config=path)
        place = caught.value.where.split(": ")[-1]
        assert key in (place, *place.split(".")), f"{bad}: {caught.value}"
        assert "\n" not in str(caught.value)
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("text", ["- a\n- b", "epochs: [", "just text", "!!python/object:os.system {}", "a: \x00"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"train\.yaml"):
        load_train_config(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent"):
        load_train_config(tmp_path / "absent.yaml")


def test_config_is_frozen() -> None:
    with pytest.raises(ValidationError):
        TrainConfig().epochs = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "key"),
    [({"logger": ["comet"]}, "loggers.0"), ({"freeze": True}, "layer_decay"), ({"devices": 0}, "devices")],
)
def test_options_of_the_command_line_are_settings(
    options: dict[str, Any], key: str, image_table: Path, tmp_path: Path
) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("layer_decay: 0.5")
    with pytest.raises(ConfigError) as caught:
        train(out=tmp_path / "run", images=image_table, config=path, **options)
    assert caught.value.where == f"training configuration: {key}"
