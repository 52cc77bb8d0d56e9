"""Distances to the training tiles against scikit-learn and scipy; the file that keeps them; timm's families."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import ledoit_wolf

from tests.training.models.test_folder import info_of
from tiling.core.artefact import atomic_folder, locked_folder
from tiling.core.errors import ModelError
from training.models.card import model_card
from training.models.classifier import Features, TileClassifier, make_classifier
from training.models.folder import load_model, save_model
from training.models.info import NoveltySummary
from training.models.ood import APPEARANCE, Novelty, appearance, fit_gaussians, fit_novelty, shrunk_covariance

Floats = NDArray[np.float32]


def drawn(count: int, side: int, classes: int, seed: int = 0, scale: float = 1.0) -> tuple[Floats, NDArray[np.int64]]:
    """Features of classes that lie apart, correlated, of unequal scales and far from zero; one of them constant."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(side, side)) / side**0.5 * np.geomspace(0.1, 10, side)
    labels = np.arange(count) % classes
    centres = np.random.default_rng(98).normal(size=(classes, side)) * 3 + 50
    features = centres[labels] + random.normal(size=(count, side)) @ mixing * scale
    features[:, 0] = 7.0
    return features.astype(np.float32), labels


@pytest.mark.parametrize(
    ("count", "side", "classes"), [(300, 6, 2), (300, 6, 3), (40, 100, 2), (12, 700, 4), (60, 2100, 2)]
)
def test_distances_are_scipys_under_scikit_learns_covariance(count: int, side: int, classes: int) -> None:
    features, labels = drawn(count, side, classes)
    others, _ = drawn(30, side, classes, seed=1, scale=3.0)
    found = fit_gaussians(features, labels)
    assert found is not None
    exact = features.astype(np.float64)
    means = np.stack([exact[labels == c].mean(0) for c in range(classes)])
    inverse = np.linalg.inv(ledoit_wolf(exact - means[labels], assume_centered=True)[0])
    expected = [min(mahalanobis(x, m, inverse) for m in means) for x in others[:8].astype(np.float64)]
    distances = found.distances(torch.from_numpy(others))
    assert distances.dtype == torch.float32
    np.testing.assert_allclose(distances[:8], expected, rtol=2e-3)


