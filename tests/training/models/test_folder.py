from __future__ import annotations

import json
import logging
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_images
from timm.data.imagenet_info import ImageNetInfo
from torch.nn import functional

from tests.forged import change_json
from tiling.core.errors import ConfigError, ModelError
from training.evaluation.bootstrap import Interval
from training.models.backbones import (
    find_architecture,
    find_hub_architecture,
    input_side,
    load_weights,
    packaged_weights,
)
from training.models.card import model_card
from training.models.classifier import TileClassifier, make_classifier
from training.models.folder import load_model, save_model, verify_model
from training.models.info import ModelInfo, SplitSummary

TINY = "test_resnet"


def info_of(network: TileClassifier, classes: tuple[str, ...] = ("benign", "tumour")) -> ModelInfo:
    counts = dict.fromkeys(classes, 2)
    return ModelInfo(
        backbone=TINY, classes=classes, positive_class=classes[-1], input_px=network.input_px, mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5), mpp=0.5, tile_px=64, temperature=0.7, threshold=0.3, best_epoch=1,
        training={"sd_lambda": 0.01, "sd_reduction": "sum"},
        data={"train": SplitSummary(cases=1, slides=1, tiles=4, tiles_per_class=counts)},
        metrics={"val": {"auroc": Interval(value=0.9, low=0.8, high=1.0), "ece": Interval(
            value=None, low=None, high=None, undefined=3)}},
        hashes={}, software={"torch": "2"},
    )  # fmt: skip


@pytest.fixture
def network() -> TileClassifier:
    torch.manual_seed(0)
    return make_classifier(TINY, 2, 32, 64).eval()


@pytest.fixture
def folder(tmp_path: Path, network: TileClassifier) -> Path:
    info = info_of(network)
    save_model(tmp_path / "model", network, info, model_card(info))
    return tmp_path / "model"


def random_tiles(count: int = 5, side: int = 64) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_saved_model_predicts_what_it_did(folder: Path, network: TileClassifier) -> None:
    model = load_model(folder)
    with torch.inference_mode():
        expected = torch.softmax(network(torch.from_numpy(random_tiles())) / 0.7, dim=1).numpy()
    np.testing.assert_array_equal(model.predict(random_tiles()), expected)
    assert model.predict(random_tiles()).dtype == np.float32
    assert not model.network.training
    assert model.info.positive == 1
    assert model.predict(random_tiles(0)).shape == (0, 2)


def test_equal_models_are_equal_bytes(folder: Path, network: TileClassifier, tmp_path: Path) -> None:
    info = info_of(network)
    save_model(tmp_path / "again", network, info, model_card(info))
    names = {p.name for p in folder.iterdir()}
    assert names == {"weights.safetensors", "model.json", "README.md", "commit.json"}
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert load_model(folder).sha256 == load_model(tmp_path / "again").sha256


@pytest.mark.parametrize("name", ["weights.safetensors", "model.json", "README.md", "commit.json"])
def test_any_changed_byte_is_refused(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    for place in (0, len(data) // 2, len(data) - 2):
        changed = bytearray(data)
        changed[place] ^= 1
        (folder / name).write_bytes(changed)
        with pytest.raises(ModelError) as caught:
            load_model(folder)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
        assert verify_model(folder) != []
    (folder / name).write_bytes(data)
    load_model(folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "model.json", "README.md", "commit.json"])
def test_any_missing_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match="damaged"):
        load_model(folder)


def test_what_is_no_model_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="model"):
        load_model(tmp_path / "absent")
    with pytest.raises(ModelError, match=r"commit\.json"):
        load_model(tmp_path)


def test_weights_of_another_network_are_refused(folder: Path, network: TileClassifier) -> None:
    other = info_of(network).model_copy(update={"backbone": "test_efficientnet"})
    save_model(folder, network, other, "card")
    with pytest.raises(ModelError, match="backbone"):
        load_model(folder)


def test_a_class_is_named_once(network: TileClassifier) -> None:
    with pytest.raises(ValidationError, match="classes"):
        info_of(network, ("tumour", "tumour"))


