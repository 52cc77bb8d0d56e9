"""Stain normalisation against torchstain's own, and what it must leave alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.training.test_augment_ops import tissue
from tiling.core.errors import ConfigError, ModelError
from training import TrainConfig, load_model, samples_from_images, train
from training.data.dataset import read_image
from training.models.info import read_info
from training.models.stain import normalise, stain_target
from training.models.stain_targets import MacenkoTarget, Method, ReinhardTarget, StainTarget

METHODS: list[Method] = ["macenko", "reinhard"]


@pytest.fixture(scope="module")
def tiles(data_dir: Callable[[str], Path]) -> torch.Tensor:
    """60 real tiles, 50 x 50 px."""
    paths = sorted((data_dir("tiles/idc_breast/index.csv").parent).rglob("*.png"))[::101]
    pictures = [cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) for path in paths]
    return torch.from_numpy(np.stack([p for p in pictures if p is not None and p.shape == (50, 50, 3)][:60]))


STAINS = np.array([[0.56, 0.72, 0.41], [0.22, 0.80, 0.56]])
"""Optical density of a unit of haematoxylin and of eosin, of length 1: near those that Macenko's paper found."""


def amounts(haematoxylin: float, eosin: float, seed: int = 0) -> NDArray[np.float64]:
    """Soft fields of two stains, each from none to those amounts and alone in a quarter, (48, 48, 2)."""
    random = np.random.default_rng(seed)
    fields = [cv2.GaussianBlur(random.normal(size=(48, 48)), (0, 0), 3) for _ in range(2)]
    scaled = [most * (f - f.min()) / np.ptp(f) for most, f in zip((haematoxylin, eosin), fields, strict=True)]
    fields_of = np.stack(scaled, axis=-1)
    fields_of[:12, :, 1] = fields_of[36:, :, 0] = 0
    return fields_of


def stained(haematoxylin: float, eosin: float, seed: int = 0) -> NDArray[np.uint8]:
    """A tile that holds those fields of stain, uint8 (48, 48, 3)."""
    return np.asarray(np.rint(240 * np.exp(-amounts(haematoxylin, eosin, seed) @ STAINS) - 1), np.uint8)


def by_torchstain(tile: torch.Tensor, target: StainTarget) -> torch.Tensor:
    """torchstain's own result for one tile, (T, T, 3)."""
    from torchstain.torch.normalizers.macenko import TorchMacenkoNormalizer
    from torchstain.torch.normalizers.reinhard import TorchReinhardNormalizer

    picture = tile.permute(2, 0, 1)
    if isinstance(target, MacenkoTarget):
        macenko = TorchMacenkoNormalizer()
        macenko.HERef = torch.tensor([target.haematoxylin, target.eosin]).T
        macenko.maxCRef = torch.tensor(target.amounts)
        done: torch.Tensor = macenko.normalize(picture, stains=False)[0]
        return done
    reinhard = TorchReinhardNormalizer()
    reinhard.target_means, reinhard.target_stds = torch.tensor(target.mean), torch.tensor(target.std)
    whole: torch.Tensor = reinhard.normalize(picture)
    return whole


@pytest.mark.parametrize("method", METHODS)
def test_normalised_tiles_are_torchstain_s(method: Method, tiles: torch.Tensor) -> None:
    target = stain_target(method, tiles)
    out = normalise(tiles, target)
    assert out.dtype == torch.uint8
    changed = (out != tiles).flatten(1).any(dim=1)
    assert changed.float().mean() >= 0.75
    for tile, got in zip(tiles[changed], out[changed], strict=True):
        assert (got.int() - by_torchstain(tile, target).int()).abs().max() <= 1, "it cuts off, this rounds"
    one_by_one = torch.cat([normalise(tile[None], target) for tile in tiles])
    assert (one_by_one.int() - out.int()).abs().max() <= 1


def test_macenko_finds_the_stains_that_were_painted_and_brings_their_amounts_to_the_target() -> None:
    painted = torch.from_numpy(np.stack([stained(1.5, 1.4), stained(2.1, 1.8)]))
    found = stain_target("macenko", painted[:1])
    assert isinstance(found, MacenkoTarget)
    for vector, own in ((found.haematoxylin, STAINS[0]), (found.eosin, STAINS[1])):
        assert np.dot(vector, own) > 0.9999
    quantiles = np.quantile(amounts(1.5, 1.4), 0.99, axis=(0, 1))
    assert found.amounts == pytest.approx(quantiles.tolist(), rel=0.02)
    out = normalise(painted, found).int()
    assert (painted[0].int() - painted[1]).abs().float().mean() > 15
    assert (out[0] - out[1]).abs().float().mean() < 3
    assert (out[0] - painted[0].int()).abs().max() <= 2, "what has the target's staining keeps it"


def test_reinhard_brings_means_and_spreads_to_the_target(tiles: torch.Tensor) -> None:
    target = ReinhardTarget(mean=(65.0, 18.0, -8.0), std=(9.0, 5.0, 4.0))  # within what RGB can show
    out = normalise(tiles, target)
    changed = (out != tiles).flatten(1).any(dim=1)
    lab = np.stack([cv2.cvtColor(tile.numpy().astype(np.float32) / 255, cv2.COLOR_RGB2LAB) for tile in out[changed]])
    np.testing.assert_allclose(np.median(lab.mean(axis=(1, 2)), axis=0), target.mean, atol=0.5)
    np.testing.assert_allclose(np.median(lab.std(axis=(1, 2)), axis=0), target.std, atol=0.5)


