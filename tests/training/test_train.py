from __future__ import annotations

import csv
import hashlib
import importlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from tiling import TileStore
from tiling.core.errors import ConfigError, ModelError, OutputError
from training import Samples, TileModel, TrainConfig, load_model, samples_from_images, samples_from_stores, train
from training.data.dataset import TileDataset, read_image
from training.data.samplers import Shuffled
from training.data.samples import Split
from training.models.card import model_card
from training.models.classifier import Features, make_classifier
from training.optim import parameter_groups, rate_at

RESULTS = ["learning_curve.png", "metrics.json", "pictures", "predictions.csv", "provenance.json", "split.csv"]


def files_of(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def test_training_learns_and_leaves_a_complete_result(image_table: Path, tiny: TrainConfig, tmp_path: Path) -> None:
    config = tiny.model_copy(update={"epochs": 6})
    samples = samples_from_images(image_table, config, mpp=1.0)
    out = tmp_path / "run"
    result = train(samples, out, config)
    assert result.metrics["test"]["auroc"].value == 1.0
    assert sorted(p.name for p in out.iterdir()) == sorted([*RESULTS, "commit.json", "log", "model"])

    model = load_model(result.model)
    assert (model.info.classes, model.info.positive_class) == (("bright", "dark"), "dark")
    assert (model.info.mpp, model.info.tile_px, model.info.input_px) == (1.0, 32, 32)
    assert model.info.best_epoch == result.best_epoch
    assert json.loads((out / "metrics.json").read_text())["metrics"]["test"]["auroc"]["value"] == 1.0
    assert str(tmp_path) not in (result.model / "model.json").read_text(), "no path of a machine"

    with (out / "predictions.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == len(samples.where("val")) + len(samples.where("test"))
    for row in rows[:3] + rows[-3:]:  # a loaded model says what the table says
        tile = read_image(image_table.parent / row["slide_id"], 32)
        assert model.predict(tile[None])[0, 1] == pytest.approx(float(row["prob_dark"]), abs=1e-5)

    check_provenance(out, dict(zip(samples.slide_id.tolist(), samples.hashes, strict=True)))
    with (out / "split.csv").open() as f:
        splits = {row["case_id"]: row["split"] for row in csv.DictReader(f)}
    assert splits == dict(zip(samples.case_id.tolist(), samples.split.tolist(), strict=True))
    picture = cv2.imread(str(out / "learning_curve.png"))
    assert picture is not None
    assert picture.std() > 5
    with (out / "log" / "metrics.csv").open() as f:
        logged = set(next(csv.reader(f)))
    assert logged >= {"train_ce", "train_sd", "train_logit_norm", "val_log_loss", "val_auroc"}


@pytest.mark.usefixtures("undrawn")
def test_half_weights_are_what_was_measured(image_table: Path, tiny: TrainConfig, tmp_path: Path) -> None:
    whole, half = (
        tiny,
        tiny.model_copy(update={"half_weights": True, "limits": "Bright | dark alone.", "licence": "CC0"}),
    )
    sizes, losses = {}, {}
    for name, config in (("whole", whole), ("half", half)):
        samples = samples_from_images(image_table, config, mpp=1.0)
        result = train(samples, tmp_path / name, config)
        sizes[name] = (result.model / "weights.safetensors").stat().st_size
        losses[name] = result.metrics["val"]["log_loss"].value
        model = load_model(result.model)
        assert {tensor.dtype for tensor in model.network.parameters()} == {torch.float32}
        with (tmp_path / name / "predictions.csv").open() as f:
            for row in list(csv.DictReader(f))[:4]:
                tile = read_image(image_table.parent / row["slide_id"], 32)
                assert model.predict(tile[None])[0, 1] == pytest.approx(float(row["prob_dark"]), abs=1e-6)
    assert sizes["half"] < 0.6 * sizes["whole"]
    assert losses["half"] == pytest.approx(losses["whole"], rel=0.01)
    card = (tmp_path / "half" / "model" / "README.md").read_text()
    assert "Bright | dark alone." in card
    assert "Licence: CC0" in card
    assert "limits" not in (tmp_path / "whole" / "model" / "README.md").read_text()
    assert train(samples_from_images(image_table, whole, mpp=1.0), tmp_path / "whole", whole).reused


@pytest.mark.usefixtures("undrawn")
def test_same_seed_gives_the_same_bytes(image_table: Path, tiny: TrainConfig, tmp_path: Path) -> None:
    train(samples_from_images(image_table, tiny), tmp_path / "a", tiny)
    for workers in (0, 2):
        torch.rand(7)  # what happened before must not matter
        again = tiny.model_copy(update={"workers": workers})
        train(samples_from_images(image_table, again), tmp_path / f"b{workers}", again)
        assert files_of(tmp_path / "a") == files_of(tmp_path / f"b{workers}"), workers
    other = tiny.model_copy(update={"seed": 1})
    train(samples_from_images(image_table, other), tmp_path / "c", other)
    a, c = files_of(tmp_path / "a"), files_of(tmp_path / "c")
    assert a["model/weights.safetensors"] != c["model/weights.safetensors"]


@pytest.mark.parametrize("workers", [0, 1])
def test_each_epoch_has_an_order_of_its_own(
    image_table: Path, tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    orders: list[list[int]] = []
    iterate = Shuffled.__iter__

    def recorded(sampler: Shuffled) -> Iterator[int]:
        orders.append(list(iterate(sampler)))
        return iter(orders[-1])

    monkeypatch.setattr(Shuffled, "__iter__", recorded)
    config = tiny.model_copy(update={"workers": workers})
    train(samples_from_images(image_table, config), tmp_path / "run", config)
    count = len(orders[0])
    assert orders[-1] == list(np.random.default_rng([0, 1]).permutation(count))
    assert list(np.random.default_rng([0, 0]).permutation(count)) in orders


@pytest.mark.usefixtures("undrawn")
def test_novelty_is_fitted_on_so_many_tiles_drawn_by_the_seed(
    image_table: Path, tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("training.train"), "MAX_TILES", 7)
    samples, made = samples_from_images(image_table, tiny), []
    for name in ("a", "b"):
        info = load_model(train(samples, tmp_path / name, tiny).model).info
        assert info.novelty is not None
        assert (info.novelty.train_tiles, info.novelty.val_tiles) == (7, 7)
        made.append((tmp_path / name / "model" / "novelty.safetensors").read_bytes())
    assert made[0] == made[1]
    other = train(samples, tmp_path / "c", tiny.model_copy(update={"seed": 1})).model / "novelty.safetensors"
    assert other.read_bytes() != made[0]


def test_a_backbone_without_features_trains_and_says_so(
    image_table: Path, tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(Features, "offered", lambda self: False)
    result = train(samples_from_images(image_table, tiny), tmp_path / "run", tiny)
    assert caplog.text.count("test_resnet does not give its features: out-of-distribution") == 1
    model = load_model(result.model)
    assert model.novelty is None
    assert "It cannot tell tiles that are unlike" in (result.model / "README.md").read_text()
    assert not (result.model / "novelty.safetensors").exists()


def test_training_leaves_torch_as_it_was(image_table: Path, tiny: TrainConfig, tmp_path: Path) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    level = logging.getLogger("lightning.pytorch").level
    train(samples_from_images(image_table, tiny), tmp_path / "run", tiny.model_copy(update={"threads": 1}))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    assert logging.getLogger("lightning.pytorch").level == level


@pytest.mark.usefixtures("undrawn")
def test_training_on_stores(
    make_store: Callable[..., Path], write_table: Callable[..., Path], tiny: TrainConfig, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    rows = [("slide_path", "slide_id", "case_id")]
    for s in range(8):
        dark = np.arange(8) < 4
        tiles = (random.integers(0, 120, (8, 24, 24, 3)) + 120 * ~dark[:, None, None, None]).astype(np.uint8)
        make_store(f"s{s}", tiles, {"tumour": dark.astype(float)}, icc="srgb")
        rows.append((f"s{s}.svs", f"s{s}", f"case{s // 2 if s < 4 else s}"))
    manifest = write_table(rows)
    config = tiny.model_copy(update={"epochs": 6})
    result = train(samples_from_stores(tmp_path / "stores", manifest, config), tmp_path / "run", config)
    assert result.metrics["test"]["auroc"].value == 1.0
    info = load_model(result.model).info
    assert (info.mpp, info.tile_px, info.input_px, info.icc) == (0.5, 24, 32, "srgb")
    with (tmp_path / "run" / "predictions.csv").open() as f:
        row = next(csv.DictReader(f))
    assert (row["minx"], row["miny"], row["width"], row["height"]) == ("0", "0", "24", "24")
    stores = (tmp_path / "stores").glob("*.zarr")
    check_provenance(tmp_path / "run", {path.stem: TileStore(path).pixels_sha256 for path in stores})


def check_provenance(out: Path, hashes: dict[str, str]) -> None:
    """It names every source by its hash, each on the side that split.csv says, and the model holds its own hash."""
    record = json.loads((out / "provenance.json").read_bytes())
    info = load_model(out / "model").info
    assert info.hashes["provenance.json"] == hashlib.sha256((out / "provenance.json").read_bytes()).hexdigest()
    assert record["inputs"]["data"] == info.hashes["data"]
    assert record["machine"] == {"device": "cpu", "precision": "32-true", "processes": 1}
    sources = record["inputs"]["sources"]
    assert {source["slide_id"]: source["sha256"] for source in sources} == hashes
    with (out / "split.csv").open() as f:
        splits = {row["case_id"]: row["split"] for row in csv.DictReader(f)}
    for source in sources:
        assert source["split"] == splits[source["case_id"]]
        if record["inputs"]["kind"] == "stores":
            assert source["slide_sha256"] == TileStore(out.parent / f"stores/{source['slide_id']}.zarr").slide.sha256
    assert sum(source["tiles"] for source in sources) == sum(split.tiles for split in info.data.values())
    assert str(out.parent) not in json.dumps(record), "no path of a machine"


def test_three_classes_and_no_test(image_table: Path, tiny: TrainConfig, tmp_path: Path) -> None:
    table = image_table.read_text().splitlines()
    table[1:] = [line.replace("bright", "glass") if i % 4 == 0 else line for i, line in enumerate(table[1:])]
    image_table.write_text("\n".join(table) + "\n")
    config = tiny.model_copy(update={"test_fraction": 0.0})
    result = train(samples_from_images(image_table, config), tmp_path / "run", config)
    assert set(result.metrics) == {"val"}
    assert load_model(result.model).info.classes == ("bright", "dark", "glass")


def test_large_images_of_no_known_scale_are_shrunk_when_read(
    image_table: Path, tiny: TrainConfig, tmp_path: Path
) -> None:
    small = tiny.model_copy(update={"input_px": 16, "epochs": 1})
    result = train(samples_from_images(image_table, small), tmp_path / "run", small)
    assert load_model(result.model).info.tile_px == 16
    result = train(samples_from_images(image_table, small, mpp=1.0), tmp_path / "run", small, overwrite=True)
    assert load_model(result.model).info.tile_px == 32


@pytest.mark.parametrize("name", ["model/mine.pt", "checkpoints/last.pt"])
def test_a_folder_of_something_else_is_never_replaced(
    image_table: Path, tiny: TrainConfig, tmp_path: Path, name: str
) -> None:
    """Such as another program's, where --out names its folder."""
    mine = tmp_path / "run" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(OutputError, match=rf"{mine.parent.name}: .*--out"):
        train(samples_from_images(image_table, tiny), tmp_path / "run", tiny)
    assert mine.read_text() == "mine"


def test_somebodys_files_beside_a_runs_stay(image_table: Path, tiny: TrainConfig, tmp_path: Path) -> None:
    out, mine = tmp_path / "run", ["pictures/cat.png", "log/notes.txt"]
    for name in mine:
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("mine")
    stale = [out / "pictures" / "old_gallery.png", out / "log" / "tensorboard" / "events"]
    stale[1].parent.mkdir()
    for path in stale:
        path.write_text("of an earlier run")
    train(samples_from_images(image_table, tiny), out, tiny)
    assert [(out / name).read_text() for name in mine] == ["mine", "mine"]
    assert [path for path in stale if path.exists()] == []


@pytest.mark.parametrize(
    ("changes", "error", "what"),
    [
        ({"backbone": "resnet1O"}, ConfigError, "resnet1O"),
        ({"weights": "packaged"}, ConfigError, "^weights: "),
        ({"weights": "lost.safetensors"}, ModelError, r"lost\.safetensors"),
        ({"precision": "bf16", "device": "cpu"}, ConfigError, "^precision: "),
    ],
)
def test_what_cannot_be_trained_is_refused(
    changes: dict[str, object], error: type[Exception], what: str, image_table: Path, tiny: TrainConfig, tmp_path: Path
) -> None:
    config = tiny.model_copy(update=changes)
    with pytest.raises(error, match=what) as caught:
        train(samples_from_images(image_table, config), tmp_path / "run", config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists(), "nothing is written"


def test_training_that_diverged_is_stopped(image_table: Path, tiny: TrainConfig, tmp_path: Path) -> None:
    state = make_classifier("test_resnet", 2, 32, 32).backbone.state_dict()
    state["fc.bias"] = torch.tensor([float("nan"), 0.0])
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "broken.safetensors")
    config = tiny.model_copy(update={"weights": str(tmp_path / "broken.safetensors")})
    with pytest.raises(ModelError, match=r"^epoch 1: .*logits"):
        train(samples_from_images(image_table, config), tmp_path / "run", config)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_absent_gpu_is_refused(image_table: Path, tiny: TrainConfig, tmp_path: Path) -> None:
    config = tiny.model_copy(update={"device": "cuda"})
    with pytest.raises(ConfigError, match="--device"):
        train(samples_from_images(image_table, config), tmp_path / "run", config)


def test_an_output_that_cannot_be_written_is_refused(image_table: Path, tiny: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        train(samples_from_images(image_table, tiny), tmp_path / "file" / "run", tiny)


def test_biases_and_norms_are_never_decayed() -> None:
    network = make_classifier("test_resnet", 2, 32, 32)
    decayed, kept = parameter_groups(network, 0.05)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.05, 0.0)
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    exempt = {id(p) for p in kept["params"]}
    assert {id(p) for m in norms for p in m.parameters()} <= exempt
    assert {id(p) for n, p in network.named_parameters() if n.endswith("bias")} <= exempt
    assert len(decayed["params"]) + len(exempt) == len(list(network.parameters()))


def test_learning_rate_rises_then_falls_to_nothing() -> None:
    rates = [rate_at(step, 100, 10) for step in range(101)]
    assert rates[:11] == pytest.approx([*(i / 10 for i in range(1, 11)), 1.0])
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert rate_at(0, 1, 0) == 1.0


def test_real_tiles_are_learned(data_dir: Callable[[str], Path], tiny: TrainConfig, tmp_path: Path) -> None:
    """A smoke test on a tenth of the real breast tiles: better than chance beyond doubt, far from the best."""
    index = data_dir("tiles/idc_breast/index.csv")
    config = tiny.model_copy(update={"epochs": 4, "batch_size": 32, "bootstrap_resamples": 200})
    whole = samples_from_images(index, config)
    keep = np.arange(0, len(whole), 8)
    columns = (
        "label",
        "source",
        "row",
        "x0",
        "y0",
        "tile_px0",
        "case_id",
        "slide_id",
        "split",
        "site",
        "scanner",
        "clear",
    )
    samples = replace(whole, **{name: getattr(whole, name)[keep] for name in columns})
    result = train(samples, tmp_path / "run", config)
    area = result.metrics["test"]["auroc"]
    assert area.value is not None
    assert area.low is not None
    assert area.value > 0.75
    assert area.low > 0.6
    unlike_tiles_are_flagged(load_model(result.model), samples)


def unlike_tiles_are_flagged(model: TileModel, samples: Samples) -> None:
    """Test tiles, of cases the model has not seen, are not; noise, bare glass and tiles of swapped colours are."""
    shares = {}
    tiles = {split: split_tiles(samples, split, model.info.tile_px) for split in ("train", "val", "test")}
    test = tiles["test"]
    noise = np.random.default_rng(0).integers(0, 256, test.shape, np.uint8)
    unlike = {"noise": noise, "glass": np.full_like(test, 255), "inverted": 255 - test, "swapped": np.roll(test, 1, -1)}
    unlike["green"] = np.full_like(test, 0) + np.array([20, 160, 60], np.uint8)
    for name, pixels in (tiles | unlike).items():
        probabilities, ratios = model.predict_with_novelty(pixels)
        assert ratios is not None
        np.testing.assert_allclose(probabilities, model.predict(pixels), atol=1e-6)
        shares[name] = float((ratios > 1).mean())
    assert model.info.novelty is not None
    assert model.info.novelty.quantile == 0.99
    assert (model.info.novelty.train_tiles, model.info.novelty.val_tiles) == (len(tiles["train"]), len(tiles["val"]))
    assert shares["val"] <= 0.01, "the stated quantile"
    assert shares["train"] <= 0.01
    assert shares["test"] <= 0.05
    assert shares["noise"] == shares["glass"] == shares["green"] == 1.0
    assert shares["inverted"] > 0.99
    assert shares["swapped"] > 0.9
    said = f"(Mahalanobis distances {model.info.novelty.features_threshold:.4g} and"
    assert said in model_card(model.info)


def split_tiles(samples: Samples, split: str, side: int) -> NDArray[np.uint8]:
    chosen = samples.where(split)
    return TileDataset(Split(split, samples, chosen, side)).__getitems__(list(range(len(chosen)))).tiles.numpy()
