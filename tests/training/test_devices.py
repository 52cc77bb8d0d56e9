"""Which device trains, and what is refused."""

from __future__ import annotations

import pytest
import torch

from tiling.core.errors import ConfigError
from training import TrainConfig
from training.devices import device_of, exact


@pytest.mark.parametrize(
    ("asked", "cuda", "mps", "expected"),
    [
        ("auto", False, False, "cpu"), ("auto", True, False, "cuda"), ("auto", False, True, "cpu"),
        ("cpu", True, True, "cpu"), ("cuda", True, False, "cuda"), ("mps", False, True, "mps"),
        ("cuda", False, True, None), ("mps", True, False, None),
    ],
)  # fmt: skip
def test_the_device_is_the_asked_one_if_it_is_there(
    asked: str, cuda: bool, mps: bool, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    config = TrainConfig.model_validate({"device": asked})
    if expected is None:
        with pytest.raises(ConfigError, match=asked):
            device_of(config)
    else:
        assert device_of(config) == torch.device(expected)


def test_sums_are_as_exact_as_the_device_can() -> None:
    assert [exact(torch.device(name)) for name in ("cpu", "cuda", "mps")] == [
        torch.float64,
        torch.float64,
        torch.float32,
    ]
