"""All formats of one result together: what is written, what is kept, and that no one is named in any."""

from __future__ import annotations

import datetime
import getpass
import json
import socket
import uuid
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
import shapely
import tifffile
import zarr
from PIL import Image
from pydantic import ValidationError
from shapely.geometry import shape

from inference.config import OutputConfig
from inference.exports import EXPORTS, Export, formats, formats_help, write_exports
from inference.exports.content import Content
from inference.heatmap import make_heatmap
from tests.inference.conftest import MakeModel, MakePrediction
from tiling.annotations.rasterize import read_polygons
from tiling.core.artefact import folder_faults
from training import load_model

ALWAYS = {"predictions.parquet", "predictions.csv", "overlay.png", "heatmap.geojson"}
FILES = ALWAYS | {"heatmap.png", "regions.geojson", "heatmap.ome.tif", "heatmap.ome.zarr", "regions.xml",
                  "heatmap-layer.png", "heatmap-layer.json", "labels.tif", "labels.classes.json"}  # fmt: skip
RING = [(x, y) for y in (0, 64, 128) for x in (0, 64, 128)]
P = [0.9, 0.8, 0.9, 0.7, 0.1, 0.7, 0.9, 0.8, 0.9]
EXACT = OutputConfig(formats=formats(), region_smoothing_um=0)


@pytest.fixture
def folder(make_prediction: MakePrediction, tmp_path: Path) -> Path:
    """Every format of a ring of eight tiles around a ninth."""
    write_exports(Content(make_prediction(RING, P), EXACT), tmp_path)
    return tmp_path


