from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from tiling.errors import ConfigError
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
    with pytest.raises(ConfigError, match=r"^training configuration: epochs: -1 is refused"):
        load_train_config(path, {"epochs": -1})


@pytest.mark.parametrize("text", ["- a\n- b", "epochs: [", "just text", "!!python/object:os.system {}", "a: \x00"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"train\.yaml"):
        load_train_config(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_train_config(tmp_path / "absent.yaml")


def test_config_is_frozen() -> None:
    with pytest.raises(ValidationError):
        TrainConfig().epochs = 2  # type: ignore[misc]
