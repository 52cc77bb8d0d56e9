"""The recipes of the images, read: no engine runs here. test_install.py runs their install steps."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.docker.recipes import FOLDER, ROOT, Instruction, sections, stages

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
DOCKERFILE = stages(FOLDER / "Dockerfile")
FINAL = DOCKERFILE["final"]
BUILD, RUNTIME = sections(FOLDER / "specslide.def")
SERVICES = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]


def program(name: str) -> str:
    """The path of a linter; skips the test where it is not installed."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return found or pytest.skip(f"lacks {name}: pip install 'specslide[dev]'")


def all_of(name: str, among: list[Instruction] | None = None) -> list[Instruction]:
    found = among if among is not None else [one for stage in DOCKERFILE.values() for one in stage]
    return [one for one in found if one.name == name]


def the(name: str) -> Instruction:
    """The only instruction of its name in the last stage."""
    (one,) = all_of(name, FINAL)
    return one


def copied() -> set[str]:
    """What is copied from the repository."""
    return {word for one in all_of("COPY") if "--from" not in one.text for word in one.words[:-1]}


# ------------------------------------------------------------------------------------------- the Dockerfile


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(
        [program("hadolint"), "--no-color", FOLDER / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_images_from_outside_have_a_version() -> None:
    outside = {one.words[0] for one in all_of("FROM") if one.words[0] not in DOCKERFILE and "$" not in one.text}
    assert outside == {"python:3.11-slim-bookworm"}
    for kind in ("cpu", "cuda"):
        assert f"torch-{kind}" in DOCKERFILE, "what FROM torch-${TORCH} names"
    assert [one.text for one in DOCKERFILE[""]] == ["TORCH=cpu"]


def test_nothing_comes_from_the_network_but_through_pip() -> None:
    assert all_of("ADD") == []
    for path in FOLDER.iterdir():
        text = path.read_text()
        assert "://" not in text, f"{path.name} names a host"
        assert not re.search(r"\b(curl|wget|git)\b", text)
    pips = [part for one in all_of("RUN") for part in one.text.split("&&") if "pip install" in part]
    assert len(pips) == 3
    for pip in pips:
        assert "--no-cache-dir --constraint constraints.txt" in pip


def test_what_is_copied_is_all_that_the_wheel_is_built_of() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert copied() == {"constraints.txt", "pyproject.toml", PROJECT["project"]["readme"], "LICENSE", *PACKAGES}
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied()
    assert ignored[0] == "*"
    assert all((ROOT / name).exists() for name in copied())


def test_the_extras_of_the_image_are_extras() -> None:
    (extras,) = {found for one in all_of("RUN") for found in re.findall(r"'\.\[(.+)\]'", one.text)}
    assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"]) - {"dev"}


def test_the_image_runs_as_nobody_in_particular_and_writes_to_tmp_only() -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", the("USER").text)
    after = FINAL[FINAL.index(the("USER")) :]
    assert {one.name for one in after} == {"USER", "WORKDIR", "ENTRYPOINT", "CMD"}
    variables = dict(word.split("=", 1) for word in the("ENV").words)
    for name in ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "NUMBA_CACHE_DIR"):
        assert Path(variables[name]).is_relative_to("/tmp"), name
    assert variables["HF_HUB_OFFLINE"] == "1"


def test_the_image_says_what_it_is_and_starts_the_command() -> None:
    labels = dict(word.split("=", 1) for word in the("LABEL").words)
    prefix = "org.opencontainers.image."
    assert labels.keys() == {prefix + key for key in ("title", "description", "licenses", "version", "revision")}
    assert labels[prefix + "title"] == PROJECT["project"]["name"]
    assert labels[prefix + "licenses"] == PROJECT["project"]["license"]
    assert "research use only" in labels[prefix + "description"]
    assert f"VERSION={PROJECT['project']['version']}" in {one.text for one in all_of("ARG", FINAL)}
    assert the("ENTRYPOINT").text == '["specslide"]'
    assert "specslide" in PROJECT["project"]["scripts"]


# -------------------------------------------------------------------------------------------- the compose file


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_may_write_its_data_and_nothing_else(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert service["network_mode"] == "none"
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == "${SPECSLIDE_USER:-1000:1000}"
    assert not service.get("privileged")
    (volume,) = service["volumes"]
    assert (volume["type"], volume["target"]) == ("bind", the("WORKDIR").text)


@pytest.mark.parametrize(("name", "torch"), [("specslide", "cpu"), ("specslide-gpu", "cuda")])
def test_a_service_is_built_of_the_dockerfile(name: str, torch: str) -> None:
    service = SERVICES[name]
    context = (FOLDER / service["build"]["context"]).resolve()
    assert (context, context / service["build"]["dockerfile"]) == (ROOT, FOLDER / "Dockerfile")
    assert service["build"]["args"]["TORCH"] == torch
    assert service["build"]["args"].keys() <= {one.text.split("=")[0] for one in all_of("ARG")}
    assert service["image"] == f"specslide:{torch}"


def test_gpus_are_asked_for_by_their_profile_only() -> None:
    assert SERVICES["specslide-gpu"]["profiles"] == ["gpu"]
    (device,) = SERVICES["specslide-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert not {"profiles", "deploy"} & SERVICES["specslide"].keys()


# -------------------------------------------------------------------------------------------- Apptainer's recipe


def test_apptainer_installs_what_docker_installs() -> None:
    assert {line.split()[0] for line in BUILD["files"].splitlines() if line} == copied()
    torch = next(one.text.split("&&")[0].strip() for one in DOCKERFILE["torch-cpu"] if one.name == "RUN")
    steps = [one.text for one in (*DOCKERFILE["venv"], *DOCKERFILE["build"]) if one.name == "RUN"]
    assert [line for line in BUILD["post"].splitlines() if line] == [
        "set -e", "cd /src", steps[0], 'index="{{ TORCH_INDEX }}"', torch.replace("TORCH_INDEX", "index"), steps[1],
    ]  # fmt: skip
    assert BUILD["arguments"].split() == ["TORCH_INDEX="]
    for stage in (BUILD, RUNTIME):
        assert "From: python:3.11-slim-bookworm\n" in stage[""]
    assert RUNTIME["files from build"].split() == ["/opt/specslide", "/opt/specslide"]


def test_apptainer_runs_what_docker_runs() -> None:
    assert RUNTIME["runscript"].strip() == 'exec specslide "$@"'
    variables = dict(word.split("=", 1) for word in the("ENV").words)
    set_there = dict(word.split("=", 1) for word in shlex.split(RUNTIME["environment"], comments=True) if "=" in word)
    assert set_there.items() <= variables.items()
    assert set_there.keys() >= {"PATH", "HF_HUB_OFFLINE"}
    labels = dict(line.split(maxsplit=1) for line in RUNTIME["labels"].splitlines() if line)
    assert labels.items() <= dict(word.split("=", 1) for word in the("LABEL").words).items()


@pytest.mark.parametrize("section", ["post", "environment", "runscript", "test"])
def test_shellcheck_finds_nothing_in_apptainers_recipe(section: str) -> None:
    text = BUILD.get(section) or RUNTIME[section]
    done = subprocess.run(
        [program("shellcheck"), "--shell=sh", "-"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
