"""The parts of a model that ONNX Runtime computes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from gatedrnn.onnx._cut import reads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gatedrnn.onnx._cut import Fixed, Part

# Weights of a part whose work is soon done: waking a thread for it would take longer (measured on a decoder's
# step, 0.18 ms with two threads and 0.13 ms with one; voice activity with 175 000 weights gains by a second).
_SMALL = 1 << 17


class RuntimePart:
    """A part of a model as a session of ONNX Runtime's.

    Args:
        onnx: The package.
        runtime: The package onnxruntime.
        proto: The whole model.
        part: What of it this is.
        fixed: The model's constants.
        known: What is known of the part's inputs, as ValueInfoProto by name; of its outputs is added.
        session_arguments: For ONNX Runtime's InferenceSession: sess_options, providers, provider_options.
    """

    def __init__(
        self,
        onnx: Any,
        runtime: Any,
        proto: Any,
        part: Part,
        fixed: Fixed,
        known: dict[str, Any],
        session_arguments: Mapping[str, Any],
    ) -> None:
        model = _model_of(onnx, proto, part, fixed, known)
        arguments = dict(session_arguments)
        if arguments["sess_options"] is None:
            arguments["sess_options"] = _options_for(runtime, model)
        try:
            self._session = runtime.InferenceSession(
                model.SerializeToString(), enable_fallback=0, **arguments
            )
        except Exception as error:  # ONNX Runtime's own classes, and protobuf's for more than 2 GB
            raise ValueError(f"model: ONNX Runtime refuses it: {error}") from error
        self._inputs, self._outputs = part.inputs, part.outputs
        known |= {output.name: _value_info(onnx, output) for output in self._session.get_outputs()}

    def run(self, values: dict[str, Any], run_options: Any) -> None:
        """Compute the outputs from values by name, and add them."""
        results = self._session.run(self._outputs, {name: values[name] for name in self._inputs}, run_options)
        values.update(zip(self._outputs, results, strict=True))


def _options_for(runtime: Any, model: Any) -> Any:
    options = runtime.SessionOptions()
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if sum(math.prod(tensor.dims) for tensor in model.graph.initializer) < _SMALL:
        options.intra_op_num_threads = 1
    return options


def _model_of(onnx: Any, proto: Any, part: Part, fixed: Fixed, known: Mapping[str, Any]) -> Any:
    read = [*part.outputs, *(name for node in part.nodes.values() for name in reads(node))]
    nodes = [*fixed.nodes_for(read), *part.nodes.values()]
    names = dict.fromkeys([*read, *(name for node in nodes for name in node.input)])
    graph = onnx.helper.make_graph(
        nodes,
        proto.graph.name or "part",
        [known[name] for name in part.inputs],
        [known.get(name) or onnx.ValueInfoProto(name=name) for name in part.outputs],
        [fixed.tensors[name] for name in names if name in fixed.tensors],
        sparse_initializer=[fixed.sparse_tensors[name] for name in names if name in fixed.sparse_tensors],
    )
    return onnx.helper.make_model(graph, ir_version=proto.ir_version, opset_imports=proto.opset_import)


def _value_info(onnx: Any, output: Any) -> Any:
    """Return what ONNX Runtime found of a value, as it is written in files."""
    return onnx.helper.make_value_info(output.name, _type_proto(onnx, output.type, output.shape))


def _type_proto(onnx: Any, text: str, shape: Sequence[int | str | None]) -> Any:
    kind, _, rest = text.partition("(")
    inner = rest[:-1]
    if kind == "tensor":
        return onnx.helper.make_tensor_type_proto(_element_type(onnx, inner), shape)
    if kind in ("seq", "optional"):
        element = _type_proto(onnx, inner, shape)
        make = onnx.helper.make_sequence_type_proto if kind == "seq" else onnx.helper.make_optional_type_proto
        return make(element)
    raise ValueError(f"model: expected tensors between its recurrent nodes and the rest, got {text}")


def _element_type(onnx: Any, name: str) -> int:
    number: int = onnx.TensorProto.DataType.Value({"double": "DOUBLE"}.get(name, name.upper()))
    return number
