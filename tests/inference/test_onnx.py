"""What is said of a module that ONNX cannot hold; what the graphs compute is tested where they are run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from inference.onnx import onnx_graph
from tiling.core.errors import ModelError


class Eigenvalues(nn.Module):
    """Its operator is known to no version of ONNX."""

    def forward(self, pixels: Tensor) -> Tensor:
        values: Tensor = torch.linalg.eigvals(pixels).real
        return values


def test_what_cannot_be_turned_into_onnx_is_told_with_ways_out_of_both_commands() -> None:
    """`heatmap` has --backend, `export-model` --to."""
    with pytest.raises(ModelError, match=r"ONNX.*--backend torch.*--to torchscript$"):
        onnx_graph(Eigenvalues(), torch.zeros(2, 3, 3), "pixels", ["values"])
