"""The GPUs of this machine, looked for without torch where there can be none."""

from __future__ import annotations

import os


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if not has_gpu_driver():
        return []
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return named[:count] if len(named) >= count > 0 and named[0] else [str(number) for number in range(count)]


def has_gpu_driver() -> bool:
    """Whether a GPU may be there: without one of the drivers' files (NVIDIA's, WSL's, AMD's) torch finds none."""
    return any(map(os.path.exists, ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")))
