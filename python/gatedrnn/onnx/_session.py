"""A session that is called as ONNX Runtime's is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gatedrnn import _checks
from gatedrnn._optional import required
from gatedrnn.convert._onnx_graph import (
    Constants,
    is_quantized,
    is_recurrent,
    loaded,
    name_of,
    recurrent_nodes,
    subgraphs_of,
    written_by_pytorch,
)
from gatedrnn.convert._onnx_node import RecurrentNode
from gatedrnn.onnx._cut import Fixed, cut
from gatedrnn.onnx._loops import LoopStep, loop_step
from gatedrnn.onnx._nodes import RecurrentStep, ViewStep, view_of
from gatedrnn.onnx._runtime import RuntimePart

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence


class NodeArg(NamedTuple):
    """What an input or output of a model is: its name, type and shape, as ONNX Runtime writes them."""

    name: str
    type: str
    shape: list[int | str | None]


class InferenceSession:
    """An ONNX model whose recurrent nodes run here, and the rest in ONNX Runtime.

    Calls are those of ``onnxruntime.InferenceSession``, and safe to make from several threads at a time.
    LSTM, GRU and RNN nodes run here, with all that `from_onnx` can represent; DynamicQuantizeLSTM with
    products in 8 bits; and a Loop in the form that tf2onnx gives an LSTM, GRU or SimpleRNN, if it computes
    what one of our modules does. Where all nodes run here, ONNX Runtime is not needed.

    Args:
        path_or_bytes: A model's path, its bytes, or an ``onnx.ModelProto``.
        precision: How matrix products of the recurrent nodes are computed; see `LSTM.to`. None: as the nodes
            say, in their type, or in "int8" where they are quantised.
        linear_before_reset: What is meant where a GRU node says 0 in a file that PyTorch wrote; see
            `from_onnx`.
        sess_options: For ONNX Runtime. None: its defaults, but that its threads stop spinning at the end of a
            part, since they would take the processors from ours, and that a small part has one thread.
        providers: For ONNX Runtime; None for ["CPUExecutionProvider"].
        provider_options: For ONNX Runtime.

    Attributes:
        modules: The modules that run, by node name.
        left: The recurrent nodes, and Loops like these, that ONNX Runtime runs, by name, with the reason.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The file is damaged, ONNX Runtime refuses it, or `precision` is unknown.
        OSError: The file cannot be read.
        ImportError: ``onnx``, or ``onnxruntime`` where it is needed, is not installed.
    """

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str] | bytes | Any,
        precision: str | None = None,
        *,
        linear_before_reset: bool | None = None,
        sess_options: Any = None,
        providers: Sequence[Any] | None = None,
        provider_options: Sequence[Any] | None = None,
    ) -> None:
        if linear_before_reset is not None:
            _checks.flag("linear_before_reset", linear_before_reset)
        onnx = required("onnx", "gatedrnn.onnx")
        proto = loaded(onnx, path_or_bytes)
        self.modules: dict[str, Any] = {}
        self.left: dict[str, str] = {}
        self._precision = precision
        fixed, constants = Fixed(proto.graph), Constants(onnx, proto.graph)
        self._inputs = {
            given.name: _Argument(onnx, given) for given in proto.graph.input if given.name not in fixed
        }
        self._outputs = {output.name: _Argument(onnx, output) for output in proto.graph.output}
        recurrent = self._recurrent_steps(onnx, proto, fixed, constants, linear_before_reset)
        views = {
            place: ViewStep(node, view)
            for place, node in enumerate(proto.graph.node)
            if (view := view_of(onnx, node, constants)) is not None
        }
        known = {given.name: given for given in (*proto.graph.input, *proto.graph.output)}
        self._steps: list[Any] = []
        for part in cut(proto.graph, fixed, recurrent, views):
            if part.ours:
                for place in part.nodes:
                    self._steps.append(recurrent.get(place) or views[place])
                    self._steps[-1].describe(onnx, known)
                continue
            runtime = required("onnxruntime", "gatedrnn.onnx")
            arguments = dict(sess_options=sess_options, provider_options=provider_options)
            arguments["providers"] = providers or ["CPUExecutionProvider"]
            self._steps.append(RuntimePart(onnx, runtime, proto, part, fixed, known, arguments))

    def _recurrent_steps(
        self,
        onnx: Any,
        proto: Any,
        fixed: Fixed,
        constants: Constants,
        linear_before_reset: bool | None,
    ) -> dict[int, RecurrentStep | LoopStep]:
        """Return what runs here, by place in the graph; report the rest."""
        steps: dict[int, RecurrentStep | LoopStep] = {}
        for place, node in enumerate(proto.graph.node):
            if fixed.is_fixed(node):
                continue  # which ONNX Runtime computes once, as it loads
            step: RecurrentStep | LoopStep | None = None
            try:
                if is_recurrent(node):
                    recurrent = RecurrentNode(onnx, name_of(node), node, constants)
                    module = recurrent.module(
                        written_by_pytorch(proto), linear_before_reset, learn_state=False
                    )
                    step = RecurrentStep(recurrent, module, constants)
                elif node.op_type == "Loop":
                    step = loop_step(onnx, proto, node, constants)
            except ValueError as error:
                self.left[name_of(node)] = str(error)
            if step is not None:
                steps[place] = step
                self.modules[name_of(node)] = self._at_precision(step.module, is_quantized(node))
            else:
                self._report_within(onnx, node, constants)
        return steps

    def _report_within(self, onnx: Any, node: Any, constants: Constants) -> None:
        for graph in subgraphs_of(node):
            for inner, _ in recurrent_nodes(onnx, graph, constants):
                self.left[name_of(inner)] = f"it is within {node.op_type} {name_of(node)!r}"

    def _at_precision(self, module: Any, quantized: bool) -> Any:
        precision = self._precision or ("int8" if quantized else None)
        return module.to("cpu", precision if module.dtype == np.float32 else None)

    # ---- using it ----

    def get_inputs(self) -> list[NodeArg]:
        """Return what the model takes, as far as the file says."""
        return [argument.described for argument in self._inputs.values()]

    def get_outputs(self) -> list[NodeArg]:
        """Return what the model gives, as far as the file says."""
        return [argument.described for argument in self._outputs.values()]

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: Any = None
    ) -> list[Any]:
        """Compute a model's outputs.

        Args:
            output_names: Which, in this order; None or none for all.
            input_feed: Arrays by the names of inputs: all of them, in the types that the model says.
            run_options: For ONNX Runtime.

        Returns:
            NumPy arrays.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: A name is unknown, an input is missing, or has another type or shape than the model's.
        """
        names = list(output_names or self._outputs)
        unknown = [name for name in names if name not in self._outputs]
        if unknown:
            known = ", ".join(self._outputs)
            raise ValueError(f"output_names: expected some of {known}, got {_checks.shortened(unknown[0])}")
        values = self._checked(input_feed)
        for step in self._steps:
            step.run(values, run_options)
        return [_of_its_own(values[name]) for name in names]

    def _checked(self, input_feed: Mapping[str, Any]) -> dict[str, Any]:
        if not hasattr(input_feed, "keys"):
            raise TypeError(f"input_feed: expected a dict, got {_checks.described(input_feed)}")
        if input_feed.keys() != self._inputs.keys():
            missing = [name for name in self._inputs if name not in input_feed]
            unknown = [name for name in input_feed if name not in self._inputs]
            wrong = f"{missing[0]!r} is missing" if missing else f"got {_checks.shortened(unknown[0])}"
            raise ValueError(f"input_feed: expected {', '.join(self._inputs)}; {wrong}")
        return {name: argument.checked(input_feed[name]) for name, argument in self._inputs.items()}


class _Argument:
    """An input or output, as its file describes it."""

    def __init__(self, onnx: Any, info: Any) -> None:
        of_tensor = info.type.HasField("tensor_type")
        tensor = info.type.tensor_type
        has_shape = of_tensor and tensor.HasField("shape")
        shape = [_size(dimension) for dimension in tensor.shape.dim] if has_shape else []
        self.described = NodeArg(info.name, _type_text(onnx, info.type), shape)
        self._dimensions = len(shape) if has_shape else None
        self._sizes = [(axis, size) for axis, size in enumerate(shape) if isinstance(size, int)]
        self._dtype: Any = None
        if of_tensor and tensor.elem_type not in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
            self._dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)

    def checked(self, value: Any) -> Any:
        """Return a value as an array of the type and shape that the model says."""
        if self._dtype is None:
            return value
        array = value if isinstance(value, np.ndarray) else np.asarray(value, self._dtype)
        if array.dtype != self._dtype:
            raise ValueError(f"{self.described.name}: expected dtype {self._dtype}, got {array.dtype}")
        shape = array.shape
        fits = self._dimensions is None or len(shape) == self._dimensions
        if not fits or any(shape[axis] != size for axis, size in self._sizes):
            said = tuple(self.described.shape)
            raise ValueError(f"{self.described.name}: expected shape {said}, got {shape}")
        return array


def _size(dimension: Any) -> int | str | None:
    if dimension.HasField("dim_value"):
        return int(dimension.dim_value)
    return str(dimension.dim_param) or None


def _type_text(onnx: Any, of_value: Any) -> str:
    """Return a type as ONNX Runtime writes it, such as tensor(float)."""
    kind = of_value.WhichOneof("value")
    if kind == "tensor_type":
        name = onnx.TensorProto.DataType.Name(of_value.tensor_type.elem_type).lower()
        return f"tensor({name})"
    if kind in ("sequence_type", "optional_type"):
        inner = _type_text(onnx, getattr(of_value, kind).elem_type)
        return f"{'seq' if kind == 'sequence_type' else 'optional'}({inner})"
    return str(kind or "")


def _of_its_own(value: Any) -> Any:
    """Return an array as ONNX Runtime would: in C order, in memory that nothing else has."""
    return np.array(value, order="C") if isinstance(value, np.ndarray) else value
