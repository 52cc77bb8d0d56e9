"""A torch module as an ONNX graph that tells nothing of the machine it was made on, and what computes it on a CPU."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tiling.core.arrays import AnyArray
from tiling.core.errors import ModelError
from training.devices import one_thread

if TYPE_CHECKING:
    import onnx

_OPSET = 18
_NOT_EXPORTED = (
    torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError, AssertionError, AttributeError, LookupError,
)  # fmt: skip
"""What the exporter raises for networks that it does not know: its own errors, and those of Python's code in it."""

Run = Callable[[AnyArray], list[AnyArray]]
"""The input (B, ...) -> the outputs, each (B, ...)."""


def onnx_graph(
    module: nn.Module, example: Tensor, inputs: str, outputs: Sequence[str], facts: Mapping[str, Any] | None = None
) -> bytes:
    """The ONNX model of a module from one tensor to one or several, all of any number of rows (B, ...).

    Made by torch's TorchScript exporter: the one that is based on torch.export takes ten to thirty times as long, and
    gives the same graph.

    Args:
        module: The module; it is put into evaluation mode.
        example: An input, (B, ...).
        inputs: The input's name.
        outputs: The outputs' names.
        facts: What the file's metadata is to say; each value as JSON, but texts as they are.

    Returns:
        The bytes of the ONNX file.

    Raises:
        ModelError: For a module that the exporter does not know.
    """
    import onnx

    out: Any = io.BytesIO()  # which the exporter takes, though it does not say so
    with warnings.catch_warnings(), torch.no_grad(), one_thread():
        warnings.simplefilter("ignore")  # of deprecation, and of every constant in a network
        try:
            torch.onnx.export(
                module.eval(), (example,), out, input_names=[inputs], output_names=list(outputs), opset_version=_OPSET,
                dynamic_axes={name: {0: "batch"} for name in (inputs, *outputs)}, dynamo=False,
            )  # fmt: skip
        except _NOT_EXPORTED as error:
            fix = "use another backbone, or do without ONNX: --backend torch, --to torchscript"
            raise ModelError("the model", f"cannot be turned into ONNX ({_first_line(error)})", fix) from error
    proto = onnx.load_from_string(out.getvalue())
    _anonymise(proto)
    told = {name: fact if isinstance(fact, str) else json.dumps(fact) for name, fact in (facts or {}).items()}
    onnx.helper.set_model_props(proto, told)
    return bytes(proto.SerializeToString())


def onnx_session(data: bytes) -> Run:
    """What computes an ONNX model from its first input, by ONNX Runtime with as many threads as torch has.

    The numbers depend on neither the number of threads nor the tiles of a batch. Raises RuntimeError for a model that
    ONNX Runtime does not take, as does what is returned, for a batch that does not fit in memory too.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as ort  # its errors share no base but Exception

    refused = (
        ort.Fail, ort.InvalidArgument, ort.InvalidGraph, ort.InvalidProtobuf, ort.NotImplemented, ort.RuntimeException,
    )  # fmt: skip
    onnxruntime.set_default_logger_severity(3)  # it warns of GPUs that it does not find
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # readers need the cores too
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except refused as error:
        raise RuntimeError(_first_line(error)) from None
    name = session.get_inputs()[0].name

    def run(values: AnyArray) -> list[AnyArray]:
        try:
            found: list[AnyArray] = session.run(None, {name: np.ascontiguousarray(values)})
        except refused as error:
            raise RuntimeError(_first_line(error)) from None
        return found

    return run


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _anonymise(proto: onnx.ModelProto) -> None:
    """Take out what torch may note of the code's files: stack traces of nodes."""
    for graph in (proto.graph, *proto.functions):
        for part in (graph, *graph.node, *graph.value_info, *getattr(graph, "initializer", ())):
            part.ClearField("metadata_props")
            part.ClearField("doc_string")
    for value in (*proto.graph.input, *proto.graph.output):
        value.ClearField("metadata_props")
    proto.ClearField("metadata_props")
