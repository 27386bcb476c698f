"""ONNX models as graphs: reading them, which nodes are recurrent, which values are fixed."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from gatedrnn import _checks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    Array = npt.NDArray[Any]

_OPERATORS = ("LSTM", "GRU", "RNN")


def loaded(onnx: Any, model: Any) -> Any:
    """Return a path's, or a ModelProto's, model, with its functions written out."""
    proto = model if isinstance(model, onnx.ModelProto) else _read(onnx, model)
    if any(isinstance(text, bytes) for text in (proto.producer_name, *_names_in(proto.graph))):
        raise ValueError("model: expected names in UTF-8, got others")  # what protobuf gives as bytes
    if not proto.functions:
        return proto
    try:
        return importlib.import_module("onnx.inliner").inline_local_functions(proto)
    except Exception as error:
        raise ValueError(
            f"model: expected functions that can be written out: {_first_line(error)}"
        ) from error


def _read(onnx: Any, model: Any) -> Any:
    if isinstance(model, bytes):
        return _parsed(lambda: onnx.load_model_from_string(model), "model")
    if not isinstance(model, (str, os.PathLike)):
        expected = "a path, the bytes of a file or an onnx.ModelProto"
        raise TypeError(f"model: expected {expected}, got {_checks.described(model)}")
    path = os.fsdecode(model)
    with open(path, "rb"):
        pass  # errors of the operating system come from here
    return _parsed(lambda: onnx.load(path), path)


def _parsed(load: Callable[[], Any], where: str) -> Any:
    try:
        return load()
    except Exception as error:  # protobuf's and onnx' own classes
        raise ValueError(f"{where}: expected an ONNX model: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _names_in(graph: Any) -> Iterator[Any]:
    """Give all names that are looked at."""
    yield graph.name
    yield from (tensor.name for tensor in graph.initializer)
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield value.name
        yield from (dimension.dim_param for dimension in value.type.tensor_type.shape.dim)
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        for attribute in node.attribute:
            yield attribute.name
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _names_in(subgraph)


class Constants:
    """Values that a graph fixes: initialisers, constants, and what nodes compute of these alone."""

    def __init__(self, onnx: Any, graph: Any, outer: Constants | None = None) -> None:
        self._onnx, self._outer = onnx, outer
        self._values: dict[str, Array | None] = {}
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._makers = {output: node for node in graph.node for output in node.output if output}

    def get(self, name: str) -> Array | None:
        """Return the value of a name, or None where it is not constant."""
        if name not in self._values:
            self._values[name] = None  # where a graph goes in circles
            self._values[name] = self._computed(name)
        return self._values[name]

    def _computed(self, name: str) -> Array | None:
        if name in self._tensors:
            return self._array(self._tensor(self._tensors[name]))
        node = self._makers.get(name)
        if node is None:
            return self._outer.get(name) if self._outer is not None else None
        if node.op_type in _OPERATORS or subgraphs_of(node):
            return None
        feeds = {given: self.get(given) for given in node.input if given}
        if any(value is None for value in feeds.values()):
            return None
        evaluate: Any = importlib.import_module("onnx.reference").ReferenceEvaluator
        try:
            results = evaluate(node).run(None, feeds)
        except Exception:  # one that it has not, or cannot compute; so nothing is known of the value
            return None
        return dict(zip(node.output, results, strict=False)).get(name)

    def _tensor(self, tensor: Any) -> Any:
        try:
            return self._onnx.numpy_helper.to_array(tensor)
        except Exception as error:  # of a damaged one; onnx has many
            message = (
                f"expected a tensor {tensor.name!r} that can be read, got {type(error).__name__}: {error}"
            )
            raise ValueError(message) from error

    @staticmethod
    def _array(array: Any) -> Array:
        known: Array = array.astype(np.float32) if array.dtype.name == "bfloat16" else array
        return known


def recurrent_nodes(onnx: Any, graph: Any, constants: Constants) -> list[tuple[Any, Constants]]:
    """Return all recurrent nodes, those in subgraphs too, each with what is constant where it stands."""
    found: list[tuple[Any, Constants]] = []
    for node in graph.node:
        if is_recurrent(node):
            found.append((node, constants))
        for subgraph in subgraphs_of(node):
            found += recurrent_nodes(onnx, subgraph, Constants(onnx, subgraph, constants))
    return found


def subgraphs_of(node: Any) -> list[Any]:
    """Return the graphs that a node has as attributes, as If, Loop and Scan do."""
    return [
        graph
        for attribute in node.attribute
        for graph in ([attribute.g] if attribute.type == attribute.GRAPH else attribute.graphs)
    ]


def is_recurrent(node: Any) -> bool:
    """Tell whether a node is an LSTM, GRU or RNN, in 8 bits or not."""
    return (node.op_type in _OPERATORS and node.domain in ("", "ai.onnx")) or is_quantized(node)


def is_quantized(node: Any) -> bool:
    """Tell whether a node is ONNX Runtime's LSTM with weights of 8 bits."""
    return bool(node.domain == "com.microsoft" and node.op_type == "DynamicQuantizeLSTM")


def name_of(node: Any) -> str:
    """Return a node's name, or where it has none, that of its first output."""
    return node.name or next((output for output in node.output if output), "")


def written_by_pytorch(proto: Any) -> bool:
    """Tell whether a model says that PyTorch exported it."""
    return "pytorch" in proto.producer_name.lower()
