"""The interface by which the package ``onnx`` tests runtimes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gatedrnn._optional import required
from gatedrnn.convert._onnx_graph import is_recurrent, loaded
from gatedrnn.onnx._session import InferenceSession

if TYPE_CHECKING:
    from collections.abc import Sequence

# For models of single nodes: what all the versions that we ask for know.
_IR_VERSION, _OPSET = 10, 21


class Backend:
    """Runs models and single nodes as an ``onnx.backend.base.Backend``, for ``onnx.backend.test``."""

    @classmethod
    def is_compatible(cls, model: Any, device: str = "CPU", **options: Any) -> bool:
        """Tell whether a model can run."""
        return cls.supports_device(device)

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **options: Any) -> BackendRep:
        """Make a model ready; `options` are those of `InferenceSession`.

        Raises:
            ValueError: `device` is not the CPU, or what `InferenceSession` refuses.
        """
        if not cls.supports_device(device):
            raise ValueError(f"device: expected CPU, got {device!r}")
        return BackendRep(model, options)

    @classmethod
    def run_model(
        cls, model: Any, inputs: Sequence[Any] | Mapping[str, Any], device: str = "CPU", **options: Any
    ) -> list[Any]:
        """Compute a model's outputs."""
        return cls.prepare(model, device, **options).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: Any,
        inputs: Sequence[Any],
        device: str = "CPU",
        outputs_info: Any = None,
        **options: Any,
    ) -> list[Any]:
        """Compute the outputs of a single node from the arrays that it gets."""
        return cls.run_model(_model_of(node, inputs), inputs[:1], device, **options)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Tell whether models run on a device."""
        return device.split(":")[0] == "CPU"


class BackendRep:
    """A model made ready.

    The weights of recurrent nodes may be inputs of the model, as in the tests of the package ``onnx``. They
    have to be known before a node can be one of our modules, so such a model is made ready in each call.
    """

    def __init__(self, model: Any, options: Mapping[str, Any]) -> None:
        self._model, self._options = loaded(required("onnx", "gatedrnn.onnx"), model), options
        self._names = [given.name for given in self._model.graph.input]
        self._weights = set(self._names) & _weights_in(self._model.graph)
        self._session = None if self._weights else InferenceSession(model, **options)

    def run(self, inputs: Sequence[Any] | Mapping[str, Any], **options: Any) -> list[Any]:
        """Compute a model's outputs from its inputs, in order or by name."""
        feeds = self._feeds(inputs)
        weights = {name: feeds.pop(name) for name in self._weights}
        session = self._session or InferenceSession(_with_constants(self._model, weights), **self._options)
        return session.run(None, feeds)

    def _feeds(self, inputs: Sequence[Any] | Mapping[str, Any]) -> dict[str, Any]:
        if isinstance(inputs, Mapping):
            return dict(inputs)
        if len(inputs) != len(self._names):
            raise ValueError(f"inputs: expected {len(self._names)}, got {len(inputs)}")
        return dict(zip(self._names, inputs, strict=True))


def _weights_in(graph: Any) -> set[str]:
    """Return the names of what recurrent nodes have as W, R, B and P."""
    nodes = [node for node in graph.node if is_recurrent(node)]
    return {node.input[at] for node in nodes for at in (1, 2, 3, 7) if at < len(node.input)}


def _with_constants(model: Any, values: Mapping[str, Any]) -> Any:
    """Return a model some of whose inputs are fixed."""
    onnx = required("onnx", "gatedrnn.onnx")
    fixed = onnx.ModelProto.FromString(model.SerializeToString())
    inputs = [given for given in fixed.graph.input if given.name not in values]
    del fixed.graph.input[:]
    fixed.graph.input.extend(inputs)
    fixed.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in values.items()
    )
    return fixed


def _model_of(node: Any, inputs: Sequence[Any]) -> Any:
    """Return a model of one node; its first input is the model's, the others are constants."""
    onnx = required("onnx", "gatedrnn.onnx")
    helper = onnx.helper
    arrays = dict(zip((name for name in node.input if name), inputs, strict=True))
    first, *rest = arrays
    x_type = helper.np_dtype_to_tensor_dtype(arrays[first].dtype)
    graph = helper.make_graph(
        [node],
        "one_node",
        [helper.make_tensor_value_info(first, x_type, arrays[first].shape)],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
        [onnx.numpy_helper.from_array(arrays[name], name) for name in rest],
    )
    return helper.make_model(graph, ir_version=_IR_VERSION, opset_imports=[helper.make_opsetid("", _OPSET)])
