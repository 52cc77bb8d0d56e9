"""A study on a Dask cluster whose workers are killed, with slides that cannot be analysed: the rest is done, and told.

Training is no task of the cluster's: what happens when it is killed is told in test_study.
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import tifffile
import yaml

from pipeline.demo.synthetic import make_cohort, write_pyramid
from tests.pipeline.conftest import Finished, RunCli, listing
from tiling.stores.store import verify_store

ROOT = Path(__file__).resolve().parents[3]
MEMORY = "1.2GB"
BAD = ("corrupt", "scaleless", "runaway")
STUDY = {
    "manifest": "manifest.csv",
    "out": "results",
    # A mask as fine as the slides: of the runaway, 16,000 px wide, it takes more than the workers may use.
    "tile": {"mpp": 0.5, "tile_px": 128, "tissue": {"mask_mpp": 0.5}},
    "train": {
        "backbone": "test_resnet", "weights": "none", "input_px": 32, "epochs": 1, "batch_size": 16,
        "bootstrap_resamples": 20, "threads": 1, "device": "cpu",
    },
    "evaluate": {"resamples": 20},
}  # fmt: skip


def write_runaway(path: Path, side: int = 16_000, tile_px: int = 512) -> None:
    """A white slide of 0.5 micrometres a pixel, in few bytes: all its tiles are one."""
    white = simplejpeg.encode_jpeg(np.full((tile_px, tile_px, 3), 240, np.uint8), 85, "RGB", "444")
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            iter([white] * (-(-side // tile_px)) ** 2), shape=(side, side, 3), dtype=np.uint8, tile=(tile_px, tile_px),
            photometric="ycbcr", compression="jpeg", subsampling=(1, 1), metadata=None,
            resolution=(20_000, 20_000), resolutionunit="CENTIMETER",
        )  # fmt: skip


def write_study(folder: Path, n_slides: int, heatmaps: str) -> Path:
    """A cohort of synthetic slides and the three bad ones, and the study of them."""
    manifest = make_cohort(folder / "cohort", n_slides=n_slides, seed=5, size_px=(1024, 1024))
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["slide_path"] = str(manifest.parent / row["slide_path"])
        row["annotation"] = row["annotation"] and str(manifest.parent / row["annotation"])
    (folder / "corrupt.svs").write_bytes(Path(rows[0]["slide_path"]).read_bytes()[:5000])
    write_pyramid(folder / "scaleless.tif", np.full((512, 512, 3), 200, np.uint8), mpp=None)
    write_runaway(folder / "runaway.tif")
    for name, ending in zip(BAD, (".svs", ".tif", ".tif"), strict=True):
        rows.append(rows[0] | {"slide_path": f"{name}{ending}", "slide_id": name, "case_id": name, "annotation": ""})
    with (folder / "manifest.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    study = folder / "study.yaml"
    study.write_text(yaml.safe_dump(STUDY | {"heatmap": {"slides": heatmaps}}))
    return study


def worker_of(run: int) -> int | None:
    """A process that another one has started through multiprocessing, if it has any at the moment."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == run and b"spawn_main" in (process / "cmdline").read_bytes():
                return int(process.name)
    return None


def kill_one_worker(run: subprocess.Popen[str]) -> None:
    """Kill one of the worker processes that a run has at the moment, as the system does when memory is short."""
    deadline = time.monotonic() + 60
    while (worker := worker_of(run.pid)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)


def run_and_kill(arguments: list[str], results: Path) -> Finished:
    """The command, with one worker killed as the first slide is begun, and one as the first heatmap is."""
    variables = {"COLUMNS": "500", "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "TERM": "dumb", "PYTHONWARNINGS": ""}
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | variables | {"PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        for first in ("stores/.*.lock", "heatmaps/.*.lock"):  # which a slide under way has
            deadline = time.monotonic() + 300
            while not list(results.glob(first)):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            kill_one_worker(process)
        out, err = process.communicate(timeout=600)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def check_told(done: Finished) -> None:
    """Exit code 1, and the three slides with their reasons."""
    assert done.returncode == 1, done.stderr
    lines = {name: [line for line in done.stdout.splitlines() if name in line] for name in BAD}
    for name, reason in zip(
        BAD, ("corrupt: is damaged", "micrometres", "more than the memory limit of 1.12 GiB"), strict=True
    ):
        assert any(reason in line for line in lines[name]), done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.nightly
@pytest.mark.parametrize(("n_slides", "heatmaps"), [(6, "test"), (37, "all")])
def test_a_study_survives_its_workers_and_its_slides(
    run_cli: RunCli, tmp_path: Path, n_slides: int, heatmaps: str
) -> None:
    study, results = write_study(tmp_path, n_slides, heatmaps), tmp_path / "results"
    arguments = ["run", str(study), "--cluster", "local:2", "--worker-memory", MEMORY]
    check_told(run_and_kill(arguments, results))
    good = {f"synthetic-{i:02d}" for i in range(n_slides)}
    assert {path.stem for path in (results / "stores").glob("*.zarr")} == good
    assert all(verify_store(path) == [] for path in (results / "stores").glob("*.zarr"))
    shown = {path.parent.name for path in (results / "heatmaps").glob("*/slide.json")}
    assert shown == (good if heatmaps == "all" else slides_to_test(results / "training" / "split.csv", tmp_path))
    if heatmaps == "test":
        return  # the second call takes as long again
    before = listing(results)
    check_told(run_cli(*arguments))
    after = listing(results)
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == {"ledger.jsonl"}


def slides_to_test(split: Path, folder: Path) -> set[str]:
    """The good slides of the test split."""
    with split.open(newline="") as file:
        cases = {row["case_id"] for row in csv.DictReader(file) if row["split"] == "test"}
    with (folder / "manifest.csv").open(newline="") as file:
        return {row["slide_id"] for row in csv.DictReader(file) if row["case_id"] in cases}
