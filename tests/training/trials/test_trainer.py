from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tiling.core.errors import ConfigError, ModelError
from training.losses import SpectralDecouplingLoss, cross_entropy, l2_penalty
from training.optim import decayed_weights
from training.trials import trainer
from training.trials.config import Run, Setting, TrialConfig
from training.trials.trainer import Trained, copies_of, loss_of, quadratic_cross_entropy, settled, trained

CONFIG = TrialConfig(shifts=("brightness",), epochs=3, batch_size=8, learning_rate=3e-3)
Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def tiles() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """48 tiles of noise, those of the positive class a little brighter."""
    label = np.arange(48) % 2
    noise = np.random.default_rng(0).integers(60, 140, (48, 32, 32, 3))
    return (noise + 20 * label[:, None, None, None]).astype(np.uint8), label


def logits(
    tiles: tuple[NDArray[np.uint8], NDArray[np.int64]], setting: Setting, seed: int = 0, config: TrialConfig = CONFIG
) -> Floats:
    with settled(seed):
        return trained(Run(seed, setting), *tiles, config).logits(tiles[0])


def test_settings_of_a_seed_differ_in_nothing_else(tiles: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    """A penalty of nothing, and one that sets in after the last step, leave the very network of plain training."""
    plain = logits(tiles, Setting())
    nothing = Setting(sd_lambda=1e-30), Setting(weight_decay=1e-30), Setting(l2=1e-30), Setting(rate_share=1.0)
    never = Setting(sd_lambda=10.0, sd_start=0.99)  # 18 steps, and 0.99 of them rounds to 18: none is left
    for setting in (*nothing, never):
        np.testing.assert_allclose(logits(tiles, setting), plain, rtol=0, atol=1e-12, err_msg=str(setting))
    others = [
        Setting(sd_lambda=1.0), Setting(sd_lambda=1.0, sd_gamma=(0.44, 2.5)), Setting(sd_lambda=1.0, sd_start=0.5),
        Setting(sd_lambda=1.0, least_squares=True), Setting(weight_decay=100.0), Setting(l2=1.0),
        Setting(rate_share=0.1), Setting(augment="strong"), Setting(stain="reinhard"),
        Setting(shifted_sd=1.0), Setting(consistency=1.0),
    ]  # fmt: skip
    margins = [logits(tiles, setting) for setting in others] + [logits(tiles, Setting(), seed=1), plain]
    for number, one in enumerate(margins):
        assert all(np.abs(one - other).max() > 1e-4 for other in margins[:number]), number


def test_half_of_the_epochs_is_half_of_the_steps(tiles: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    """With their own schedule: not the first half of a longer one."""
    four, two = (CONFIG.model_copy(update={"epochs": count}) for count in (4, 2))
    halved = logits(tiles, Setting(epoch_share=0.5), config=four)
    np.testing.assert_array_equal(halved, logits(tiles, Setting(), config=two))


def test_least_squares_is_the_cross_entropy_near_0_and_its_minimum_the_closed_form() -> None:
    label = torch.tensor([0, 1, 1])
    small = 1e-3 * torch.tensor([[1.0, -2.0], [0.5, 0.7], [-3.0, 1.0]], dtype=torch.float64)
    assert float(quadratic_cross_entropy(small, label)) == pytest.approx(
        float(nn.functional.cross_entropy(small, label)), abs=1e-10
    )
    three = 1e-3 * torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    many = torch.tensor([0, 1, 2, 1, 0])
    assert float(quadratic_cross_entropy(three, many)) == pytest.approx(
        float(nn.functional.cross_entropy(three, many)), abs=1e-9
    )
    for strength in (0.5, 1.0, 20.0):
        free = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
        step = torch.optim.LBFGS([free], max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-14)
        loss = loss_of(Setting(sd_lambda=strength, least_squares=True), late=True)

        def closure(free: torch.Tensor = free, step: torch.optim.LBFGS = step, loss: object = loss) -> torch.Tensor:
            step.zero_grad()
            value = loss(free, label)  # type: ignore[operator]
            value.backward()
            return value  # type: ignore[no-any-return]

        step.step(closure)  # type: ignore[no-untyped-call]
        margin = (free[:, 1] - free[:, 0]).detach().numpy() * np.array([-1, 1, 1])
        np.testing.assert_allclose(margin, 1 / (strength + 0.5), rtol=1e-5)


def test_the_loss_of_a_setting() -> None:
    scores, label = torch.randn(6, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 1, 0, 1, 0])
    plain = cross_entropy(scores, label)
    assert loss_of(Setting(5.0), late=False)(scores, label) == plain
    assert loss_of(Setting(5.0), late=True)(scores, label) == SpectralDecouplingLoss(5.0)(scores, label)
    gamma = SpectralDecouplingLoss(5.0, gamma=(0.44, 2.5))(scores, label)
    assert loss_of(Setting(5.0, sd_gamma=(0.44, 2.5)), late=True)(scores, label) == gamma != plain


def test_a_strong_l2_makes_weights_small(tiles: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    norms = []
    for l2 in (0.0, 10.0):
        with settled(0):
            made = trained(Run(0, Setting(l2=l2)), *tiles, CONFIG.model_copy(update={"epochs": 8}))
        norms.append(l2_penalty(decayed_weights(made._network), 2.0).item())
    assert norms[1] < 0.8 * norms[0]


def test_consistency_makes_logits_alike_under_the_shifts(
    tiles: tuple[NDArray[np.uint8], NDArray[np.int64]],
) -> None:
    """Of tiles that brightness alone tells apart, in a training that brightens and darkens them."""
    config = CONFIG.model_copy(update={"epochs": 10})
    distances = []
    for setting in (Setting(), Setting(consistency=100.0)):
        with settled(0):
            network = trained(Run(0, setting), *tiles, config)
        margin, *others = (
            np.diff(network.logits(some))[:, 0] for some in (tiles[0], *copies_of(tiles[0], config).values())
        )
        distances.append(np.mean([np.abs(other - margin).mean() for other in others]))
    assert distances[1] < 0.3 * distances[0]


def test_a_network_that_diverges_is_refused(tiles: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    with settled(0):
        network = trainer.untrained(CONFIG, tiles[0])
    nn.init.constant_(next(network.parameters()), torch.nan)
    with pytest.raises(ModelError, match=r"seed=3.*learning_rate"):
        Trained(Run(3, Setting()), network, None).logits(tiles[0])


def test_weights_are_those_that_are_asked_for() -> None:
    config = TrialConfig(backbone="tf_efficientnet_lite0", input_px=64)
    tile = np.zeros((1, 64, 64, 3), np.uint8)
    with settled(0):
        random = trainer.untrained(config, tile)
    with settled(0):
        packaged = trainer.untrained(config.model_copy(update={"weights": "packaged"}), tile)
    for name, tensor in packaged.named_parameters():
        is_head = "classifier" in name
        assert torch.equal(tensor, dict(random.named_parameters())[name]) == is_head or tensor.ndim < 2, name
    with pytest.raises(ConfigError, match="packaged"):
        trainer.untrained(CONFIG.model_copy(update={"weights": "packaged"}), np.zeros((1, 32, 32, 3), np.uint8))


def test_copies_are_of_the_shifts_that_are_named() -> None:
    tiles = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3)).astype(np.uint8)
    assert len(copies_of(tiles, TrialConfig())) == 17
    assert set(copies_of(tiles, TrialConfig(shifts=("jpeg", "hue")))) == {
        "jpeg +0.5", "hue -0.5", "hue +0.5",
    }  # fmt: skip


def test_all_is_put_back_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with settled(0):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.rand(3), expected)
