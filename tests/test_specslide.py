"""`import specslide` and the command, whatever the user's own folder holds."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import specslide

ROOT = Path(specslide.__file__).resolve().parent
SCRIPT = "import sys\nfrom specslide import main\nif __name__ == '__main__':\n    sys.exit(main())\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A user's folder whose own modules have the names of specslide's packages, and fail when imported."""
    for name in ("training", "inference"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('mine')\n")
    for name in ("pipeline", "tiling"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('mine')\n")
    return tmp_path


@pytest.fixture
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an installation puts on the PATH as `specslide`."""
    path = tmp_path_factory.mktemp("bin") / "specslide"
    path.write_text(SCRIPT)
    return path


def python(place: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "300"}
    words = [sys.executable, *map(str, arguments)]
    return subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, check=False, timeout=300)


def succeeds(place: Path, *arguments: object) -> str:
    done = python(place, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_public_names_are_there() -> None:
    for name in specslide.__all__:
        assert getattr(specslide, name) is not None
    assert set(specslide.__all__) <= set(dir(specslide))
    assert specslide.__version__ == version("specslide")
    with pytest.raises(AttributeError, match="no attribute 'tile_slides'"):
        specslide.tile_slides  # type: ignore[attr-defined]  # noqa: B018


def test_importing_is_not_broken_by_the_users_own_modules(place: Path) -> None:
    names = ", ".join(name for name in specslide.__all__ if name != "__version__")
    code = f"from specslide import {names}; import training.train; print(training.train is train, train.__module__)"
    assert succeeds(place, "-c", code) == "True training.train\n", "the function, not its module"


def test_another_package_imported_before_is_named(place: Path) -> None:
    (place / "training" / "__init__.py").write_text("")
    done = python(place, "-c", "import training, specslide")
    assert f"ImportError: another module 'training' ({place / 'training'}" in done.stderr
    assert "import specslide before it" in done.stderr


def test_the_command_and_its_workers_are_not_broken(place: Path, script: Path, small_slide: Path) -> None:
    assert succeeds(place, script, "--version") == f"specslide {version('specslide')}\n"
    assert "1 tiles" not in succeeds(place, "-m", "specslide", "tile", small_slide, "--out", "stores", "--workers", 2)
    assert (place / "stores" / "small.zarr" / "commit.json").exists()


def test_what_the_command_starts_is_not_broken(place: Path, script: Path) -> None:
    """As Lightning starts more processes of a training; the real ones are started nightly."""
    child = "import inference, pipeline, tiling, training; print('found')"
    script.write_text(
        "import subprocess, sys\nfrom specslide import main\ntry:\n    main()\n"
        f"finally:\n    subprocess.run([sys.executable, '-c', {child!r}], check=True)\n"
    )
    assert "found" in succeeds(place, script, "--version")


def test_workers_of_dask_are_not_broken(place: Path, script: Path, small_slide: Path) -> None:
    succeeds(place, script, "tile", small_slide, "--out", "stores", "--cluster", "local:1")
    assert (place / "stores" / "small.zarr" / "commit.json").exists()


def test_a_users_script_and_its_workers_are_not_broken(place: Path, small_slide: Path) -> None:
    (place / "mine.py").write_text(
        "import specslide\n"
        "from pipeline.execution.tile_jobs import tile_all\n"
        "from pathlib import Path\nfrom tiling import TilingConfig\nfrom tiling.manifest import slide_row\n"
        "if __name__ == '__main__':\n"
        f"    rows = [slide_row(Path({str(small_slide)!r}))]\n"
        "    done = tile_all(rows, Path('stores'), TilingConfig(), workers=2)\n"
        "    print(done[0].error)\n"
    )
    assert succeeds(place, "mine.py") == "None\n"


@pytest.mark.nightly
@pytest.mark.parametrize("start", ["fabric", "torchrun"])
def test_shared_training_is_not_broken(start: str, place: Path, script: Path) -> None:
    import cv2
    import numpy as np

    random = np.random.default_rng(0)
    lines = ["path,case_id,label"]
    for number in range(12):
        cv2.imwrite(str(place / f"{number}.png"), random.integers(0, 255, (32, 32, 3)).astype(np.uint8))
        lines.append(f"{number}.png,case{number // 2},{'ab'[number // 2 % 2]}")
    (place / "index.csv").write_text("\n".join(lines))
    (place / "train.yaml").write_text(
        "{backbone: test_resnet, weights: none, input_px: 32, epochs: 1, batch_size: 4, device: cpu,"
        " bootstrap_resamples: 0, val_fraction: 0.34, test_fraction: 0.34}"
    )
    options = ["train", "--images", "index.csv", "--config", "train.yaml", "--out", "run", "--workers", 1]
    if start == "fabric":
        succeeds(place, script, *options, "--devices", 2)
    else:
        run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
        succeeds(place, "-P", *run, script, *options)
    assert (place / "run" / "model" / "model.json").exists()
