"""Means, spreads, orientations and entropy against scipy and brute force; who may stand together in an ensemble."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.ensemble import Ensemble, averaged, entropy, make_ensemble, members, orientations
from tests.inference.conftest import MakeModel
from tiling.core.errors import ModelError
from training import TileModel, load_model

ROWS = st.lists(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3), min_size=1, max_size=6)


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_entropy_is_scipys(rows: list[list[float]]) -> None:
    raw = np.array(rows) + 1e-6
    p = (raw / raw.sum(1, keepdims=True)).astype(np.float32)
    exact = p.astype(np.float64)
    expected = -(exact * np.log(exact)).sum(1)
    np.testing.assert_allclose(entropy(p), expected, atol=1e-6)
    np.testing.assert_allclose(entropy(p), scipy.stats.entropy(exact, axis=1), atol=1e-5)


@pytest.mark.parametrize(
    ("p", "nats"), [([1.0, 0.0], 0.0), ([0.5, 0.5], np.log(2)), ([0.25] * 4, np.log(4)), ([0, 0, 1], 0.0)]
)
def test_entropy_of_the_sure_and_the_clueless(p: list[float], nats: float) -> None:
    assert entropy(np.array([p], np.float32))[0] == pytest.approx(nats, abs=1e-7)


def test_entropy_of_no_tiles() -> None:
    assert entropy(np.empty((0, 2), np.float32)).shape == (0,)


def test_the_eight_orientations_are_different_and_the_first_is_the_tile() -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), np.uint8)
    views = list(orientations(tiles))
    np.testing.assert_array_equal(views[0], tiles)
    assert len({view.tobytes() for view in views}) == 8
    for view in views:  # a group: whatever is undone once more is one of them
        assert {again.tobytes() for again in orientations(view)} == {other.tobytes() for other in views}


@given(st.integers(2, 5), st.integers(1, 4), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_mean_and_spread_are_numpys(answers: int, tiles: int, seed: int) -> None:
    p = np.random.default_rng(seed).random((answers, tiles, 3)).astype(np.float32)
    mean, spread = averaged(list(p), 1)
    np.testing.assert_allclose(mean, p.mean(0), atol=1e-6)
    assert spread is not None
    np.testing.assert_allclose(spread, [np.std([p[a, t, 1] for a in range(answers)]) for t in range(tiles)], atol=1e-6)


def test_one_answer_is_itself() -> None:
    p = np.array([[0.1, 0.9]], np.float32)
    mean, spread = averaged([p], 1)
    np.testing.assert_array_equal(mean, p)
    assert spread is None


# ------------------------------------------------------------------------------------------------ who fits whom


def test_one_model_stays_itself_and_two_are_an_ensemble(model: TileModel, make_model: MakeModel) -> None:
    other = load_model(make_model("other", seed=1))
    both, turned = make_ensemble([model, other]), make_ensemble([other, model])
    assert make_ensemble([model]) is model
    assert members(model) == (model,)
    assert isinstance(both, Ensemble)
    assert members(both) == (model, other)
    assert both.sha256 == turned.sha256 != model.sha256


def test_the_first_models_scale_is_part_of_an_ensemble(model: TileModel, make_model: MakeModel) -> None:
    """Its tiles are the ensemble's: in another order, models of nearly one scale give other tiles."""
    near = load_model(make_model("near", seed=1, mpp=0.5095))
    one, other = make_ensemble([model, near]), make_ensemble([near, model])
    assert one.sha256 != other.sha256


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": ("benign", "ink"), "positive_class": "ink"}, "has the classes benign, ink, and the first"),
        ({"classes": ("tumour", "benign")}, "has the classes tumour, benign"),
        ({"positive_class": "benign"}, "has the positive class benign, and the first one tumour"),
        ({"tile_px": 64}, "64, and the first one 32"),
        ({"mpp": 1.0}, "trained at 1.0 micrometres a pixel, and the first one at 0.5"),
        ({"mpp": None}, "trained at None"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_averaged_are_refused(
    model: TileModel, make_model: MakeModel, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError) as caught:
        make_ensemble([model, load_model(make_model("other", seed=1, **changes))])
    assert said in str(caught.value)
    assert "model 2 of the ensemble (test_resnet" in str(caught.value)


def test_one_model_twice_is_refused(model: TileModel) -> None:
    with pytest.raises(ModelError, match="twice"):
        make_ensemble([model, model])
