"""The result folder: whole or not at all, kept only if it would be the same, and silent about the machine."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import shapely
from numpy.typing import NDArray
from PIL import Image

from inference.config import Backend, OutputConfig, PredictConfig
from inference.heatmap import make_heatmap
from inference.recipes import heatmap_recipe
from inference.reports import HeatmapReport
from pipeline.demo.synthetic import write_pyramid
from tests.inference.conftest import MakeModel, picture
from tiling import Slide, TilingConfig, tile_slide
from tiling.core.artefact import content_hash, folder_faults, read_commit
from tiling.core.errors import ConfigError, ModelError, OutputError, SlideError
from tiling.core.files import sha256_file
from tiling.stores.label import label_store
from training import TileModel, load_model

FILES = {
    "predictions.parquet", "predictions.csv", "overlay.png", "heatmap.geojson", "slide.json", "report.html",
    "commit.json",
}  # fmt: skip


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "heatmaps"


@pytest.fixture
def made(slide: Path, model: TileModel, out: Path) -> HeatmapReport:
    """The result of the slide."""
    return make_heatmap(slide, model, out)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every file: equal only if nothing was written."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.rglob("*")}


def summary(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "slide.json").read_text())
    return record


def test_every_file_is_there_and_verified(made: HeatmapReport, out: Path) -> None:
    assert made.folder == out / "disc"
    assert {p.name for p in out.iterdir()} == {"disc"}
    assert {p.name for p in made.folder.iterdir()} == FILES
    assert folder_faults(made.folder) == []
    assert not made.reused


def test_all_files_tell_of_the_same_tiles(made: HeatmapReport) -> None:
    table = pyarrow.parquet.read_table(made.folder / "predictions.parquet").to_pydict()
    with (made.folder / "predictions.csv").open(newline="") as f:
        lines = list(csv.DictReader(f))
    features = json.loads((made.folder / "heatmap.geojson").read_text())["features"]
    assert made.tiles == len(table["minx"]) == len(lines) == len(features) == summary(made.folder)["tiles"]
    assert [int(line["minx"]) for line in lines] == table["minx"]
    assert [f["geometry"]["coordinates"][0][0] for f in features] == [
        list(place) for place in zip(table["minx"], table["miny"], strict=True)
    ]
    measured = [f["properties"]["measurements"]["prob_tumour"] for f in features]
    assert measured == pytest.approx(table["prob_tumour"], abs=1e-6)
    scores = summary(made.folder)["scores"]
    assert scores["mean"] == pytest.approx(sum(table["prob_tumour"]) / made.tiles, abs=1e-6)
    assert scores["fraction_above_threshold"] == pytest.approx(sum(p >= 0.5 for p in table["prob_tumour"]) / made.tiles)


def test_the_summary_says_what_it_was_made_from(made: HeatmapReport, slide: Path, model: TileModel) -> None:
    record = summary(made.folder)
    assert (record["format"], record["version"]) == ("specslide-heatmap", 3)
    assert record["slide"]["sha256"] == sha256_file(slide)
    assert (record["slide"]["slide_id"], record["slide"]["mpp"]) == ("disc", pytest.approx(0.5))
    assert (record["classes"], record["positive_class"], record["threshold"]) == (["benign", "tumour"], "tumour", 0.5)
    assert record["made_from"] == {
        "model_sha256": model.sha256,
        "weights_sha256": model.info.hashes["weights.safetensors"],
        "backbone": "test_resnet",
        "model_mpp": 0.5,
        "model_tile_px": 32,
        "backend": "onnx",
        "settings": {
            "overlap": 0.0,
            "min_tissue": 0.5,
            "mpp_tolerance": 0.02,
            "max_bad_tiles": 0.01,
            "backend": "auto",
        },
    }
    assert {"python", "specslide", "torch", "timm"} <= set(record["software"])
    assert "research use only" in record["notice"]


def test_a_stores_result_names_the_store(slide: Path, model: TileModel, tmp_path: Path, out: Path) -> None:
    tiled = tile_slide(slide, tmp_path / "stores", TilingConfig(mpp=0.5, tile_px=32))
    record = summary(make_heatmap(tiled.store, model, out).folder)
    assert record["made_from"]["settings"].keys() == {"min_tissue", "backend", "store_sha256", "store_pixels_sha256"}
    assert record["slide"]["sha256"] == sha256_file(slide)


def test_labels_make_no_other_heatmap_unless_asked_for(
    slide: Path, model: TileModel, tmp_path: Path, out: Path
) -> None:
    """A store given annotations is another store of the same pixels; `where` may ask for those."""
    store = tile_slide(slide, tmp_path / "stores", TilingConfig(mpp=0.5, tile_px=32)).store
    made = make_heatmap(store, model, out)
    asked = [PredictConfig(where=where) for where in ("focus > 0", "tumour > 0.5")]
    before = content_hash(store), stamps(made.folder), heatmap_recipe(store, model.sha256, asked[0])
    annotation, found = tmp_path / "a.geojson", []
    for end in (300, 400):
        corners = [[200, 200], [end, 200], [end, end], [200, end], [200, 200]]
        geometry = {"type": "Polygon", "coordinates": [corners]}
        feature = {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": "tumour"}}}
        annotation.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
        label_store(store, annotation)
        assert content_hash(store) != before[0]
        assert make_heatmap(store, model, out).reused
        found.append(heatmap_recipe(store, model.sha256, asked[1]))
    assert (stamps(made.folder), heatmap_recipe(store, model.sha256, asked[0])) == before[1:]
    assert found[0] != found[1]


def test_no_file_tells_of_the_machine(slide: Path, model: TileModel, tmp_path: Path, out: Path) -> None:
    """Results are sent to others."""
    tiled = tile_slide(slide, tmp_path / "stores", TilingConfig(mpp=0.5, tile_px=32))
    for source, place in ((slide, out), (tiled.store, tmp_path / "more")):
        for name, data in contents(make_heatmap(source, model, place).folder).items():
            for secret in (slide.parent, tmp_path, Path.cwd()):
                assert str(secret).encode() not in data, f"{name} tells of {secret}"


def test_equal_inputs_give_equal_bytes(made: HeatmapReport, slide: Path, model: TileModel, tmp_path: Path) -> None:
    assert contents(make_heatmap(slide, model, tmp_path / "again").folder) == contents(made.folder)


def test_the_truth_changes_only_the_picture(made: HeatmapReport, slide: Path, model: TileModel, tmp_path: Path) -> None:
    outlined = make_heatmap(slide, model, tmp_path / "again", truth=shapely.box(100, 100, 300, 300))
    before, after = contents(made.folder), contents(outlined.folder)
    different = {name for name in before if before[name] != after[name]}
    assert different == {"overlay.png", "commit.json"}


def test_a_slide_without_tissue_has_a_whole_result(glass: Path, model: TileModel, out: Path) -> None:
    report = make_heatmap(glass, model, out)
    assert {p.name for p in report.folder.iterdir()} == FILES
    assert report.tiles == 0
    assert set(summary(report.folder)["scores"].values()) == {None}
    with Image.open(report.folder / "overlay.png") as image:
        assert image.mode == "RGBA"
    assert make_heatmap(glass, model, out).reused


# ----------------------------------------------------------------------------------------------- kept or refused


def test_the_same_again_is_kept_untouched(made: HeatmapReport, slide: Path, model: TileModel, out: Path) -> None:
    before = stamps(made.folder)
    again = make_heatmap(slide, model, out)
    assert again.reused
    assert (again.scores, again.tiles, again.folder, again.slide_id) == (
        made.scores,
        made.tiles,
        made.folder,
        made.slide_id,
    )
    assert make_heatmap(slide, model, out, overwrite=True).reused
    assert make_heatmap(slide, model, out, PredictConfig(batch_size=3)).reused, "batches change no result"
    assert stamps(made.folder) == before


@pytest.mark.parametrize(
    "change",
    [
        {"config": PredictConfig(min_tissue=0.9)},
        {"config": PredictConfig(overlap=0.5)},
        {"slide_mpp": 0.45},
        {"truth": shapely.box(0, 0, 9, 9)},
    ],
)
def test_another_result_is_refused_unless_overwritten(
    made: HeatmapReport, slide: Path, model: TileModel, out: Path, change: dict[str, Any]
) -> None:
    before = contents(out)
    with pytest.raises(OutputError, match=r"disc: .*--overwrite"):
        make_heatmap(slide, model, out, **change)
    assert contents(out) == before
    assert not make_heatmap(slide, model, out, **change, overwrite=True).reused
    assert contents(out) != before
    assert folder_faults(made.folder) == []
    assert {p.name for p in out.iterdir()} == {"disc"}
    assert make_heatmap(slide, model, out, **change).reused


@pytest.mark.parametrize("there", ["torch", "onnx", "auto"])
def test_a_heatmap_by_any_backend_will_do_unless_one_is_asked_for(
    slide: Path, model: TileModel, out: Path, there: Backend
) -> None:
    """Version 0.1 wrote nothing of torch, its default, into recipes; nor is it written today."""
    made = make_heatmap(slide, model, out, PredictConfig(backend=there))
    known = read_commit(made.folder).recipe
    assert known is not None
    assert known.settings.get("backend", "torch") == there
    before = stamps(made.folder)
    both: tuple[Backend, ...] = ("torch", "onnx")
    for asked in set(both) - {there}:
        with pytest.raises(OutputError, match=r"backend.*--overwrite"):
            make_heatmap(slide, model, out, PredictConfig(backend=asked))
    for asked in (there, "auto"):
        assert make_heatmap(slide, model, out, PredictConfig(backend=asked)).reused
    assert stamps(made.folder) == before
    computed = "torch" if there == "torch" else "onnx"
    assert summary(made.folder)["made_from"]["backend"] == computed


def test_a_result_of_another_version_or_precision_is_refused(
    made: HeatmapReport, slide: Path, model: TileModel, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What "auto" computes in depends on the device: as here a GPU with bf16."""
    in_bf16 = "inference.heatmap.uses_bf16"
    for name, value in (("inference.recipes.VERSION", 1), (in_bf16, lambda device, precision: precision == "auto")):
        with monkeypatch.context() as patch:
            patch.setattr(name, value)
            with pytest.raises(OutputError, match="--overwrite"):
                make_heatmap(slide, model, out)
    monkeypatch.setattr(in_bf16, lambda device, precision: precision == "auto")
    plain = PredictConfig(precision="32")
    recipe = heatmap_recipe(slide, model.sha256, plain)
    assert recipe != heatmap_recipe(slide, model.sha256, PredictConfig(precision="bf16"))
    assert recipe == heatmap_recipe(slide, model.sha256, PredictConfig(precision="32", batch_size=3))
    assert make_heatmap(slide, model, out.parent / "plain", plain).tiles == made.tiles


