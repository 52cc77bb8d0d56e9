"""What version 0.1 (commit 474059e) has made is still read: a store, a model, a heatmap, and what was tested of them.

The archive holds a small study: two of its six stores, its training run, one heatmap, evaluation and stress, and the
slides and annotations of the two stores.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import yaml
from typer.testing import CliRunner, Result

from inference import PredictConfig, predict_slide
from inference.viewer.cohort import find_cohort
from inference.viewer.site import Site
from pipeline import cli
from pipeline.provenance import trace
from tests.pipeline.conftest import listing
from tiling import Slide, TileStore, TilingConfig, tile_slide
from tiling.core.errors import SpecslideError
from tiling.stores.store import verify_store
from training import TileModel, load_model

STORE, MODEL, HEATMAP = "study/stores/golden-5.zarr", "study/training/model", "study/heatmaps/golden-5"


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked study; read only."""
    folder = tmp_path_factory.mktemp("golden")
    with tarfile.open(Path(__file__).with_name("study-0.1.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def model(golden: Path) -> TileModel:
    return load_model(golden / MODEL)


def specslide(golden: Path, monkeypatch: pytest.MonkeyPatch, *words: object) -> Result:
    """The command in the folder of the study; what it raises is a sentence."""
    monkeypatch.chdir(golden)
    done = CliRunner().invoke(cli.app, [*map(str, words)], env={"COLUMNS": "300"})
    assert done.exception is None or isinstance(done.exception, SystemExit | SpecslideError), done.output
    return done


def test_every_kind_of_folder_is_intact(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = specslide(golden, monkeypatch, "verify", STORE, "study/stores/golden-0.zarr", MODEL, HEATMAP)
    assert (done.exit_code, "4 intact, 0 damaged" in done.output) == (0, True), done.output


@pytest.mark.parametrize("name", ["golden-0", "golden-5"])
def test_a_store_has_the_pixels_and_columns_that_tiling_gives_today(golden: Path, name: str, tmp_path: Path) -> None:
    store = TileStore(golden / "study/stores" / f"{name}.zarr")
    assert verify_store(store.path) == []
    made_with = store.attributes.config
    config = TilingConfig.model_validate({key: made_with[key] for key in TilingConfig.model_fields if key in made_with})
    report = tile_slide(golden / f"{name}.tif", tmp_path, config, annotation=golden / f"{name}.geojson")
    today = TileStore(report.store)
    assert len(today) == len(store) > 20
    assert today.grid == store.grid
    assert today.tiles.places() == store.tiles.places()
    assert today.tiles.columns.keys() - store.tiles.columns.keys() == {"blur"}, "which came later"
    assert today.tiles.columns.keys() > store.tiles.columns.keys() > {"tissue", "focus", "annotation/tumour"}
    for name, values in store.tiles.columns.items():
        tolerance = 0.1 if name == "tissue" else 1e-6  # edges of the mask are smoothed over wider gaps today
        np.testing.assert_allclose(today.tiles.columns[name], values, rtol=1e-5, atol=tolerance)
    rows = np.arange(len(store))
    np.testing.assert_array_equal(today.read(rows), store.read(rows))


def test_a_filter_by_a_column_that_came_later_is_refused(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = specslide(golden, monkeypatch, "tiles", STORE, "--where", "blur < 1.2")
    said = " ".join(f"{done.output} {done.exception}".replace("│", " ").split())
    assert done.exit_code == 1
    assert all(part in said for part in ("golden-5.zarr", "no column 'blur'", "--overwrite")), said


def test_a_model_predicts_of_the_store_what_the_heatmap_says(golden: Path, model: TileModel) -> None:
    said = pyarrow.parquet.read_table(golden / HEATMAP / "predictions.parquet").to_pydict()
    found = predict_slide(golden / STORE, model, PredictConfig(min_tissue=0.5))
    assert found.classes == ("benign", "tumour")
    assert len(found.probabilities) == len(said["minx"]) > 10
    np.testing.assert_allclose(found.probabilities[:, 1], said["prob_tumour"], atol=1e-4)


def test_a_model_predicts_a_slide(golden: Path, model: TileModel) -> None:
    found = predict_slide(golden / "golden-0.tif", model)
    with Slide(golden / "golden-0.tif") as slide:
        assert (found.slide.width, found.slide.height) == (slide.width, slide.height)
    assert np.isfinite(found.probabilities).all()


def test_a_heatmap_leads_back_to_its_slide_and_its_data(golden: Path) -> None:
    chain = trace(golden / HEATMAP / "overlay.png", [golden])
    assert (chain.kind, chain.name) == ("heatmap", "golden-5")
    assert {link.kind: link.missing for link in chain.made_from} == {"store": "", "model": ""}
    summary = json.loads((golden / HEATMAP / "slide.json").read_text())
    assert chain.made_from[0].made_from[0].sha256 == summary["slide"]["sha256"]


def test_a_model_is_tested_on_the_stores(golden: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = ["--stores", "study/stores", "--manifest", "slides.csv", "--resamples", 0]
    done = specslide(golden, monkeypatch, "evaluate", MODEL, *data, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    before, today = (
        json.loads((folder / "evaluation.json").read_text())["models"][0]["overall"]["metrics"]
        for folder in (golden / "study/evaluation/tiles", tmp_path / "out")
    )
    assert {name: value["value"] for name, value in today.items()} == pytest.approx(
        {name: value["value"] for name, value in before.items()}, abs=1e-3
    )


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (("tile", "golden-0.tif", "-o", "study/stores", "--tile-px", 64), "pass --overwrite"),
        (("heatmap", STORE, "--model", MODEL, "-o", "study/heatmaps", "--tta"), "pass --overwrite"),
        (("evaluate-slides", "study/heatmaps", "--manifest", "slides.csv", "-o", "x"), "add slides of the other class"),
    ],
)
def test_what_is_made_otherwise_is_kept_and_the_user_told_what_to_do(
    golden: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...], advice: str
) -> None:
    artefacts = [golden / STORE, golden / HEATMAP, golden / "study/stores/golden-0.zarr"]
    before = [listing(folder) for folder in artefacts]
    done = specslide(golden, monkeypatch, *words)
    assert done.exit_code == 1
    assert advice in " ".join(f"{done.output} {done.exception}".replace("│", " ").split())
    assert [listing(folder) for folder in artefacts] == before


def test_the_study_is_planned_and_what_can_be_kept_is_kept(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the tissue method of then its stores and its model are today's own; its heatmap, whose folder says no
    recipe, would be made again. With today's method the stores are made again.
    """
    lines = (golden / "slides.csv").read_text().splitlines()
    here = (lines[0], lines[1], lines[6])  # two of its six slides
    (golden / "slides.csv").write_text("\n".join(here) + "\n")

    def states_by(settings: str) -> dict[str, str]:
        (golden / "study.yaml").write_text(settings)
        done = specslide(golden, monkeypatch, "run", "study.yaml", "--dry-run")
        assert done.exit_code == 0, done.output
        cells = [row.split("│") for row in done.output.splitlines() if "│" in row]
        return {cell[1].strip(): cell[2].strip() for cell in cells}

    settings = yaml.safe_load((golden / "study.yaml").read_text())
    states = states_by(yaml.safe_dump(settings))
    assert {states[f"stores/golden-{k}.zarr"] for k in (0, 5)} == {"changed"}
    settings["tile"]["tissue"] = {"method": "specslide"}
    states = states_by(yaml.safe_dump(settings))
    assert {states[f"stores/golden-{k}.zarr"] for k in (0, 5)} == {"done"}
    assert states["heatmaps/golden-5"] in ("changed", "failed")
    done = specslide(golden, monkeypatch, "status", "study")
    assert "stores/golden-1.zarr │ was removed" in done.output, "which is not here"


def test_the_viewer_shows_its_slides(golden: Path) -> None:
    site = Site(find_cohort([golden]))
    assert [(one.slide_id, len(one.results)) for one in site.cohort.slides] == [("golden-5", 1), ("golden-0", 0)]
    assert all(site.get(address) is not None for address in site.addresses())
    site.pictures.close()
