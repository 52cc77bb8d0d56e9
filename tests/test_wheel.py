"""The wheel: what it holds, and that it is enough."""

from __future__ import annotations

import configparser
import email
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

import pytest

from tests.offline import run_offline

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("tiling", "training", "inference", "pipeline")
INFO = "specslide-{version}.dist-info".format(**PROJECT["project"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d"]
    subprocess.run([*build, folder], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.iterdir()
    return wheel


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return email.message_from_string(archive.read(f"{INFO}/METADATA").decode())


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    own = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    } | {"specslide.py"}
    about = {f"{INFO}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")}
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) == own | about
        assert archive.testzip() is None
        texts = [archive.read(name) for name in archive.namelist()]
    assert not any(str(ROOT).encode() in text or str(Path.home()).encode() + b"/" in text for text in texts)
    assert wheel.name == f"specslide-{PROJECT['project']['version']}-py3-none-any.whl"


def test_the_wheel_says_what_it_is(metadata: Message) -> None:
    project = PROJECT["project"]
    assert (metadata["Name"], metadata["Version"]) == (project["name"], project["version"])
    assert (metadata["License-Expression"], metadata["License-File"]) == ("Apache-2.0", "LICENSE")
    assert metadata["Requires-Python"] == project["requires-python"]
    assert metadata.get_payload() == (ROOT / "README.md").read_text()
    asked = {
        re.split(r"[ ;>=<\[]", line)[0] for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line
    }
    assert asked == {re.split(r"[ ;>=<\[]", line)[0].replace("_", "-").lower() for line in project["dependencies"]}
    assert set(metadata.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])


def test_the_wheel_brings_the_command_and_the_codec(wheel: Path) -> None:
    points = configparser.ConfigParser(delimiters="=")
    with zipfile.ZipFile(wheel) as archive:
        points.read_string(archive.read(f"{INFO}/entry_points.txt").decode())
    found = {group: dict(points[group]) for group in points.sections()}
    assert found == {
        "console_scripts": {"specslide": "specslide:main"},
        "zarr.codecs": {"specslide.jpeg": "tiling.stores.codec:JpegCodec"},
    }


def test_the_changelog_is_about_this_version() -> None:
    headings = re.findall(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == PROJECT["project"]["version"]


@pytest.mark.nightly
def test_the_demo_runs_from_the_wheel_alone(wheel: Path, svs: Path, tmp_path: Path) -> None:
    """In a clean environment and another folder, without a network."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    install = ["-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([python, *install, wheel], check=True, env=kept)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = run_offline(
        [python, "-c", "import specslide; print(specslide.TileStore and specslide.__file__)"], elsewhere
    )
    assert where.startswith(str(tmp_path / "venv"))
    home = {"HOME": str(elsewhere), "OMP_NUM_THREADS": "1"}
    specslide = tmp_path / "venv/bin/specslide"
    said = run_offline([specslide, "demo", "--slide", svs, "--out", "demo"], elsewhere, home)
    assert "real slide: " in said
    assert (elsewhere / "demo/index.html").exists()
    results: list[str | Path] = ["demo/study/training/model", *elsewhere.glob("demo/study/stores/*.zarr")]
    assert f"{len(results)} intact, 0 damaged" in run_offline([specslide, "verify", *results], elsewhere, home)
