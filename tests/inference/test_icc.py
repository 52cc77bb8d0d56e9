"""Colours in prediction: those that the model was trained on, or those asked for; what differs is said and recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference import load_model, make_heatmap, predict_slide
from inference.config import EncoderConfig, PredictConfig
from inference.embed import embed_slide
from inference.encoders import load_encoder
from inference.export_model import export_model
from inference.prediction import Prediction
from inference.recipes import prediction_settings
from inference.report.evidence import gather_evidence
from inference.summary import read_summary
from inference.viewer.cohort import find_cohort
from inference.viewer.export import export_site
from inference.viewer.pictures import Pictures
from inference.viewer.site import Site
from inference.viewer.slide_picture import SlidePicture, SlideSource
from inference.viewer.zooms import Square
from tests.inference.conftest import MakeModel
from tests.tiling.icc_files import by_pillow, rgb_profile
from tests.tiling.test_icc import write_slide
from tiling import TilingConfig, tile_slide
from tiling.core.arrays import Icc
from tiling.stores.codec import decode_jpeg
from tiling.stores.features import FeatureStore
from training import TileModel

PROFILE = rgb_profile()
BOTH: tuple[Icc, Icc] = ("none", "srgb")


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a profile."""
    return write_slide(tmp_path_factory.mktemp("icc") / "a.tif", PROFILE)


@pytest.fixture(scope="module")
def stores(slide: Path) -> dict[str, Path]:
    """Of its tiles in either colours."""
    config = TilingConfig(mpp=0.5, tile_px=32, codec="lossless")
    return {icc: tile_slide(slide, slide.parent / icc, config.model_copy(update={"icc": icc})).store for icc in BOTH}


def of_colours(model: TileModel, icc: str) -> TileModel:
    """The model, as if it had been trained on tiles in those colours."""
    return replace(model, info=model.info.model_copy(update={"icc": icc}))


@pytest.fixture(scope="module")
def predicted(stores: dict[str, Path], model: TileModel) -> dict[str, Prediction]:
    """Of the stores in either colours."""
    return {icc: predict_slide(store, of_colours(model, icc)) for icc, store in stores.items()}


@pytest.mark.parametrize(
    ("trained", "asked", "seen", "warned"),
    [
        ("none", None, "none", False),
        ("srgb", None, "srgb", False),
        ("none", "srgb", "srgb", True),
        ("srgb", "none", "none", True),
    ],
)
def test_a_slide_is_seen_in_the_models_colours_unless_others_are_asked_for(
    trained: str,
    asked: Any,
    seen: str,
    warned: bool,
    slide: Path,
    stores: dict[str, Path],
    predicted: dict[str, Prediction],
    model: TileModel,
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = predict_slide(slide, of_colours(model, trained), PredictConfig(icc=asked))
    assert found.icc == seen
    assert any("ICC" in record.message and record.levelname == "WARNING" for record in caplog.records) == warned
    np.testing.assert_array_equal(found.probabilities, predicted[seen].probabilities)
    tile = gather_evidence(slide, found).highest[0]
    stored = gather_evidence(stores[seen], predicted[seen]).highest[0]
    assert tile.row == stored.row
    np.testing.assert_array_equal(tile.pixels, stored.pixels)


def test_a_store_brings_its_colours(
    stores: dict[str, Path], predicted: dict[str, Prediction], model: TileModel, caplog: pytest.LogCaptureFixture
) -> None:
    """What it was stored with counts, and that it is another than the model's, or than what is asked for, is said."""
    for stored in BOTH:
        assert predicted[stored].icc == stored
        caplog.clear()
        other = predict_slide(stores[stored], of_colours(model, "none" if stored == "srgb" else "srgb"))
        assert other.icc == stored
        assert sum("ICC" in record.message for record in caplog.records) == 1
    predict_slide(stores["none"], model, PredictConfig(icc="srgb"))
    assert "tile it with --icc srgb" in caplog.text


def test_a_heatmap_says_its_colours(
    slide: Path, model: TileModel, predicted: dict[str, Prediction], tmp_path: Path
) -> None:
    """Where they are not the file's: else it says what it ever said, and one that is there is up to date."""
    made = read_summary(make_heatmap(slide, model, tmp_path, PredictConfig(icc="srgb")).folder).made_from
    assert made["icc"] == made["settings"]["icc"] == "srgb"
    assert "icc" not in predicted["none"].provenance
    assert "icc" not in prediction_settings(slide, PredictConfig())


def test_features_are_of_the_encoders_colours(
    slide: Path, stores: dict[str, Path], make_model: MakeModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By default; what they are is said by stores of slides and of tiles alike."""
    encoder = load_encoder(EncoderConfig(encoder=str(make_model(icc="srgb"))))
    of_slide, of_store = (
        FeatureStore(embed_slide(source, encoder, tmp_path / name).store)
        for name, source in (("a", slide), ("b", stores["srgb"]))
    )
    assert of_slide.icc == of_store.icc == "srgb"
    np.testing.assert_array_equal(of_slide.read(), of_store.read())
    assert "ICC" not in caplog.text
    plain = FeatureStore(embed_slide(stores["none"], encoder, tmp_path / "c").store)
    assert plain.icc == "none"
    assert (plain.read() != of_store.read()).any()
    assert sum("ICC" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(("trained", "warned"), [("none", False), ("srgb", True)])
def test_an_exported_model_knows_its_colours(
    stores: dict[str, Path],
    model: TileModel,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    trained: Any,
    warned: bool,
) -> None:
    """The WSInfer folder of a model is shown a slide in the colours of its training, as the model is."""
    exported = export_model(of_colours(model, trained), "wsinfer", tmp_path / "out").folder
    assert ("QuPath" in caplog.text) == warned  # which know of no profiles
    caplog.clear()
    assert load_model(exported).info.icc == trained
    predict_slide(stores["none"], load_model(exported))
    assert ("ICC" in caplog.text) == warned


def test_the_viewer_shows_a_slide_in_the_colours_asked_for(tmp_path: Path) -> None:
    """A tile that is stored as it is shown is copied without a profile, and drawn with it."""
    slide, square = write_slide(tmp_path / "a.tif", PROFILE, 256), Square(256, 0, 256)
    plain, srgb = (SlidePicture(SlideSource("a", slide, None, None, icc)) for icc in BOTH)
    shown = by_pillow(plain.region(square, 256), PROFILE)
    np.testing.assert_array_equal(srgb.region(square, 256), shown)
    drawn = decode_jpeg(srgb.jpeg(square, 256)).astype(int)
    assert np.abs(drawn - shown).mean() < np.abs(drawn - plain.region(square, 256)).mean() / 2


def test_an_export_in_other_colours_is_made_anew(slide: Path, tmp_path: Path) -> None:
    cohort = find_cohort([slide])
    files = []
    for icc in BOTH:
        pictures = Pictures(cohort.slides, icc=icc)
        export_site(Site(cohort, pictures), tmp_path / "view", lambda done, total: None)
        pictures.close()
        files.append((tmp_path / "view" / "data" / "0" / "0" / "0-0.jpg").read_bytes())
    assert files[0] != files[1]
