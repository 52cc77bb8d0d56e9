"""A run's state on disk: what it needs to go on after it was killed. `last.ckpt` is unpickled as tensors alone.

checkpoints/run.json       the key of the run, and all that decides it
checkpoints/last.ckpt      the state, at any step; replaced whole
checkpoints/best-N.safetensors   the weights of the best epoch N so far
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tiling.errors import ModelError, OutputError
from tiling.files import canonical_json, output_error, sha256_json, write_file

log = logging.getLogger(__name__)

State = dict[str, Any]
"""What `torch.load(weights_only=True)` gives back: tensors, numbers and texts in dicts and lists."""


@dataclass(frozen=True)
class Checkpoints:
    """The folder `checkpoints` of one run."""

    folder: Path
    identity: Mapping[str, Any]
    """All that decides the run, as JSON can hold it; its hash is the run's key."""

    def claim(self) -> None:
        """Make the folder this run's: keep what it left, discard what another left, saying in what they differ."""
        record = self.folder / "run.json"
        try:
            if self.folder.exists() and (difference := _difference(_recorded(record), self.identity)):
                log.warning("%s: discarded, it is of another run: %s", self.folder, difference)
                shutil.rmtree(self.folder)
        except OSError as error:
            raise output_error(self.folder, error) from error
        write_file(record, canonical_json(dict(self.identity)))

    def save(self, state: State) -> None:
        """Replace the state, whole or not at all. Raises OutputError."""
        final = self.folder / "last.ckpt"
        partial = final.with_name(".last.ckpt.partial")
        try:
            with partial.open("wb") as file:
                torch.save({"key": sha256_json(dict(self.identity)), **state}, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(final)
        except OSError as error:
            raise output_error(final, error) from error
        except RuntimeError as error:  # how torch reports a full disk
            raise OutputError(final, f"cannot be written ({str(error).splitlines()[0]})", "free some space") from None

    def load(self) -> State | None:
        """The state of the run; None, with a warning, for a damaged one: training then starts anew."""
        path = self.folder / "last.ckpt"
        if not path.exists():
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            log.warning("%s: cannot be read (%s); training starts anew", path, type(error).__name__)
            return None
        if not isinstance(state, dict) or state.pop("key", None) != sha256_json(dict(self.identity)):
            log.warning("%s: is of another run; training starts anew", path)
            return None
        return state

    def save_best(self, epoch: int, weights: Mapping[str, Tensor]) -> None:
        """Keep the weights of a new best epoch, from 1. Raises OutputError."""
        path = self._best(epoch)
        try:
            partial = path.with_name(f".{path.name}.partial")
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, partial)
            partial.replace(path)
        except OSError as error:
            raise output_error(path, error) from error
        except SafetensorError as error:
            raise OutputError(path, f"cannot be written ({error})", "free some space and train again") from None

    def load_best(self, epoch: int) -> dict[str, Tensor]:
        """The weights of the best epoch. Raises ModelError if somebody removed or changed them."""
        try:
            return load_file(self._best(epoch))
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise ModelError(
                self._best(epoch), f"cannot be read ({reason})", "remove its folder and train again"
            ) from None

    def forget_all_best_but(self, epoch: int) -> None:
        """Remove the weights of earlier best epochs, which no state refers to any more."""
        for path in self.folder.glob("best-*.safetensors"):
            if path != self._best(epoch):
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder: the run is complete."""
        shutil.rmtree(self.folder)

    def _best(self, epoch: int) -> Path:
        return self.folder / f"best-{epoch}.safetensors"


def _recorded(record: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(record.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs, in words; "" if nothing does."""
    if not old:
        return "it does not say of which"
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return ", ".join(f"{name} was {old.get(name)} and is {new.get(name)}" for name in names)
