"""`specslide verify` over every kind of folder that specslide writes: intact as made, and one flipped byte is found."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from inference.export_model import export_model
from pipeline.cli import app
from pipeline.provenance import artefacts_in
from pipeline.study.run import StudyReport
from tiling.core.artefact import read_commit
from training import TrainConfig, load_model, samples_from_images
from training.shortcut.config import ShortcutConfig
from training.shortcut.experiment import study_shortcut

TINY = TrainConfig(
    backbone="test_resnet", weights="none", input_px=32, epochs=1, batch_size=16, bootstrap_resamples=5, threads=1
)
KINDS = {
    "cohort", "store", "model", "training", "evaluation", "stress", "heatmap", "slides", "study", "export",
    "shortcut study",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(study: StudyReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an artefact of each kind; read only unless copied."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("results", "cohort"):
        shutil.copytree(study.out.parent / name, folder / name)
    export_model(load_model(study.model), "torchscript", folder / "exported")
    random, lines = np.random.default_rng(0), ["path,case_id,label"]
    for number in range(24):
        cv2.imwrite(str(folder / f"{number}.png"), random.integers(0, 255, (32, 32, 3)).astype(np.uint8))
        lines.append(f"{number}.png,case{number // 2},{'ab'[number // 2 % 2]}")
    (folder / "index.csv").write_text("\n".join(lines))
    shortcut = ShortcutConfig(
        methods=("weight_decay",), seeds=1, weight_decays=(0.1,), epochs=1, backbone="test_resnet", input_px=32
    )
    study_shortcut(samples_from_images(folder / "index.csv", TINY), folder / "shortcut", shortcut, workers=0)
    return folder


def verify(*paths: Path) -> Result:
    return CliRunner().invoke(app, ["verify", *map(str, paths)], env={"COLUMNS": "500"})


def of_each_kind(folder: Path) -> dict[str, Path]:
    """An artefact of each kind, the first of several."""
    found: dict[str, Path] = {}
    for place in artefacts_in(folder):
        recipe = read_commit(place).recipe
        assert recipe is not None
        found.setdefault(recipe.artefact, place)
    return found


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_all_that_is_made_is_intact(made: Path) -> None:
    assert of_each_kind(made).keys() == KINDS
    done = verify(made, made / "results", made / "results" / "stores")
    assert (done.exit_code, done.stdout) == (0, f"{len(list(artefacts_in(made)))} intact, 0 damaged\n")


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_flipped_byte_of_any_file_is_found(made: Path, tmp_path: Path, kind: str) -> None:
    place = of_each_kind(made)[kind]
    copy = Path(shutil.copytree(place, tmp_path / place.name))
    for name in ("commit.json", *read_commit(place).files):
        flip(copy / name)
        done = verify(copy)
        assert done.exit_code == 1, name
        assert f"{copy / name}: " in done.stderr
        shutil.copy2(place / name, copy / name)
    assert verify(copy).exit_code == 0


@pytest.mark.parametrize("harm", [Path.unlink, flip])
def test_an_artefact_without_its_list_is_not_passed_over(
    made: Path, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    copy = Path(shutil.copytree(made / "results", tmp_path / "results"))
    places = [copy / name for name in ("stores/synthetic-00.zarr", "heatmaps/synthetic-04", "evaluation/tiles/seed-0")]
    for place in places:
        harm(place / "commit.json")
    done = verify(copy)
    assert f"{len(places)} damaged" in done.stdout
    assert all(f"{place / 'commit.json'}: " in done.stderr for place in places)


def test_a_test_of_version_0_1_says_what_to_do(tmp_path: Path) -> None:
    with tarfile.open(Path(__file__).parents[2] / "golden" / "study-0.1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    done = verify(tmp_path / "study")
    tested = tmp_path / "study" / "evaluation" / "tiles"
    assert json.loads((tested / "provenance.json").read_bytes())["artefact"] == "tiles"
    assert f"{tested}: has no commit.json, as version 0.1 wrote none here" in done.stderr
    assert "make it again" in done.stderr
    assert "4 intact, 2 damaged" in done.stdout


def test_a_folder_without_results_is_no_success(tmp_path: Path) -> None:
    done = verify(tmp_path)
    assert (done.exit_code, done.stdout) == (1, "0 intact, 1 damaged\n")
    assert f"{tmp_path}: holds nothing that specslide has finished" in done.stderr
