"""The processes that train a model together: one a GPU, or several on CPUs, under torchrun, srun or started by Fabric.

Knows no model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from tiling.core.errors import ConfigError
from training.config import LearningConfig
from training.devices import device_of, precision_of

_TORCHRUN = {"devices": "LOCAL_WORLD_SIZE", "nodes": "GROUP_WORLD_SIZE"}


class Processes(NamedTuple):
    """The number of processes that train together: on each machine, and of machines."""

    devices: int
    nodes: int


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
