"""The options of `specslide train` that say how the data are split and drawn reach the trainer as settings."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from torch import Generator, Tensor
from typer.testing import CliRunner

import training
from pipeline import cli
from tiling.core.errors import ConfigError
from training import TrainConfig, labelled_tiles
from training.augmentations import AUGMENTATIONS
from training.models.info import read_info


class Reached(Exception):  # noqa: N818 - no error: it carries the settings out
    pass


def settings_of(monkeypatch: pytest.MonkeyPatch, *options: str) -> TrainConfig:
    def caught(index: Path, config: TrainConfig, **_: object) -> None:
        raise Reached(config)

    monkeypatch.setattr(training, "samples_from_images", caught)
    command = ["train", "--images", __file__, "--out", "run", *options]
    error = CliRunner().invoke(cli.app, command).exception
    if isinstance(error, Reached):
        config: TrainConfig = error.args[0]
        return config
    assert error is not None
    raise error


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), {}),
        (("--group", "site"), {"group": "site"}),
        (("--folds", "5", "--fold", "2"), {"folds": 5, "fold": 2}),
        (("--balance", "class", "--balance", "slide"), {"balance": ("class", "slide")}),
        (("--tiles-per-epoch", "1000"), {"tiles_per_epoch": 1000}),
        (("--workers", "2"), {"workers": 2}),
    ],
    ids=str,
)
def test_options_become_settings(
    options: tuple[str, ...], expected: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings_of(monkeypatch, *options) == TrainConfig.model_validate(expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--group", "scanner"), "group: 'scanner' is refused"),
        (("--fold", "2"), "fold: 2 is refused, it needs folds"),
        (("--folds", "2", "--fold", "2"), "fold: 2 is refused, the folds count from 0"),
        (("--balance", "stain"), "balance.0: 'stain' is refused"),
        (("--tiles-per-epoch", "0"), "tiles_per_epoch: 0 is refused"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=words):
        settings_of(monkeypatch, *options)


def test_an_augmentation_from_outside_is_trained_with_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row in the table of augmentations is all that it takes."""
    random, rows, seen = np.random.default_rng(0), ["path,case_id,label"], []
    for number in range(16):
        assert cv2.imwrite(str(tmp_path / f"{number}.png"), random.integers(0, 255, (32, 32, 3)).astype(np.uint8))
        rows.append(f"{number}.png,case{number // 2},{'ab'[number % 2]}")
    (tmp_path / "index.csv").write_text("\n".join(rows) + "\n")

    def inverted(pixels: Tensor, generator: Generator) -> Tensor:
        seen.append(len(pixels))
        return 1 - pixels

    command = [
        "train", "--images", str(tmp_path / "index.csv"), "--out", str(tmp_path / "run"), "--augment", "inverted",
        "--backbone", "test_resnet", "--weights", "none", "--input-px", "32", "--epochs", "1", "--batch-size", "4",
        "--bootstrap-resamples", "10",
    ]  # fmt: skip
    refused = CliRunner().invoke(cli.app, command).exception
    assert "augment: 'inverted' is refused, use one of none, light" in str(refused)
    monkeypatch.setitem(AUGMENTATIONS, "inverted", inverted)
    done = CliRunner().invoke(cli.app, command)
    assert done.exit_code == 0, done.exception
    assert sum(seen) > 0
    model = tmp_path / "run" / "model"
    assert read_info(model).training["augment"] == "inverted"
    monkeypatch.delitem(AUGMENTATIONS, "inverted")
    tested = labelled_tiles(read_info(model), images=tmp_path / "index.csv")
    assert (tested.split == "test").any(), "a model is tested where its augmentation is not known, too"
