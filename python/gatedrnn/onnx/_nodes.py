"""The nodes that run here: recurrent ones, and what only renames or reshapes their outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gatedrnn import _checks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from gatedrnn.convert._onnx_graph import Constants
    from gatedrnn.convert._onnx_node import RecurrentNode

    Array = npt.NDArray[Any]

_SEQUENCE_LENS, _INITIAL_H, _INITIAL_C = 4, 5, 6


class RecurrentStep:
    """An LSTM, GRU or RNN node, with its inputs and outputs laid out as ONNX has them.

    Args:
        node: What the node says.
        module: The module that computes it.
        constants: What is fixed of the graph, of which the node may have lengths and states.
    """

    def __init__(self, node: RecurrentNode, module: Any, constants: Constants) -> None:
        self.module, self._name = module, node.name
        self._directions, self._batch_first = node.directions, module.batch_first
        self._x = Operand(node.inputs[0], constants)
        self._lengths = Operand(node.inputs[_SEQUENCE_LENS], constants)
        states = (_INITIAL_H, _INITIAL_C) if node.kind == "LSTM" else (_INITIAL_H,)
        self._states = [Operand(node.inputs[at], constants) for at in states]
        self._outputs = [*node.outputs, "", "", ""][:3]

    def describe(self, onnx: Any, known: dict[str, Any]) -> None:
        """Add what is known of the outputs to what is known of values, ValueInfoProto by name."""
        D, H = self._directions, self.module.hidden_size
        states = [None, D, H] if self._batch_first else [D, None, H]
        y = [None, None, D, H] if self._batch_first else [None, D, None, H]
        for name, shape in zip(self._outputs, (y, states, states), strict=True):
            known[name] = tensor_info(onnx, name, self._x.element_type(onnx, known), shape)

    def run(self, values: dict[str, Any], run_options: Any) -> None:
        """Compute the outputs from values by name, and add them."""
        x, lengths = self._x.value(values), self._lengths.value(values)
        try:
            y, *states = self.outputs(x, lengths, [state.value(values) for state in self._states])
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self._name}: {error}") from error
        for name, result in zip(self._outputs, (y, *states), strict=False):
            if name:
                values[name] = result.astype(x.dtype, copy=False)

    def outputs(self, x: Array, lengths: Array | None, states: list[Array | None]) -> list[Array]:
        """Return Y, Y_h and for LSTM Y_c; arguments and results in ONNX' layout."""
        batch = x.shape[0] if self._batch_first else x.shape[1]
        state: Any = None
        if any(part is not None for part in states):
            given = tuple(self._given(part, batch) for part in states)
            state = given if len(given) == 2 else given[0]
        output, final = self.module(x, state, lengths=lengths)
        finals = final if isinstance(final, tuple) else (final,)
        if lengths is not None:
            for final_state in finals:  # where there was no step, ONNX Runtime gives 0
                final_state[:, np.asarray(lengths) == 0] = 0
        y = output.reshape(*output.shape[:2], self._directions, -1)
        if self._batch_first:
            return [y, *(final_state.swapaxes(0, 1) for final_state in finals)]
        return [y.swapaxes(1, 2), *finals]

    def _given(self, state: Array | None, batch: int) -> Array:
        """Return an initial state as (D, B, H)."""
        if state is None:
            return np.zeros((self._directions, batch, self.module.hidden_size), self.module.dtype)
        return state.swapaxes(0, 1) if self._batch_first else state


class Operand:
    """An input of a node that may be absent, fixed, or a value."""

    def __init__(self, name: str, constants: Constants) -> None:
        self._name = name
        self._fixed = constants.get(name) if name else None

    def value(self, values: dict[str, Any]) -> Any:
        """Return the array, or None where there is none."""
        return values[self._name] if self._name and self._fixed is None else self._fixed

    def element_type(self, onnx: Any, known: Mapping[str, Any]) -> int:
        """Return the type of its numbers."""
        if self._fixed is not None:
            return int(onnx.helper.np_dtype_to_tensor_dtype(self._fixed.dtype))
        return element_type(known, self._name)


def element_type(known: Mapping[str, Any], name: str) -> int:
    """Return the type of a value's numbers."""
    if name not in known:
        raise ValueError(f"model: expected to know what {_checks.shortened(name)} is, got no type for it")
    return int(known[name].type.tensor_type.elem_type)


def tensor_info(onnx: Any, name: str, element_type: int, shape: list[int | None] | None = None) -> Any:
    """Return what is known of a value as a ValueInfoProto."""
    return onnx.helper.make_tensor_value_info(name, element_type, shape)


class ViewStep:
    """A node that only renames or reshapes an array."""

    def __init__(self, node: Any, view: Callable[[Array], Array]) -> None:
        self._input, self._output, self._view = node.input[0], node.output[0], view

    def describe(self, onnx: Any, known: dict[str, Any]) -> None:
        """Add what is known of the output to what is known of values, ValueInfoProto by name."""
        known[self._output] = tensor_info(onnx, self._output, element_type(known, self._input))

    def run(self, values: dict[str, Any], run_options: Any) -> None:
        """Compute the output from values by name, and add it."""
        values[self._output] = self._view(values[self._input])


def view_of(onnx: Any, node: Any, constants: Constants) -> Callable[[Array], Array] | None:
    """Return what a node does, if it is one that only renames or reshapes an array; else None."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in _VIEWS:
        return None
    if not (node.input and node.input[0]) or len(node.output) != 1:
        return None  # which ONNX Runtime will refuse
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    second = constants.get(node.input[1]) if len(node.input) > 1 and node.input[1] else None
    if len(node.input) > 1 and node.input[1] and second is None:
        return None
    numbers = None if second is None else [int(number) for number in np.ravel(second)]
    return _VIEWS[node.op_type](attributes, numbers)


def _identity(attributes: dict[str, Any], numbers: list[int] | None) -> Callable[[Array], Array] | None:
    return lambda array: array


def _transpose(attributes: dict[str, Any], numbers: list[int] | None) -> Callable[[Array], Array] | None:
    axes = attributes.get("perm")
    return lambda array: array.transpose(axes)


def _squeeze(attributes: dict[str, Any], numbers: list[int] | None) -> Callable[[Array], Array] | None:
    axes = attributes.get("axes", numbers)
    return lambda array: array.squeeze(None if axes is None else tuple(axes))


def _unsqueeze(attributes: dict[str, Any], numbers: list[int] | None) -> Callable[[Array], Array] | None:
    axes = attributes.get("axes", numbers)
    if axes is None:
        return None

    def view(array: Array) -> Array:
        dimensions = array.ndim + len(axes)
        new = {axis % dimensions for axis in axes}
        return array[tuple(None if axis in new else slice(None) for axis in range(dimensions))]

    return view


def _reshape(attributes: dict[str, Any], numbers: list[int] | None) -> Callable[[Array], Array] | None:
    if numbers is None or attributes.get("allowzero"):
        return None
    # 0 stands for the size that there was.
    return lambda array: array.reshape([size or array.shape[axis] for axis, size in enumerate(numbers)])


_VIEWS = {
    "Identity": _identity,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
}
