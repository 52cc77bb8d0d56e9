"""Models as the WSInfer zoo has them, the whole way to a heatmap."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from wsinfer_zoo.client import validate_config_json

from inference import PredictConfig, load_model, make_heatmap
from inference.report.cohort import write_cohort_index
from inference.summary import read_summary
from tests.inference.conftest import picture
from tests.inference.models.zoo import CONFIG, network, write_zoo_folder
from tiling.core.errors import ModelError


def test_probabilities_are_those_of_wsinfers_own_steps(tmp_path: Path) -> None:
    validate_config_json(CONFIG)
    model = load_model(write_zoo_folder(tmp_path / "zoo"))
    tiles = picture(480).reshape(10, 48, 10, 48, 3).swapaxes(1, 2).reshape(-1, 48, 48, 3)
    steps = transforms.Compose(
        [transforms.Resize(32), transforms.ToTensor(), transforms.Normalize([0.7, 0.6, 0.7], [0.2, 0.25, 0.2])]
    )
    with torch.inference_mode():
        logits = network()(torch.stack([steps(Image.fromarray(tile)) for tile in tiles]))
    expected = torch.softmax(logits, dim=1).numpy()
    assert np.ptp(expected[:, 1]) > 0.1
    assert np.abs(model.predict(tiles) - expected).max() < 0.01  # Pillow rounds to whole numbers on the way
    assert (model.info.mpp, model.info.tile_px, model.info.positive_class) == (1.0, 48, "Tumor")


def test_a_slide_becomes_a_heatmap_that_says_it_is_not_calibrated(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "slide.png")
    model = load_model(write_zoo_folder(tmp_path / "zoo"))
    made = make_heatmap(tmp_path / "slide.png", model, tmp_path / "out", PredictConfig(), slide_mpp=0.5)
    assert made.tiles > 10
    write_cohort_index(tmp_path / "out", {})
    summary = read_summary(made.folder)
    assert summary.out_of_distribution is None
    assert any("not calibrated" in limit for limit in summary.limits)
    for page in (made.folder / "report.html", tmp_path / "out" / "index.html"):
        assert "probabilities are not calibrated" in page.read_text()
    again = make_heatmap(tmp_path / "slide.png", model, tmp_path / "out", PredictConfig(), slide_mpp=0.5)
    assert again.reused


def test_onnx_is_refused_by_name(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "slide.png")
    model = load_model(write_zoo_folder(tmp_path / "zoo"))
    with pytest.raises(ModelError, match="TorchScript"):
        make_heatmap(tmp_path / "slide.png", model, tmp_path / "out", PredictConfig(backend="onnx"), slide_mpp=0.5)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"spec_version": "2.0"}, "spec_version"),
        ({"num_classes": 1, "class_names": ["Tumor"]}, "num_classes"),
        ({"num_classes": 3}, "class_names"),
        ({"num_classes": 3, "class_names": ["a", "b", "c"]}, "3 classes"),
        ({"class_names": ["a", "a"]}, "class_names"),
        ({"patch_size_pixels": 0}, "patch_size_pixels"),
        ({"patch_size_pixels": 10**9}, "patch_size_pixels"),
        ({"spacing_um_px": -1}, "spacing_um_px"),
        ({"spacing_um_px": "NaN"}, "spacing_um_px"),
        ({"icc": "adobe"}, "icc"),
        ({"transform": []}, "transform"),
        ({"transform": CONFIG["transform"][::-1]}, "transform"),
        ({"transform": [{"name": "Resize", "arguments": {"size": [1, 2]}}, {"name": "ToTensor"}]}, "transform"),
        ({"transform": [{"name": "Resize", "arguments": {"size": 10**6}}, {"name": "ToTensor"}]}, "transform"),
        ({"transform": [{"name": "Resize", "arguments": {"size": 0}}, {"name": "ToTensor"}]}, "transform"),
        ({"transform": [{"name": "Crop"}]}, "transform"),
        ({"transform": [{"name": "ToTensor"}, {"name": "Normalize", "arguments": {"mean": [0, 0, 0]}}]}, "std"),
    ],
)
def test_a_configuration_that_cannot_be_followed_is_named(
    tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    with pytest.raises(ModelError, match=named):
        load_model(write_zoo_folder(tmp_path / "zoo", **changes))


@pytest.mark.parametrize("damage", [b"", b"PK", b"no torchscript at all"])
def test_a_damaged_script_is_named(tmp_path: Path, damage: bytes) -> None:
    folder = write_zoo_folder(tmp_path / "zoo")
    (folder / "torchscript_model.pt").write_bytes(damage)
    with pytest.raises(ModelError, match=r"torchscript_model\.pt"):
        load_model(folder)


def test_a_change_of_either_file_is_another_model(tmp_path: Path) -> None:
    folder = write_zoo_folder(tmp_path / "zoo")
    before = load_model(folder).sha256
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"spacing_um_px": 2.0}))
    assert load_model(folder).sha256 != before
