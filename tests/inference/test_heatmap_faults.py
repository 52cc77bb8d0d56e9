"""Faults while a heatmap is made in every format: what the user sees, and that nothing half made has its final name.

A disk that is full from the k-th change on, kill -9 before the k-th, and then the same command again; and models and
slides that go wrong, through the command line.
"""

from __future__ import annotations

import errno
import hashlib
import html
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

import inference.heatmap
from inference.config import OutputConfig
from inference.exports import formats
from inference.heatmap import make_heatmap
from inference.predict import predict_slide
from inference.report.evidence import Evidence
from pipeline import cli
from tests.inference.conftest import write_model
from tests.tiling.conftest import ram_folder
from tests.tiling.core.test_faults import FaultyDisk
from tiling import Slide, TilingConfig, tile_slide
from tiling.core.artefact import folder_faults
from tiling.core.errors import SpecslideError
from training import TileModel

OUTPUTS = OutputConfig(formats=formats())
NEVER = 0


def listing(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, with the hash of its content."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def half_made(out: Path) -> list[str]:
    return [path.name for path in out.iterdir() if not path.name.startswith(".") and folder_faults(path)]


@pytest.fixture
def ram(tmp_path: Path) -> Iterator[Path]:
    with ram_folder(tmp_path) as folder:
        yield folder


# ------------------------------------------------------------------------------------------------------ a full disk


class FullDisk(FaultyDisk):
    """Counts Arrow's files too, which it writes by itself."""

    @contextmanager
    def plugged_in(self) -> Iterator[None]:
        with super().plugged_in(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(pyarrow.parquet, "write_table", self._second(pyarrow.parquet.write_table))
            patch.setattr(pyarrow.csv, "write_csv", self._second(pyarrow.csv.write_csv))
            yield

    def _second(self, call: Callable[..., None]) -> Callable[..., None]:
        def faulty(table: Any, path: Path, *args: Any, **kwargs: Any) -> None:
            self.step("arrow")
            call(table, path, *args, **kwargs)

        return faulty


@pytest.fixture
def job(
    slide: Path, model: TileModel, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path, FaultyDisk], SpecslideError | None]:
    """Makes the heatmap on a disk and returns its error; predicted and drawn once, for what is tried is the writing."""
    prediction = predict_slide(slide, model)
    drawn = bytes(range(256)) * 64
    monkeypatch.setattr(inference.heatmap, "predict_slide", lambda *args, **kwargs: prediction)
    monkeypatch.setattr(inference.heatmap, "gather_evidence", lambda *args: Evidence())
    monkeypatch.setattr("inference.exports.png.overlay_png", lambda *args: drawn)
    monkeypatch.setattr("inference.exports.png.heatmap_png", lambda *args: drawn)

    def run(out: Path, disk: FaultyDisk) -> SpecslideError | None:
        with disk.plugged_in():
            try:
                make_heatmap(slide, model, out, outputs=OUTPUTS, overwrite=True)
            except SpecslideError as error:
                return error
        return None

    return run


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("found", ["nothing", "another result"])
def test_a_disk_that_is_full_from_some_moment_on(
    slide: Path, model: TileModel, job: Callable[[Path, FaultyDisk], SpecslideError | None], ram: Path, found: str,
    every: int,
) -> None:  # fmt: skip
    """The error names the slide's result and the reason; what was there stays; and later the same command succeeds."""
    out, before = ram / "out", ram / "before"
    before.mkdir()
    if found != "nothing":
        make_heatmap(slide, model, before)
    at_first = listing(before)

    def prepare() -> None:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(before, out)

    prepare()
    undisturbed = FullDisk(out, NEVER)
    assert job(out, undisturbed) is None
    expected = listing(out)
    assert {"predictions.csv", "heatmap.ome.tif", "regions.xml"} <= {path.name for path in (out / "disc").iterdir()}
    kinds = undisturbed.kinds
    assert {"arrow", "open", "write", "mkdir", "rename"} <= set(kinds)
    publishing = max(number for number, kind in enumerate(kinds, start=1) if kind == "mkdir")
    lasts = sorted({*range(1, len(kinds) + 1, every), *range(max(publishing, len(kinds) - 8), len(kinds) + 1)})
    errors = 0
    for last in lasts:
        where = f"operation {last} of {len(kinds)}, {kinds[last - 1]}"
        prepare()
        error = job(out, FullDisk(out, last, errno.ENOSPC, for_good=True))
        assert half_made(out) == [], where
        if error is None:
            assert {name: data for name, data in listing(out).items() if not name.startswith(".")} == expected, where
            continue
        errors += 1
        assert str(out / "disc") in str(error), where
        assert "No space left on device" in str(error), where
        assert "free some space and run the same command again" in str(error), where
        # The old result; or the new one, where only the folder's own entry could not be synced; or, where the disk
        # refuses even to rename, the old one beside its place, to which the next command moves it back.
        visible = {name: data for name, data in listing(out).items() if not name.startswith(".")}
        aside = {f"disc/{name}": data for name, data in listing(out / ".disc.replaced").items()}
        assert visible in (at_first, expected) or (visible == {} and aside == at_first), where
        assert job(out, FullDisk(out, NEVER)) is None, where
        assert listing(out) == expected, where
    assert errors > 0.8 * len(lasts)


def test_a_file_that_may_not_grow(slide: Path, model_folder: Path, tmp_path: Path) -> None:
    """The operating system refuses, in C++ below Python: a limit on the size of files, which a quota is alike."""
    arguments = ["heatmap", slide, "--model", model_folder, "--formats", "ometiff", "--out", tmp_path / "out"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        env=os.environ | {"PYTHONPATH": str(root), "COLUMNS": "300", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "disc: cannot be written" in done.stdout
    assert "too large" in done.stdout
    assert not (tmp_path / "out" / "disc").exists()


# ---------------------------------------------------------------------------------------------------------- kill -9

# Forks a child for each line, which kills itself before the n-th change of the file system below the folder; n = 0 is
# never. Prints the number of changes, or the signal. Pictures are not drawn: it is the writing that is cut short.
_SERVER = """
import os, signal, sys
import inference.exports.png, inference.heatmap
from inference.config import OutputConfig, PredictConfig
from inference.exports import formats
from tiling.core.versions import code_commit
from training import load_model
code_commit()
model = load_model(sys.argv[2])
inference.exports.png.overlay_png = inference.exports.png.heatmap_png = lambda *args: b"drawn" * 1000
PLAIN = PredictConfig(backend="torch")  # the soonest
CALLS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "fcntl.flock", "open"}

def work(folder, last):
    count = 0
    def hook(event, args):
        nonlocal count
        if event in CALLS and (event != "open" or folder in str(args[0])):
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    outputs = OutputConfig(formats=formats())
    inference.heatmap.make_heatmap(sys.argv[1], model, folder, PLAIN, outputs=outputs, overwrite=True)
    return count

for line in sys.stdin:
    folder, last = line.rstrip("\\n").split("\\t")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, str(work(folder, int(last))).encode())
        os._exit(0)
    os.close(writing)
    status = os.waitpid(child, 0)[1]
    with os.fdopen(reading) as answers:
        print(answers.read() or f"killed by {os.WTERMSIG(status)}", flush=True)
"""


@pytest.mark.parametrize("kills", [3, pytest.param(60, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("found", ["nothing", "another result"])
def test_killed_while_it_is_written(
    slide: Path, model_folder: Path, model: TileModel, ram: Path, found: str, kills: int
) -> None:
    """Then the same command again: the bytes of an undisturbed run, and no stray files."""
    before = ram / "before"
    before.mkdir()
    if found != "nothing":
        make_heatmap(slide, model, before)
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER, slide, model_folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # whose threads a fork does not survive
    ) as server:  # fmt: skip
        stdin, stdout = server.stdin, server.stdout
        assert stdin is not None
        assert stdout is not None

        def run(out: Path, last: int) -> str:
            stdin.write(f"{out}\t{last}\n")
            stdin.flush()
            return stdout.readline().strip()

        shutil.copytree(before, ram / "undisturbed")
        calls = int(run(ram / "undisturbed", NEVER))
        expected, cut_short = listing(ram / "undisturbed"), 0
        lasts = sorted({*np.linspace(calls // 4, calls, kills).astype(int).tolist(), calls - 1})
        for last in lasts:
            out = ram / f"out-{last}"
            shutil.copytree(before, out)
            assert run(out, last) == f"killed by {signal.SIGKILL:d}"
            assert half_made(out) == [], "under its final name a result is whole"
            cut_short += any(path.name.endswith((".partial", ".replaced")) for path in out.iterdir())
            assert run(out, NEVER).isdigit()
            assert listing(out) == expected, f"killed at change {last} of {calls}"
            shutil.rmtree(out)
        assert cut_short >= len(lasts) / 2
        stdin.close()


# --------------------------------------------------------------------------------------------- what the user sees


def heatmap(*arguments: object) -> Result:
    everything = ["--formats", ",".join(formats())]
    return CliRunner().invoke(cli.app, ["heatmap", *map(str, arguments), *everything], env={"COLUMNS": "300"})


def shown(done: Result) -> str:
    """The terminal's text, without the frames of its tables and wherever they wrap."""
    return " ".join(done.output.replace("│", " ").split())


@dataclass(frozen=True)
class SickOf(TileModel):
    """A model that gives NaN for one tile alone, and on whose device only four tiles fit."""

    tile: bytes = b""
    asked: list[int] = field(default_factory=list)

    def predict(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.asked.append(len(tiles))
        if len(tiles) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        found = super().predict(tiles)
        found[[tile.tobytes() == self.tile for tile in tiles]] = np.nan
        return found


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[[TileModel], None]:
    """Makes the command use that model, whatever folder it gets."""

    def give(model: TileModel) -> None:
        monkeypatch.setattr("pipeline.execution.jobs.load_models", lambda *args: model)

    return give


def test_one_tile_without_a_number_fails_its_slide_and_no_other(
    slide: Path, glass: Path, model: TileModel, model_folder: Path, tmp_path: Path, given: Callable[[TileModel], None]
) -> None:
    first = predict_slide(slide, model)
    x, y = int(first.tiles.x0[40]), int(first.tiles.y0[40])
    with Slide(slide) as opened:
        tile = opened.read_region(x, y, 0, 32, 32).tobytes()
    given(SickOf(model.network, model.info, model.sha256, model.device, tile=tile))
    config = TilingConfig(mpp=0.5, tile_px=32, codec="lossless")
    stores = [tile_slide(path, tmp_path / "stores", config).store for path in (slide, glass)]  # read in this process
    done = heatmap(
        *stores, "--model", model_folder, "--out", tmp_path / "out", "--batch-size", 64, "--backend", "torch"
    )
    assert done.exit_code == 1
    assert "1 of 2 slides failed" in shown(done)
    said = html.unescape((tmp_path / "out" / "index.html").read_text())  # the table folds it
    assert f"disc, tile at x {x}, y {y}: the model gives no finite probability; check the model's training" in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"glass", "index.html", "not_analysed.json"}
    assert folder_faults(tmp_path / "out" / "glass") == []


def test_memory_that_runs_out_is_no_fault(
    slide: Path, model: TileModel, model_folder: Path, tmp_path: Path, given: Callable[[TileModel], None]
) -> None:
    """Batches are halved until they fit, and every file is the same but for the last digits of a sum."""
    narrow = SickOf(model.network, model.info, model.sha256, model.device)
    given(narrow)
    config = TilingConfig(mpp=0.5, tile_px=32, codec="lossless")
    store = tile_slide(slide, tmp_path / "stores", config).store  # read in this process
    asked = ("--model", model_folder, "--backend", "torch", "--batch-size")
    done = heatmap(store, *asked, 64, "--out", tmp_path / "narrow")
    assert done.exit_code == 0, done.output
    assert narrow.asked[:5] == [64, 32, 16, 8, 4]
    given(model)
    assert heatmap(store, *asked, 4, "--out", tmp_path / "plain").exit_code == 0
    assert listing(tmp_path / "narrow" / "disc") == listing(tmp_path / "plain" / "disc")


@pytest.mark.usefixtures("one_process")
def test_a_slide_without_tissue(glass: Path, model_folder: Path, tmp_path: Path) -> None:
    """It is no failure; the result says that nothing was analysed, in words, and every file is there."""
    done = heatmap(glass, "--model", model_folder, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "0 tiles, nothing analysed" in shown(done)
    made = tmp_path / "out" / "glass"
    assert folder_faults(made) == []
    assert "nothing can be said of it. This is not a negative result" in (made / "report.html").read_text()
    names = {"predictions.csv", "heatmap.geojson", "regions.geojson", "regions.xml", "heatmap.ome.tif", "heatmap.png"}
    assert names | {"overlay.png", "heatmap.ome.zarr", "slide.json"} < {path.name for path in made.iterdir()}
    assert pyarrow.parquet.read_table(made / "predictions.parquet").num_rows == 0


@pytest.mark.usefixtures("one_process")
def test_models_of_other_classes(slide: Path, model_folder: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", seed=2, classes=("benign", "ink"), positive_class="ink")
    done = heatmap(slide, "--model", model_folder, "--model", other, "--out", tmp_path / "out")
    assert isinstance(done.exception, SpecslideError)
    assert "has the classes benign, ink, and the first one benign, tumour" in str(done.exception)
    assert not (tmp_path / "out").exists()
