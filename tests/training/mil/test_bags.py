"""Bags: whose tiles they hold, how they are drawn and padded, and which are refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.training.mil.conftest import DIM, bag_of
from tiling.core.errors import InputError, SpecslideError, StoreError
from tiling.stores.features import FeatureStore, feature_path
from training import BagConfig, samples_from_features
from training.data.bags import PADDING, BagDraw
from training.data.dataset import TileDataset

Cohort = Callable[..., tuple[Path, Path]]


def test_a_slide_is_a_bag(feature_cohort: Cohort) -> None:
    features, manifest = feature_cohort(6, slides=2)
    samples = samples_from_features(features, manifest, BagConfig(test_fraction=0.2, val_fraction=0.3))
    assert len(samples) == 12
    assert samples.slide_id.tolist() == [f"s{n}" for n in range(12)]
    assert samples.label.tolist() == [n // 2 % 2 for n in range(12)]
    assert (samples.tile_px, samples.mpp) == (64, 0.5)
    batch = TileDataset(samples.split_of("all")).__getitems__([3, 0])
    assert batch.labels.tolist() == [1, 0]
    first, second = batch.tiles.numpy()
    np.testing.assert_array_equal(first[:, 1:], bag_of(3, 23, 1))
    np.testing.assert_array_equal(first[:, 0], np.zeros(23))
    np.testing.assert_array_equal(second[:20, 1:], bag_of(0, 20, 0))
    np.testing.assert_array_equal(second[20:, 0], np.full(3, PADDING))


@pytest.mark.parametrize("bag", ["case", "case-mean"])
def test_a_case_is_a_bag_of_its_slides(feature_cohort: Cohort, bag: str) -> None:
    features, manifest = feature_cohort(6, slides=3)
    samples = samples_from_features(features, manifest, BagConfig.model_validate({"bag": bag, "val_fraction": 0.3}))
    assert samples.case_id.tolist() == [f"case{n}" for n in range(6)]
    assert samples.slide_id.tolist()[1] == "s3;s4;s5"
    assert samples.scanner.tolist()[1] == "scanner0;scanner1"
    (tiles,) = TileDataset(samples.split_of("all")).__getitems__([1]).tiles.numpy()
    expected = [np.insert(bag_of(n, 20 + n, 1), 0, n - 3, axis=1) for n in (3, 4, 5)]
    np.testing.assert_array_equal(tiles, np.concatenate(expected).astype(np.float32))


def test_the_draw_depends_on_seed_epoch_and_bag_alone(feature_cohort: Cohort) -> None:
    features, manifest = feature_cohort(6, slides=3)
    samples = samples_from_features(features, manifest, BagConfig(bag="case", val_fraction=0.3))
    everything = samples.split_of("all")
    dataset = TileDataset(everything, BagDraw(10, 7))
    whole = TileDataset(everything).__getitems__([2]).tiles.numpy()[0]
    drawn = [dataset.__getitems__([2 + 6 * epoch]).tiles.numpy()[0] for epoch in range(120)]
    seen = set()
    for tiles in drawn:
        assert len(tiles) == 10
        places = [np.flatnonzero((whole == tile).all(axis=1)).item() for tile in tiles]
        assert places == sorted(set(places)), "none twice, in order"
        seen |= set(places)
    assert seen == set(range(len(whole))), "in 120 epochs all of them"
    assert not np.array_equal(drawn[0], drawn[1])
    again = pickle.loads(pickle.dumps(dataset)).__getitems__([5, 2 + 6 * 3])  # noqa: S301 - our own
    np.testing.assert_array_equal(again.tiles.numpy()[1], drawn[3])
    assert again.indices.tolist() == [5, 2]
    other = TileDataset(everything, BagDraw(10, 8)).__getitems__([2]).tiles.numpy()[0]
    assert not np.array_equal(other, drawn[0])


def test_what_does_not_fit_in_memory_is_read_again(feature_cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    features, manifest = feature_cohort(6, slides=2)
    samples = samples_from_features(features, manifest, BagConfig(bag="case", val_fraction=0.3))
    dataset = TileDataset(samples.split_of("all"), BagDraw(10, 7))
    positions = [*range(6), *range(6, 12)]
    kept = dataset.__getitems__(positions).tiles.numpy()
    monkeypatch.setattr("training.data.bags._KEPT_BYTES", 4 * DIM * 50)  # two slides
    few = TileDataset(samples.split_of("all"), BagDraw(10, 7))
    np.testing.assert_array_equal(few.__getitems__(positions).tiles.numpy(), kept)
    assert len(few._read.kept) == 2  # type: ignore[attr-defined]
    assert len(dataset._read.kept) == 12  # type: ignore[attr-defined]


def test_tiles_are_chosen_by_columns_and_a_limit(feature_cohort: Cohort) -> None:
    features, manifest = feature_cohort(6)
    config = BagConfig(where="tissue > 0.5", max_tiles_per_slide=4, val_fraction=0.3)
    samples = samples_from_features(features, manifest, config)
    for bag in samples.bags:
        (part,) = bag
        assert len(part.rows) == 4
        assert (FeatureStore(part.path).tiles.columns["tissue"][part.rows] > 0.5).all()
    whole = samples_from_features(features, manifest, BagConfig(val_fraction=0.3))
    assert whole.identity() != samples.identity()


def test_labels_and_annotations_of_stores_do_not_count_but_features_do(
    feature_cohort: Cohort, make_features: Callable[..., Path]
) -> None:
    features, manifest = feature_cohort(6)
    config = BagConfig(val_fraction=0.3)
    before = samples_from_features(features, manifest, config).identity()
    assert samples_from_features(features, manifest, config).identity() == before
    make_features("s3", bag_of(3, 23, 0))
    assert samples_from_features(features, manifest, config).identity() != before


def test_features_of_two_encoders_are_refused_naming_the_difference(
    feature_cohort: Cohort, make_features: Callable[..., Path]
) -> None:
    features, manifest = feature_cohort(6)
    make_features("s4", bag_of(4, 20, 0), mpp=0.25)
    with pytest.raises(StoreError, match="mpp") as error:
        samples_from_features(features, manifest, BagConfig())
    assert str(feature_path(features, "s4")) in str(error.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("case1,tumour", "case0,tumour"), "case0"),  # one case with two labels
        (("s1.svs,s1,case1,tumour,site1", "s1.svs,s1,case1,,site1"), "s1"),
        (("s0.svs,s0,case0,benign,site0", "s0.svs,s0,case1,tumour,site9"), "site"),
    ],
)  # fmt: skip
def test_a_case_that_cannot_be_one_bag_is_refused(feature_cohort: Cohort, change: tuple[str, str], named: str) -> None:
    features, manifest = feature_cohort(6)
    text = manifest.read_text()
    assert change[0] in text
    manifest.write_text(text.replace(*change))
    with pytest.raises(InputError, match=named):
        samples_from_features(features, manifest, BagConfig(bag="case"))


def test_one_slide_under_two_names_is_refused(feature_cohort: Cohort, make_features: Callable[..., Path]) -> None:
    features, manifest = feature_cohort(6)
    make_features("s5", bag_of(5, 20, 1), sha256=f"{'s0':0>64}")
    with pytest.raises(InputError, match=r"'s0' and 's5'"):
        samples_from_features(features, manifest, BagConfig())


def test_what_has_no_tile_is_left_out_and_what_is_not_finite_refused(
    feature_cohort: Cohort, make_features: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    features, manifest = feature_cohort(8)
    make_features("s1", np.empty((0, DIM), np.float32))
    broken = bag_of(2, 22, 0)
    broken[5, 3] = np.nan
    make_features("s2", broken)
    samples = samples_from_features(features, manifest, BagConfig(val_fraction=0.3))
    assert len(samples) == 7
    assert "s1: left out" in caplog.text
    with pytest.raises(SpecslideError, match="s2"):
        TileDataset(samples.split_of("all")).__getitems__([1])
