"""Parameters of Flax and Haiku as modules of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gatedrnn import _checks
from gatedrnn._modules import GRU, LSTM, RNN
from gatedrnn.convert import _verify
from gatedrnn.convert._reorder import reorder
from gatedrnn.convert._torch import check_finite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Weights = dict[str, Array]  # by torch.nn's names, without the layer
    # Class, parameters, options, and a step of the source's own.
    _Found = tuple[str, Weights, dict[str, Any], Callable[..., Any]]

# Flax' cells, by the names of their parts: with "i" before them of the inputs, with "h" of the state.
_FLAX = {"LSTM": ("i", "f", "g", "o"), "GRU": ("r", "z", "n"), "RNN": ("",)}
_CLASSES: dict[str, Any] = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN}


def from_flax(params: Mapping[str, Any], *, form: str = "flax") -> dict[str, Any]:
    """Make a module of each recurrent cell in a tree of parameters of Flax, or of Haiku.

    Args:
        params: Nested mappings, as ``variables["params"]`` of Flax or what Haiku's ``init`` returns, of
            arrays of JAX or NumPy. Flax' cells are ``LSTMCell``, ``OptimizedLSTMCell``, ``GRUCell`` (whose
            reset gate acts after the product) and ``SimpleCell`` (tanh).
        form: "flax", or "haiku", whose cells are ``LSTM`` (which adds 1 to f as it runs), ``GRU`` (whose
            reset gate acts before the product, and whose z multiplies what is new) and ``VanillaRNN`` (relu).
            The first and the last are known by "lstm" and "rnn" in their names.

    Returns:
        Modules by the names of their place in the tree, joined by "/"; "" for `params` itself.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: There is no such cell, or one's sizes do not match, or numbers are not finite.
        RuntimeError: A module does not compute what its cell does, which would be our mistake.
    """
    form = _checks.choice("form", form, ("flax", "haiku"))
    if not isinstance(params, Mapping):
        raise TypeError(f"params: expected nested mappings of arrays, got {_checks.described(params)}")
    tree_of = params if form == "flax" else _nested(params)
    read = _flax_cell if form == "flax" else _haiku_cell
    modules = {}
    for path, tree in _nodes(tree_of, ()):
        name = "/".join(path)
        try:
            found = read(tree, path[-1] if path else "")
            if found is not None:
                modules[name] = _module_of(*found)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{name or 'params'}: {error}") from error
    if not modules:
        raise ValueError(f"params: expected cells of {form.capitalize()}, got none")
    return modules


def _nodes(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(tree, Mapping):
        yield path, tree
        for key, inner in tree.items():
            yield from _nodes(inner, (*path, str(key)))


def _nested(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return Haiku's parameters, whose names have their place in the tree, as a tree."""
    tree: dict[str, Any] = {}
    for name, value in params.items():
        *outer, last = str(name).split("/")
        place = tree
        for part in outer:
            place = place.setdefault(part, {})
        if isinstance(value, Mapping):
            place.setdefault(last, {}).update(_nested(value))
        else:
            place[last] = value
    return tree


def _module_of(kind: str, weights: Weights, options: dict[str, Any], step: Callable[..., Any]) -> Any:
    check_finite(weights)
    hidden_size = weights["weight_hh"].shape[1]
    double = all(value.dtype == np.float64 for value in weights.values())
    dtype = np.float64 if double else np.float32
    made = _CLASSES[kind](weights["weight_ih"].shape[1], hidden_size, dtype=dtype, **options)
    made.load_state_dict({f"{name}_l0": value for name, value in weights.items()})

    def output(x: Array) -> Array:
        h = c = np.zeros((x.shape[1], hidden_size))
        steps = []
        for row in x:
            h, c = step(row, h, c)
            steps.append(h)
        return np.stack(steps)

    _verify.verify(kind, made, output)
    return made


def _matrix(name: str, value: Any, rows: int | None = None, columns: int | None = None) -> Array:
    array = _checks.foreign_array(name, value)
    wanted = (rows or len(array) if array.ndim else 0, columns or array.shape[-1] if array.ndim else 0)
    if array.shape != wanted or not array.size:
        expected = f"({rows or 'I'}, {columns or 'H'})"
        raise ValueError(f"{name}: expected a matrix {expected}, got shape {array.shape}")
    return array


def _vector(name: str, value: Any, size: int) -> Array:
    array = _checks.foreign_array(name, value)
    if array.shape != (size,):
        raise ValueError(f"{name}: expected {size} numbers, got shape {array.shape}")
    return array


def _double(value: Array) -> Array:
    return value.astype(np.float64)


# ---- Flax ----


def _flax_cell(tree: Mapping[str, Any], _: str) -> _Found | None:
    for kind, gates in _FLAX.items():
        names = {side + gate for side in "ih" for gate in gates}
        if names <= tree.keys() and all(
            isinstance(tree[name], Mapping) and "kernel" in tree[name] for name in names
        ):
            return _flax_weights(kind, gates, tree)
    return None


