"""A torch module as an ONNX graph that tells nothing of the machine it was made on."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tiling.core.errors import ModelError

if TYPE_CHECKING:
    import onnx

_OPSET = 18


def onnx_graph(module: nn.Module, example: Tensor, inputs: str, outputs: Sequence[str]) -> bytes:
    """The ONNX model of a module from one tensor to one or several, all of any number of rows (B, ...).

    Made by torch's TorchScript exporter: the one that is based on torch.export takes ten to thirty times as long, and
    gives the same graph.

    Args:
        module: The module; it is put into evaluation mode.
        example: An input, (B, ...).
        inputs: The input's name.
        outputs: The outputs' names.

    Returns:
        The bytes of the ONNX file.

    Raises:
        ModelError: For a module that the exporter does not know.
    """
    import onnx  # an extra

    out: Any = io.BytesIO()  # which the exporter takes, though it does not say so
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of deprecation, and of every constant in a network
        try:
            torch.onnx.export(
                module.eval(), (example,), out, input_names=[inputs], output_names=list(outputs), opset_version=_OPSET,
                dynamic_axes={name: {0: "batch"} for name in (inputs, *outputs)}, dynamo=False,
            )  # fmt: skip
        except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            fix = "use another backbone, or do without ONNX: --backend torch, --to torchscript"
            raise ModelError("the model", f"cannot be turned into ONNX ({reason})", fix) from error
    proto = onnx.load_from_string(out.getvalue())
    _anonymise(proto)
    return bytes(proto.SerializeToString())


def _anonymise(proto: onnx.ModelProto) -> None:
    """Take out what torch may note of the code's files: stack traces of nodes."""
    for graph in (proto.graph, *proto.functions):
        for part in (graph, *graph.node, *graph.value_info, *getattr(graph, "initializer", ())):
            part.ClearField("metadata_props")
            part.ClearField("doc_string")
    for value in (*proto.graph.input, *proto.graph.output):
        value.ClearField("metadata_props")
    proto.ClearField("metadata_props")
