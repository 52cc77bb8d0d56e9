"""Whatever specslide loads, nothing in it is run: no pickle, no network, no other program, shown by an audit hook.

Python itself reports these events, from wherever they come: https://docs.python.org/3/library/audit_events.html
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from inference import load_model, make_heatmap
from tests.forged import change_json
from tests.inference.conftest import write_model
from tiling import TilingConfig, tile_slide
from tiling.core.files import sha256_json
from training.models.classifier import make_classifier

WATCH = """
import sys
forbidden = ("pickle.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.",
             "socket.connect", "socket.get", "socket.send", "socket.bind", "urllib.", "http.", "ftplib.", "smtplib.")
seen = []
def hook(event, arguments):
    if event.startswith(forbidden):
        seen.append(event)
        raise RuntimeError(event)
"""

LOAD = """
from pathlib import Path
import numpy as np
from pipeline.provenance import trace
from pipeline.study.config import load_study
from inference import load_model, summary, sources
from inference.report.cohort import failed_before, write_cohort_index
from tiling.annotations.rasterize import annotation_mask
from tiling.core.errors import SpecslideError
from tiling.core.versions import software_versions
from tiling.grid import Frame, Raster
from tiling.manifest import read_manifest
from tiling.slides.slide import Slide
from tiling.stores.store import TileStore, verify_store
from training import checkpoints
from training.config import load_train_config
from training.data.dataset import read_image
from training.data.from_images import samples_from_images
from training.models.backbones import load_weights
from training.models.classifier import make_classifier
from training.models.folder import verify_model

software_versions()  # which asks git for the commit of the code, of no file's
sys.addaudithook(hook)

def drawn(path):
    annotation_mask(path, Frame((1024, 1024)), Raster(np.zeros((128, 128)), 8.0))
def weights(path):
    load_weights(make_classifier("test_resnet", 2, 32, 64), "test_resnet", str(path))
def slide(path):
    with Slide(path) as opened:
        opened.read_region(0, 0, 0, 64, 64)
def store(path):
    TileStore(path).read(np.arange(1))
    verify_store(path)
def model(path):
    verify_model(path)
    load_model(path).predict(np.zeros((1, 64, 64, 3), np.uint8))
def heatmap(path):
    summary.read_summary(path)
    write_cohort_index(path.parent, failed_before(path.parent))
def state(path):
    checkpoints.Checkpoints(path, {"a": 1}).load()
READERS = {"annotation": drawn, "checkpoint": state, "heatmap": heatmap, "image": lambda path: read_image(path, 64),
           "manifest": read_manifest, "model": model, "provenance": trace,
           "settings": load_train_config, "slide": slide, "store": store, "study": load_study,
           "table": lambda path: samples_from_images(path, load_train_config()), "weights": weights}
for path in sorted(Path(sys.argv[1]).iterdir()):
    kind, state_of_it = path.name.split("-")[0], path.name.split(".")[0].split("-")[1]
    try:
        READERS[kind](path)
        outcome = "read"
    except SpecslideError as error:
        outcome = "refused"
        print(error)
    assert outcome == ("read" if state_of_it == "good" else "refused"), (path.name, outcome)
    print(path.name, outcome)
