"""Recurrent nodes of ONNX models as modules of ours."""

from __future__ import annotations

import importlib
import os
import re
import warnings
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from gatedrnn import _checks
from gatedrnn._modules import GRU, LSTM, RNN
from gatedrnn._optional import required
from gatedrnn.convert import _verify
from gatedrnn.convert._reorder import reorder
from gatedrnn.convert._torch import check_finite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    Array = npt.NDArray[Any]

_T = TypeVar("_T")

_GATES = {"LSTM": "iofc", "GRU": "zrh", "RNN": "h"}
_CLASSES: dict[str, Any] = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN}
# Of one direction, where a node says nothing.
_FUNCTIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
# How many of alpha and beta a function takes, and their defaults.
_PARAMETERS: dict[str, tuple[float, ...]] = {
    "relu": (),
    "tanh": (),
    "sigmoid": (),
    "softsign": (),
    "softplus": (),
    "leaky_relu": (0.01,),
    "thresholded_relu": (1.0,),
    "elu": (1.0,),
    "hard_sigmoid": (0.2, 0.5),
    "scaled_tanh": (1.0, 1.0),
    "affine": (1.0, 0.0),
}


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
    proto = _loaded(onnx, model)
    if any(isinstance(text, bytes) for text in (proto.producer_name, *_names_in(proto.graph))):
        raise ValueError("model: expected names in UTF-8, got others")  # what protobuf gives as bytes
    by_pytorch = "pytorch" in proto.producer_name.lower()
    modules: dict[str, Any] = {}
    for node, constants in _recurrent_nodes(onnx, proto.graph, _Constants(onnx, proto.graph)):
        name = node.name or next((output for output in node.output if output), f"node {len(modules)}")
        if name in modules:
            raise ValueError(f"model: expected nodes of different names, got {name!r} twice")
        try:
            modules[name] = _Node(onnx, name, node, constants).module(by_pytorch, linear_before_reset)
        except ValueError as error:
            raise ValueError(f"{node.op_type} {name!r}: {error}") from error
    return modules


def _loaded(onnx: Any, model: Any) -> Any:
    if isinstance(model, onnx.ModelProto):
        return model
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(f"model: expected a path or an onnx.ModelProto, got {_checks.described(model)}")
    path = os.fsdecode(model)
    with open(path, "rb"):
        pass  # errors of the operating system come from here
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf's and onnx' own classes
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: expected an ONNX model: {first}") from error


def _names_in(graph: Any) -> Iterator[Any]:
    """Give all names that are looked at."""
    yield from (tensor.name for tensor in graph.initializer)
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        for attribute in node.attribute:
            yield attribute.name
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _names_in(subgraph)


class _Constants:
    """Values that a graph fixes: initialisers, constants, and what nodes compute of these alone."""

    def __init__(self, onnx: Any, graph: Any, outer: _Constants | None = None) -> None:
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
            return self._array(self._read(self._tensors[name]))
        node = self._makers.get(name)
        if node is None:
            return self._outer.get(name) if self._outer is not None else None
        if node.op_type in _GATES or any(a.type in (a.GRAPH, a.GRAPHS) for a in node.attribute):
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

    def _read(self, tensor: Any) -> Any:
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


def _recurrent_nodes(onnx: Any, graph: Any, constants: _Constants) -> list[tuple[Any, _Constants]]:
    found: list[tuple[Any, _Constants]] = []
    for node in graph.node:
        if (node.op_type in _GATES and node.domain in ("", "ai.onnx")) or _is_quantized(node):
            found.append((node, constants))
        for attribute in node.attribute:
            inner = [attribute.g] if attribute.type == attribute.GRAPH else attribute.graphs
            for subgraph in inner:
                found += _recurrent_nodes(onnx, subgraph, _Constants(onnx, subgraph, constants))
    return found


def _is_quantized(node: Any) -> bool:
    return bool(node.domain == "com.microsoft" and node.op_type == "DynamicQuantizeLSTM")


