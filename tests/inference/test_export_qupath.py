"""A folder of GeoJSON for QuPath, and the script that loads it; QuPath itself is not at hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inference import make_heatmap
from inference.config import OutputConfig
from inference.export_qupath import SCRIPT, export_qupath
from pipeline.cli import app
from tiling.core.errors import InputError, OutputError
from training import TileModel


def test_files_are_copied_and_the_script_knows_their_folder(slide: Path, model: TileModel, tmp_path: Path) -> None:
    outputs = OutputConfig(formats=("geojson",))
    made = [make_heatmap(slide, model, tmp_path, slide_id=name, outputs=outputs).folder for name in ("a", "b")]
    out = tmp_path / 'qu"pa$th'
    words = ["export", "qupath", str(tmp_path), "--out", str(out)]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "4 files" in " ".join(done.output.split())
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["a.geojson", "a.regions.geojson", "b.geojson", "b.regions.geojson", SCRIPT]
    )
    assert (out / "b.geojson").read_bytes() == (made[1] / "heatmap.geojson").read_bytes()
    assert (out / "a.regions.geojson").read_bytes() == (made[0] / "regions.geojson").read_bytes()
    script = (out / SCRIPT).read_text()
    assert 'qu\\"pa\\$th' in script
    assert script.count("{") == script.count("}")
    with pytest.raises(OutputError, match="--overwrite"):
        export_qupath(made, out)
    assert len(export_qupath(made, out, overwrite=True)) == 5
    shutil.copytree(made[0], tmp_path / "again")
    with pytest.raises(InputError, match="second"):
        export_qupath([made[0], tmp_path / "again"], tmp_path / "other")
    (tmp_path / "again" / "heatmap.geojson").write_text("{}")
    with pytest.raises(InputError, match="damaged"):
        export_qupath([tmp_path / "again"], tmp_path / "other")
    assert not (tmp_path / "other").exists()
