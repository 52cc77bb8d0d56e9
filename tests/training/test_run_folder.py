"""A finished model is never lost: the same one is kept, another replaces it only when it is complete."""

from __future__ import annotations

import importlib
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.training.test_fit import _no_pictures, changed, files_of  # noqa: F401 - fixtures
from tiling.core.artefact import folder_faults
from tiling.core.errors import OutputError, StoppedError
from training import Samples, TrainConfig, load_model, samples_from_images, train
from training.fit import Training
from training.recipes import model_recipe
from training.run_folder import checkpoints_of, kept_model, publish
from training.train import TrainResult


@pytest.fixture
def once(tiny: TrainConfig) -> TrainConfig:
    return changed(tiny, epochs=1, bootstrap_resamples=0)


@pytest.fixture
def samples(image_table: Path, once: TrainConfig) -> Samples:
    return samples_from_images(image_table, once)


@pytest.fixture
def out(tmp_path: Path, samples: Samples, once: TrainConfig) -> Path:
    """A finished run."""
    train(samples, tmp_path / "run", once)
    return tmp_path / "run"


def test_the_same_run_is_complete_already(
    out: Path, samples: Samples, once: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(out)
    monkeypatch.setattr(Training, "_step", None)
    for overwrite in (False, True):
        again = train(samples, out, changed(once, workers=1), overwrite=overwrite)
        info = load_model(out / "model").info
        chosen = info.best_epoch, info.temperature, info.threshold
        assert again == TrainResult(out / "model", info.metrics, *chosen, reused=True)
    assert files_of(out) == before


def test_settings_that_came_later_leave_earlier_models_up_to_date(samples: Samples, once: TrainConfig) -> None:
    settings = model_recipe(samples, once).settings
    later = {"l2", "consistency", "select", "select_shifts"}
    assert not later & settings.keys(), "a recipe of before there was such a setting"
    assert model_recipe(samples, changed(once, l2=0.1)).settings == {**settings, "l2": 0.1}


def test_another_run_is_refused_and_the_difference_named(
    out: Path, image_table: Path, samples: Samples, once: TrainConfig
) -> None:
    before = files_of(out)
    with pytest.raises(OutputError, match=r"model: .*seed was 0, is 1; .*--overwrite"):
        train(samples, out, changed(once, seed=1))
    with pytest.raises(OutputError, match="other settings: l2"):
        train(samples, out, changed(once, l2=0.1))
    rows = image_table.read_text().splitlines()
    image_table.write_text("\n".join(rows[:-4]) + "\n")
    with pytest.raises(OutputError, match="not made from the same tiles"):
        train(samples_from_images(image_table, once), out, once)
    assert files_of(out) == before

    (out / "model" / "README.md").write_text("changed")
    with pytest.raises(OutputError, match=r"model: is damaged: .*README\.md"):
        train(samples, out, once)
    assert not train(samples, out, once, overwrite=True).reused
    assert files_of(out) == before


def test_the_earlier_model_stands_until_the_new_one_is_complete(
    out: Path, tmp_path: Path, samples: Samples, once: TrainConfig, at_step: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    other = changed(once, seed=1, epochs=2)
    train(samples, tmp_path / "fresh", other)
    before = files_of(out)

    def stands() -> bool:
        now = files_of(out)
        return {name: now[name] for name in before} == before and folder_faults(out) == []

    at_step(4, lambda: signal.raise_signal(signal.SIGUSR1))
    with pytest.raises(StoppedError):
        train(samples, out, other, overwrite=True)
    assert stands()
    assert train(samples, out, once).reused, "and is used while the other is under way"

    def fail(*args: object) -> None:
        raise OutputError(out, "cannot be written (No space left on device)")

    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module("training.train"), "save_model", fail)
        with pytest.raises(OutputError, match="No space left"):
            train(samples, out, other, overwrite=True)
    assert stands()
    train(samples, out, other, overwrite=True)
    assert files_of(out) == files_of(tmp_path / "fresh")


class Killed(BaseException):
    """No code catches it."""


@dataclass
class Killer:
    """Lets so many changes of names in a folder happen, and no more."""

    left: int

    def watch(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def do(*args: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise Killed
            return real(*args, **options)

        return do


@pytest.mark.parametrize("fresh", [True, False])
def test_a_replacement_that_was_killed_is_finished_by_the_next_call(
    fresh: bool, out: Path, tmp_path: Path, samples: Samples, once: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at each change of a name in the folder, until it comes through."""
    other = changed(once, seed=1)
    train(samples, tmp_path / "whole", other)
    expected = files_of(tmp_path / "whole")
    for steps in range(100):
        place = tmp_path / f"place{steps}"
        place.mkdir() if fresh else shutil.copytree(out, place)
        checkpoints_of(place, model_recipe(samples, other)).prepare()
        parts = shutil.ignore_patterns("commit.json")
        shutil.copytree(tmp_path / "whole", place / "checkpoints" / "result", ignore=parts)
        shutil.copytree(tmp_path / "whole" / "model", place / "checkpoints" / "result" / "model", dirs_exist_ok=True)
        killer = Killer(steps)
        with monkeypatch.context() as patch:
            for name in ("replace", "rename", "unlink"):
                patch.setattr(Path, name, killer.watch(getattr(Path, name)))
            patch.setattr(shutil, "rmtree", killer.watch(shutil.rmtree))
            with suppress(Killed):
                publish(place)
        assert kept_model(place, samples, other, overwrite=False) is not None, steps
        assert files_of(place) == expected
        if killer.left >= 0:
            break
    assert steps >= 8, "so many steps were seen"
