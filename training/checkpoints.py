"""A run's state on disk: what it needs to go on after it was killed.

checkpoints/run.json       all that decides the run, by name
checkpoints/last.ckpt      the state at any step; replaced whole
checkpoints/best-N.ckpt    the weights of the best epoch N so far, as safetensors

A .ckpt begins with the SHA-256 of what follows: torch.load does not notice a flipped bit (1459 of 1500 tried). The
state is unpickled as tensors, numbers and texts alone; no code in it is run.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from tiling.core.artefact import require_own, setting_differences
from tiling.core.errors import ModelError
from tiling.core.files import canonical_json, output_error, sha256_json, write_file
from training.models.tensor_file import UNREADABLE, load_tensors

log = logging.getLogger(__name__)

State = dict[str, Any]
"""What `torch.load(weights_only=True)` gives back: tensors, numbers and texts in dicts and lists."""


@dataclass(frozen=True)
class Checkpoints:
    """The folder `checkpoints` of one run."""

    folder: Path
    identity: Mapping[str, Any]
    """All that decides the run, as JSON can hold it; its hash is the run's key."""

    def prepare(self) -> None:
        """Make the folder ready for this run: keep its own state, discard another run's and log how they differ.

        Raises OutputError, also for a folder that holds something else.
        """
        record = self.folder / "run.json"
        if not record.exists():
            require_own(self.folder, self._last.name, "the state of a run")
        try:
            if self.folder.exists() and (found := _recorded(record)) != self.identity:
                why = "it is of another run: " + setting_differences(found, self.identity)
                log.warning("%s: discarded, %s", self.folder, why if found else "it does not say of which run it is")
                shutil.rmtree(self.folder)
        except OSError as error:
            raise output_error(self.folder, error) from error
        write_file(record, canonical_json(dict(self.identity)))

    def is_own(self) -> bool:
        """Whether the folder holds the state of this run."""
        return _recorded(self.folder / "run.json") == self.identity

    def save(self, state: State) -> None:
        """Replace the state, whole or not at all. Raises OutputError."""
        buffer = io.BytesIO()
        torch.save({"key": sha256_json(dict(self.identity)), **state}, buffer)
        write_file(self._last, _sealed(buffer.getvalue()))

    def load(self) -> State | None:
        """The state of the run; None, with a warning, for a damaged one: training then starts anew."""
        if not self._last.exists():
            return None
        try:
            payload = _unsealed(self._last.read_bytes())
            state: State = load_tensors(io.BytesIO(payload))
        except UNREADABLE as error:
            log.warning("%s: cannot be used (%s); training starts anew", self._last, type(error).__name__)
            return None
        if state.pop("key") != sha256_json(dict(self.identity)):
            log.warning("%s: is of another run; training starts anew", self._last)
            return None
        return state

    def save_best(self, epoch: int, weights: Mapping[str, Tensor]) -> None:
        """Keep the weights of a new best epoch, from 1. Raises OutputError."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        write_file(self._best(epoch), _sealed(safetensors.torch.save(tensors)))

    def load_best(self, epoch: int) -> dict[str, Tensor]:
        """The weights of the best epoch. Raises ModelError if somebody removed or changed them."""
        try:
            return safetensors.torch.load(_unsealed(self._best(epoch).read_bytes()))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ModelError(
                self._best(epoch), f"cannot be read ({reason})", "remove its folder and train again"
            ) from None

    def keep_best(self, epoch: int) -> None:
        """Remove the weights of earlier best epochs, which no state refers to any more."""
        for path in self.folder.glob("best-*.ckpt"):
            if path != self._best(epoch):
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder: the run is complete. Raises OutputError."""
        try:
            shutil.rmtree(self.folder)
        except OSError as error:
            raise output_error(self.folder, error) from error

    def _best(self, epoch: int) -> Path:
        return self.folder / f"best-{epoch}.ckpt"

    @property
    def _last(self) -> Path:
        return self.folder / "last.ckpt"


def _sealed(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest() + payload


def _unsealed(data: bytes) -> bytes:
    """What was sealed. Raises ValueError if a bit of it changed."""
    payload = data[32:]
    if hashlib.sha256(payload).digest() != data[:32]:
        raise ValueError("it was changed or cut short")
    return payload


def _recorded(record: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(record.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