GLASS = np.full((48, 48, 3), 238, np.uint8)
NOISY_GLASS = (GLASS - np.random.default_rng(0).integers(0, 8, GLASS.shape)).astype(np.uint8)
SPECK = GLASS.copy()
SPECK[:9, :9] = tissue()[:9, :9]  # 3.5% of the tile
GREY = np.repeat(cv2.cvtColor(tissue(), cv2.COLOR_RGB2GRAY)[..., None], 3, axis=-1)
BLACK, WHITE, PINK = (np.full_like(GLASS, level) for level in (0, 255, (230, 120, 160)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "tile",
    [GLASS, NOISY_GLASS, SPECK, GREY, BLACK, WHITE, PINK],
    ids=["glass", "noisy", "speck", "grey", "black", "white", "pink"],
)
def test_what_cannot_be_measured_stays_beside_what_can(method: Method, tile: NDArray[np.uint8]) -> None:
    batch = torch.from_numpy(np.stack([tile, stained(1.0, 0.8)]))
    target = stain_target(method, torch.from_numpy(np.stack([stained(1.4, 0.5, seed=1)])))
    out = normalise(batch, target)
    assert torch.equal(out[0], batch[0])
    assert not torch.equal(out[1], batch[1])
    assert normalise(batch[:0], target).shape == (0, 48, 48, 3)


@pytest.mark.parametrize("method", METHODS)
def test_the_target_is_the_typical_tile_and_blank_ones_do_not_count(method: Method) -> None:
    shown = np.stack([stained(1.2, 1.0, seed) for seed in range(7)])
    target = stain_target(method, torch.from_numpy(shown))
    assert stain_target(method, torch.from_numpy(np.concatenate([shown, [GLASS, GREY, BLACK]]))) == target
    alone = [stain_target(method, torch.from_numpy(tile[None])) for tile in shown]
    if isinstance(target, MacenkoTarget):
        assert target.amounts[0] == np.median([one.amounts[0] for one in alone if isinstance(one, MacenkoTarget)])
    else:
        assert target.std[2] == np.median([one.std[2] for one in alone if isinstance(one, ReinhardTarget)])


@pytest.mark.parametrize("method", METHODS)
def test_tiles_without_stain_give_no_target(method: Method) -> None:
    with pytest.raises(ConfigError, match=r"^stain_norm: "):
        stain_target(method, torch.from_numpy(np.stack([GLASS, WHITE])))


@pytest.fixture
def stained_table(tmp_path: Path) -> Path:
    """24 pictures of 12 cases, those of one class with more haematoxylin."""
    lines = ["path,case_id,label"]
    for number in range(24):
        dark = number % 2 == 1
        picture = stained(1.2 if dark else 0.5, 0.7, seed=number)
        assert cv2.imwrite(str(tmp_path / f"{number}.png"), picture[..., ::-1])
        lines.append(f"{number}.png,case{number // 2},{'dark' if dark else 'bright'}")
    path = tmp_path / "index.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("method", METHODS)
def test_a_model_normalises_in_prediction_as_in_training(
    method: Method, stained_table: Path, tmp_path: Path, tiny: TrainConfig
) -> None:
    config = tiny.model_copy(update={"stain_norm": method, "epochs": 1})
    samples = samples_from_images(stained_table, config)
    result = train(samples, tmp_path / "run", config)
    model = load_model(result.model)
    target = model.info.stain_norm
    assert target is not None
    assert target.method == method
    batch = np.stack([stained(0.4, 1.0), stained(1.3, 0.4, seed=1), GLASS])
    probabilities = model.predict(batch)
    changed = normalise(torch.from_numpy(batch), target)
    bare = load_model(result.model)
    bare.network.stain = None
    np.testing.assert_array_equal(bare.predict(changed.numpy()), probabilities)
    assert not np.array_equal(bare.predict(batch), probabilities)
    rows = (tmp_path / "run" / "predictions.csv").read_text().splitlines()[1:]
    first = next(row.split(",") for row in rows if row.startswith("val"))
    picture = read_image(tmp_path / first[2], model.info.tile_px)
    np.testing.assert_allclose(model.predict(picture[None])[0, 1], float(first[-1]), atol=2e-6)


@pytest.mark.parametrize("method", METHODS)
def test_without_the_package_it_is_said_what_to_install(
    method: Method, stained_table: Path, tmp_path: Path, tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.model_copy(update={"stain_norm": method, "epochs": 1})
    samples = samples_from_images(stained_table, config)
    folder = train(samples, tmp_path / "run", config).model
    monkeypatch.setitem(sys.modules, "torchstain", None)
    with pytest.raises(ModelError, match=r"torchstain.*specslide\[stain\]"):
        load_model(folder)
    with pytest.raises(ConfigError, match=r"^stain_norm: .*torchstain.*specslide\[stain\]"):
        train(samples, tmp_path / "other", config)
    assert not (tmp_path / "other").exists()
    assert read_info(folder).stain_norm is not None