@dataclass(frozen=True)
class Constant(TileModel):
    """Says 0.7 of every tile."""

    def predict(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.tile(np.array([0.3, 0.7], np.float32), (len(tiles), 1))


def test_a_tile_at_the_threshold_is_so_in_every_figure(slide: Path, model: TileModel, out: Path) -> None:
    """The float32 nearest to 0.7 is below the float64: count, area, regions and objects must round alike."""
    info = model.info.model_copy(update={"threshold": 0.7})
    asked = Constant(model.network, info, model.sha256, model.device)
    outputs = OutputConfig(formats=("geojson",), region_smoothing_um=0)
    report = make_heatmap(slide, asked, out, PredictConfig(backend="torch"), outputs=outputs)
    assert report.scores.fraction_above_threshold == 1
    mm2 = report.tiles * (32 * 0.5 / 1000) ** 2
    assert report.scores.area_above_mm2 == pytest.approx(mm2, rel=1e-9)
    tiles, regions = (
        json.loads((report.folder / name).read_text())["features"] for name in ("heatmap.geojson", "regions.geojson")
    )
    assert {tile["properties"]["classification"]["name"] for tile in tiles} == {"tumour"}
    assert sum(r["properties"]["measurements"]["area_um2"] for r in regions) == pytest.approx(mm2 * 1e6, rel=1e-9)


def test_a_slide_is_hashed_once(slide: Path, model: TileModel, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    plain = Slide.sha256

    def counted(self: Slide) -> str:
        hashed.append(self.path)
        return plain(self)

    monkeypatch.setattr(Slide, "sha256", counted)
    made = make_heatmap(slide, model, out)
    assert hashed == [slide]
    assert summary(made.folder)["slide"]["sha256"] == sha256_file(slide)


def test_another_models_result_is_refused(made: HeatmapReport, slide: Path, make_model: MakeModel, out: Path) -> None:
    other = load_model(make_model(seed=1))
    with pytest.raises(OutputError, match="--overwrite"):
        make_heatmap(slide, other, out)
    assert make_heatmap(slide, other, out, overwrite=True).scores != made.scores


def test_another_slide_of_that_name_is_refused(made: HeatmapReport, model: TileModel, tmp_path: Path) -> None:
    twin = tmp_path / "disc.tif"
    write_pyramid(twin, picture(256), mpp=0.5)
    with pytest.raises(OutputError, match="--overwrite"):
        make_heatmap(twin, model, made.folder.parent)


@pytest.mark.parametrize("name", sorted(FILES))
def test_damage_is_seen_and_made_anew(made: HeatmapReport, slide: Path, model: TileModel, out: Path, name: str) -> None:
    before = contents(out)
    data = bytearray(before[f"disc/{name}"])
    data[len(data) // 2] ^= 1
    (made.folder / name).write_bytes(data)
    with pytest.raises(OutputError, match="damaged"):
        make_heatmap(slide, model, out)
    assert not make_heatmap(slide, model, out, overwrite=True).reused
    assert contents(out) == before


def test_an_intact_folder_of_something_else_is_refused(
    slide: Path, model: TileModel, model_folder: Path, tmp_path: Path
) -> None:
    """Such as a model that happens to have the slide's name."""
    model_folder.rename(tmp_path / "disc")
    try:
        before = contents(tmp_path)
        for overwrite in (False, True):
            with pytest.raises(OutputError, match=r"disc: .*--out$"):
                make_heatmap(slide, model, tmp_path, overwrite=overwrite)
        assert contents(tmp_path) == before
    finally:
        (tmp_path / "disc").rename(model_folder)


def test_a_slide_in_a_folder_of_its_name_is_never_overwritten(slide: Path, model: TileModel, tmp_path: Path) -> None:
    """As archives lay their slides: data/<id>/<id>.svs, with --out data."""
    own = tmp_path / "disc" / "disc.tif"
    own.parent.mkdir()
    shutil.copyfile(slide, own)
    with pytest.raises(OutputError, match=r"--out$"):
        make_heatmap(own, model, tmp_path, overwrite=True)
    assert contents(tmp_path) == {"disc/disc.tif": slide.read_bytes()}


def test_an_empty_folder_of_its_name_is_filled_when_told(slide: Path, model: TileModel, out: Path) -> None:
    (out / "disc").mkdir(parents=True)
    with pytest.raises(OutputError, match="--overwrite"):
        make_heatmap(slide, model, out)
    assert not make_heatmap(slide, model, out, overwrite=True).reused


# -------------------------------------------------------------------------------------------------------- faults


def test_a_failed_prediction_leaves_nothing(slide: Path, make_model: MakeModel, out: Path) -> None:
    with pytest.raises(ModelError, match="finite"):
        make_heatmap(slide, load_model(make_model(broken=True)), out)
    assert list(out.iterdir()) == []


def test_a_failed_writer_leaves_nothing(
    slide: Path, model: TileModel, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("inference.exports.png.overlay_png", full)
    with pytest.raises(OutputError, match="No space left"):
        make_heatmap(slide, model, out)
    assert list(out.iterdir()) == []


def test_a_failed_replacement_keeps_the_old_result(
    made: HeatmapReport, slide: Path, make_model: MakeModel, out: Path
) -> None:
    before = contents(out)
    with pytest.raises(ModelError):
        make_heatmap(slide, load_model(make_model(broken=True)), out, overwrite=True)
    assert contents(out) == before


def test_a_bad_slide_touches_nothing(tmp_path: Path, model: TileModel, out: Path) -> None:
    (tmp_path / "text.svs").write_text("no slide")
    with pytest.raises(SlideError, match=r"text\.svs"):
        make_heatmap(tmp_path / "text.svs", model, out)
    assert not out.exists()


@pytest.mark.parametrize("slide_id", ["../escaped", "/tmp/escaped", "..", ".hidden", "a\\b", "a\nb"])
def test_an_id_that_cannot_name_a_folder_is_refused(
    slide: Path, model: TileModel, tmp_path: Path, out: Path, slide_id: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="folder"):
        make_heatmap(slide, model, out, slide_id=slide_id)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_output_folder_that_is_a_file_is_refused(slide: Path, model: TileModel, out: Path) -> None:
    out.write_text("mine")
    with pytest.raises(OutputError, match="heatmaps"):
        make_heatmap(slide, model, out)
    assert out.read_text() == "mine"
