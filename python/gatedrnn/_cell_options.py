"""Arguments that make another cell of LSTM, GRU and RNN: what they may be, and how the engine gets them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gatedrnn import _activations, _checks
from gatedrnn._parameters import CELLS

_FORMS = ("products", "gates")  # of layer normalisation

# Those of general cells.
_GENERAL = ("activations", "clip", "cell_clip")

# Where cells without options have not all forms of layer normalisation.
_WHERE = {
    "lstm_peephole": "with peephole=True",
    "lstm_coupled": "with coupled=True",
    "lstm_coupled_peephole": "with coupled=True and peephole=True",
    "gru": "for a GRU",
    "gru_reset_before": "with reset_after=False",
}


def limit(name: str, value: object) -> float | None:
    """Accept a positive number, or None for no limit."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number or None, got {_checks.described(value)}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a finite number above 0, or None, got {_checks.shortened(value)}")
    return float(value)


def layer_norm(name: str, value: object) -> str | None:
    """Accept one of the forms, or None."""
    return None if value is None else _checks.choice(name, value, _FORMS, " or None")


def epsilon(name: str, value: object) -> float:
    """Accept a positive number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {_checks.described(value)}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a finite number above 0, got {_checks.shortened(value)}")
    return float(value)


def of_cell(options: dict[str, Any], cell: str) -> dict[str, Any]:
    """Return the arguments in plain form, or refuse those that the cell without options has not.

    Args:
        options: A module's arguments, each checked on its own.
        cell: The engine's name of the cell without options.
    """
    functions = options.get("activations")
    if functions is not None:
        options["activations"] = _activations.of_cell("activations", functions, cell)
    form = options.get("layer_norm")
    if form is not None and _normalized(cell, form) not in CELLS:
        possible = [other for other in _FORMS if _normalized(cell, other) in CELLS]
        expected = " or ".join(map(repr, [None, *possible]))
        raise ValueError(f"layer_norm: expected {expected} {_WHERE[cell]}, got {form!r}")
    return options


def _normalized(cell: str, form: str) -> str:
    return f"{cell}_norm_{form}"


def engine_cell(options: Mapping[str, Any], cell: str) -> str:
    """Return the engine's name of the cell, in its general form where an option asks for that."""
    form = options.get("layer_norm")
    if form is not None:
        return _normalized(cell, form)
    return cell if all(options.get(name) is None for name in _GENERAL) else _activations.general(cell)


def engine_options(options: Mapping[str, Any], cell: str) -> dict[str, Any]:
    """Return what the engine is told beside the name that `engine_cell` gives."""
    if engine_cell(options, cell) == cell:
        return {}
    told = {name: options.get(name) for name in ("clip", "cell_clip")}
    told["activations"] = _activations.engine_functions(options.get("activations"), cell)
    if options.get("layer_norm") is not None:
        told["layer_norm_eps"] = options["layer_norm_eps"]
    return told
