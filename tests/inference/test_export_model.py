"""Exports run by onnxruntime, torch and the transforms of WSInfer, against the model; the schema is WSInfer's."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms

from inference import export_model as module
from inference.export_model import export_model, load_script, wsinfer_config
from tests.inference.conftest import MakeModel
from tiling.core.artefact import folder_faults
from tiling.core.errors import ModelError, OutputError
from training import TileModel, load_model
from training.models.stain_targets import ReinhardTarget

FILES = {
    "onnx": {"model.onnx"},
    "torchscript": {"model.pt"},
    "wsinfer": {"torchscript_model.pt", "config.json"},
}
BESIDE = {"export.json", "README.md", "commit.json"}


def tiles(side: int, count: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (count, side, side, 3), np.uint8)


@pytest.fixture(params=[(32, 32), (50, 96), (64, 32)], ids=["same", "enlarged", "reduced"])
def resized(request: pytest.FixtureRequest, make_model: MakeModel) -> TileModel:
    """Models with a temperature, whose tiles are as large as their input, smaller and larger."""
    tile_px, input_px = request.param
    return load_model(make_model(tile_px=tile_px, input_px=input_px, temperature=0.4))


def test_onnx_runtime_gives_the_models_probabilities(resized: TileModel, tmp_path: Path) -> None:
    report = export_model(resized, "onnx", tmp_path / "out")
    onnx.checker.check_model(graph := onnx.load(report.file), full_check=True)
    said = {entry.key: entry.value for entry in graph.metadata_props}
    assert json.loads(said["classes"]) == list(resized.info.classes)
    assert (said["icc"], float(said["mpp"]), said["tile_px"]) == ("none", 0.5, str(resized.info.tile_px))
    session = onnxruntime.InferenceSession(report.file, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        pixels = tiles(resized.info.tile_px, count)
        logits, probabilities = session.run(["logits", "probabilities"], {"tiles": pixels})
        np.testing.assert_allclose(probabilities, resized.predict(pixels), atol=1e-4)
        np.testing.assert_allclose(torch.softmax(torch.from_numpy(logits), 1), probabilities, atol=1e-6)
    assert report.difference <= 1e-4


def test_torchscript_gives_the_models_probabilities(resized: TileModel, tmp_path: Path) -> None:
    report = export_model(resized, "torchscript", tmp_path / "out")
    pixels = tiles(resized.info.tile_px)
    _, probabilities = load_script(report.file.read_bytes())(torch.from_numpy(pixels))
    np.testing.assert_allclose(probabilities.detach(), resized.predict(pixels), atol=1e-4)


def test_wsinfers_way_gives_the_models_probabilities(resized: TileModel, tmp_path: Path) -> None:
    """As wsinfer does: the config's transforms on a picture, the script, a softmax."""
    report = export_model(resized, "wsinfer", tmp_path / "out")
    config = json.loads((report.folder / "config.json").read_text())
    steps = [getattr(transforms, step["name"])(**step.get("arguments", {})) for step in config["transform"]]
    pixels = tiles(resized.info.tile_px)
    batch = torch.stack([transforms.Compose(steps)(Image.fromarray(tile)) for tile in pixels])
    with torch.inference_mode():
        found = torch.softmax(load_script(report.file.read_bytes())(batch), dim=1)
    np.testing.assert_allclose(found, resized.predict(pixels), atol=1e-4)


def test_the_config_is_what_wsinfer_accepts(model: TileModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # where its client makes a folder when it is imported
    monkeypatch.delitem(sys.modules, "wsinfer_zoo.client", raising=False)
    from wsinfer_zoo.client import ModelConfiguration

    config = ModelConfiguration.from_dict(wsinfer_config(model.info))
    assert (config.architecture, config.num_classes, config.class_names) == ("test_resnet", 2, ["benign", "tumour"])
    assert (config.patch_size_pixels, config.spacing_um_px) == (32, 0.5)
    assert [step.name for step in config.transform] == ["Resize", "ToTensor", "Normalize"]
    assert config.get_slide_patch_size(0.25) == 64


@pytest.mark.parametrize("to", ["onnx", "torchscript", "wsinfer"])
def test_the_folder_is_whole_and_names_no_file_of_the_machine(model: TileModel, tmp_path: Path, to: Any) -> None:
    report = export_model(model, to, tmp_path / "out")
    assert {path.name for path in report.folder.iterdir()} == FILES[to] | BESIDE
    assert folder_faults(report.folder) == []
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    facts = json.loads((report.folder / "export.json").read_text())
    assert (facts["classes"], facts["threshold"], facts["mpp"]) == (["benign", "tumour"], 0.5, 0.5)
    assert facts["icc"] == "none"
    assert facts["model_sha256"] == model.sha256
    assert "research use only" in (report.folder / "README.md").read_text()
    for path in report.folder.iterdir():
        for secret in (str(Path.home()), str(tmp_path), str(Path.cwd()), "site-packages", torch.__path__[0]):
            assert secret.encode() not in path.read_bytes(), f"{path.name} holds {secret}"


def test_a_folder_that_is_there_is_kept(model: TileModel, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="--overwrite"):
        export_model(model, "torchscript", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    export_model(model, "torchscript", tmp_path / "out", overwrite=True)
    export_model(model, "wsinfer", tmp_path / "out", overwrite=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES["wsinfer"] | BESIDE
    assert folder_faults(tmp_path / "out") == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_never_overwritten(model_folder: Path, tmp_path: Path, overwrite: bool) -> None:
    """Such as the folder of the very model, or somebody's home."""
    shutil.copytree(model_folder, tmp_path / "run")
    (tmp_path / "home" / "thesis").mkdir(parents=True)
    model, before = load_model(tmp_path / "run"), sorted(tmp_path.rglob("*"))
    for name in ("run", "home"):
        with pytest.raises(OutputError, match=rf"{name}: .*--out$"):
            export_model(model, "torchscript", tmp_path / name, overwrite=overwrite)
    assert sorted(tmp_path.rglob("*")) == before
    assert load_model(tmp_path / "run").sha256 == model.sha256


@pytest.mark.parametrize("to", ["onnx", "torchscript", "wsinfer"])
def test_an_export_that_differs_is_never_published(
    model: TileModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: Any
) -> None:
    """Such as one that forgets the temperature, or normalises otherwise."""
    for wrapper in (module.CalibratedClassifier, module.NormalisedClassifier):
        made = wrapper.__init__

        def hotter(self: Any, network: Any, info: Any, made: Any = made) -> None:
            made(self, network, info.model_copy(update={"temperature": info.temperature / 100}))

        monkeypatch.setattr(wrapper, "__init__", hotter)
    with pytest.raises(ModelError, match="torch"):
        export_model(model, to, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_gives_no_number_is_not_exported(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="torch"):
        export_model(load_model(make_model(broken=True)), "torchscript", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wsinfer_needs_a_scale(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"scale.*--mpp"):
        export_model(load_model(make_model(mpp=None)), "wsinfer", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_stain_normalisation_cannot_be_exported(make_model: MakeModel, tmp_path: Path) -> None:
    model = load_model(make_model(tile_px=32, input_px=32))
    model.network.stain = ReinhardTarget(mean=(50.0, 10.0, 10.0), std=(5.0, 5.0, 5.0))
    with pytest.raises(ModelError, match="stain"):
        export_model(model, "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()
