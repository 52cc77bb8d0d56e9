"""The machine a model is trained on: device, precision, and torch made deterministic. Knows no model.

Lightning, which takes seconds to load and which prediction does without, is imported in training.processes alone.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tiling.core.errors import ConfigError
from training.config import LearningConfig

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def device_of(config: LearningConfig) -> torch.device:
    """The device of a training. Raises ConfigError for a GPU that is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(config.device, True):
        raise ConfigError("device", f"there is no GPU ({config.device}) that torch can use", "use --device cpu or auto")
    if config.device == "auto":
        return torch.device("cuda" if there["cuda"] else "cpu")
    return torch.device(config.device)


def exact(device: torch.device) -> torch.dtype:
    """The numbers in which a device adds up: float64, or float32 where it has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def precision_of(config: LearningConfig) -> Any:
    """Lightning's name for the precision; bf16 is far slower than 32 bits where the hardware only imitates it."""
    able = device_of(config).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if config.precision == "bf16" and not able:
        raise ConfigError("precision", "bf16 needs a GPU that computes in it", "use 32 or auto")
    return "bf16-mixed" if able and config.precision != "32" else "32-true"


def machine_of(fabric: Fabric, config: LearningConfig) -> dict[str, object]:
    """Device, precision and number of processes of a training; nothing that names a machine."""
    precision = precision_of(config)
    return {"device": device_name(fabric.device), "precision": precision, "processes": fabric.world_size}


def device_name(device: torch.device) -> str:
    """The name of a device: "cpu", or the GPU's product name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def from_first(fabric: Fabric, network: nn.Module) -> None:
    """Give every process the first one's buffers: each process's norms have seen their own share of the tiles."""
    if fabric.world_size > 1:
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, 0)


def total(fabric: Fabric, values: Tensor) -> Tensor:
    """The sum of a tensor over all processes, the same on each."""
    if fabric.world_size > 1:
        torch.distributed.all_reduce(values)
    return values


def gathered(fabric: Fabric, values: Tensor) -> Tensor:
    """The tensors (m, ...) of all processes, of one shape, as (processes, m, ...)."""
    if fabric.world_size == 1:
        return values[None]
    parts = [torch.empty_like(values) for _ in range(fabric.world_size)]
    torch.distributed.all_gather(parts, values.contiguous())
    return torch.stack(parts)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread: on few tiles more gain nothing, and on busy cores they wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def settled(config: LearningConfig) -> Iterator[None]:
    """Seed torch, make it deterministic and keep Lightning quiet; all is put back afterwards."""
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    chatter = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in chatter]
    with torch.random.fork_rng(range(torch.cuda.device_count())), warnings.catch_warnings():
        # Under srun each process is started for itself; in one that is not, Lightning would advise it.
        warnings.filterwarnings("ignore", message=r".*`srun` command is available.*")
        torch.manual_seed(config.seed)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only so
        torch.use_deterministic_algorithms(True)
        for logger in chatter:
            logger.setLevel(logging.WARNING)
        if config.threads:
            torch.set_num_threads(config.threads)
        try:
            yield
        finally:
            for logger, level in zip(chatter, levels, strict=True):
                logger.setLevel(level)
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic)