def _flax_weights(kind: str, gates: tuple[str, ...], tree: Mapping[str, Any]) -> _Found:
    units = np.shape(tree["h" + gates[0]]["kernel"])[-1]
    parts: dict[str, tuple[Array, Array]] = {}
    for side in "ih":
        for gate in gates:
            name = side + gate
            kernel = _matrix(f"{name}/kernel", tree[name]["kernel"], units if side == "h" else None, units)
            bias = np.zeros(units, kernel.dtype)
            if "bias" in tree[name]:
                bias = _vector(f"{name}/bias", tree[name]["bias"], units)
            parts[name] = kernel, bias
    if len({parts["i" + gate][0].shape for gate in gates}) > 1:
        raise ValueError("expected kernels of the same number of inputs, got others")
    weights: Weights = {}
    for side, end in (("i", "ih"), ("h", "hh")):
        weights[f"weight_{end}"] = np.concatenate([parts[side + gate][0].T for gate in gates])
        weights[f"bias_{end}"] = np.concatenate([parts[side + gate][1] for gate in gates])
    exact = {name: (_double(kernel), _double(bias)) for name, (kernel, bias) in parts.items()}

    def dense(name: str, value: Array) -> Array:
        kernel, bias = exact[name]
        product: Array = value @ kernel + bias
        return product

    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        sigmoid = _verify.function("sigmoid")
        if kind == "RNN":
            return np.tanh(dense("i", x) + dense("h", h)), c
        if kind == "GRU":
            r, z = (sigmoid(dense("i" + g, x) + dense("h" + g, h)) for g in "rz")
            n = np.tanh(dense("in", x) + r * dense("hn", h))
            return (1 - z) * n + z * h, c
        i, f, o = (sigmoid(dense("i" + g, x) + dense("h" + g, h)) for g in "ifo")
        c = f * c + i * np.tanh(dense("ig", x) + dense("hg", h))
        return o * np.tanh(c), c

    return kind, weights, {}, step


# ---- Haiku ----


def _haiku_cell(tree: Mapping[str, Any], name: str) -> _Found | None:
    def has(part: str) -> bool:
        return isinstance(tree.get(part), Mapping) and {"w", "b"} <= tree[part].keys()

    if {"w_i", "w_h", "b"} <= tree.keys():
        return _haiku_gru(tree)
    if "rnn" in name.lower() and has("linear") and isinstance(tree.get("linear_1"), Mapping):
        return _haiku_rnn(tree["linear"], tree["linear_1"])
    if "lstm" in name.lower() and has("linear"):
        return _haiku_lstm(tree["linear"])
    return None


def _haiku_rnn(of_input: Mapping[str, Any], of_hidden: Mapping[str, Any]) -> _Found:
    units = np.shape(of_hidden["w"])[-1]
    w_i = _matrix("linear/w", of_input["w"], None, units)
    w_h = _matrix("linear_1/w", of_hidden["w"], units, units)
    b_i = _vector("linear/b", of_input["b"], units)
    b_h = _vector("linear_1/b", of_hidden["b"], units) if "b" in of_hidden else np.zeros_like(b_i)
    weights = {"weight_ih": w_i.T, "weight_hh": w_h.T, "bias_ih": b_i, "bias_hh": b_h}
    exact_i, exact_h, exact_b = _double(w_i), _double(w_h), _double(b_i) + _double(b_h)

    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        return np.maximum(x @ exact_i + h @ exact_h + exact_b, 0), c

    return "RNN", weights, {"nonlinearity": "relu"}, step


def _haiku_gru(tree: Mapping[str, Any]) -> _Found:
    units = np.shape(tree["w_h"])[0]
    w_i, w_h = _matrix("w_i", tree["w_i"], None, 3 * units), _matrix("w_h", tree["w_h"], units, 3 * units)
    b = _vector("b", tree["b"], 3 * units)
    weights = {
        "weight_ih": reorder(w_i, gates="zrn", layout="columns", z="new"),
        "weight_hh": reorder(w_h, gates="zrn", layout="columns", z="new"),
        "bias_ih": reorder(b, gates="zrn", z="new"),
        "bias_hh": np.zeros_like(b),
    }
    exact_i, exact_h, exact_b = _double(w_i), _double(w_h), _double(b)

    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        of_x = x @ exact_i + exact_b
        zr = _verify.function("sigmoid")(of_x[:, : 2 * units] + h @ exact_h[:, : 2 * units])
        z, r = zr[:, :units], zr[:, units:]
        a = np.tanh(of_x[:, 2 * units :] + (r * h) @ exact_h[:, 2 * units :])
        return (1 - z) * h + z * a, c

    return "GRU", weights, {"reset_after": False}, step


def _haiku_lstm(tree: Mapping[str, Any]) -> _Found:
    units = np.shape(tree["w"])[-1] // 4
    w, b = _matrix("w", tree["w"], None, 4 * units), _vector("b", tree["b"], 4 * units)
    inputs = len(w) - units
    if inputs < 1:
        raise ValueError(f"w: expected more than {units} rows, of inputs and state, got shape {w.shape}")
    forget = np.zeros_like(b)
    forget[2 * units : 3 * units] = 1  # added as it runs
    weights = {
        "weight_ih": reorder(w[:inputs], gates="igfo", layout="columns"),
        "weight_hh": reorder(w[inputs:], gates="igfo", layout="columns"),
        "bias_ih": reorder(b, gates="igfo"),
        "bias_hh": reorder(forget, gates="igfo"),
    }
    exact_w, exact_b = _double(w), _double(b)

    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        sigmoid = _verify.function("sigmoid")
        i, g, f, o = np.split(np.concatenate([x, h], axis=1) @ exact_w + exact_b, 4, axis=1)
        c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c

    return "LSTM", weights, {}, step
