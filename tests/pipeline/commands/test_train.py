"""The options of `specslide train` that say how the data are split and drawn reach the trainer as settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import training
from pipeline import cli
from tiling.core.errors import ConfigError
from training import TrainConfig


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
    with pytest.raises(ConfigError, match=f"training configuration: {words}"):
        settings_of(monkeypatch, *options)
