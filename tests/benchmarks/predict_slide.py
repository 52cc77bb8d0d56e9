"""Slide to heatmap against the model alone over the same tiles, ONNX Runtime against torch on a CPU, and WSInfer.

    python -m tests.benchmarks.predict_slide path/to/CMU-1-Small-Region.svs [--backbone resnet18] [--rounds 3]
        [--wsinfer VENV/bin/python]

The slide repeats the real one's own streams with coarser levels as scanners add them; the model has random weights and
takes tiles of 256 px at the slide's own scale, or at `--mpp`. Each round measures every way in turn: the model alone
over the kept tiles, already in memory, in batches of the size that prediction finds, by torch and by ONNX Runtime;
`make_heatmap` with either, from opening the slide to the finished folder of results; and, each as a command of its own
in a fresh process, `specslide heatmap` and WSInfer with the TorchScript that `export-model` makes of the same model.
WSInfer runs with its defaults (its own tissue mask, as many loader processes as cores) on openslide. What counts is the
median over rounds of the ratio within a round, since the speed of a shared machine drifts. Memory is the largest
resident size of the command `specslide heatmap`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from inference import load_model, make_heatmap
from inference.backends import Predict, auto_batch_size, choose_backend
from inference.config import PredictConfig
from inference.export_model import WSINFER_CONFIG, WSINFER_MODEL, export_model
from tests.benchmarks.peers import make_slide
from tiling import Slide
from training import ModelInfo, TileModel
from training.models.folder import make_classifier, save_model

SLIDE_MPP, TILE_PX = 0.5, 256
WSINFER_JOB = Path(__file__).parent / "peer_jobs" / "with_wsinfer.py"


def random_model(folder: Path, backbone: str, mpp: float, device: str) -> TileModel:
    """A model folder with random weights, loaded."""
    torch.manual_seed(0)
    info = ModelInfo.model_validate(
        {"backbone": backbone, "classes": ("benign", "tumour"), "positive_class": "tumour", "input_px": TILE_PX,
         "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "mpp": mpp, "tile_px": TILE_PX, "temperature": 1.0,
         "threshold": 0.5, "best_epoch": 1, "training": {}, "data": {}, "metrics": {}, "software": {}, "hashes": {}}
    )  # fmt: skip
    save_model(folder, make_classifier(backbone, 2, TILE_PX, TILE_PX), info, "random weights\n")
    return load_model(folder, device)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def over(tiles: NDArray[np.uint8], predict: Predict, size: int) -> None:
    for start in range(0, len(tiles), size):
        predict(tiles[start : start + size])


def tiles_of(slide: Path, table: Path, side_px0: int) -> NDArray[np.uint8]:
    """The tiles that a heatmap's table names, uint8 (N, T, T, 3)."""
    with Slide(slide) as opened, table.open(newline="") as rows:
        places = [(int(row["minx"]), int(row["miny"])) for row in csv.DictReader(rows)]
        return np.stack([opened.read_scaled(x, y, (side_px0, side_px0), (TILE_PX, TILE_PX)) for x, y in places])


def our_command(slide: Path, model: Path, out: Path, backend: str) -> list[str]:
    options = ["--model", str(model), "--out", str(out), "--backend", backend]
    return [sys.executable, "-m", "pipeline.cli", "heatmap", str(slide), *options]


def run(command: list[str]) -> tuple[str, float]:
    """What a command printed, and its wall time."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        raise SystemExit(f"{command[:4]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path, help="a JPEG SVS or TIFF to take the streams from")
    parser.add_argument("--side", type=int, default=20_000, help="of the slide that is made, pixels")
    parser.add_argument("--backbone", default="resnet18", help="any timm model")
    parser.add_argument("--mpp", type=float, default=SLIDE_MPP, help=f"of the model; the slide's is {SLIDE_MPP}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--wsinfer", type=Path, help="Python of a venv with wsinfer==0.6.1, openslide-python and -bin")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        slides, out = scratch / "slides", scratch / "out"
        slides.mkdir()
        path, model_dir = slides / "slide.tif", scratch / "model"
        make_slide(options.slide, path, options.side)
        model = random_model(model_dir, options.backbone, options.mpp, options.device)
        size = auto_batch_size(model)
        backends = ("torch", "onnx") if options.device == "cpu" else ("torch",)

        def heatmap(backend: str) -> None:
            shutil.rmtree(out, ignore_errors=True)
            make_heatmap(path, model, out, PredictConfig.model_validate({"backend": backend}))

        heatmap("torch")
        tiles = tiles_of(path, out / "slide" / "predictions.csv", round(TILE_PX * options.mpp / SLIDE_MPP))
        predictors = {name: choose_backend(model, name, "auto")[1] for name in backends}  # type: ignore[arg-type]
        exported = scratch / "wsinfer"
        if options.wsinfer:
            export_model(model, "wsinfer", exported)
        facts = f"{len(tiles)} tiles of {TILE_PX} px at {options.mpp:g} mpp, batches of {size}"
        print(f"{options.backbone}, {facts}, {torch.get_num_threads()} threads", flush=True)
        ratios: dict[str, list[float]] = {}

        def note(name: str, value: float) -> None:
            ratios.setdefault(name, []).append(value)

        for number in range(options.rounds):
            rates: dict[str, float] = {}
            for name in backends:
                alone = seconds(lambda name=name: over(tiles, predictors[name], size))  # type: ignore[misc]
                whole = seconds(lambda name=name: heatmap(name))  # type: ignore[misc]
                rates |= {f"{name} alone": len(tiles) / alone, f"{name} slide to heatmap": len(tiles) / whole}
                note(f"slide to heatmap / model alone, {name}", whole / alone)
            if "onnx" in backends:
                note("onnx / torch, tiles a second, model alone", rates["onnx alone"] / rates["torch alone"])
            for name in backends:
                shutil.rmtree(out, ignore_errors=True)
                _, took = run(our_command(path, model_dir, out, name))
                rates[f"{name} command"] = len(tiles) / took
            if options.wsinfer:
                job = [str(options.wsinfer), "-I", str(WSINFER_JOB), str(slides), str(scratch / f"theirs{number}")]
                printed, took = run([*job, str(exported / WSINFER_CONFIG), str(exported / WSINFER_MODEL)])
                told = json.loads(printed.splitlines()[-1])
                rates |= {
                    "wsinfer command": told["tiles"] / took,
                    "wsinfer predicting": told["tiles"] / told["seconds"],
                }
                for name in backends:
                    note(
                        f"command, tiles a second, {name} / wsinfer",
                        rates[f"{name} command"] / rates["wsinfer command"],
                    )
                print(f"WSInfer kept {told['tiles']} tiles")
            print(
                f"round {number + 1}, tiles a second: {', '.join(f'{k} {v:.1f}' for k, v in rates.items())}", flush=True
            )
            shutil.rmtree(out, ignore_errors=True)
        for name, values in ratios.items():
            print(f"{name}: {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        print(f"largest process: {largest_mib(our_command(path, model_dir, out, 'torch')):.0f} MiB")


def largest_mib(command: list[str]) -> float:
    """Largest resident size of a command, run in a process that has run nothing else, MiB."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    printed, _ = run([sys.executable, "-c", code, *command])
    return int(printed.split()[-1]) / 1024


if __name__ == "__main__":
    main()
