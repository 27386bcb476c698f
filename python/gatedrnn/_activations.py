"""Functions of gates as arguments: what they may be, and how the engine gets them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gatedrnn import _checks, _core
from gatedrnn._parameters import CELLS

if TYPE_CHECKING:
    # A name, alone or with alpha, or alpha and beta; by gate, or one for each kind of gate in ONNX' order.
    Activation: TypeAlias = str | tuple[str, float] | tuple[str, float, float]
    Activations: TypeAlias = Mapping[str, Activation] | Sequence[Activation]

# Their parameters' defaults, which are ONNX's.
_DEFAULTS: dict[str, tuple[float, ...]] = _core.activations()
# Further names: torch.nn.functional's, which is relu6(x + 3) / 6, and Keras'.
_ALIASES: dict[str, tuple[str, float, float]] = {
    "hardsigmoid": ("hard_sigmoid", 1 / 6, 0.5),
    "linear": ("affine", 1.0, 0.0),
}
# Where several gates have the same function, ONNX lists it once.
_LISTED = {"lstm": ("ifo", "g", "h"), "gru": ("rz", "n"), "rnn": ("h",)}


def checked(name: str, value: object) -> object:
    """Accept what `of_cell` can go on with, and None."""
    if value is None or isinstance(value, Mapping):
        return value
    if isinstance(value, Sequence) and not isinstance(value, str):
        return value
    expected = "names by gate, or a list of names in ONNX' order"
    raise TypeError(f"{name}: expected {expected}, got {_checks.described(value)}")


def of_cell(name: str, value: Any, cell: str) -> dict[str, Any] | None:
    """Return the functions that differ from the cell's own, by gate, in plain form; None where none does.

    Args:
        name: How errors call the argument.
        value: What `checked` returned.
        cell: The engine's name of the cell without options.
    """
    if value is None:
        return None
    usual = usual_functions(cell)
    if not isinstance(value, Mapping):
        value = _by_gate(name, value, cell, usual)
    unknown = [gate for gate in value if gate not in usual]
    if unknown:
        gates = ", ".join(map(repr, usual))
        raise ValueError(f"{name}: expected some of the gates {gates}, got {_checks.shortened(unknown[0])}")
    given = {gate: _plain(f"{name}[{gate!r}]", function) for gate, function in value.items()}
    return {gate: given[gate] for gate in usual if given.get(gate, usual[gate]) != usual[gate]} or None


def _by_gate(name: str, value: Sequence[Any], cell: str, usual: Mapping[str, str]) -> dict[str, Any]:
    groups = _LISTED[cell.split("_")[0]]
    if len(value) != len(groups):
        raise ValueError(f"{name}: expected {len(groups)} of them, for {', '.join(groups)}, got {len(value)}")
    functions = zip(groups, value, strict=True)
    return {gate: function for group, function in functions for gate in group if gate in usual}


def _plain(name: str, value: object) -> str | tuple[Any, ...]:
    """Return a function's name, or where it has parameters, a tuple of that and all of them."""
    function, *given = value if isinstance(value, (tuple, list)) and value else [value]
    known = (*_DEFAULTS, *_ALIASES)
    if not isinstance(function, str):
        wanted = "a name, or a tuple of one and its parameters"
        raise TypeError(f"{name}: expected {wanted}, got {_checks.described(function)}")
    if function not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {_checks.shortened(function)}")
    if function in _ALIASES and not given:
        function, *given = _ALIASES[function]
    defaults = _DEFAULTS.get(function, ())
    if len(given) > len(defaults):
        raise ValueError(
            f"{name}: expected at most {len(defaults)} parameters of {function!r}, got {len(given)}"
        )
    numbers = [_number(name, number) for number in given]
    return (function, *numbers, *defaults[len(numbers) :]) if defaults else function


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected numbers as parameters, got {_checks.described(value)}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected finite parameters, got {value!r}")
    return float(value)


def general(cell: str) -> str:
    """Return the engine's name of a cell's general form, which is told its functions."""
    return "rnn_general" if cell.startswith("rnn") else f"{cell}_general"


def usual_functions(cell: str) -> dict[str, str]:
    """Return the functions of a cell without options, by gate."""
    functions = dict(CELLS[general(cell)].activations)
    return {"h": cell.removeprefix("rnn_")} if cell.startswith("rnn") else functions


def engine_functions(functions: Mapping[str, Any] | None, cell: str) -> list[list[Any]]:
    """Return all functions of a cell, with those of `of_cell`, as the engine is told them."""
    all_functions = usual_functions(cell) | dict(functions or {})
    return [
        [f, 0.0, 0.0] if isinstance(f, str) else [*f, *[0.0] * (3 - len(f))] for f in all_functions.values()
    ]