def test_a_format_from_outside_is_one_row(
    slide: Path, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(content: Content, path: Path) -> None:
        path.write_text(f"{len(content.regions)} regions")

    monkeypatch.setitem(EXPORTS, "count", Export("regions.txt", "how many regions there are", write))
    model, outputs = load_model(make_model(mpp=1.0, tile_px=64)), OutputConfig(formats=("count",))
    made = make_heatmap(slide, model, tmp_path / "out", slide_id="small", outputs=outputs)
    assert (made.folder / "regions.txt").read_text().endswith(" regions")
    assert folder_faults(made.folder) == []
    assert "count: how many regions there are" in formats_help()


def test_every_format_tells_of_the_same_ring(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES
    ring = shapely.box(0, 0, 192, 192) - shapely.box(64, 64, 128, 128)
    (feature,) = json.loads((folder / "regions.geojson").read_text())["features"]
    assert shape(feature["geometry"]).equals(ring)
    for name in ("regions.geojson", "regions.xml"):
        (region,) = read_polygons(folder / name, None).values()
        assert region.equals(ring)
    values = np.array([[0.9, 0.8, 0.9], [0.7, 0.1, 0.7], [0.9, 0.8, 0.9]], np.float32)
    expected = np.pad(values, ((0, 0), (0, 1)), constant_values=np.nan)
    np.testing.assert_array_equal(tifffile.imread(folder / "heatmap.ome.tif"), expected)
    np.testing.assert_array_equal(np.asarray(zarr.open_group(folder / "heatmap.ome.zarr", mode="r")["0"]), expected)
    with Image.open(folder / "heatmap.png") as image:
        assert (image.format, image.mode) == ("PNG", "RGBA")


@pytest.mark.parametrize(
    ("config", "written"),
    [
        ({}, set()),
        ({"formats": ("png",)}, {"heatmap.png"}),
        ({"formats": ("asap", "ometiff")}, {"regions.xml", "heatmap.ome.tif"}),
    ],
)
def test_only_what_is_asked_for_is_written(
    make_prediction: MakePrediction, tmp_path: Path, config: dict[str, tuple[str, ...]], written: set[str]
) -> None:
    write_exports(Content(make_prediction(RING, P), OutputConfig.model_validate(config)), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == ALWAYS | written


def test_a_slide_without_tiles_has_every_format(make_prediction: MakePrediction, tmp_path: Path) -> None:
    write_exports(Content(make_prediction([], []), EXACT), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert json.loads((tmp_path / "regions.geojson").read_text())["features"] == []


@pytest.mark.parametrize(
    ("config", "areas"),
    [
        (EXACT, [8 * 1024]),
        (OutputConfig(region_smoothing_um=0, region_threshold=0.75), [1024 * 3, 1024 * 3]),
        (OutputConfig(region_smoothing_um=0, region_threshold=0.85), [1024] * 4),
        (OutputConfig(region_smoothing_um=0, region_threshold=0.05), [9 * 1024]),
        (OutputConfig(region_smoothing_um=0, region_threshold=0.95), []),
        (OutputConfig(region_smoothing_um=0, min_region_um2=8 * 1024 + 1), []),
    ],
)
def test_regions_follow_threshold_and_least_area(
    make_prediction: MakePrediction, config: OutputConfig, areas: list[float]
) -> None:
    """A tile of 64 px at half a micrometre covers 1024 square micrometres."""
    prediction = make_prediction(RING, P)
    regions = Content(prediction, config).regions
    assert [region.area_um2 for region in regions] == areas


def test_outlines_are_smoothed_by_a_quarter_of_a_tile_by_default(make_prediction: MakePrediction) -> None:
    prediction = make_prediction([(64, 64)], [0.9])
    (region,) = Content(prediction).regions
    assert region.outline.area == pytest.approx(64**2 - (4 - np.pi) * 16**2, rel=1e-2)


def test_other_maps_of_one_slide_have_other_uuids(make_prediction: MakePrediction, tmp_path: Path) -> None:
    base = make_prediction(RING, P)
    finer = base.slide.model_copy(update={"mpp": 0.25})
    found = set()
    for number, prediction in enumerate(
        (base, replace(base, provenance=base.provenance | {"settings": {"overlap": 0.5}}), replace(base, slide=finer))
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_exports(Content(prediction, OutputConfig(formats=("ometiff",))), folder)
        with tifffile.TiffFile(folder / "heatmap.ome.tif") as tiff:
            found.add(str(tiff.ome_metadata).split('UUID="')[1][:45])
    assert len(found) == 3


@pytest.mark.parametrize(
    "wrong",
    [{"formats": ("tiff",)}, {"formats": "png"}, {"region_threshold": 1.1}, {"min_region_um2": -1}, {"regions": True}],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        OutputConfig.model_validate(wrong)


def test_the_order_and_number_of_formats_make_no_difference() -> None:
    assert OutputConfig(formats=("asap", "png", "asap")) == OutputConfig(formats=("png", "asap"))


def test_equal_predictions_are_equal_bytes(make_prediction: MakePrediction, folder: Path) -> None:
    again = folder / "again"
    again.mkdir()
    write_exports(Content(make_prediction(RING, P), EXACT), again)
    files = [path.relative_to(again) for path in again.rglob("*") if path.is_file()]
    assert len(files) > len(FILES)
    assert [name for name in files if (folder / name).read_bytes() != (again / name).read_bytes()] == []


def test_no_file_names_the_machine_the_user_or_the_day(folder: Path) -> None:
    today = datetime.datetime.now(datetime.UTC)
    names = [name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 5]  # "vm" and "root" are words
    days = [today.strftime(style) for style in ("%Y-%m-%d", "%Y:%m:%d", "%Y%m%d")]
    assert_silent(folder, [str(folder), str(Path.cwd()), f"{uuid.getnode():012x}", *days, *names])


def test_no_file_tells_what_the_slide_tells_of_people(svs: Path, make_model: MakeModel, tmp_path: Path) -> None:
    """A real Aperio slide names its user, its scanner, the day and the file it came from."""
    model = load_model(make_model(tile_px=256, threshold=0.1))
    made = make_heatmap(svs, model, tmp_path / "out", slide_id="case", outputs=OutputConfig(formats=formats()))
    assert {path.name for path in made.folder.iterdir()} > FILES
    with openslide.OpenSlide(svs) as slide:
        properties = {name.removeprefix("aperio."): value for name, value in slide.properties.items()}
    secrets = [properties[name] for name in ("User", "Date", "Time", "Filename", "ImageID", "ScanScope ID")]
    secrets += [properties["tiff.ImageDescription"], svs.stem, str(tmp_path), str(svs.parent)]
    assert_silent(made.folder, [secret for secret in secrets if len(secret) > 4])


def assert_silent(folder: Path, secrets: list[str]) -> None:
    """None of the secrets is in the bytes of a file, its name, or what a PNG says in compressed text."""
    assert secrets
    for path in (path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        texts = [data, path.relative_to(folder).as_posix().encode()]
        texts += text_chunks(data) if path.suffix == ".png" else []
        for secret in secrets:
            assert not any(secret.encode() in text for text in texts), f"{path.name} holds {secret}"


def text_chunks(png: bytes) -> list[bytes]:
    """What a PNG says beside its pixels."""
    found, at = [], 8
    while (length := int.from_bytes(png[at : at + 4])) or png[at + 4 : at + 8] != b"IEND":
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        found.append(
            zlib.decompress(data.split(b"\0", 1)[1][1:]) if kind == b"zTXt" else data if kind == b"tEXt" else b""
        )
        at += 12 + length
    return found
