"""What a tuning tries: every combination once, the weakest first, and random draws that more draws keep."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from training import TrainConfig
from training.selection.candidates import PENALTIES, Candidate, TuneConfig, candidates, plain_one
from training.selection.rules import RULES

BASE = TrainConfig(learning_rate=0.002, augment="stain", sd_lambda=0.5, weight_decay=0.3, seed=7)


def names(base: TrainConfig = BASE, **settings: Any) -> list[str]:
    """Of candidates that are augmented as the training says, unless told."""
    return [one.name for one in candidates(TuneConfig(**({"augments": ()} | settings)), base)]


def test_the_settings_offer_every_rule_and_penalty() -> None:
    fields = TuneConfig.model_fields
    assert get_args(fields["rule"].annotation) == tuple(RULES)
    assert get_args(get_args(fields["penalties"].annotation)[0]) == tuple(PENALTIES)


def test_a_grid_is_every_combination_the_weakest_first() -> None:
    found = names(penalties=("sd+l2", "sd", "none"), sd_lambdas=(20, 1), l2s=(0.1, 0.01), augments=("none", "light"))
    assert found == [
        "plain_lr-0.002_none", "plain_lr-0.002_light",
        "sd_lambda-1_l2-0.01_lr-0.002_none", "sd_lambda-1_l2-0.01_lr-0.002_light",
        "sd_lambda-1_lr-0.002_none", "sd_lambda-1_lr-0.002_light",
        "sd_lambda-20_l2-0.1_lr-0.002_none", "sd_lambda-20_l2-0.1_lr-0.002_light",
        "sd_lambda-20_lr-0.002_none", "sd_lambda-20_lr-0.002_light",
    ]  # fmt: skip
    assert names(penalties=("weight_decay",), weight_decays=(1,), learning_rates=(1e-4, 0.01)) == [
        "weight_decay-1_lr-0.01_stain", "weight_decay-1_lr-0.0001_stain",
    ]  # fmt: skip
    assert len(names()) == 13
    assert len(set(names())) == 13
    assert len(candidates(TuneConfig(), BASE)) == 26, "light and strong"
    assert names(penalties=("consistency",), consistencies=(2, 0.5)) == [
        "consistency-0.5_lr-0.002_stain", "consistency-2_lr-0.002_stain",
    ]  # fmt: skip


def test_a_candidate_sets_its_own_penalty_and_no_other() -> None:
    one = Candidate("l2", 0.01, "light", l2=1e-3)
    config = one.training(BASE, seed=2)
    assert (config.sd_lambda, config.weight_decay, config.l2, config.consistency) == (0.0, 0.0, 1e-3, 0.0)
    assert Candidate("consistency", 0.01, "light", consistency=2.0).training(BASE, seed=2).consistency == 2
    assert (config.learning_rate, config.augment) == (0.01, "light")
    assert (config.seed, config.data_seed) == (9, 7), "seeds share the split"
    assert config.model_copy(update={name: getattr(BASE, name) for name in config.model_fields_set}) == BASE


def test_random_draws_lie_between_the_values_and_more_of_them_keep_those_there_were() -> None:
    settings: dict[str, Any] = {
        "search": "random", "penalties": ("none", "sd", "sd+l2"), "sd_lambdas": (0.1, 50), "l2s": (1e-4, 1e-2, 1e-3),
        "learning_rates": (1e-4, 1e-2), "augments": ("light", "strong"),
    }  # fmt: skip
    few, many = (candidates(TuneConfig(**settings, draws=draws), BASE) for draws in (10, 200))
    assert set(few) < set(many)
    assert plain_one(TuneConfig(**settings), BASE) in few
    drawn = [one for one in many if one.penalty != "none"]
    assert {one.penalty for one in drawn} == {"sd", "sd+l2"}
    assert {one.augment for one in drawn} == {"light", "strong"}
    assert all(0.1 <= one.sd_lambda <= 50 and 1e-4 <= one.learning_rate <= 1e-2 for one in drawn)
    low = sum(one.sd_lambda < (0.1 * 50) ** 0.5 for one in drawn) / len(drawn)
    assert 0.35 < low < 0.65, "half of them below the geometric mean"
    assert candidates(TuneConfig(**settings, draws=10), BASE.model_copy(update={"seed": 8})) != few
    one_rate = names(search="random", penalties=("none", "sd"), draws=12)
    assert sum(name.startswith("plain") for name in one_rate) == 1, "there is but one plain training"
    assert names(search="random", penalties=("none",), draws=3) == ["plain_lr-0.002_stain"]


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"rule": "errors", "penalties": ("sd",)}, "penalties"),
        ({"l2s": (1e-3,)}, "l2s"),
        ({"sd_lambdas": (5, 5.0000001)}, "sd_lambdas"),
        ({"augments": ("lite",)}, "augments"),
        ({"shifts": ("hues",)}, "shifts"),
        ({"penalties": ("sd", "sd")}, "penalties"),
        ({"weight_decays": (0,)}, "weight_decays"),
    ],
)
def test_what_cannot_be_tried_is_refused(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TuneConfig(**settings)
    error = caught.value.errors()[0]
    assert key in (error["type"], *error["loc"])
