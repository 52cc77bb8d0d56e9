"""The study of other hospitals on bags: a small one from end to end, and how bags are read for trials."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from tests.training.mil.conftest import DIM, bag_of
from tiling.core.artefact import folder_faults
from tiling.core.errors import InputError
from training import BagConfig, samples_from_features
from training.data.bags import PADDING
from training.external import experiment
from training.external.config import ExternalBagConfig
from training.external.experiment import report_external, study_external
from training.trials import tiles
from training.trials.config import Setting
from training.trials.tiles import read_bags

SMALL = ExternalBagConfig(
    methods=("weight_decay", "sd"), seeds=2, sd_lambdas=(0.1,), weight_decays=(0.1,), epochs=30, batch_size=4,
    learning_rate=5e-3, head_dim=16, val_fraction=0.25, resamples=50, bag_tiles=30,
)  # fmt: skip
READING = BagConfig()


@pytest.fixture
def manifests(make_features: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path, Path]:
    """Features, and the slides of a hospital where lesions lie as at another one, of which half are seen there."""
    paths = []
    for name, first in (("home", 0), ("away", 100)):
        lines = ["slide_path,slide_id,case_id,label,site"]
        for number in range(first, first + 24):
            make_features(f"s{number}", bag_of(number, 20 + number % 20, number % 2))
            label = "tumour" if number % 2 else "benign"
            lines.append(f"s{number}.svs,s{number},case{number},{label},{name}")
        paths.append(tmp_path / f"{name}.csv")
        paths[-1].write_text("\n".join(lines))
    return tmp_path / "features", paths[0], paths[1]


def test_a_study_of_bags_from_end_to_end(manifests: tuple[Path, Path, Path], tmp_path: Path) -> None:
    features, home, away = manifests
    trained, external = (samples_from_features(features, path, READING, to_train=False) for path in (home, away))
    out = tmp_path / "study"
    grid = study_external(trained, external, out, SMALL)
    assert folder_faults(out) == []
    (found,) = grid["sd"][Setting(sd_lambda=0.1)][:1]
    assert found.tests["external"]["auroc"] > 0.9, "two tiles of a bag are a lesion, and five spreads away"
    assert found.validation.shifted == {}
    text = (out / "study.md").read_text()
    for part in ("24 external bags of\n24 cases", "head gated", "| away | positive | 12 | 12 |"):
        assert part in text
    again, config = report_external(out)
    assert config == SMALL
    assert again == grid
    with pytest.raises(InputError, match="shares 24 files"):
        study_external(trained, trained, tmp_path / "other", SMALL)


def test_every_setting_decides_a_run_or_the_study_alone() -> None:
    assert set(ExternalBagConfig.model_fields) - experiment.STUDY_ONLY == {
        "head", "bag", "bag_tiles", "head_dim", "dropout", "learning_rate", "epochs", "batch_size", "val_fraction",
    }  # fmt: skip


@pytest.mark.parametrize(
    "what",
    [{"rules": ("stress",)}, {"rules": ("regret",)}, {"rules": ("agreement",)}, {"methods": ("sd+strong",)},
     {"methods": ("stain_norm",)}, {"methods": ("consistency",)}, {"augment": "light"}, {"shifts": ("hue",)}],
)  # fmt: skip
def test_what_needs_pixels_is_refused(what: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ValidationError, match=next(iter(what))):
        ExternalBagConfig.model_validate(what)


def test_bags_are_read_whole_or_some_of_their_tiles(
    manifests: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    features, home, _ = manifests
    samples = samples_from_features(features, home, READING, to_train=False)
    whole = read_bags(samples)
    assert whole.classes == ("benign", "tumour")
    for number in range(24):
        place = whole.unit.tolist().index(f"case{number}")
        bag = whole.tiles[place]
        count = 20 + number % 20
        assert np.array_equal(bag[:count, 1:], bag_of(number, count, number % 2))
        assert (bag[:count, 0] == 0).all()
        assert (bag[count:, 0] == PADDING).all()
        assert whole.label[place] == number % 2
    some = read_bags(samples, bag_tiles=7)
    assert some.tiles.shape == (24, 7, 1 + DIM)
    assert some.identity != whole.identity
    kept = {tuple(tile) for tile in whole.tiles[3]}
    assert all(tuple(tile) in kept for tile in some.tiles[3])
    monkeypatch.setattr(tiles, "LARGEST", 24 * 7 * (1 + DIM) * 4)
    read_bags(samples, bag_tiles=7)
    with pytest.raises(InputError, match="bag_tiles"):
        read_bags(samples, bag_tiles=8)
