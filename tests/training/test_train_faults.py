"""A disk that is full while a model is trained and tested: one error that names it, and later the same result."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.tiling.conftest import ram_folder
from tests.tiling.core.test_faults import NEEDS_NO_SPACE, FaultyDisk
from tests.training.test_fit import _no_pictures, changed, files_of  # noqa: F401 - fixtures
from tiling.core.artefact import folder_faults
from tiling.core.errors import SpecslideError
from training import TrainConfig, evaluate_models, load_model, samples_from_images, train

NEVER = 0


@pytest.fixture
def ram(tmp_path: Path) -> Iterator[Path]:
    with ram_folder(tmp_path) as folder:
        yield folder


@pytest.fixture(params=["train", "evaluate"])
def job(
    request: pytest.FixtureRequest, image_table: Path, tiny: TrainConfig, tmp_path: Path
) -> Callable[[Path], object]:
    """Trains into a folder, or tests a finished model into it."""
    config = changed(tiny, epochs=1, checkpoint_steps=2, bootstrap_resamples=0)
    samples = samples_from_images(image_table, config)
    if request.param == "train":
        return lambda out: train(samples, out, config)
    train(samples, tmp_path / "trained", config)
    model = load_model(tmp_path / "trained" / "model")
    return lambda out: evaluate_models([model], samples.split_of("test"), out, resamples=2)


def on_disk(job: Callable[[Path], object], out: Path, disk: FaultyDisk) -> SpecslideError | None:
    with disk.plugged_in():
        try:
            job(out)
        except SpecslideError as error:
            return error
    return None


@pytest.mark.nightly
def test_a_disk_that_is_full_from_some_moment_on(job: Callable[[Path], object], ram: Path) -> None:
    out, whole = ram / "out", ram / "whole"
    undisturbed = FaultyDisk(whole, NEVER)
    assert on_disk(job, whole, undisturbed) is None
    expected, count, refused = files_of(whole), len(undisturbed.kinds), 0
    assert count > 10
    for last in (n for n, kind in enumerate(undisturbed.kinds, start=1) if kind not in NEEDS_NO_SPACE):
        shutil.rmtree(out, ignore_errors=True)
        error = on_disk(job, out, FaultyDisk(out, last, errno.ENOSPC, for_good=True))
        where = f"operation {last} of {count}, {undisturbed.kinds[last - 1]}"
        if error is not None:
            refused += 1
            assert str(error).startswith(str(ram)), where
            assert "No space left on device" in str(error), where
        else:
            assert files_of(out) == expected, f"{where}: said to be done"
        for place in (out, out / "model"):
            assert not (place / "commit.json").exists() or folder_faults(place) == [], where
        job(out)
        assert files_of(out) == expected, where
    assert refused > count // 2
