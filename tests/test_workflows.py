"""Files for other programs: Snakemake, Nextflow, and what makes a release of a tag."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.readme import ROOT, parse

WORKFLOWS = ROOT / "docs" / "workflows"
RELEASE = ROOT / ".github" / "workflows" / "release.yml"


@pytest.mark.parametrize("name", ["Snakefile", "main.nf"])
def test_the_command_is_one_that_there_is(name: str) -> None:
    (line,) = re.findall(r"specslide heatmap [^\"\n]+", (WORKFLOWS / name).read_text())
    parse(re.sub(r"\$?\{[^}]*\}", "2", line))


@pytest.mark.nightly
def test_snakemake_makes_the_heatmaps_that_are_missing(small_slide: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    subprocess.run([tmp_path / "venv/bin/pip", "install", "--quiet", "snakemake"], check=True)
    (tmp_path / "slides").mkdir()
    for name in ("a", "b c"):
        shutil.copy(small_slide, tmp_path / "slides" / f"{name}.tif")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    words = ["--snakefile", WORKFLOWS / "Snakefile", "--cores", "2", "--config", "slides=slides", "model=breast-idc"]

    def snakemake() -> str:
        command = [str(tmp_path / "venv/bin/snakemake"), *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    snakemake()
    pages = [tmp_path / "heatmaps" / name / "report.html" for name in ("a", "b c")]
    assert all(page.is_file() for page in pages)
    assert "Nothing to be done" in snakemake()
    before = pages[0].stat().st_mtime_ns
    shutil.rmtree(pages[1].parent)
    snakemake()
    assert pages[1].is_file()
    assert pages[0].stat().st_mtime_ns == before


@pytest.mark.nightly
def test_nextflows_file_is_of_its_grammar() -> None:
    """By Groovy, of which Nextflow's language is made; Nextflow itself is on no package index."""
    java = shutil.which("java")
    if java is None or shutil.which("groovy") is None:
        pytest.skip("lacks groovy or java, as Debian's packages of those names have them")
    words = ["groovy", "-e", "new GroovyShell().parse(new File(args[0]))", str(WORKFLOWS / "main.nf")]
    home = os.environ | {"JAVA_HOME": str(Path(java).resolve().parents[1])}
    done = subprocess.run(words, capture_output=True, text=True, env=home)
    assert done.returncode == 0, done.stderr + done.stdout


def release() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(RELEASE.read_text())
    return found


def test_a_release_is_made_by_the_makefiles_targets() -> None:
    runs = [step["run"] for job in release()["jobs"].values() for step in job["steps"] if "run" in step]
    asked = {target for run in runs for target in re.findall(r"\bmake ([a-z ]+)", run) for target in target.split()}
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"check", "test", "dist"} <= asked <= targets


def test_only_the_step_that_publishes_may_do_so() -> None:
    found = release()
    rights = {name: job["permissions"] for name, job in found["jobs"].items()}
    assert found["permissions"] == {}
    assert rights == {"build": {"contents": "read"}, "publish": {"id-token": "write"}}
    assert not any("run" in step for step in found["jobs"]["publish"]["steps"])


def test_a_tag_of_another_version_releases_nothing() -> None:
    (check,) = [step["run"] for step in release()["jobs"]["build"]["steps"] if "tag" in step.get("name", "")]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    def passes(tag: str) -> bool:
        environment = os.environ | {"GITHUB_REF_NAME": tag}
        return subprocess.run(["bash", "-c", check], cwd=ROOT, env=environment).returncode == 0

    assert passes(f"v{version}")
    assert not passes(f"v{version}1")
    assert not passes("v9.9.9")
