"""Models by name: where they are found, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from inference import load_model, predict_slide
from inference.models.find import PLACES, find_model, models_at_hand
from inference.models.known import PACKAGED, packaged_name
from tests.inference.conftest import write_model
from tests.inference.models.zoo import write_zoo_folder
from tiling.core.errors import ModelError
from training import TileModel


def test_a_folder_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGED, "known", write_model(tmp_path / "package" / "known"))
    monkeypatch.chdir(tmp_path)
    assert find_model("known") == PACKAGED["known"]
    assert find_model(write_model(tmp_path / "known")) == tmp_path / "known"
    assert find_model("known") == Path("known")


def test_folders_of_the_users_are_looked_through_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_model(second / "mine")
    write_model(second / "other")
    write_model(first / "other")
    monkeypatch.setenv(PLACES, f"{first}:{second}:{tmp_path / 'none'}")
    assert find_model("mine") == second / "mine"
    assert find_model("other") == first / "other"
    zoo = write_zoo_folder(second / "zoo-model")
    assert find_model("wsinfer:zoo-model") == zoo
    assert {"mine", "other", "wsinfer:zoo-model"} <= {name for name, _ in models_at_hand()}


def test_the_hubs_cache_is_used_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    place = tmp_path / "hub" / "models--owner--their-model"
    snapshot = place / "snapshots" / ("0" * 40)
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    with pytest.raises(ModelError, match="owner/their-model"):
        find_model("wsinfer:owner/their-model")
    write_zoo_folder(snapshot)
    assert find_model("wsinfer:owner/their-model") == snapshot

    blob = place / "blobs" / ("a" * 64)  # as the hub's client keeps large files, by their SHA-256
    blob.parent.mkdir()
    shutil.move(snapshot / "torchscript_model.pt", blob)
    (snapshot / "torchscript_model.pt").symlink_to(blob)
    with pytest.raises(ModelError, match=r"torchscript_model\.pt: is not the file that the hub named"):
        find_model("wsinfer:owner/their-model")


@pytest.mark.parametrize(
    "name", ["no-such-model", "wsinfer:no-such-model", "wsinfer:", "wsinfer:a/b/c", "wsinfer:../x"]
)
def test_a_name_that_there_is_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=name):
        load_model(name)


@pytest.mark.parametrize(
    ("named", "meant"),
    [
        ("brest-idc", "breast-idc"),
        ("breast-tumor-resnet34.tcga-brca", "wsinfer:breast-tumor-resnet34.tcga-brca"),
    ],
)
def test_a_name_that_is_nearly_one_is_told(named: str, meant: str) -> None:
    with pytest.raises(ModelError, match=f"{meant}\\?"):
        load_model(named)


def test_a_run_is_told_from_its_model(tmp_path: Path) -> None:
    write_model(tmp_path / "run" / "model")
    with pytest.raises(ModelError, match=str(tmp_path / "run" / "model")):
        find_model(tmp_path / "run")


def test_models_that_come_with_the_package_are_whole() -> None:
    for name, folder in PACKAGED.items():
        model = load_model(name)
        assert model.novelty is not None
        for said in ("tissue", "licence", "limits"):
            assert model.info.said(said)
        assert "research" in (folder / "README.md").read_text().lower()
        assert sum(file.stat().st_size for file in folder.iterdir()) < 20_000_000
        answers, ratios = model.predict_with_novelty(torch.zeros(2, 50, 50, 3, dtype=torch.uint8).numpy())
        assert answers.shape == (2, len(model.info.classes))
        assert ratios is not None
        assert (ratios > 1).all()  # black tiles are none it has seen


def test_a_packaged_model_is_called_by_its_name_and_others_by_their_network(slide: Path, model: TileModel) -> None:
    packaged = predict_slide(slide, load_model("breast-idc"))
    assert packaged.model_name == packaged.provenance["model"] == "breast-idc"
    assert predict_slide(slide, model).model_name == "test_resnet"
    assert packaged_name("0" * 64) is None
