"""One recurrent node of an ONNX model as a module of ours."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from gatedrnn import _checks
from gatedrnn._modules import GRU, LSTM, RNN
from gatedrnn.convert import _verify
from gatedrnn.convert._onnx_graph import is_quantized
from gatedrnn.convert._reorder import reorder
from gatedrnn.convert._torch import check_finite

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from gatedrnn.convert._onnx_graph import Constants

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


class RecurrentNode:
    """One recurrent node: its attributes and constant inputs."""

    def __init__(self, onnx: Any, name: str, node: Any, constants: Constants) -> None:
        self.quantized = is_quantized(node)
        self.name, self.kind = name, "LSTM" if self.quantized else node.op_type
        self._attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        self.inputs, self.outputs = [*node.input, *[""] * 12], list(node.output)
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

    def module(self, by_pytorch: bool, linear_before_reset: bool | None, learn_state: bool = True) -> Any:
        """Return the module, proved, with constant initial states as learnt ones or without."""
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
        states = self._constant_states() if learn_state else {}
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
