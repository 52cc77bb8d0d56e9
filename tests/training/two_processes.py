"""What test_train_processes.py starts twice: trains as one of two processes, and says how each part ended.

Usage: torchrun --nproc-per-node 2 two_processes.py INDEX OUT
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from tiling.core.errors import ConfigError, ModelError, StoppedError
from training import TrainConfig, samples_from_images, train
from training.augmentations import AUGMENTATIONS
from training.data.dataset import Batch
from training.fit import Training

SETTINGS: dict[str, Any] = {
    "backbone": "test_efficientnet_gn", "weights": "none", "input_px": 32, "epochs": 2, "batch_size": 8,
    "learning_rate": 3e-3, "bootstrap_resamples": 20, "val_fraction": 0.25, "test_fraction": 0.25, "augment": "none",
    "sd_lambda": 0.1, "class_weights": "balanced", "clip_norm": 1.0, "ema_decay": 0.9,
}  # fmt: skip


def main(index: Path, out: Path) -> None:
    """Train alike, stopped and gone on with, with an odd batch, and on a picture that breaks the loss."""
    rank = int(os.environ["RANK"])
    config = TrainConfig(**SETTINGS)
    samples = samples_from_images(index, config)
    result = train(samples, out / "whole", config)
    say(out, "whole", rank, f"{result.rank} {result.metrics['val']['log_loss'].value}")

    step = Training._step

    def stopped(self: Training, batch: Batch) -> Tensor:
        if self.progress.step == 3 and rank == 1:  # the one that does not write is asked
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(self, batch)

    Training._step = stopped  # type: ignore[method-assign]
    try:
        train(samples, out / "torn", config)
    except StoppedError as error:
        say(out, "torn", rank, f"{error.exit_code} {error}")
    Training._step = step  # type: ignore[method-assign]
    train(samples, out / "torn", config)

    try:
        train(samples, out / "odd", TrainConfig(**SETTINGS | {"batch_size": 9}))
    except ConfigError as error:
        say(out, "odd", rank, str(error))

    AUGMENTATIONS["none"] = lambda pixels, _: pixels / pixels.mean(dim=(1, 2, 3), keepdim=True)  # NaN where black
    try:
        train(samples, out / "broken", config)
    except ModelError as error:
        say(out, "broken", rank, str(error))


def say(out: Path, name: str, rank: int, text: str) -> None:
    """Leave a text for the test."""
    (out / f"{name}-{rank}.txt").write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
