"""Bags under shifts: what a model says of tiles that were shifted, embedded and pooled one by one by hand."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from inference import EncoderConfig, embed_slide, load_encoder
from inference.encoders import TileEncoder
from inference.stress_bags import ShiftedBags
from pipeline import cli
from pipeline.demo.synthetic import write_pyramid
from tests.inference.conftest import picture, write_model
from tests.inference.test_bag_heatmap import write_bag_model
from tiling import Slide, TilingConfig, tile_slide
from tiling.core.errors import ConfigError, SpecslideError, StoreError
from tiling.manifest import ManifestRow, read_manifest
from tiling.stores.features import FeatureStore
from training import BagConfig, load_bag_model, samples_from_features
from training.data.from_features import with_fewer_tiles
from training.data.samples import Samples
from training.evaluation.perturbations import SHIFTS
from training.evaluation.predictions import View

VIEWS: list[View] = [
    lambda tiles: tiles,
    partial(SHIFTS["brightness"], strength=-1.0),
    partial(SHIFTS["stain"], strength=0.5),
]
NAMES = ("s0", "s1", "s2")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three slides and `labels.csv`, their stores and features, an encoder, and the model `bags`."""
    folder = tmp_path_factory.mktemp("place")
    encoder = load_encoder(EncoderConfig(encoder=str(write_model(folder / "encoder"))))
    for number, name in enumerate(NAMES):
        write_pyramid(folder / f"{name}.tif", np.roll(picture(128), number, axis=2), mpp=0.5)
        config = TilingConfig(mpp=0.5, tile_px=32, codec="lossless", min_tissue=0.3)
        store = tile_slide(folder / f"{name}.tif", folder / "stores", config).store
        embed_slide(store, encoder, folder / "features")
    rows = [
        f"{name}.tif,{name},{case},{label}"
        for name, case, label in zip(NAMES, "aab", ("benign", "benign", "tumour"), strict=True)
    ]
    (folder / "labels.csv").write_text("\n".join(["slide_path,slide_id,case_id,label", *rows]))
    write_bag_model(folder / "bags", encoder.record)
    return folder


def bags_of(place: Path, **settings: object) -> tuple[Samples, TileEncoder]:
    config = BagConfig.model_validate(settings)
    samples = samples_from_features(place / "features", place / "labels.csv", config, to_train=False)
    return samples, load_encoder(EncoderConfig(encoder=str(place / "encoder")))


def slides_of(place: Path) -> dict[str, ManifestRow]:
    return {row.slide_id: row for row in read_manifest(place / "labels.csv")}


@pytest.mark.parametrize(("source", "bag", "memory"), [("slides", "slide", 1 << 30), ("stores", "case", 1)])
def test_what_is_said_is_what_the_parts_say(
    source: str, bag: str, memory: int, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.stress_bags._VIEWS_BYTES", memory)
    samples, encoder = bags_of(place, bag=bag)
    model, told = load_bag_model(place / "bags"), list[int]()
    shifted = ShiftedBags(encoder, slides_of(place), place / "stores" if source == "stores" else None)
    found = shifted({"m": model, "again": model}, samples.split_of("all"), VIEWS, told.append)
    assert sum(told) == 2 * len(VIEWS) * len(samples)
    for view, predictions, again in zip(VIEWS, found["m"], found["again"], strict=True):
        expected = []
        for parts in samples.bags:
            made = []
            for number, part in enumerate(parts):
                store = FeatureStore(part.path)
                with Slide(place / f"{part.slide_id}.tif") as slide:
                    size = (32, 32)
                    tiles = [slide.read_scaled(x, y, size, size) for x, y in store.tiles.places()]
                features = np.concatenate([encoder.encode(view(tile[None])) for tile in tiles])
                made.append(np.insert(features.astype(np.float16).astype(np.float32), 0, number, axis=1))
            expected.append(model.predict(np.concatenate(made)[None])[0])
        np.testing.assert_allclose(predictions.probabilities, expected, atol=1e-4)
        np.testing.assert_array_equal(again.probabilities, predictions.probabilities)
        assert predictions.case_ids.tolist() == samples.case_id.tolist()
        assert (predictions.threshold, predictions.positive) == (model.info.threshold, 1)


def test_pixels_of_others_are_refused(place: Path, tmp_path: Path) -> None:
    samples, encoder = bags_of(place)
    model, split = {"m": load_bag_model(place / "bags")}, samples.split_of("all")
    rows = slides_of(place)
    with pytest.raises(StoreError, match=r"s0\.features\.zarr"):
        ShiftedBags(encoder, rows | {"s0": rows["s1"]})(model, split, VIEWS, print)
    for name, other in (("scale", {"mpp": 1.0}), ("colours", {"mpp": 0.5, "codec": "lossless", "icc": "srgb"})):
        tile_slide(place / "s0.tif", tmp_path / name, TilingConfig.model_validate({"tile_px": 32, **other}))
        with pytest.raises(StoreError, match=r"s0\.zarr.*--icc" if name == "colours" else r"s0\.zarr"):
            ShiftedBags(encoder, {}, tmp_path / name)(model, split, VIEWS, print)


def test_fewer_tiles_are_a_draw_by_the_seed(place: Path) -> None:
    samples, _ = bags_of(place)
    split = samples.split_of("all")
    drawn = [with_fewer_tiles(split, 5, seed).samples for seed in (0, 0, 1)]
    rows = [[bag[0].rows.tolist() for bag in one.bags] for one in drawn]
    assert rows[0] == rows[1] != rows[2]
    for bag, few in zip(samples.bags, rows[0], strict=True):
        assert len(few) == 5
        assert set(few) <= set(bag[0].rows.tolist())
    assert drawn[0].identity() == drawn[1].identity() not in (drawn[2].identity(), samples.identity())
    assert drawn[0].known_as(samples.identity()), "so that it is known if they were trained on"
    assert with_fewer_tiles(split, 10_000).samples.identity() == samples.identity()


def stress(place: Path, *arguments: object) -> BaseException | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return CliRunner().invoke(cli.app, ["stress", *map(str, arguments)]).exception


def test_the_command(place: Path, tmp_path: Path) -> None:
    data = ["--bags", "features", "--manifest", "labels.csv", "--split", "all", "--metric", "auroc"]
    how = ["--encoder", "encoder", "--shifts", "brightness", "--strengths", 1, "--resamples", 10, "--bag-tiles", 9]
    assert stress(place, "bags", *data, *how, "--out", tmp_path / "out") is None
    record = json.loads((tmp_path / "out" / "stress.json").read_text())
    assert (record["noun"], record["tiles"], record["cases"]) == ("bag", 3, 2)
    assert stress(place, "bags", *data, *how, "--out", tmp_path / "stores", "--pixels", "stores") is None
    assert json.loads((tmp_path / "stores" / "stress.json").read_text()) == record

    tiles = ["--stores", "stores", "--manifest", "labels.csv", "--split", "all", "--out", tmp_path / "refused"]
    for arguments, named in (
        (["encoder", *tiles, "--bag-tiles", 9], "bag_tiles"),
        (["bags", *tiles], "--bags"),
        (["encoder", *data, "--out", tmp_path / "refused"], "--stores"),
        (["bags", *data, "--out", tmp_path / "refused"], "encoder"),
    ):
        error = stress(place, *arguments)
        assert isinstance(error, SpecslideError), arguments
        assert named in str(error)
    assert not (tmp_path / "refused" / "stress.json").exists()
    assert isinstance(stress(place, "encoder", *tiles, "--pixels", "stores"), ConfigError)
