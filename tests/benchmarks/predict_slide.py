"""Slide to probabilities against the model alone over the same tiles, and ONNX Runtime against torch on a CPU.

    python -m tests.benchmarks.predict_slide [--side 4096] [--backbone resnet18] [--rounds 3]

A synthetic tissue of JPEG tiles is repeated over a slide of that side at 0.5 mpp. Each round measures every
way in turn: the model alone over tiles already in memory, in batches of the size that prediction finds; the same by
ONNX Runtime; and `predict_slide` with either. What counts is the median over rounds of the ratio within a round, since
the speed of a shared machine drifts. Peak memory is the process's after its first
prediction, before the tiles are in memory.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from inference.backends import Predict, auto_batch_size, choose_backend
from inference.predict import PredictConfig, predict_slide
from pipeline.synthetic import write_pyramid
from tiling import Slide
from training import ModelInfo, TileModel
from training.model import make_classifier


def tissue(side: int) -> NDArray[np.uint8]:
    """Pink with texture, everywhere, uint8 (side, side, 3)."""
    random = np.random.default_rng(0)
    block = (
        random.integers(-25, 25, (1024, 1024, 1)) + np.array([215, 140, 185]) + random.integers(-9, 9, (1024, 1024, 3))
    )
    times = -(-side // 1024)
    return np.tile(block.clip(0, 255).astype(np.uint8), (times, times, 1))[:side, :side]


def random_model(backbone: str, device: torch.device) -> TileModel:
    """A model of tiles of 256 px at 0.5 mpp with random weights."""
    info = ModelInfo.model_validate(
        {"backbone": backbone, "classes": ("benign", "tumour"), "positive_class": "tumour", "input_px": 256,
         "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "mpp": 0.5, "tile_px": 256, "temperature": 1.0,
         "threshold": 0.5, "best_epoch": 1, "training": {}, "data": {}, "metrics": {}, "software": {},
         "hashes": {"weights.safetensors": "none"}}
    )  # fmt: skip
    return TileModel(make_classifier(backbone, 2, 256, 256).eval().to(device), info, "none", device)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def over(tiles: NDArray[np.uint8], predict: Predict, size: int) -> None:
    for start in range(0, len(tiles), size):
        predict(tiles[start : start + size])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4096, help="of the slide, pixels")
    parser.add_argument("--backbone", default="resnet18", help="any timm model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--readers", type=int, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "slide.tif"
        write_pyramid(path, tissue(options.side), mpp=0.5, levels=3)
        model = random_model(options.backbone, torch.device(options.device))
        size = auto_batch_size(model)
        backends = ("torch", "onnx") if options.device == "cpu" else ("torch",)
        configs = {name: PredictConfig(backend=name, readers=options.readers) for name in backends}
        found = predict_slide(path, model, configs["torch"])
        peak = peak_mib()
        with Slide(path) as slide:
            places = zip(found.x0.tolist(), found.y0.tolist(), strict=True)
            tiles = np.stack([slide.read_scaled(x, y, (256, 256), (256, 256)) for x, y in places])
        predictors = {name: choose_backend(model, name, "auto")[1] for name in backends}  # type: ignore[arg-type]
        print(f"{options.backbone}, {len(tiles)} tiles of 256 px, batches of {size}, {torch.get_num_threads()} threads")
        ratios: dict[str, list[float]] = {}
        for number in range(options.rounds):
            alone = {name: seconds(lambda name=name: over(tiles, predictors[name], size)) for name in backends}  # type: ignore[misc]
            whole = {name: seconds(lambda name=name: predict_slide(path, model, configs[name])) for name in backends}  # type: ignore[misc]
            for name in backends:
                ratios.setdefault(f"slide / model alone, {name}", []).append(whole[name] / alone[name])
            if "onnx" in backends:
                ratios.setdefault("torch / onnx, model alone", []).append(alone["torch"] / alone["onnx"])
            rates = ", ".join(
                f"{name} {len(tiles) / alone[name]:.1f} alone, {len(tiles) / whole[name]:.1f} whole"
                for name in backends
            )
            print(f"round {number + 1}: tiles a second: {rates}")
        for name, values in ratios.items():
            print(f"{name}: {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        print(f"peak memory after the first prediction: {peak:.0f} MiB")


if __name__ == "__main__":
    main()
