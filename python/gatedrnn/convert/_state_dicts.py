"""Modules of parameters alone: files of tensors by torch.nn's names, from which all sizes are read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from gatedrnn import _checks, _files
from gatedrnn._cells import GRUCell, LSTMCell, RNNCell
from gatedrnn._modules import GRU, LSTM, RNN
from gatedrnn._optional import required
from gatedrnn.convert._torch import _TORCHS, check_finite, verify_torch

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping

    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Shape = tuple[int, ...]

# Parameters of one layer and direction; those of cells have no layer.
_NAME = re.compile(
    r"(?P<prefix>.*?)(?P<name>weight_ih|weight_hh|weight_hr|bias_ih|bias_hh|weight_c[ifo]"
    r"|weight_ln|weight_ln_ih|weight_ln_hh|weight_ln_c|bias_ln_c)(?P<layer>_l\d+(_reverse)?)?"
)
# What is read from the weights.
_INFERRED = ("input_size", "hidden_size", "num_layers", "bias", "bidirectional", "proj_size", "dtype")


def load_parameters(path: str | os.PathLike[str], prefix: str = "", **options: Any) -> Any:
    """Make a module of the parameters in a file, whose names and layout are ``torch.nn``'s.

    The file may be a whole model's, as ``torch.save(model.state_dict(), path)`` or ``safetensors`` write it.
    Cell, sizes, layers, directions and projection are read from the tensors' names and shapes.

    Args:
        path: A safetensors file, or one of PyTorch's (``.pt``, ``.pth``, ``.bin``), which needs PyTorch and
            is read with ``weights_only=True``: nothing in it is executed.
        prefix: What the names of the parameters begin with, such as "encoder.rnn."; the last dot may be left
            out. It may be empty where the file has the parameters of one recurrent module alone. Nested
            dictionaries' keys are joined by dots.
        options: Arguments of the constructor that parameters do not tell: `batch_first`, `dropout`,
            `nonlinearity` of an RNN, `reset_after` of a GRU (True unless said otherwise, as in ``torch.nn``),
            `activations` and so on. `coupled` makes an LSTM of three gates, which else are a GRU's.

    Returns:
        An `LSTM`, `GRU` or `RNN`, or where names have no layer one of their cells; in float64 where all
        parameters are, else in float32.

    Raises:
        TypeError: An argument has the wrong type, or is none of the constructor's.
        ValueError: The file is damaged or holds other things; there is nothing of this prefix, or of several;
            tensors are missing, unexpected, not finite, or of shapes that do not go together; an option is
            read from the weights, or has a value outside its range.
        OSError: The file cannot be read.
        ImportError: It is PyTorch's, which is not installed.
        RuntimeError: The module does not compute what ``torch.nn``'s would, which would be our mistake.
    """
    name = _checks.path("path", path)
    if not isinstance(prefix, str):
        raise TypeError(f"prefix: expected a str, got {_checks.described(prefix)}")
    for option in _INFERRED:
        if option in options:
            raise ValueError(f"{option}: expected none, since it is read from the parameters")
    shapes, read = _tensors_of(name)
    return _module_of(name, prefix, shapes, read, options)


def load_all_parameters(path: str) -> dict[str, Any]:
    """Do the same for every recurrent module in a file, by prefix."""
    shapes, read = _tensors_of(path)
    found = sorted(_prefixes(shapes))
    return {prefix: _module_of(path, prefix, shapes, read, {}) for prefix in found}


def _tensors_of(path: str) -> tuple[dict[str, Shape], Callable[[Iterable[str]], dict[str, Array]]]:
    """Return the shapes of all tensors by name, and what reads some of them."""
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] == b"{" or path.endswith(".safetensors"):
        return _files.shapes_of(path), lambda keys: _files.tensors_named(path, keys)
    flat = _pytorch_tensors(path)

    def read(keys: Iterable[str]) -> dict[str, Array]:
        return {key: _checks.foreign_array(key, flat[key]) for key in keys}

    return {key: tuple(tensor.shape) for key, tensor in flat.items()}, read


def _pytorch_tensors(path: str) -> dict[str, Any]:
    torch = required("torch", f"{path}: a file that is not safetensors")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch have many, of many classes; it could be opened before
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: expected tensors by name, of safetensors or PyTorch: {first}") from error
    flat: dict[str, Any] = {}
    _flatten(torch, content, "", flat)
    return flat


def _flatten(torch: Any, value: Any, prefix: str, flat: dict[str, Any]) -> None:
    if isinstance(value, torch.Tensor):
        flat[prefix[:-1]] = value
    elif isinstance(value, dict):
        for key, item in value.items():
            _flatten(torch, item, f"{prefix}{key}.", flat)


def _module_of(
    path: str,
    prefix: str,
    shapes: Mapping[str, Shape],
    read: Callable[[Iterable[str]], dict[str, Array]],
    options: dict[str, Any],
) -> Any:
    prefix = _found_prefix(path, prefix, shapes)
    own = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
    if not prefix:  # others may stand beside a module without one
        own = {key: shape for key, shape in own.items() if _is_parameter(key)}
    where = f"{path}: {prefix or 'the parameters'}"
    cls, told = _read_sizes(where, own, options)
    values = {key.removeprefix(prefix): value for key, value in read([prefix + key for key in own]).items()}
    for key, value in values.items():
        if value.dtype.kind != "f":
            raise ValueError(f"{where}: {key}: expected floating-point numbers, got dtype {value.dtype}")
    told["dtype"] = np.float64 if all(value.dtype == np.float64 for value in values.values()) else np.float32
    check_finite(values, f"{where}: ")
    made = cls(**told, **options)
    expected = cls._shapes(made._options)
    if expected != own:
        wrong = {key for key in expected.keys() & own.keys() if expected[key] != own[key]}
        parts = {
            "missing": sorted(expected.keys() - own.keys()),
            "unexpected": sorted(own.keys() - expected.keys()),
            "wrong shapes of": sorted(wrong),
        }
        found = "; ".join(f"{what} {names[:5]}" for what, names in parts.items() if names)
        raise ValueError(f"{where}: expected the parameters of {made!r}, got {found}")
    made.load_state_dict(values)
    if all(made._options.get(option, usual) == usual for option, usual in _TORCHS.items()):
        verify_torch(path, made, cls.__name__, values)
    return made


def _is_parameter(name: str) -> bool:
    found = _NAME.fullmatch(name)
    return (found is not None and not found["prefix"]) or name in ("h_0", "c_0")


def _prefixes(shapes: Mapping[str, Shape]) -> set[str]:
    matches = filter(None, map(_NAME.fullmatch, shapes))
    return {match["prefix"] for match in matches if match["name"] == "weight_hh"}


def _found_prefix(path: str, prefix: str, shapes: Mapping[str, Shape]) -> str:
    """Return the prefix of the module that is meant; without one, of the only one that there is."""
    found = _prefixes(shapes)
    candidates = [p for p in (prefix, f"{prefix}.") if p in found]
    if candidates:
        return candidates[0]
    if not prefix and len(found) == 1:
        return found.pop()
    if not found:
        raise ValueError(f"{path}: expected parameters of an LSTM, GRU or RNN by torch.nn's names, got none")
    some = ", ".join(map(repr, sorted(found)[:10]))
    raise ValueError(f"prefix: expected one of {some}, got {prefix!r}")


def _read_sizes(
    where: str, shapes: Mapping[str, Shape], options: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return the class and the constructor's arguments that shapes tell."""
    is_cell = "weight_hh" in shapes
    first = "" if is_cell else "_l0"
    for name in ("weight_ih", "weight_hh"):
        shape = shapes.get(name + first)
        if shape is None or len(shape) != 2 or 0 in shape:
            raise ValueError(f"{where}: expected a matrix {name + first}, got {shape or 'none'}")
    (rows, state_size), projection = shapes["weight_hh" + first], shapes.get("weight_hr" + first)
    if projection is not None and len(projection) != 2:
        raise ValueError(f"{where}: expected a matrix weight_hr{first}, got {projection}")
    hidden_size = projection[1] if projection else state_size
    gates, rest = divmod(rows, max(hidden_size, 1))
    coupled = options.get("coupled") is True or (gates == 3 and "weight_ci" + first in shapes)
    kind = {4: "LSTM", 3: "LSTM" if coupled else "GRU", 1: "RNN"}.get(gates if rest == 0 else 0)
    if kind is None:
        expected = f"1, 3 or 4 times {hidden_size} rows in weight_hh{first}"
        raise ValueError(f"{where}: expected {expected}, of an RNN, GRU or LSTM, got {rows}")
    told: dict[str, Any] = {
        "input_size": shapes["weight_ih" + first][1],
        "hidden_size": hidden_size,
        "bias": "bias_ih" + first in shapes,
    }
    if kind == "LSTM":
        told["peephole"] = "weight_co" + first in shapes
        told |= {} if "coupled" in options else {"coupled": coupled}
    norms = {"weight_ln_ih": "products", "weight_ln": "gates"}
    for name, form in norms.items():
        if name + first in shapes:
            told["layer_norm"] = form
    if is_cell:
        return {"LSTM": LSTMCell, "GRU": GRUCell, "RNN": RNNCell}[kind], told
    told["num_layers"] = 1 + max(
        int(re.split(r"_l(\d+)", key)[1]) for key in shapes if re.search(r"_l\d+", key)
    )
    told["bidirectional"] = "weight_hh_l0_reverse" in shapes
    told["learn_state"] = "h_0" in shapes
    if kind == "LSTM":
        told["proj_size"] = state_size if projection else 0
    return {"LSTM": LSTM, "GRU": GRU, "RNN": RNN}[kind], told
