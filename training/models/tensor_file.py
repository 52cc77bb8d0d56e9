"""Files of tensors: .safetensors, and .pt or .pth, of which tensors, numbers and texts alone are unpickled."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import IO, Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

UNREADABLE: Final = (
    OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError,
    struct.error, pickle.UnpicklingError, SafetensorError,
)  # fmt: skip
"""What reading a damaged file of tensors raises: torch checks little of what it reads."""


def load_tensors(file: Path | IO[bytes]) -> Any:
    """What a file of tensors holds, on the CPU. Raises one of `UNREADABLE` if it is damaged or holds other objects."""
    if isinstance(file, Path) and file.suffix == ".safetensors":
        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)
