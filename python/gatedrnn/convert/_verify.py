"""The proof of a conversion: the source's own equations, plainly in float64, beside the new module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    Array = npt.NDArray[Any]

# Of the largest value. Both sides compute in float64 from the same numbers: roundings are far below, and what
# a wrong weight does is far above.
_RELATIVE = 1e-9


def verify(what: str, module: Any, source: Callable[[Array], Array]) -> None:
    """Raise where a module does not compute what its source does.

    Args:
        what: How the error calls the source.
        module: One of ours: a module, or a cell, which takes one step.
        source: The output of the source's equations in float64, for x (T, B, I) in float64; of a cell for
            x (B, I) h after one step from a state of zeros.

    Raises:
        RuntimeError: They disagree.
    """
    options = {**module._options, "dtype": np.dtype(np.float64)}
    if "batch_first" in options:
        options["batch_first"] = False
    twin = type(module)(**options)
    twin.load_state_dict(module.state_dict())
    steps = (4,) if "batch_first" in options else ()
    x = np.random.default_rng(0).standard_normal((*steps, 2, module.input_size))
    ours = twin(x)
    output = ours[0] if isinstance(ours, tuple) else ours
    expected = source(x)
    difference = float(np.abs(output - expected).max(initial=0))
    if not difference <= _RELATIVE * max(1.0, float(np.abs(expected).max(initial=0))):
        raise RuntimeError(
            f"{what}: the converted module's output differs from the source's by {difference:.3g}: a mistake "
            "of gatedrnn's, which its maintainers would like to hear of"
        )


def torch_source(
    kind: str, weights: Mapping[str, Array], nonlinearity: str = "tanh"
) -> Callable[[Array], Array]:
    """Read torch.nn's equations of an "LSTM", "GRU" or "RNN" from its parameters by torch.nn's names."""

    def output(x: Array) -> Array:
        layer = 0
        while f"weight_ih_l{layer}" in weights:
            directions = [s for s in ("", "_reverse") if f"weight_ih_l{layer}{s}" in weights]
            outputs = []
            for suffix in directions:
                p = {
                    name.removesuffix(f"_l{layer}{suffix}"): np.asarray(value, np.float64)
                    for name, value in weights.items()
                    if name.endswith(f"_l{layer}{suffix}")
                }
                ordered = x[::-1] if suffix else x
                h = np.zeros((x.shape[1], p["weight_hh"].shape[1]))
                c = np.zeros((x.shape[1], _units(p)))
                steps = []
                for step in ordered:
                    h, c = _torch_step(kind, p, step, h, c, nonlinearity)
                    steps.append(h)
                outputs.append(np.stack(steps[::-1] if suffix else steps))
            x = np.concatenate(outputs, axis=2)
            layer += 1
        return x

    return output


def torch_cell_source(
    kind: str, weights: Mapping[str, Array], nonlinearity: str = "tanh"
) -> Callable[[Array], Array]:
    """Read the same of a cell."""
    p = {name: np.asarray(value, np.float64) for name, value in weights.items()}

    def h_after(x: Array) -> Array:
        zeros = np.zeros((len(x), _units(p)))
        return _torch_step(kind, p, x, zeros, zeros, nonlinearity)[0]

    return h_after


def _units(p: Mapping[str, Array]) -> int:
    return int(p["weight_hr" if "weight_hr" in p else "weight_hh"].shape[1])


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1 + np.tanh(x / 2))


def _torch_step(
    kind: str, p: Mapping[str, Array], x: Array, h: Array, c: Array, nonlinearity: str
) -> tuple[Array, Array]:
    """Take one step as the documentation of torch.nn writes it."""
    of_x = x @ p["weight_ih"].T + p.get("bias_ih", 0.0)
    of_h = h @ p["weight_hh"].T + p.get("bias_hh", 0.0)
    if kind == "RNN":
        a = of_x + of_h
        return (np.tanh(a) if nonlinearity == "tanh" else np.maximum(a, 0)), c
    if kind == "GRU":
        (x_r, x_z, x_n), (h_r, h_z, h_n) = np.split(of_x, 3, axis=1), np.split(of_h, 3, axis=1)
        r, z = _sigmoid(x_r + h_r), _sigmoid(x_z + h_z)
        return (1 - z) * np.tanh(x_n + r * h_n) + z * h, c
    i, f, g, o = np.split(of_x + of_h, 4, axis=1)
    c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
    h = _sigmoid(o) * np.tanh(c)
    return (h @ p["weight_hr"].T if "weight_hr" in p else h), c


def function(plain: str | Sequence[Any]) -> Callable[[Array], Array]:
    """Return one of `activations=` in plain form: its name, or a tuple of that and its parameters."""
    name, *numbers = (plain,) if isinstance(plain, str) else tuple(plain)
    alpha, beta = [*numbers, 0.0, 0.0][:2]
    functions: Mapping[str, Callable[[Array], Array]] = {
        "sigmoid": _sigmoid,
        "tanh": np.tanh,
        "relu": lambda x: np.maximum(x, 0),
        "hard_sigmoid": lambda x: np.clip(alpha * x + beta, 0, 1),
        "leaky_relu": lambda x: np.where(x < 0, alpha * x, x),
        "elu": lambda x: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x),
        "softsign": lambda x: x / (1 + np.abs(x)),
        "softplus": lambda x: np.logaddexp(x, 0),
        "scaled_tanh": lambda x: alpha * np.tanh(beta * x),
        "affine": lambda x: alpha * x + beta,
        "linear": lambda x: x,
        "thresholded_relu": lambda x: np.where(x > alpha, x, 0),
    }
    return functions[name]
