"""The commands that look at and change finished stores."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.commands.tile import tissue_files, tissue_method
from pipeline.demo.synthetic import write_pyramid
from tests.tiling.stores.test_import_histoprep import output as histoprep_output
from tiling import TileStore, TilingConfig, tile_slide
from tiling.core.artefact import atomic_folder, locked_folder
from tiling.core.errors import ConfigError, InputError
from tiling.manifest import slide_row
from tiling.stores.store import verify_store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    picture = np.full((320, 400, 3), 244, np.uint8)
    cv2.circle(picture, (200, 160), 140, (222, 140, 180), -1)
    write_pyramid(tmp_path / "disc.tif", picture, mpp=0.5, levels=1)
    config = TilingConfig(mpp=0.5, tile_px=32, codec="lossless", min_tissue=0.1)
    return tile_slide(tmp_path / "disc.tif", tmp_path, config).store


def test_tiles_counts_and_draws_what_is_kept(store: Path, tmp_path: Path) -> None:
    where, preview = "x < 200 and white < 0.5", tmp_path / "kept.png"
    done = CliRunner().invoke(app, ["tiles", str(store), "--where", where, "--preview", str(preview)])
    opened = TileStore(store)
    kept = ((opened.tiles.x0 < 200) & (opened.quality["white"] < 0.5)).sum()
    assert done.exit_code == 0
    assert f"{kept} of {len(opened)} tiles kept" in done.output
    assert 0 < kept < len(opened)
    assert preview.read_bytes()[:4] == b"\x89PNG"
    refused = CliRunner().invoke(app, ["tiles", str(store), "--where", "focus >"])
    assert isinstance(refused.exception, ConfigError)


def test_label_gives_annotations_and_reports_each_store(store: Path, tmp_path: Path) -> None:
    ring = [[100, 100], [300, 100], [300, 300], [100, 300], [100, 100]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}
    (tmp_path / "disc.geojson").write_text(json.dumps([feature]))
    done = CliRunner().invoke(app, ["label", str(store), "--annotations", str(tmp_path)])
    assert (done.exit_code, "unclassified" in done.output) == (0, True)
    assert list(TileStore(store).annotations) == ["unclassified"]
    assert verify_store(store) == []
    (tmp_path / "disc.geojson").rename(tmp_path / "other.geojson")
    failed = CliRunner().invoke(app, ["label", str(store), "--annotations", str(tmp_path)])
    assert (failed.exit_code, "FAILED" in failed.output) == (1, True)
    with pytest.raises(InputError, match="nowhere: does not exist"):
        CliRunner().invoke(app, ["label", str(store), "--annotations", "nowhere"], catch_exceptions=False)


def test_import_goes_on_after_a_bad_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = CliRunner().invoke(
        app, ["import", "histoprep", str(tmp_path / "empty"), "--out", str(tmp_path / "out"), "--mpp", "0.5"]
    )
    assert done.exit_code == 1
    assert "1 of 1 slides failed" in done.output


def test_import_refuses_twin_folders(tmp_path: Path) -> None:
    """Even with --overwrite: the second would replace the first."""
    twins = [histoprep_output(tmp_path / name / "slide_1") for name in "ab"]
    arguments = ["--out", str(tmp_path / "out"), "--mpp", "4", "--overwrite"]
    done = CliRunner().invoke(app, ["import", "histoprep", *map(str, twins), *arguments])
    assert isinstance(done.exception, InputError)
    assert f"two have the name 'slide_1': {twins[0]} and {twins[1]}" in str(done.exception)
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, ["import", "histoprep", str(twins[0]), *arguments])
    assert (done.exit_code, TileStore(tmp_path / "out" / "slide_1.zarr").slide.slide_id) == (0, "slide_1")


def test_a_manifests_annotation_stays_where_the_folder_has_none(tmp_path: Path, store: Path) -> None:
    ring = [[100, 100], [300, 100], [300, 300], [100, 300], [100, 100]]
    (tmp_path / "folder").mkdir()
    for name, file in {"listed": "a.geojson", "other": "b.geojson", "found": "folder/b.geojson"}.items():
        properties = {"classification": {"name": name}}
        feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}
        (tmp_path / file).write_text(json.dumps([feature]))
    rows = ["slide_path,slide_id,annotation", "disc.tif,a,a.geojson", "disc.tif,b,b.geojson", "disc.tif,c,"]
    (tmp_path / "slides.csv").write_text("\n".join(rows))
    done = CliRunner().invoke(
        app,
        ["tile", "--manifest", str(tmp_path / "slides.csv"), "--annotations", str(tmp_path / "folder"), "--out",
         str(tmp_path / "out"), "--tile-px", "32", "--workers", "1"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = {name: list(TileStore(tmp_path / "out" / f"{name}.zarr").annotations) for name in "abc"}
    assert found == {"a": ["listed"], "b": ["found"], "c": []}


def test_verify_reads_what_a_model_says_of_itself(tmp_path: Path) -> None:
    """As it opens stores: hashes that match make no model of a folder."""
    with locked_folder(tmp_path / "model"), atomic_folder(tmp_path / "model") as folder:
        (folder / "model.json").write_text("{}")
    done = CliRunner().invoke(app, ["verify", str(tmp_path / "model")])
    assert done.exit_code == 1
    assert "0 intact, 1 damaged" in done.output
    assert "model.json: does not describe a model" in " ".join(done.output.split())


def test_what_tissue_names(tmp_path: Path) -> None:
    assert tissue_method("otsu") == "otsu"
    assert tissue_method(str(tmp_path)) == "mask"
    with pytest.raises(ConfigError, match="specslide, otsu, hsv, histoprep"):
        tissue_method("magic")


def test_masks_are_found_by_slide(tmp_path: Path) -> None:
    rows = [slide_row(tmp_path / name) for name in ("a.svs", "b.svs")]
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match=r"\bb\b"):
        tissue_files(tmp_path, rows)
    with pytest.raises(InputError, match="2 slides"):
        tissue_files(tmp_path / "a.png", rows)
    assert tissue_files(tmp_path, rows[:1]) == tissue_files(tmp_path / "a.png", rows[:1]) == {"a": tmp_path / "a.png"}
