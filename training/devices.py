"""The machine a model is trained on: device, precision, processes, and torch made deterministic. Knows no model.

One process a GPU, or several on CPUs, under torchrun, srun or started by Lightning Fabric itself (`devices`).
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch import Tensor, nn

from tiling.core.errors import ConfigError
from training.config import LearningConfig


class Processes(NamedTuple):
    """The number of processes that train together: on each machine, and of machines."""

    devices: int
    nodes: int


def device_of(config: LearningConfig) -> torch.device:
    """The device of a training. Raises ConfigError for a GPU that is not there."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device", "there is no GPU that torch can use", "use --device cpu or auto")
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")


def precision_of(config: LearningConfig) -> Any:
    """Lightning's name for the precision; bf16 is far slower than 32 bits where the hardware only imitates it."""
    able = device_of(config).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if config.precision == "bf16" and not able:
        raise ConfigError("precision", "bf16 needs a GPU that computes in it", "use 32 or auto")
    return "bf16-mixed" if able and config.precision != "32" else "32-true"


def processes_of(config: LearningConfig) -> Processes:
    """How many processes there will be: those torchrun or srun started, else as configured.

    Raises ConfigError where the settings say otherwise than the launcher, or ask for GPUs that are not there.
    """
    launcher, found = _launched()
    for name, started in found.items():
        asked = getattr(config, name)
        if asked is not None and asked != started:
            raise ConfigError(name, f"{asked} are asked for, but {launcher} started {started}", "leave it out")
    devices, nodes = (found.get(name) or getattr(config, name) or 1 for name in Processes._fields)
    if device_of(config).type == "cuda" and devices > torch.cuda.device_count():
        have = torch.cuda.device_count()
        raise ConfigError("devices", f"{devices} GPUs are asked for and {have} are there", "ask for fewer")
    return Processes(devices, nodes)


def make_fabric(config: LearningConfig) -> Fabric:
    """Lightning Fabric for the machine, not yet launched. Raises ConfigError for what this machine cannot do."""
    devices, nodes = processes_of(config)
    return Fabric(
        accelerator=device_of(config).type,
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if devices * nodes > 1 else "auto",
        precision=precision_of(config),
    )


def machine_of(fabric: Fabric, config: LearningConfig) -> dict[str, object]:
    """Device, precision and number of processes of a training; nothing that names a machine."""
    precision = precision_of(config)
    return {"device": device_name(fabric.device), "precision": precision, "processes": fabric.world_size}


def device_name(device: torch.device) -> str:
    """The name of a device: "cpu", or the GPU's product name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def launching() -> Iterator[None]:
    """Context that lets a process train several times with others: what Lightning left is cleared afterwards."""
    names = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def is_own_child() -> bool:
    """Whether Fabric, and neither torchrun nor srun, started this process beside the first one."""
    return not _launched()[0] and LightningEnvironment().local_rank() > 0


def is_first() -> bool:
    """Whether this is the first of the processes that train together, before any of them has trained."""
    environment = {"torchrun": TorchElasticEnvironment, "srun": SLURMEnvironment}.get(_launched()[0])
    return (LightningEnvironment().local_rank() if environment is None else environment().global_rank()) == 0


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


def _launched() -> tuple[str, dict[str, int]]:
    """Who started this process among others ("torchrun", "srun", "" for nobody), and how many they are, by setting."""
    if TorchElasticEnvironment.detect():
        return "torchrun", {name: int(os.environ[key]) for name, key in _TORCHRUN.items() if key in os.environ}
    if "SLURM_NTASKS" in os.environ and SLURMEnvironment.job_name() not in ("bash", "interactive"):
        nodes, tasks = int(os.environ.get("SLURM_NNODES", 1)), int(os.environ["SLURM_NTASKS"])
        if tasks == 1 and nodes == 1:
            return "", {}  # a job of one process may still start others itself
        if "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise ConfigError("devices", f"Slurm was asked for --ntasks={tasks}", "ask for --ntasks-per-node instead")
        return "srun", {"devices": int(os.environ["SLURM_NTASKS_PER_NODE"]), "nodes": nodes}
    return "", {}


_TORCHRUN = {"devices": "LOCAL_WORLD_SIZE", "nodes": "GROUP_WORLD_SIZE"}
