"""A folder of GeoJSON for QuPath, and the script that loads it; QuPath itself is not at hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
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


PATH_IO = """
package qupath.lib.io
class PathIO {
    static List readObjects(File file) {
        new groovy.json.JsonSlurper().parse(file).features.collect { new Read(name: it.id) }
    }
}
class Read {
    String name
    String getID() { name }
}
"""
PROJECT = """
class Hierarchy {
    List objects = []
    List getAllObjects(boolean root) { objects }
    void removeObjects(Collection gone, boolean children) { objects = objects - gone }
    void addObjects(Collection more) { objects.addAll(more) }
}
class Image {
    def hierarchy = new Hierarchy()
    def server = new StringReader('')
}
class Entry {
    String imageName
    def saved = new Image()
    Image readImageData() { saved }
    void saveImageData(Image data) { saved = data }
}
class Project {
    List imageList
}
def project = new Project(imageList: args[1..-1].collect { new Entry(imageName: it) })
def shell = new GroovyShell(this.class.classLoader, new Binding(getProject: { -> project }))
2.times { shell.evaluate(new File(args[0])) }
println groovy.json.JsonOutput.toJson(project.imageList.collectEntries { entry ->
    [entry.imageName, entry.saved.hierarchy.objects.collect { it.name }]
})
"""


@pytest.mark.nightly
def test_the_script_loads_each_image_s_objects_once(slide: Path, model: TileModel, tmp_path: Path) -> None:
    """With Groovy and stand-ins for QuPath's classes; QuPath itself is not at hand."""
    java = shutil.which("java")
    if java is None or shutil.which("groovy") is None:
        pytest.skip("lacks groovy or java, as Debian's packages of those names have them")
    outputs = OutputConfig(formats=("geojson",))
    made = [make_heatmap(slide, model, tmp_path, slide_id=name, outputs=outputs).folder for name in ("a", "ab")]
    script = export_qupath(made, tmp_path / 'qu"pa$th')[-1]
    (tmp_path / "stubs/qupath/lib/io").mkdir(parents=True)
    (tmp_path / "stubs/qupath/lib/io/PathIO.groovy").write_text(PATH_IO)
    (tmp_path / "project.groovy").write_text(PROJECT)
    images = ["a.svs", "ab", "a - 2.svs", "other.svs"]
    words = ["groovy", "-cp", str(tmp_path / "stubs"), str(tmp_path / "project.groovy"), str(script), *images]
    home = os.environ | {"JAVA_HOME": str(Path(java).resolve().parents[1])}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=home)
    loaded = json.loads(done.stdout.splitlines()[-1])
    ids = {
        folder.name: [
            feature["id"]
            for name in ("heatmap.geojson", "regions.geojson")
            for feature in json.loads((folder / name).read_text())["features"]
        ]
        for folder in made
    }
    assert len(ids["a"]) > 10
    assert [sorted(loaded[name]) for name in images] == [sorted(ids["a"]), sorted(ids["ab"]), sorted(ids["a"]), []]
