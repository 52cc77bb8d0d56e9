"""Classifiers of timm, as it saves them itself: the same probabilities, and nothing believed unchecked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from typer.testing import CliRunner

from inference.heatmap import make_heatmap
from inference.import_model import ImportModelConfig, import_model
from inference.models.find import find_model
from inference.models.wsinfer import UNCALIBRATED
from pipeline import cli
from tiling.core.errors import ConfigError, ModelError, OutputError, SpecslideError
from training import load_model

TOLD = ImportModelConfig(mpp=0.5, tile_px=64, licence="CC0")


def saved(folder: Path, architecture: str = "test_resnet", **changes: Any) -> Path:
    """A classifier of three classes in a folder, written by timm."""
    torch.manual_seed(0)
    network = timm.create_model(architecture, num_classes=3, **changes.pop("args", {}))
    names = {"label_names": ["normal", "tumour", "fat"]} | changes
    timm.models.save_for_hf(network, str(folder), model_config=names, safe_serialization=True)
    return folder


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit", "test_efficientnet"])
def test_its_probabilities_are_timms(architecture: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "source", architecture)
    info = import_model(str(source), tmp_path / "model", TOLD)
    assert (info.classes, info.positive_class, info.mpp, info.tile_px) == (("normal", "tumour", "fat"), "fat", 0.5, 64)
    assert (info.temperature, info.threshold, info.novelty) == (1.0, 0.5, None)
    model = load_model(tmp_path / "model")
    side = info.input_px
    tiles = np.random.default_rng(0).integers(0, 256, (4, side, side, 3), np.uint8)
    network: Any = timm.create_model(architecture, num_classes=3).eval()
    network.load_state_dict(load_file(source / "model.safetensors"))
    config = network.pretrained_cfg
    pixels = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
    pixels = (pixels - torch.tensor(config["mean"]).view(3, 1, 1)) / torch.tensor(config["std"]).view(3, 1, 1)
    with torch.inference_mode():
        expected = functional.softmax(network(pixels), dim=1).numpy()
    np.testing.assert_allclose(model.predict(tiles), expected, atol=1e-5)


def test_each_report_by_it_says_what_nobody_measured(slide: Path, tmp_path: Path) -> None:
    import_model(str(saved(tmp_path / "source")), tmp_path / "model", TOLD.model_copy(update={"mpp": 1.0}))
    made = make_heatmap(slide, load_model(tmp_path / "model"), tmp_path / "out")
    assert UNCALIBRATED in (made.folder / "report.html").read_text()
    assert UNCALIBRATED in (tmp_path / "model" / "README.md").read_text()


def test_the_same_model_is_kept_and_another_refused(tmp_path: Path) -> None:
    source, out = str(saved(tmp_path / "source")), tmp_path / "model"
    import_model(source, out, TOLD)
    before = (out / "commit.json").stat().st_mtime_ns
    import_model(source, out, TOLD)
    assert (out / "commit.json").stat().st_mtime_ns == before
    other = TOLD.model_copy(update={"positive_class": "tumour"})
    with pytest.raises(OutputError, match="--overwrite"):
        import_model(source, out, other)
    assert import_model(source, out, other, overwrite=True).positive_class == "tumour"
    assert load_model(out).info.positive_class == "tumour"


def rewritten(folder: Path, **changes: Any) -> Path:
    record = json.loads((folder / "config.json").read_text())
    record["pretrained_cfg"].update(changes.pop("pretrained_cfg", {}))
    (folder / "config.json").write_text(json.dumps(record | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "told", "says"),
    [
        ({"label_names": None}, {}, "does not name its 3 classes"),
        ({}, {"classes": ("a", "b")}, "3 outputs, not 2"),
        ({"num_classes": 2}, {"classes": ("a", "b")}, "do not fit"),
        ({}, {"positive_class": "tumor"}, "'tumor' is none of normal, tumour, fat"),
        ({"label_names": ["a", "b", "b"]}, {}, "do not all differ"),
        ({"architecture": "resnet_of_ours"}, {}, "timm knows no model"),
        ({"architecture": "test_vit"}, {}, "do not fit test_vit"),
        ({"model_args": {"checkpoint_path": "x.pth"}}, {}, "checkpoint_path"),
        ({"pretrained_cfg": {"mean": [0.5, 0.5, 7]}}, {}, "mean"),
        ({"pretrained_cfg": {"std": "none"}}, {}, "std"),
        ({"pretrained_cfg": {"input_size": [1, 64, 64]}}, {}, "[1, 64, 64]"),
        ({"pretrained_cfg": {"input_size": 64}}, {}, "64"),
        ({"pretrained_cfg": {"input_size": [3, "a", "a"]}}, {}, "'a'"),
        ({"pretrained_cfg": {"input_size": [3, 10**7, 10**7]}}, {}, "input_px"),
        ({"label_names": "abc"}, {}, "does not name its 3 classes"),
        ({"label_names": 3}, {}, "does not name its 3 classes"),
        ({"num_classes": "three"}, {}, "three outputs, not 3"),
        ({"pretrained_cfg": 3}, {}, "config.json"),
    ],
)
def test_what_cannot_be_right_is_refused(
    changes: dict[str, Any], told: dict[str, Any], says: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "source")
    if changes.get("pretrained_cfg") == 3:
        (folder / "config.json").write_text('{"architecture": "test_resnet", "pretrained_cfg": 3}')
    else:
        rewritten(folder, **changes)
    with pytest.raises(SpecslideError) as caught:
        import_model(str(folder), tmp_path / "model", TOLD.model_copy(update=told))
    assert says in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_classes_by_number_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    folder = rewritten(saved(tmp_path / "source"), label_names={"10": "c", "2": "b", "0": "a"})
    assert import_model(str(folder), tmp_path / "model", TOLD).classes == ("a", "b", "c")


def test_damaged_weights_and_folders_without_them_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "source")
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor * torch.nan for name, tensor in weights.items()}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="no numbers"):
        import_model(str(folder), tmp_path / "model", TOLD)
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        import_model(str(folder), tmp_path / "model", TOLD)
    with pytest.raises(ModelError, match=r"config\.json"):
        import_model(str(tmp_path), tmp_path / "model", TOLD)
    with pytest.raises(ConfigError, match="cannot be fetched"):
        import_model("hf-hub:nobody/nothing at all", tmp_path / "model", TOLD)


def test_a_hub_given_as_model_is_shown_the_way() -> None:
    with pytest.raises(ModelError, match="specslide import model hf-hub:lab/net "):
        find_model("hf-hub:lab/net")


def test_on_the_command_line(tmp_path: Path) -> None:
    words = ["import", "model", saved(tmp_path / "source"), "--mpp", "0.5", "--out", tmp_path / "model"]
    done = CliRunner().invoke(cli.app, [*map(str, words), "--classes", "benign, stroma, tumour"])
    assert done.exit_code == 0, done.output
    assert "heatmaps show tumour" in done.output
    assert load_model(tmp_path / "model").info.classes == ("benign", "stroma", "tumour")