def test_unknown_keys_in_the_info_are_refused(folder: Path, network: TileClassifier) -> None:
    record = json.loads((folder / "model.json").read_text())
    with pytest.raises(ValueError, match="surprise"):
        ModelInfo.model_validate(record | {"surprise": 1})


def test_card_says_what_a_person_needs(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    for text in (
        "For research use only",
        "| val | 0.900 (0.800-1.000) |",
        "undefined",
        "0.5 µm/px",
        "## Limits",
        "tumour",
    ):
        assert text in card


def test_tiles_of_other_sizes_are_resized_with_antialiasing(network: TileClassifier) -> None:
    stripes = np.zeros((1, 128, 128, 3), dtype=np.uint8)
    stripes[:, :, ::2] = 255  # finer than 32 px can show
    pixels = network.pixels(torch.from_numpy(stripes))
    assert pixels.shape == (1, 3, 32, 32)
    assert (pixels - 0.5).abs().max() < 0.1
    same = random_tiles(2, 32)
    np.testing.assert_array_equal(network.pixels(torch.from_numpy(same)), same.transpose(0, 3, 1, 2) / np.float32(255))


@pytest.mark.parametrize("tiles", [torch.zeros(1, 32, 32, 3), torch.zeros(1, 3, 32, 32, dtype=torch.uint8)])
def test_other_tensors_are_refused(network: TileClassifier, tiles: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        network(tiles)


@pytest.mark.parametrize(
    ("backbone", "input_px", "tile_px", "side"),
    [
        ("tf_efficientnet_lite0", None, 50, 96),
        ("tf_efficientnet_lite0", None, 100, 128),
        ("tf_efficientnet_lite0", None, 256, 224),
        ("tf_efficientnet_lite0", 64, 256, 64),
        ("test_vit", None, 50, 160),
    ],
)
def test_input_side(backbone: str, input_px: int | None, tile_px: int, side: int) -> None:
    assert input_side(backbone, input_px, tile_px) == side


def test_unknown_backbone_is_refused_with_a_hint() -> None:
    with pytest.raises(ConfigError, match="'resnet1O'"):
        make_classifier("resnet1O", 2, None, 64)


def test_impossible_input_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^input_px: test_vit .*8 px"):
        make_classifier("test_vit", 2, 8, 64)


@pytest.mark.parametrize(
    ("name", "among"),
    [("china.jpg", {"palace", "bell cote, bell cot", "monastery"}), ("flower.jpg", {"daisy"})],
)
def test_packaged_weights_know_real_photographs(name: str, among: set[str]) -> None:
    samples = load_sample_images()
    place = next(i for i, path in enumerate(samples.filenames) if Path(path).name == name)
    photo = samples.images[place]
    side = min(photo.shape[:2])
    top, left = (photo.shape[0] - side) // 2, (photo.shape[1] - side) // 2
    classifier = make_classifier("tf_efficientnet_lite0", 1000, None, 256)
    assert load_weights(classifier, "tf_efficientnet_lite0", "auto") == "packaged"
    square = cv2.resize(photo[top : top + side, left : left + side], (256, 256), interpolation=cv2.INTER_AREA)
    with torch.inference_mode():
        logits = classifier.eval()(torch.from_numpy(square)[None])[0]
    best = {ImageNetInfo().index_to_description(i) for i in logits.topk(5).indices.tolist()}
    assert best >= among if len(among) == 1 else len(best & among) >= 2


def test_packaged_weights_fill_every_parameter_but_the_head() -> None:
    classifier = make_classifier("tf_efficientnet_lite0", 2, 64, 64)
    load_weights(classifier, "tf_efficientnet_lite0", "packaged")
    own, packaged = classifier.backbone.state_dict(), packaged_weights()
    assert own.keys() == packaged.keys()
    assert all(torch.equal(own[n], packaged[n]) for n in own if not n.startswith("classifier"))


def test_first_logits_of_a_new_head_are_small() -> None:
    classifier = make_classifier("tf_efficientnet_lite0", 2, 64, 64)
    load_weights(classifier, "tf_efficientnet_lite0", "packaged")
    with torch.inference_mode():
        assert classifier.eval()(torch.from_numpy(random_tiles(4))).abs().max() < 3


def test_no_weights_are_packaged_for_other_backbones(caplog: pytest.LogCaptureFixture) -> None:
    classifier = make_classifier(TINY, 2, 32, 64)
    with pytest.raises(ConfigError, match=r"^weights: .*test_resnet"):
        load_weights(classifier, TINY, "packaged")
    with caplog.at_level(logging.WARNING):
        assert load_weights(classifier, TINY, "auto") == "none"
    assert "random weights" in caplog.text


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_local_weights_fill_all_but_another_head(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(1)
    source = timm.create_model(TINY, num_classes=7).state_dict()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": source}, path)
    else:
        save_file(source, path)
    classifier = make_classifier(TINY, 2, 32, 64)
    assert load_weights(classifier, TINY, str(path)) == path.name
    own = classifier.backbone.state_dict()
    assert all(torch.equal(own[n], source[n]) for n in own if not n.startswith("fc"))
    assert own["fc.weight"].shape[0] == 2


def test_local_weights_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    classifier = make_classifier(TINY, 2, 32, 64)
    other, text, module, lists = (tmp_path / f"{n}.pth" for n in ("other", "text", "module", "lists"))
    torch.save(timm.create_model("test_efficientnet").state_dict(), other)
    text.write_text("no weights")
    torch.save(torch.nn.Linear(1, 1), module)  # a pickled object: never run
    torch.save({"a": [1, 2]}, lists)
    shutil.copy(text, tmp_path / "text.safetensors")
    for path, reason in (
        (other, "backbone"),
        (text, "read"),
        (module, "read"),
        (lists, "tensors"),
        (tmp_path / "text.safetensors", "read"),
        (tmp_path / "absent.pth", "No such file"),
    ):
        with pytest.raises(ModelError, match=reason) as caught:
            load_weights(classifier, TINY, str(path))
        assert path.name in str(caught.value)


SMALL = ("test_resnet", "test_efficientnet_gn", "test_convnext", "test_vit", "test_byobnet", "test_nfnet")


@pytest.mark.parametrize("backbone", SMALL)
def test_frozen_backbones_train_their_head_alone(backbone: str) -> None:
    torch.manual_seed(0)
    network = make_classifier(backbone, 3, None, 64)
    network.freeze()
    network.eval()
    network.train()  # a frozen backbone does not go back
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    (head,) = {name.rsplit(".", 1)[0] for name, p in network.backbone.named_parameters() if p.requires_grad}
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    pixels = torch.rand(4, 3, network.input_px, network.input_px)
    torch.autograd.backward(functional.cross_entropy(network.logits(pixels), torch.tensor([0, 1, 2, 1])))
    optimiser.step()
    changed = {name for name, value in network.backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{head}.weight", f"{head}.bias"}


def test_what_is_no_classifier_is_refused() -> None:
    with pytest.raises(ConfigError, match="deepseek_vit_412m_enc"):
        make_classifier("deepseek_vit_412m_enc", 2, None, 64)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A hub on this disk: `hf-hub:lab/tiny` is a test_vit with layer scale, as pathology models have it."""
    network: Any = timm.create_model("test_vit", num_classes=0, init_values=0.5)
    config = network.pretrained_cfg | {"num_classes": 0, "mean": (0.7, 0.6, 0.5), "std": (0.2, 0.2, 0.2)}
    record = {"architecture": "test_vit", "pretrained_cfg": config, "model_args": {"init_values": 0.5}}
    folder = tmp_path / "hub" / "lab" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(record))
    save_file(network.state_dict(), folder / "model.safetensors")

    def fetch(repo_id: str, filename: str, **_: object) -> str:
        path = tmp_path / "hub" / repo_id / filename
        if not path.parent.exists():
            raise LocalEntryNotFoundError("no network")
        if not path.exists():
            raise EntryNotFoundError("no such file")
        return str(path)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", fetch)
    find_hub_architecture.cache_clear()
    yield folder
    find_hub_architecture.cache_clear()


def test_backbones_of_a_hub_need_it_for_training_alone(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = make_classifier("hf-hub:lab/tiny", 2, None, 64)
    assert load_weights(classifier, "hf-hub:lab/tiny", "auto") == "hf-hub:lab/tiny"
    own, source = classifier.backbone.state_dict(), load_file(hub / "model.safetensors")
    assert source.keys() == {name for name in own if not name.startswith("head")}
    assert all(torch.equal(own[name], source[name]) for name in source)
    assert own["blocks.0.ls1.gamma"].unique().tolist() == [0.5]
    assert classifier.mean.flatten().tolist() == pytest.approx([0.7, 0.6, 0.5])

    own_settings = find_architecture("hf-hub:lab/tiny")
    changes: dict[str, object] = {"backbone": own_settings.name, "backbone_args": dict(own_settings.args)}
    changes |= {"mean": (0.7, 0.6, 0.5), "std": (0.2, 0.2, 0.2)}
    info = info_of(classifier).model_copy(update=changes)
    save_model(tmp_path / "model", classifier, info, "card")
    monkeypatch.setattr("timm.models._hub.hf_hub_download", None)  # whoever asks for it now fails
    find_hub_architecture.cache_clear()
    tiles = random_tiles(2)
    with torch.inference_mode():
        expected = torch.softmax(classifier.eval()(torch.from_numpy(tiles)) / info.temperature, dim=1)
    np.testing.assert_array_equal(load_model(tmp_path / "model").predict(tiles), expected.numpy())


def test_weights_of_a_hub_for_one_of_timms_backbones(hub: Path) -> None:
    save_file(timm.create_model("test_vit", num_classes=5).state_dict(), hub / "model.safetensors")
    classifier = make_classifier("test_vit", 2, None, 64)
    assert load_weights(classifier, "test_vit", "hf-hub:lab/tiny") == "hf-hub:lab/tiny"
    own, source = classifier.backbone.state_dict(), load_file(hub / "model.safetensors")
    assert all(torch.equal(own[name], source[name]) for name in source if not name.startswith("head"))


def test_weights_of_a_hub_that_do_not_fit_are_refused(hub: Path) -> None:
    with pytest.raises(ModelError, match=r"^hf-hub:lab/tiny: .*backbone"):
        load_weights(make_classifier("test_vit2", 2, None, 64), "test_vit2", "hf-hub:lab/tiny")


def test_a_hub_out_of_reach_is_one_sentence(hub: Path) -> None:
    classifier = make_classifier(TINY, 2, 32, 64)
    with pytest.raises(ConfigError, match=r"^weights: hf-hub:lab/absent .*file") as caught:
        load_weights(classifier, TINY, "hf-hub:lab/absent")
    assert "\n" not in str(caught.value)
    (hub / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"^weights: hf-hub:lab/tiny .*EntryNotFoundError"):
        load_weights(classifier, TINY, "hf-hub:lab/tiny")
    for name in ("lab/absent", "no slash", "a/b@c@d"):
        with pytest.raises(ConfigError, match=r"^backbone: hf-hub:"):
            make_classifier(f"hf-hub:{name}", 2, None, 64)
    (hub / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"^backbone: hf-hub:lab/tiny .*KeyError"):
        make_classifier("hf-hub:lab/tiny", 2, None, 64)


INFO_CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"backbone": "hf-hub:lab/tiny"}, "backbone"),
    ({"backbone": "local-dir:/tmp"}, "backbone"),
    ({"backbone": "../test_resnet"}, "backbone"),
    ({"backbone": "test_resnet.no_such_tag"}, "test_resnet.no_such_tag"),
    ({"backbone_args": {"checkpoint_path": "extra.pth"}}, "checkpoint_path"),
    ({"backbone_args": {"pretrained": True}}, "pretrained"),
    ({"backbone_args": {"pretrained_cfg": {"file": "extra.pth"}}}, "pretrained_cfg"),
    ({"backbone_args": {"cache_dir": "/tmp"}}, "cache_dir"),
    ({"backbone_args": {"depth": 1e9}}, "depth"),
    ({"backbone_args": {"embed_dim": [1] * 17}}, "embed_dim"),
    ({"backbone_args": {"act_layer": "__import__('os')"}}, "act_layer"),
    ({"backbone_args": {"mlp_ratio": float("nan")}}, "NaN|nan"),
    ({"temperature": float("inf")}, "model.json"),
    ({"temperature": -1.0}, "temperature"),
    ({"temperature": 1e300}, "temperature"),
    ({"threshold": 2.0}, "threshold"),
    ({"threshold": -0.1}, "threshold"),
    ({"input_px": 10**9}, "input_px"),
    ({"tile_px": 10**9}, "tile_px"),
    ({"mpp": 1e300}, "mpp"),
    ({"mean": [1e30, 0, 0]}, "mean"),
    ({"std": [0, 1, 1]}, "std"),
    ({"positive_class": "neither"}, "positive_class"),
    ({"software": {"torch": "\ud800"}}, "model.json"),
    ({"classes": ["one", "two", "three"], "positive_class": "three"}, "backbone"),
]


@pytest.mark.parametrize(("changes", "named"), INFO_CHANGES)
def test_a_signed_folder_that_says_something_else_is_refused(folder: Path, changes: dict[str, Any], named: str) -> None:
    change_json(folder / "model.json", changes)
    with pytest.raises(ModelError, match=named) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_network_larger_than_its_weights_takes_no_memory(folder: Path) -> None:
    """A network that asks for 400 GB is refused by the shapes of the weights that are there."""
    args = {"depth": 256, "embed_dim": 16_384, "num_heads": 256}
    change_json(folder / "model.json", {"backbone": "vit_giant_patch14_224", "backbone_args": args, "input_px": 224})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match="backbone"):
        load_model(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


@pytest.mark.parametrize("args", [{"checkpoint_path": "x.pth"}, {"pretrained_cfg": {}}, {"depth": 10**6}])
def test_a_hub_may_say_no_more_of_a_backbone_than_a_model(hub: Path, args: dict[str, Any]) -> None:
    record = json.loads((hub / "config.json").read_bytes())
    (hub / "config.json").write_text(json.dumps(record | {"model_args": args}))
    with pytest.raises(ConfigError, match=rf"^backbone: hf-hub:lab/tiny: .*{next(iter(args))}"):
        find_architecture("hf-hub:lab/tiny")


def test_a_hub_that_names_itself_is_refused(hub: Path) -> None:
    record = json.loads((hub / "config.json").read_bytes())
    (hub / "config.json").write_text(json.dumps(record | {"architecture": "hf-hub:lab/tiny"}))
    with pytest.raises(ConfigError, match=r"^backbone: hf-hub:lab/tiny"):
        find_architecture("hf-hub:lab/tiny")


def test_a_hub_s_own_head_is_left_to_it(hub: Path) -> None:
    record = json.loads((hub / "config.json").read_bytes())
    args = {"init_values": 0.5, "num_classes": 0, "in_chans": 3}
    (hub / "config.json").write_text(json.dumps(record | {"model_args": args}))
    assert find_architecture("hf-hub:lab/tiny").args == {"init_values": 0.5}
    assert make_classifier("hf-hub:lab/tiny", 2, None, 64).backbone.get_classifier().out_features == 2  # type: ignore[operator]


def test_whom_the_umask_lets_read_a_model_may(tmp_path: Path, network: TileClassifier) -> None:
    info = info_of(network)
    before = os.umask(0o002)
    try:
        save_model(tmp_path / "model", network, info, model_card(info))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {0o664}


def test_a_model_that_may_not_be_read_is_not_called_damaged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: real(path, mode) and Path(path).name != "weights.safetensors")
    with pytest.raises(ModelError, match=r"weights\.safetensors: may not be read"):
        load_model(folder)
