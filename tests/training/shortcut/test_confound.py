from __future__ import annotations

import colorsys

import numpy as np
import pytest
from numpy.typing import NDArray

from tiling.core.errors import ConfigError
from training.shortcut.confound import CONFOUNDERS, INK, amount_of, carrier_weights, carriers, changed, confounded

POSITIVE = np.array([True, False] * 3000)


@pytest.fixture
def tiles() -> NDArray[np.uint8]:
    """Six tiles of noise, not square."""
    return np.random.default_rng(0).integers(0, 256, (6, 20, 24, 3), dtype=np.uint8)


@pytest.mark.parametrize("strength", [0.0, 0.05, 0.5, 0.9, 1.0])
def test_a_tile_agrees_with_its_label_as_often_as_the_strength_says(strength: float) -> None:
    drawn = carriers(POSITIVE, strength, seed=3)
    for of_class in (POSITIVE, ~POSITIVE):
        agreeing = (drawn == POSITIVE)[of_class].sum()
        spread = np.sqrt(3000 * strength * (1 - strength))  # of a binomial
        assert abs(agreeing - 3000 * strength) <= 4 * spread
    assert (drawn == carriers(POSITIVE, strength, seed=3)).all()
    if 0 < strength < 1:
        assert (drawn != carriers(POSITIVE, strength, seed=4)).any()


def test_the_weights_are_what_the_draws_average_to() -> None:
    positive = np.array([True, False, True, False])
    unchanged, carrying = carrier_weights(positive, 0.9)
    assert carrying == pytest.approx([0.9, 0.1, 0.9, 0.1])
    assert unchanged + carrying == pytest.approx(np.ones(4))
    draws = np.mean([carriers(positive, 0.9, seed) for seed in range(4000)], axis=0)
    assert draws == pytest.approx(carrying, abs=4 * np.sqrt(0.09 / 4000))


@pytest.mark.parametrize("strength", [-0.01, 1.01, float("nan")])
def test_a_strength_is_a_probability(strength: float) -> None:
    with pytest.raises(ValueError, match="strength"):
        carriers(POSITIVE, strength, seed=0)
    with pytest.raises(ValueError, match="strength"):
        carrier_weights(POSITIVE, strength)


@pytest.mark.parametrize("name", CONFOUNDERS)
def test_only_the_carriers_change(name: str, tiles: NDArray[np.uint8]) -> None:
    before = tiles.copy()
    carrying = np.array([True, False, True, False, False, False])
    after = confounded(tiles, carrying, name)
    assert (tiles == before).all(), "the tiles that were given stay as they are"
    assert (after[~carrying] == before[~carrying]).all()
    assert (after[carrying] == changed(before, name)[carrying]).all()
    assert (after[carrying] != before[carrying]).any(axis=(1, 2, 3)).all()
    assert confounded(tiles, np.zeros(6, dtype=bool), name).tobytes() == before.tobytes()
    assert changed(tiles[:0], name).shape == (0, 20, 24, 3)


@pytest.mark.parametrize("sigma", [0.6, 1.0, 2.0])
def test_the_blur_is_a_gaussian(sigma: float) -> None:
    point = np.zeros((1, 31, 31, 3), dtype=np.uint8)
    point[0, 15, 15] = 255
    line = np.exp(-0.5 * (np.arange(-15, 16) / sigma) ** 2)
    expected = 255 * np.outer(line, line) / line.sum() ** 2
    assert np.abs(changed(point, "sharpness", sigma)[0].astype(float) - expected[..., None]).max() < 1.5


def test_brightness_is_a_factor() -> None:
    tile = np.array([0, 10, 100, 240], dtype=np.uint8).reshape(1, 2, 2, 1).repeat(3, axis=-1)
    assert changed(tile, "brightness", 0.1)[0, ..., 0].ravel().tolist() == [0, 11, 110, 255]
    assert changed(tile, "brightness", -0.5)[0, ..., 0].ravel().tolist() == [0, 5, 50, 120]


@pytest.mark.parametrize("degrees", [10.0, 90.0, -120.0, 180.0])
def test_the_hue_turns(degrees: float, tiles: NDArray[np.uint8]) -> None:
    colours = np.array([[255, 0, 0], [0, 200, 0], [180, 90, 160], [120, 120, 120]], dtype=np.uint8)
    turned = changed(colours.reshape(1, 2, 2, 3), "hue", degrees).reshape(4, 3)
    for old, new in zip(colours / 255, turned / 255, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*old)
        expected = colorsys.hsv_to_rgb((hue + degrees / 360) % 1, saturation, value)
        assert new == pytest.approx(expected, abs=1 / 255)


@pytest.mark.parametrize(("share", "side"), [(0.01, 1), (0.1, 2), (0.5, 10)])
def test_the_mark_is_a_square_of_ink_in_a_corner(share: float, side: int, tiles: NDArray[np.uint8]) -> None:
    after = changed(tiles, "marker", share)
    inked = np.zeros((20, 24), dtype=bool)
    inked[:side, :side] = True
    assert (after[:, inked] == INK).all()
    assert (after[:, ~inked] == tiles[:, ~inked]).all()


@pytest.mark.parametrize(
    ("confounder", "amount", "named"),
    [
        ("blur", None, "sharpness"), ("", None, "marker"), ("sharpness", 0.0, "0.2 to 20"),
        ("sharpness", -1.0, "sigma"),
        ("sharpness", float("nan"), "sigma"), ("brightness", -1.0, "-0.9 to 2"), ("brightness", 0.0, "not 0"),
        ("hue", 181.0, "degrees"), ("marker", 0.6, "share"), ("marker", float("inf"), "0.5"),
    ],
)  # fmt: skip
def test_what_is_no_confounder_is_refused(confounder: str, amount: float | None, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        amount_of(confounder, amount)
    with pytest.raises(ConfigError, match=named):
        changed(np.zeros((1, 8, 8, 3), dtype=np.uint8), confounder, amount)


def test_the_usual_amount_is_taken_where_none_is_given(tiles: NDArray[np.uint8]) -> None:
    assert amount_of("sharpness") == 0.6
    assert (changed(tiles, "sharpness") == changed(tiles, "sharpness", 0.6)).all()