@given(st.integers(2, 40), st.integers(2, 12), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_the_covariance_is_scikit_learns(count: int, side: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(count, side)) * random.uniform(0.01, 100, side)
    rows -= rows.mean(0)
    expected, share = ledoit_wolf(rows, assume_centered=True)
    if share > 1e-5:  # it is shrunk at least a little, and scikit-learn's perhaps not at all
        np.testing.assert_allclose(shrunk_covariance(rows), expected, rtol=1e-7, atol=1e-7 * np.abs(expected).max())
    assert np.linalg.eigvalsh(shrunk_covariance(rows)).min() > 0


@pytest.mark.parametrize("count", [1, 2, 99, 100, 101, 204, 1000])
def test_no_more_of_the_validation_tiles_than_stated_lie_beyond(count: int) -> None:
    rows, labels = drawn(200, 8 + APPEARANCE, 2)
    validation, _ = drawn(count, 8 + APPEARANCE, 2, seed=5, scale=1.5)
    found = fit_novelty(rows, labels, validation)
    assert found is not None
    ratios = found.ratios(torch.from_numpy(validation))
    assert int((ratios > 1).sum()) == (count - 1) // 100 <= 0.01 * count
    assert ratios.max() > 0.999
    parts = ((found.features, validation[:, :8]), (found.appearance, validation[:, 8:]))
    each = np.stack([part.distances(torch.from_numpy(own)) / part.threshold for part, own in parts])
    np.testing.assert_allclose(ratios, each.max(0), rtol=1e-6)
    if count == 1000:
        assert set(each.argmax(0)) == {0, 1}, "now the one, now the other decides"
        halves = fit_novelty(rows, labels, validation, 0.5)
        assert halves is not None
        assert int((halves.ratios(torch.from_numpy(validation)) > 1).sum()) == 499


def test_appearance_is_numpys() -> None:
    pixels = np.random.default_rng(0).random((4, 3, 7, 7)).astype(np.float32)
    pixels[1] = 0.5
    across, down = np.abs(np.diff(pixels, axis=3)), np.abs(np.diff(pixels, axis=2))
    rough = (across.mean((2, 3)) + down.mean((2, 3))) / 2
    expected = [pixels.mean((2, 3)), np.log(pixels.std((2, 3)) + 1 / 255), np.log(rough + 1 / 255)]
    found = appearance(torch.from_numpy(pixels))
    assert found.shape == (4, APPEARANCE)
    np.testing.assert_allclose(found, np.concatenate(expected, 1), rtol=1e-4)


def test_a_feature_that_never_varied_and_now_does_is_far() -> None:
    features, labels = drawn(200, 8, 2)
    found = fit_gaussians(features, labels)
    assert found is not None
    moved = features.copy()
    moved[:, 0] += 20
    usual = found.distances(torch.from_numpy(features)).max()
    assert (found.distances(torch.from_numpy(moved)) > 2 * usual).all()


def test_distances_are_those_of_32_bits_whatever_the_network_computes_in() -> None:
    rows, labels = drawn(200, 8 + APPEARANCE, 2)
    found = fit_novelty(rows, labels, rows)
    assert found is not None
    tensor = torch.from_numpy(rows)
    with torch.autocast("cpu", torch.bfloat16):
        inside = found.ratios(tensor)
    assert torch.equal(inside, found.ratios(tensor))
    assert found.ratios(tensor.bfloat16()).dtype == torch.float32
    assert found.ratios(tensor[:0]).shape == (0,)


VARIED = np.random.default_rng(0).normal(size=(6, 4 + APPEARANCE)).astype(np.float32)


@pytest.mark.parametrize(
    ("features", "labels", "validation"),
    [
        (np.ones_like(VARIED), [0, 1] * 3, VARIED),
        (VARIED * np.repeat([0, 1], [4, 9]).astype(np.float32), [0, 1] * 3, VARIED),
        (VARIED * np.repeat([1, 0], [4, 9]).astype(np.float32), [0, 1] * 3, VARIED),
        (VARIED[:2], [0, 1], VARIED),  # one tile a class says nothing of how they vary
        (VARIED, [0, 1] * 3, VARIED[:0]),
        (VARIED[:0], [], VARIED),
        (np.where(VARIED > 1, np.nan, VARIED), [0, 1] * 3, VARIED),
        (VARIED, [0, 1] * 3, np.where(VARIED > 1, np.inf, VARIED)),
    ],
    ids=["constant", "features", "appearance", "single", "no validation", "nothing", "nan", "inf"],
)
def test_where_nothing_can_be_told_nothing_is(features: Floats, labels: list[int], validation: Floats) -> None:
    assert fit_novelty(features, np.array(labels, np.int64), validation) is None


def test_two_opposite_tiles_and_a_class_without_any_are_enough() -> None:
    """Ledoit and Wolf's estimate of two opposite tiles is not shrunk at all, and singular."""
    found = fit_novelty(VARIED[:2], np.array([2, 2]), VARIED)
    assert found is not None
    assert found.features.means.shape == (1, 4)
    assert found.ratios(torch.from_numpy(VARIED)).isfinite().all()


# ---------------------------------------------------------------------------------------------- timm's families

FAMILIES = (
    "resnet10t", "tf_efficientnet_lite0", "mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224", "test_vit", "test_byobnet", "test_nfnet", "test_efficientnet_gn",
)  # fmt: skip


@pytest.mark.parametrize("backbone", FAMILIES)
def test_one_forward_gives_the_plain_logits_and_features(backbone: str) -> None:
    torch.manual_seed(0)
    network = make_classifier(backbone, 3, None, 64).eval()
    pixels = torch.rand(2, 3, network.input_px, network.input_px)
    with torch.inference_mode():
        logits, features = network.logits_and_features(pixels)
        torch.testing.assert_close(logits, network.logits(pixels), rtol=0, atol=0)
    assert features.shape == (2, network.backbone.head_hidden_size + APPEARANCE)  # type: ignore[operator]
    assert not torch.equal(features[0, :-APPEARANCE], features[1, :-APPEARANCE])
    torch.testing.assert_close(features[:, -APPEARANCE:], appearance(pixels))
    assert Features(network).offered()


def test_a_backbone_without_features_is_seen() -> None:
    network = make_classifier("test_resnet", 2, 32, 32).eval()

    class Plain(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.mean((2, 3))

    network.backbone = Plain()
    assert not Features(network).offered()


# ----------------------------------------------------------------------------------------------- the model folder


@pytest.fixture(scope="module")
def network() -> TileClassifier:
    torch.manual_seed(0)
    return make_classifier("test_resnet", 2, 32, 64).eval()


@pytest.fixture(scope="module")
def novelty(network: TileClassifier) -> Novelty:
    with torch.inference_mode():
        features = Features(network)(torch.from_numpy(some_tiles(40, 0))).numpy()
    found = fit_novelty(features[:20], np.arange(20) % 2, features[20:])
    assert found is not None
    return found


def some_tiles(count: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path, network: TileClassifier, novelty: Novelty) -> Path:
    summary = NoveltySummary(
        features_threshold=novelty.features.threshold, appearance_threshold=novelty.appearance.threshold,
        quantile=0.99, train_tiles=20, val_tiles=20,
    )  # fmt: skip
    info = info_of(network).model_copy(update={"novelty": summary})
    save_model(tmp_path / "model", network, info, model_card(info), novelty)
    return tmp_path / "model"


def test_a_loaded_model_tells_what_the_fitted_one_did(folder: Path, network: TileClassifier, novelty: Novelty) -> None:
    tiles = some_tiles(5, 1)
    probabilities, ratios = load_model(folder).predict_with_novelty(tiles)
    assert ratios is not None
    assert ratios.dtype == np.float32
    assert ratios.shape == (5,)
    np.testing.assert_array_equal(probabilities, load_model(folder).predict(tiles))
    with torch.inference_mode():
        expected = novelty.ratios(Features(network)(torch.from_numpy(tiles)))
    np.testing.assert_allclose(ratios, expected, rtol=1e-6)


def test_a_model_of_an_earlier_version_gives_no_flag(folder: Path, network: TileClassifier) -> None:
    info = info_of(network)
    save_model(folder, network, info, model_card(info))
    text = (folder / "model.json").read_text().replace(' "novelty": null,\n', "")
    assert "novelty" not in text
    rewrite(folder, "model.json", text.encode())
    model = load_model(folder)
    probabilities, ratios = model.predict_with_novelty(some_tiles(2, 1))
    assert ratios is None
    np.testing.assert_array_equal(probabilities, model.predict(some_tiles(2, 1)))


def test_a_damaged_or_missing_file_is_refused(folder: Path) -> None:
    path = folder / "novelty.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"novelty\.safetensors"):
        load_model(folder)
    path.unlink()
    with pytest.raises(ModelError, match=r"novelty\.safetensors"):
        load_model(folder)


@pytest.mark.parametrize("wrong", ["text", "name", "side", "classes", "flat", "type", "nan"])
@pytest.mark.parametrize("part", ["features_means", "appearance_means"])
def test_a_forged_file_is_refused(folder: Path, part: str, wrong: str) -> None:
    path = folder / "novelty.safetensors"
    parts = load_file(path)
    means = parts[part]
    forged = {
        "name": {"mean": means},
        "side": {part: means[:, 1:]},
        "classes": {part: means.repeat(2, 1)},
        "flat": {part: means.sum()},
        "type": {part: means.double()},
        "nan": {part: means * torch.nan},
    }
    if wrong == "text":
        data = b"no tensors at all"
    else:
        kept = {} if wrong == "name" else parts
        made = {name: tensor.contiguous() for name, tensor in (kept | forged[wrong]).items()}
        save_file(made, folder.parent / "forged")
        data = (folder.parent / "forged").read_bytes()
    rewrite(folder, path.name, data)
    with pytest.raises(ModelError, match=r"novelty\.safetensors") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def rewrite(folder: Path, name: str, data: bytes) -> None:
    """Change one file of a folder and seal it again."""
    before = folder.with_name("before")
    folder.rename(before)
    with locked_folder(folder), atomic_folder(folder) as partial:
        for path in before.iterdir():
            if path.name != "commit.json":
                shutil.copy(path, partial / path.name)
        (partial / name).write_bytes(data)
    shutil.rmtree(before)
