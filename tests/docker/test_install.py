"""The install steps of the image, run as they stand in the Dockerfile, and the command in what they made."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.recipes import FOLDER, ROOT, Instruction, stages
from tests.inference.conftest import write_model
from tests.offline import run_offline
from tests.pipeline.conftest import obey_permissions

DOCKERFILE = stages(FOLDER / "Dockerfile")
IN_SLIM = re.compile(r"(linux-vdso|ld-linux.*|lib(c|m|dl|rt|pthread|util|gcc_s|stdc\+\+|z))\.so.*")
"""What debian:bookworm-slim has by way of libraries that wheels look for."""


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """A folder that stands for the root of the CPU's image: `opt/specslide` is filled by the steps, then read-only."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the image has Python 3.11")
    root = Path(tempfile.mkdtemp(prefix="specslide-image-"))
    for name in ("bin", "src", "tmp", "data"):
        (root / name).mkdir()
    (root / "bin" / "python").symlink_to(Path(sys.base_prefix) / "bin" / "python3.11")
    for stage in ("venv", "torch-cpu", "build"):
        for instruction in DOCKERFILE[stage]:
            step(instruction, root)
    folders = [path for path in (root / "opt").rglob("*") if path.is_dir() and not path.is_symlink()]
    for folder in folders:
        folder.chmod(0o555)
    yield root
    for folder in folders:
        folder.chmod(0o755)
    shutil.rmtree(root)


def step(instruction: Instruction, root: Path) -> None:
    """Do in `root` what an instruction does in an image."""
    if instruction.name == "COPY":
        *sources, target = instruction.words
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, root / "src" / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, root / "src" / target)
    elif instruction.name == "RUN":
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
        done = subprocess.run(
            ["/bin/sh", "-c", instruction.text.replace("/opt/", f"{root}/opt/")], cwd=root / "src",
            env=kept | {"PATH": f"{root / 'bin'}:{os.environ['PATH']}", "HOME": str(root / "tmp")},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
    else:
        assert instruction.text in {"/src", "TORCH_INDEX="} or instruction.name == "FROM", instruction


def run(image: Path, *arguments: str | Path) -> str:
    """What the image's command says, with the image's variables, in /data, on a root that cannot be written."""
    (variables,) = [one.words for one in DOCKERFILE["final"] if one.name == "ENV"]
    inside = {
        key: re.sub(r"^/(tmp|opt)", lambda found: str(image) + found[0], value).replace("$PATH", os.environ["PATH"])
        for key, value in (word.split("=", 1) for word in variables)
    }
    (entry,) = [one.text for one in DOCKERFILE["final"] if one.name == "ENTRYPOINT"]
    program = shutil.which(entry.strip('[]"'), path=inside["PATH"])
    assert program == str(image / "opt/specslide/bin/specslide")
    more = {"TMPDIR": str(image / "tmp"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return run_offline([program, *arguments], image / "data", inside | more, before=obey_permissions)


@pytest.mark.nightly
def test_the_steps_of_the_image_install_what_runs(image: Path, svs: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", tile_px=256)
    assert "research use only" in run(image, "--help")
    assert "yes" in run(image, "info", svs)
    assert "made" in run(image, "tile", svs, "--out", "stores", "--mpp", "0.499", "--workers", "2")
    store = image / "data/stores/CMU-1-Small-Region.zarr"
    assert "made" in run(image, "heatmap", store, "--model", model, "--out", "heatmaps")
    assert "2 intact" in run(image, "verify", store, "heatmaps/CMU-1-Small-Region")
    assert "distributed" in run_python(
        image, "import dask_jobqueue, distributed, torchstain; print(distributed.__name__)"
    )
    written = {
        path.relative_to(image).parts[0] for path in image.rglob("*") if path.stat().st_mtime > store.stat().st_mtime
    }
    assert written <= {"data", "tmp"}


def run_python(image: Path, code: str) -> str:
    return run_offline([image / "opt/specslide/bin/python", "-c", code], image / "data", before=obey_permissions)


@pytest.mark.nightly
def test_the_slim_image_has_every_library_that_is_looked_for(image: Path) -> None:
    libraries = [path for path in (image / "opt").rglob("*.so*") if path.is_file()]
    assert len(libraries) > 100
    brought = {path.name for path in libraries}
    missing = set()
    for number in range(0, len(libraries), 200):
        said = subprocess.run(["ldd", *libraries[number : number + 200]], capture_output=True, text=True, check=False)
        for library, looked_for in re.findall(r"^(/\S+):\n((?:\t.*\n)*)", said.stdout, re.MULTILINE):
            for name, place in re.findall(r"^\t(\S+) => (not found|\S+)", looked_for, re.MULTILINE):
                if not (place.startswith(str(image)) or name in brought or IN_SLIM.fullmatch(name)):
                    missing.add((Path(library).relative_to(image / "opt").as_posix(), name))
    # Beside torch for the CPU a wheel of torchvision for CUDA is mended: training/models/torchvision_shim.py.
    assert {(library, name) for library, name in missing if "/site-packages/torchvision/" not in library} == set()
