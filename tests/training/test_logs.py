"""The loggers, for real where they are installed; none of them asks a network."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import pytest

from tests.training.test_fit import changed, files_of, history_of
from tiling.core.errors import ConfigError
from training import TrainConfig, samples_from_images, train

NAMES = ("tensorboard", "mlflow", "wandb")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_installed_is_refused_with_its_extra(
    name: str, image_table: Path, tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.logs.find_spec", lambda _: None)
    config = changed(tiny, loggers=(name,))
    with pytest.raises(ConfigError, match=rf"^loggers: .*'specslide\[{name}\]'"):
        train(samples_from_images(image_table, config), tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("undrawn")
def test_every_logger_gets_the_numbers_and_changes_none(
    image_table: Path, tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tuple(name for name in NAMES if importlib.util.find_spec(name))
    if not there:
        pytest.skip("lacks tensorboard, mlflow and wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # put back what is set for this process
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    samples = samples_from_images(image_table, tiny)
    config = changed(tiny, loggers=there)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what other people's packages say of each other
        train(samples, tmp_path / "run", config)
    train(samples, tmp_path / "plain", tiny)
    ours = files_of(tmp_path / "run")
    assert all(ours[name] == data for name, data in files_of(tmp_path / "plain").items())
    log = tmp_path / "run" / "log"
    expected = [row["val_log_loss"] for row in history_of(tmp_path / "run")]
    if "tensorboard" in there:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(log / "tensorboard"))
        events.Reload()
        assert [event.value for event in events.Scalars("val_log_loss")] == pytest.approx(expected, rel=1e-6)
        assert [event.step for event in events.Scalars("val_log_loss")] == [3, 6]
    if "mlflow" in there:
        (metric,) = log.glob("mlflow/**/metrics/val_log_loss")
        assert [float(line.split()[1]) for line in metric.read_text().splitlines()] == pytest.approx(expected)
    if "wandb" in there:
        assert list(log.glob("wandb/wandb/offline-run-*/*.wandb"))
