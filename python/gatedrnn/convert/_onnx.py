"""Recurrent nodes of ONNX models as modules of ours."""

from __future__ import annotations

from typing import Any

from gatedrnn import _checks
from gatedrnn._optional import required
from gatedrnn.convert._onnx_graph import Constants, loaded, name_of, recurrent_nodes, written_by_pytorch
from gatedrnn.convert._onnx_node import RecurrentNode


def from_onnx(model: Any, *, linear_before_reset: bool | None = None) -> dict[str, Any]:
    """Make a module of each LSTM, GRU and RNN node of an ONNX model, DynamicQuantizeLSTM included.

    Weights may be initialisers or constants, or computed from these by other nodes, as exporters write them.
    A module's output has the directions side by side, (T, B, D*H), where the node's Y is (T, D, B, H); a node
    of `layout` 1 becomes a module of `batch_first`. What a node gets as ``sequence_lens`` or as initial
    states is for the caller to pass on, as `lengths` and state; but constant initial states that are the
    same for all rows become learnt ones (`learn_state`). For a row of length 0 ONNX Runtime returns a state
    of 0, a module the initial one.

    Args:
        model: A path, or an ``onnx.ModelProto``.
        linear_before_reset: For GRU nodes that say 0, or nothing, in a file that PyTorch wrote, whose
            exporter forgot to say 1 for a time: what is meant. None: what the nodes say, with a warning.

    Returns:
        Modules by node name, or where a node has none, by the name of its first output; nodes within If,
        Loop and Scan too.

    Raises:
        TypeError: `model` is neither.
        ValueError: The file is damaged, or a node has what modules cannot represent, which the error names:
            weights that are not constant, other functions in the other direction, sizes that do not match.
        OSError: The file cannot be read.
        ImportError: The package ``onnx`` is not installed.
        RuntimeError: A module does not compute what its node does, which would be our mistake.
    """
    if linear_before_reset is not None:
        _checks.flag("linear_before_reset", linear_before_reset)
    onnx = required("onnx", "from_onnx")
    proto = loaded(onnx, model)
    modules: dict[str, Any] = {}
    for node, constants in recurrent_nodes(onnx, proto.graph, Constants(onnx, proto.graph)):
        name = name_of(node) or f"node {len(modules)}"
        if name in modules:
            raise ValueError(f"model: expected nodes of different names, got {name!r} twice")
        try:
            recurrent = RecurrentNode(onnx, name, node, constants)
            modules[name] = recurrent.module(written_by_pytorch(proto), linear_before_reset)
        except ValueError as error:
            raise ValueError(f"{node.op_type} {name!r}: {error}") from error
    return modules
