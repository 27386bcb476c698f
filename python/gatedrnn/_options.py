"""Arguments of the constructors of LSTM, GRU and RNN: what each may be, its default, and its attribute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

import numpy as np

from gatedrnn import _activations, _cell_options, _checks
from gatedrnn._merge import MERGES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Self

_T = TypeVar("_T")

_MAX_LAYERS = 1 << 16

# A class takes those that it has.
_CHECKS: dict[str, Callable[[str, object], Any]] = {
    "input_size": lambda name, value: _checks.integer(name, value, 1),
    "hidden_size": lambda name, value: _checks.integer(name, value, 1),
    "num_layers": lambda name, value: _checks.integer(name, value, 1, _MAX_LAYERS),
    "nonlinearity": lambda name, value: _checks.choice(name, value, ("tanh", "relu")),
    "bias": _checks.flag,
    "batch_first": _checks.flag,
    "dropout": _checks.probability,
    "bidirectional": _checks.flag,
    "direction": lambda name, value: _checks.choice(name, value, ("forward", "reverse")),
    "merge": lambda name, value: _checks.choice(name, value, MERGES),
    "learn_state": _checks.flag,
    "proj_size": lambda name, value: _checks.integer(name, value, 0),
    "peephole": _checks.flag,
    "coupled": _checks.flag,
    "reset_after": _checks.flag,
    "activations": _activations.checked,
    "clip": _cell_options.limit,
    "cell_clip": _cell_options.limit,
    "layer_norm": _cell_options.layer_norm,
    "layer_norm_eps": _cell_options.epsilon,
    "dtype": _checks.float_dtype,
}

_COMMON_DEFAULTS: dict[str, object] = {
    "num_layers": 1,
    "bias": True,
    "batch_first": False,
    "dropout": 0.0,
    "bidirectional": False,
    "activations": None,
    "clip": None,
    "direction": "forward",
    "merge": "concat",
    "learn_state": False,
    "dtype": np.dtype(np.float32),
}
_LAYER_NORM_DEFAULTS: dict[str, object] = {"layer_norm": None, "layer_norm_eps": 1e-5}


def checked(options: Mapping[str, object]) -> dict[str, Any]:
    """Return the arguments in their plain Python form, or raise an error that names the wrong one."""
    plain = {name: _CHECKS[name](name, value) for name, value in options.items()}
    if plain.get("proj_size", 0) >= plain["hidden_size"]:
        expected = f"less than hidden_size={plain['hidden_size']}"
        raise ValueError(f"proj_size: expected {expected}, got {plain['proj_size']}")
    if plain.get("bidirectional"):
        _only("direction", "forward", plain, "bidirectional=True")
    else:
        _only("merge", "concat", plain, "bidirectional=False")
    return plain


def _only(name: str, allowed: str, plain: Mapping[str, Any], where: str) -> None:
    """Refuse another value of an argument that the others leave no choice."""
    if plain.get(name, allowed) != allowed:
        raise ValueError(f"{name}: expected {allowed!r} with {where}, got {plain[name]!r}")


# Of products of float32, where a module computes.
_PRECISIONS = {"cpu": ("bfloat16", "bfloat16x3", "int8"), "cuda": ("tf32", "float16", "bfloat16")}


def checked_precision(device: str, precision: object, dtype: np.dtype[Any]) -> str | None:
    """Return the precision, or raise an error that says which ones there are."""
    if precision is None:
        return None
    plain = _checks.choice("precision", precision, _PRECISIONS[device], f" on {device!r}")
    if dtype != np.float32:
        raise ValueError(f"precision: expected None for {dtype}, got {plain!r}")
    return plain


# Arguments that came after files and pickles were first written.
_LATER = {
    "coupled",
    "activations",
    "clip",
    "cell_clip",
    "layer_norm",
    "layer_norm_eps",
    "direction",
    "merge",
    "learn_state",
}


def completed(options: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, object]:
    """Add the arguments that came after the version which wrote a file or a pickle, at their defaults."""
    return {**{name: defaults[name] for name in _LATER & defaults.keys()}, **options}


class _HasOptions(Protocol):
    _options: dict[str, Any]


class _Option(Generic[_T]):
    """A constructor argument as a read-only attribute."""

    def __init__(self, doc: str) -> None:
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, module: None, owner: type) -> Self: ...
    @overload
    def __get__(self, module: _HasOptions, owner: type) -> _T: ...
    def __get__(self, module: _HasOptions | None, owner: type) -> Self | _T:
        if module is None:
            return self
        value: Any = module._options[self.name]
        if isinstance(value, dict):
            value = dict(value)  # a copy, since nobody is to change the module's
        plain: _T = value
        return plain

    def __set__(self, module: _HasOptions, value: object) -> None:
        raise AttributeError(f"{self.name}: fixed when the module is made, cannot be assigned")