class _Node:
    """One recurrent node: its attributes and constant inputs."""

    def __init__(self, onnx: Any, name: str, node: Any, constants: _Constants) -> None:
        self.quantized = _is_quantized(node)
        self.name, self.kind = name, "LSTM" if self.quantized else node.op_type
        self._attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        self.inputs = [*node.input, *[""] * 12]
        self._constants = constants
        direction = self._text("direction", "forward")
        self.directions = 2 if direction == "bidirectional" else 1
        self.direction = "reverse" if direction == "reverse" else "forward"
        if direction not in ("forward", "reverse", "bidirectional"):
            raise ValueError(f"expected a direction forward, reverse or bidirectional, got {direction!r}")
        gates = len(_GATES[self.kind])
        self.W = self._dequantized(1, "W", 8) if self.quantized else self._weights(1, "W", 3)
        self.R = self._dequantized(2, "R", 10) if self.quantized else self._weights(2, "R", 3)
        self.hidden_size = self.R.shape[2]
        rows = gates * self.hidden_size
        if self.W.shape[:2] != (self.directions, rows) or self.R.shape[:2] != (self.directions, rows):
            expected = f"W of ({self.directions}, {rows}, I) and R of ({self.directions}, {rows}, H)"
            raise ValueError(f"expected {expected}, got {self.W.shape} and {self.R.shape}")
        said = self._attribute("hidden_size", self.hidden_size)
        if said != self.hidden_size:
            raise ValueError(f"expected hidden_size {self.hidden_size}, got {said}")
        self.B = self._weights(3, "B", 2, (self.directions, 2 * rows)) if self.inputs[3] else None
        peepholes = (self.directions, 3 * self.hidden_size)
        has_peepholes = self.kind == "LSTM" and bool(self.inputs[7])
        self.P = self._weights(7, "P", 2, peepholes) if has_peepholes else None
        self.coupled = self.kind == "LSTM" and bool(self._attribute("input_forget", 0))
        self.clip: float | None = self._attribute("clip", 0.0) if "clip" in self._attributes else None
        self.functions = self._functions()

    def _attribute(self, name: str, default: _T) -> _T:
        """Return an attribute of the type, and if it is a list of the type of items, of its default."""
        value = self._attributes.get(name, default)
        items = value if isinstance(value, list) else [value]
        wanted = default if isinstance(default, list) else [default]
        if type(value) is not type(default) or any(type(item) is not type(wanted[0]) for item in items):
            raise ValueError(f"expected {name} of the type of {default!r}, got {_checks.shortened(value)}")
        return value

    def _text(self, name: str, default: str) -> str:
        return self._attribute(name, default.encode()).decode("utf-8", "replace")

    def _weights(self, at: int, name: str, dims: int, shape: tuple[int, ...] | None = None) -> Array:
        value = self._constants.get(self.inputs[at])
        if value is None:
            raise ValueError(f"expected a constant {name}, got one that is computed as the model runs")
        if value.dtype.kind != "f":
            raise ValueError(f"expected floating-point numbers in {name}, got dtype {value.dtype}")
        if value.ndim != dims or not value.size or (shape is not None and value.shape != shape):
            raise ValueError(f"expected {name} of {shape or f'{dims} dimensions'}, got shape {value.shape}")
        check_finite({name: value})
        return value

    def _dequantized(self, at: int, name: str, scale_at: int) -> Array:
        """Return weights of 8 bits, (D, I, 4 H), as the numbers that they stand for, with rows for gates."""
        value, zero = self._constants.get(self.inputs[at]), self._constants.get(self.inputs[scale_at + 1])
        if value is None or value.ndim != 3 or value.dtype.kind not in "iu" or zero is None:
            raise ValueError(f"expected constant {name} of 8 bits, of 3 dimensions, with a zero point")
        scale = self._weights(scale_at, f"{name}_scale", 1 if zero.ndim == 1 else 2)
        if scale.shape != zero.shape or scale.shape not in (
            value.shape[:1],
            (value.shape[0], value.shape[2]),
        ):
            raise ValueError(
                f"expected scales of {name} that match its shape {value.shape}, got {scale.shape}"
            )
        shape = (value.shape[0], 1, -1)
        exact = (value.astype(np.float32) - zero.astype(np.float32).reshape(shape)) * scale.reshape(shape)
        return np.ascontiguousarray(exact.swapaxes(1, 2))

    def _numbers(self, name: str) -> list[float]:
        return list(self._attribute(name, [0.0])) if name in self._attributes else []

    def _functions(self) -> list[Any]:
        """Return the functions of one direction, in plain form; both directions have to have the same."""
        usual = _FUNCTIONS[self.kind]
        given = self._attribute("activations", [name.encode() for name in usual * self.directions])
        if len(given) != len(usual) * self.directions:
            raise ValueError(f"expected {len(usual) * self.directions} activations, got {len(given)}")
        alphas, betas = (self._numbers(f"activation_{letter}") for letter in ("alpha", "beta"))
        plain: list[Any] = []
        for raw in given:
            written = raw.decode("utf-8", "replace")
            name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", written).lower()
            name = {n.replace("_", ""): n for n in _PARAMETERS}.get(name.replace("_", ""), name)
            if name not in _PARAMETERS:
                raise ValueError(
                    f"expected activations of {', '.join(_PARAMETERS)}, got {_checks.shortened(written)}"
                )
            defaults = _PARAMETERS[name]
            numbers = [
                float(values.pop(0)) if values else default
                for values, default in zip((alphas, betas), defaults, strict=False)
            ]
            plain.append((name, *numbers) if numbers else name)
        first, second = plain[: len(usual)], plain[len(usual) :]
        if second and second != first:
            raise ValueError(f"expected the same activations in both directions, got {first} and {second}")
        return first

    # ---- the module ----

    def module(self, by_pytorch: bool, linear_before_reset: bool | None) -> Any:
        after = self._reset_after(by_pytorch, linear_before_reset)
        options: dict[str, Any] = {
            "bias": self.B is not None,
            "batch_first": bool(self._attribute("layout", 0)),
            "bidirectional": self.directions == 2,
            "direction": self.direction,
            "clip": self.clip,
            "dtype": np.float64 if self.W.dtype == np.float64 else np.float32,
        }
        if self.kind == "RNN" and self.functions in (["tanh"], ["relu"]):
            options["nonlinearity"] = self.functions[0]
        else:
            options["activations"] = self.functions
        if self.kind == "GRU":
            options["reset_after"] = after
        if self.kind == "LSTM":
            options |= {"peephole": self.P is not None, "coupled": self.coupled}
        states = self._constant_states()
        options["learn_state"] = bool(states)
        made = _CLASSES[self.kind](self.W.shape[2], self.hidden_size, **options)
        made.load_state_dict(self._parameters() | states)
        _verify.verify(f"{self.kind} {self.name!r}", made, self._equations(after, states))
        return made

    def _reset_after(self, by_pytorch: bool, given: bool | None) -> bool:
        said = bool(self._attribute("linear_before_reset", 0))
        if self.kind != "GRU" or said or not by_pytorch:
            return said
        if given is None:
            warnings.warn(
                f"GRU {self.name!r}: the file was written by PyTorch, whose GRU resets after the product, "
                "but the node says linear_before_reset=0, as some versions of its exporter did by mistake; "
                "pass linear_before_reset=True if it is the mistake, or False if not",
                stacklevel=4,
            )
        return bool(given)

    def _parameters(self) -> dict[str, Array]:
        parameters: dict[str, Array] = {}
        rows = self.R.shape[1]
        for number, suffix in enumerate(("_l0", "_l0_reverse")[: self.directions]):
            arrays = {"weight_ih": self.W[number], "weight_hh": self.R[number]}
            if self.B is not None:
                arrays |= {"bias_ih": self.B[number, :rows], "bias_hh": self.B[number, rows:]}
            parameters |= {name + suffix: self._ordered(value) for name, value in arrays.items()}
            if self.P is not None:
                vectors = dict(zip("iof", np.split(self.P[number], 3), strict=True))
                wanted = "io" if self.coupled else "ifo"
                parameters |= {f"weight_c{gate}{suffix}": vectors[gate] for gate in wanted}
        return parameters

    def _ordered(self, value: Array) -> Array:
        if self.kind == "RNN":
            return value
        if not self.coupled:
            return reorder(value, gates=_GATES[self.kind])
        i, o, _, c = np.split(value, 4)  # there is an f that is not used
        return reorder(np.concatenate([i, o, c]), gates="ioc")

    def _constant_states(self) -> dict[str, Array]:
        """Return initial states that are fixed, the same for all rows, and not 0, as parameters."""
        states: dict[str, Array] = {}
        for at, name in ((5, "h_0"), (6, "c_0"))[: 2 if self.kind == "LSTM" else 1]:
            value = self._constants.get(self.inputs[at]) if self.inputs[at] else np.zeros(())
            if value is None:
                return {}  # the caller passes states
            rows = value if not self._attribute("layout", 0) or value.ndim != 3 else value.swapaxes(0, 1)
            same = rows.ndim == 3 and rows.size and (rows == rows[:, :1]).all()
            if value.any() and not same:
                return {}
            states[name] = rows[:, 0] if same else np.zeros((self.directions, self.hidden_size), np.float32)
        return states if any(value.any() for value in states.values()) else {}

    # ---- its own equations, for the proof ----

    def _equations(self, linear_before_reset: bool, states: dict[str, Array]) -> Callable[[Array], Array]:
        zeros = np.zeros((self.directions, self.hidden_size))

        def output(x: Array) -> Array:
            outputs = []
            for number in range(self.directions):
                backwards = self.direction == "reverse" or number == 1
                h, c = (np.tile(states.get(name, zeros)[number], (x.shape[1], 1)) for name in ("h_0", "c_0"))
                steps = []
                for step in x[::-1] if backwards else x:
                    h, c = self._step(number, step, h, c, linear_before_reset)
                    steps.append(h)
                outputs.append(np.stack(steps[::-1] if backwards else steps))
            return np.concatenate(outputs, axis=2)

        return output

    def _step(
        self, number: int, x: Array, h: Array, c: Array, linear_before_reset: bool
    ) -> tuple[Array, Array]:
        """Take one step as the operator's specification writes it."""
        gates = len(_GATES[self.kind])
        W, R = (np.split(np.asarray(m[number], np.float64), gates) for m in (self.W, self.R))
        rows = self.R.shape[1]
        B = np.zeros(2 * rows) if self.B is None else np.asarray(self.B[number], np.float64)
        Wb, Rb = np.split(B[:rows], gates), np.split(B[rows:], gates)
        f, *others = [_verify.function(function) for function in self.functions]

        def clipped(a: Array) -> Array:
            return a if self.clip is None else np.clip(a, -self.clip, self.clip)

        def gate(k: int, operand: Array) -> Array:
            sums: Array = x @ W[k].T + operand @ R[k].T + Wb[k] + Rb[k]
            return sums

        if self.kind == "RNN":
            return f(clipped(gate(0, h))), c
        if self.kind == "GRU":
            z, r = (f(clipped(gate(k, h))) for k in (0, 1))
            if linear_before_reset:
                candidate = x @ W[2].T + r * (h @ R[2].T + Rb[2]) + Wb[2]
            else:
                candidate = gate(2, r * h)
            return (1 - z) * others[0](clipped(candidate)) + z * h, c
        g, squash = others
        p_i, p_o, p_f = (
            np.zeros((3, self.hidden_size))
            if self.P is None
            else np.split(np.asarray(self.P[number], np.float64), 3)
        )
        i = f(clipped(gate(0, h) + p_i * c))
        forget = 1 - i if self.coupled else f(clipped(gate(2, h) + p_f * c))
        c = forget * c + i * g(clipped(gate(3, h)))
        return f(clipped(gate(1, h) + p_o * c)) * squash(c), c
