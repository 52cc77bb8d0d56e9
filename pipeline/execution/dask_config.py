"""Which cluster works on a cohort, and with what. Plain settings: Dask is not imported here."""

from __future__ import annotations

import re
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

Kind = Literal["local", "slurm", "pbs", "lsf", "scheduler"]
Queue = dict[str, Any]

_ADDRESS = r"(tcp|tls)://[^\s/]+:\d+"
_FORMS = "local, local:N, slurm, pbs, lsf, or the address of a scheduler such as tcp://host:8786"
_BYTES = re.compile(r"\d+(\.\d+)?\s*([kMGT]i?)?B", re.IGNORECASE)
_DAY_S = 86_400.0


class ClusterConfig(BaseModel):
    """A cluster of Dask workers, each of which does one slide at a time. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    at: str = "local"
    """`local` or `local:N` (processes of this machine), `slurm`, `pbs` or `lsf` (jobs of that queue), or the address of
    a Dask scheduler that runs already, `tcp://host:8786` or `tls://host:8786`."""
    workers: int | None = Field(None, ge=1)
    """Max workers at once. None: locally one a core, and one a GPU where GPUs predict; a queue needs a number."""
    min_workers: int = Field(0, ge=0)
    """Workers of a queue that are kept however little there is to do; the others come and go with the work."""
    memory: str | None = None
    """What a local worker may use, such as `8GB`; None: its share of the machine. One that uses more is ended and its
    slide reported. In a queue each worker has its share of the `memory` of its job."""
    retries: int = Field(2, ge=0)
    """How often a slide is tried again whose worker was lost: killed, or gone with its machine."""
    wait_s: float | None = Field(None, gt=0)
    """Seconds without any worker after which it is given up. None: 600, and a day where a queue has to be waited for.
    """
    tls: bool = True
    """Whether a queue's workers prove who they are and what they are sent is encrypted; without it, whoever reaches the
    scheduler's port can run programs in your name. Keys are made for each run."""
    queue: Queue = {}
    """Settings of a queue's jobs, as dask-jobqueue names them: `cores` and `memory` (of a job), `processes` (workers of
    a job; None: one a core), `queue`, `account`, `walltime`, `job_extra_directives`, `interface`, ..."""
    gpu_queue: Queue = {}
    """Settings that replace those of `queue` for predictions on GPUs, one worker a device: such as
    `{cores: 4, processes: 1, job_extra_directives: ["--gres=gpu:1"]}`."""

    @property
    def kind(self) -> Kind:
        """The kind of cluster that `at` names."""
        if re.fullmatch(_ADDRESS, self.at):
            return "scheduler"
        return cast(Kind, self.at.partition(":")[0])

    @property
    def max_workers(self) -> int | None:
        """The N of `local:N`, or `workers`."""
        number = self.at.partition(":")[2] if self.kind == "local" else ""
        return int(number) if number else self.workers

    @property
    def patience_s(self) -> float:
        """Seconds without any worker after which it is given up."""
        return self.wait_s or (600.0 if self.kind in ("local", "scheduler") else _DAY_S)

    @field_validator("at")
    @classmethod
    def _is_a_place(cls, at: str) -> str:
        if not re.fullmatch(rf"local(:[1-9]\d{{0,3}})?|slurm|pbs|lsf|{_ADDRESS}", at, re.ASCII):
            raise ValueError(f"a cluster is {_FORMS}")
        return at

    @field_validator("memory")
    @classmethod
    def _is_memory(cls, memory: str | None) -> str | None:
        if memory is not None and not _BYTES.fullmatch(memory.strip()):
            raise ValueError("memory is a number and a unit, such as 8GB or 512MiB")
        return memory

    @model_validator(mode="after")
    def _fits_the_kind(self) -> ClusterConfig:
        """What the kind of cluster has no use for is refused: it would seem to do something."""
        queued = self.kind in ("slurm", "pbs", "lsf")
        misplaced = {
            "memory": self.memory is not None and self.kind != "local",
            "queue": bool(self.queue) and not queued,
            "gpu_queue": bool(self.gpu_queue) and not queued,
            "min_workers": self.min_workers > 0 and not queued,
            "workers": self.workers is not None and (self.kind == "scheduler" or ":" in self.at),
        }
        for name in (name for name, wrong in misplaced.items() if wrong):
            raise PydanticCustomError(cast(Any, name), "{at} does not take it", {"at": self.at})
        if queued and self.workers is None:
            raise PydanticCustomError("at", "it needs the max number of workers at once: set workers", {})
        if self.workers is not None and self.min_workers > self.workers:
            raise PydanticCustomError("min_workers", "it is more than workers, {max}", {"max": self.workers})
        return self