print("events:", seen)
assert not seen
"""


class Runs:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("code-ran",)


def run(code: str, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=Path(__file__).parents[1], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


GEOJSON = {
    "type": "Feature",
    "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [500, 0], [500, 500], [0, 0]]]},
    "properties": {"classification": {"name": "tumour"}},
}
ASAP = """<?xml version="1.0"?><!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]><ASAP_Annotations><Annotations>
<Annotation Name="&e;" Type="Polygon" PartOfGroup="t"><Coordinates/></Annotation></Annotations></ASAP_Annotations>"""


@pytest.fixture(scope="module")
def handed_over(tmp_path_factory: pytest.TempPathFactory, small_slide: Path) -> Path:
    """A folder of files called KIND-good... or KIND-bad..., the bad ones made to run something when they are read."""
    folder = tmp_path_factory.mktemp("handed over")
    evil = pickle.dumps(Runs())

    shutil.copy(small_slide, folder / "slide-good.tif")
    (folder / "slide-bad.tif").write_bytes(evil)
    made = tile_slide(small_slide, folder / "made", TilingConfig(tile_px=64, mpp=2)).store
    shutil.copytree(made, folder / "store-good.zarr")
    write_model(folder / "model-good", tile_px=64, mpp=2)
    heatmaps = folder / "made" / "heatmaps"
    make_heatmap(made, load_model(folder / "model-good"), heatmaps)
    shutil.copytree(heatmaps / "small", folder / "heatmap-good")
    shutil.copytree(heatmaps / "small", folder / "provenance-good")
    shutil.rmtree(folder / "made")

    args: list[dict[str, Any]] = [
        {"backbone_args": {"checkpoint_path": str(folder / "weights-bad.pth")}},
        {"backbone_args": {"pretrained_cfg": {"file": str(folder / "weights-bad.pth")}, "pretrained": True}},
        {"backbone": "hf-hub:lab/tiny"}, {"backbone": f"local-dir:{folder / 'model-good'}"},
    ]  # fmt: skip
    for number, changes in enumerate(args):
        shutil.copytree(folder / "model-good", folder / f"model-bad{number}")
        change_json(folder / f"model-bad{number}" / "model.json", changes)

    state = make_classifier("test_resnet", 2, 32, 64).backbone.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "weights-good.safetensors")
    torch.save(dict(state), folder / "weights-good.pth")
    torch.save({"state_dict": Runs()}, folder / "weights-bad.pth")
    (folder / "weights-bad2.pth").write_bytes(evil)
    (folder / "weights-bad3.safetensors").write_bytes(evil)
    (folder / "checkpoint-good").mkdir()  # what cannot be read is discarded with a warning
    payload = pickle.dumps({"key": sha256_json({"a": 1}), "model": Runs()})
    (folder / "checkpoint-good" / "last.ckpt").write_bytes(hashlib.sha256(payload).digest() + payload)

    (folder / "settings-good.yaml").write_text("epochs: 3\n")
    (folder / "settings-bad.yaml").write_text("epochs: !!python/object/apply:os.mkdir [code-ran]\n")
    (folder / "study-bad.yaml").write_text("manifest: !!python/name:os.system\n")
    (folder / "annotation-good.geojson").write_text(json.dumps(GEOJSON))
    (folder / "annotation-bad.xml").write_text(ASAP)
    cv2.imwrite(str(folder / "annotation-good.png"), np.zeros((64, 64), np.uint8))
    (folder / "annotation-good.png.json").unlink(missing_ok=True)
    cv2.imwrite(str(folder / "image-good.png"), np.zeros((64, 64, 3), np.uint8))
    (folder / "image-bad.npy").write_bytes(evil)
    (folder / "manifest-good.csv").write_text(f"slide_path\n{small_slide}\n")
    (folder / "manifest-bad.parquet").write_bytes(evil)
    (folder / "table-bad.csv").write_text(f"path,label,case_id\n{folder / 'image-bad.npy'},a,b\n")
    return folder


def test_nothing_that_is_loaded_runs(handed_over: Path) -> None:
    said = run(WATCH + LOAD, handed_over)
    assert all(f"{path.name} " in said for path in handed_over.iterdir() if "-" in path.name)
    assert not (Path(__file__).parents[1] / "code-ran").exists()


@pytest.mark.parametrize(
    "code",
    [
        "import pickle; pickle.loads(pickle.dumps(print))",
        "import socket; socket.create_connection(('localhost', 9))",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "import torch; torch.load(sys.argv[1], weights_only=False)",
    ],
)
def test_the_hook_sees_what_it_looks_for(code: str, handed_over: Path) -> None:
    watched = f"\nsys.addaudithook(hook)\ntry:\n    {code}\nexcept RuntimeError:\n    pass\nassert seen\n"
    run(WATCH + watched, handed_over / "weights-bad.pth")
