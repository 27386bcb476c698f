"""Modules in safetensors files: tensors by parameter name, class and constructor arguments as metadata."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gatedrnn import _checks, _files
from gatedrnn._modules import GRU, LSTM, RNN
from gatedrnn._parameters import parameter_shapes
from gatedrnn._recurrent import _completed, _rebuild

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from gatedrnn._recurrent import _Recurrent

    Array = npt.NDArray[np.floating[Any]]

_FORMAT = "gatedrnn"
_CLASSES: dict[str, type[_Recurrent[Any, Any]]] = {cls.__name__: cls for cls in (LSTM, GRU, RNN)}
_DTYPE_NAMES = {"float32": "F32", "float64": "F64"}  # safetensors' own


def save(
    path: object, cls: type[_Recurrent[Any, Any]], options: Mapping[str, Any], parameters: Mapping[str, Array]
) -> None:
    """Write a module's class, constructor arguments and parameters; see `LSTM.save`."""
    import json

    known = next(base.__name__ for base in cls.__mro__ if base in _CLASSES.values())  # cls may be derived
    config = {"class": known, **options, "dtype": options["dtype"].name}
    _files.write(path, _FORMAT, parameters, {"config": json.dumps(config)})


def load(path: str | os.PathLike[str]) -> LSTM | GRU | RNN:
    """Make the module that was saved to a file: same class, constructor arguments and bits.

    Nothing in the file is executed, and nothing is allocated before its sizes were found to match.

    Args:
        path: A file written by `save` of a module.

    Raises:
        TypeError: `path` is not a path.
        FileNotFoundError: There is no such file. Other errors of reading are an OSError too.
        ValueError: The file is not one of gatedrnn, is damaged, or is of a later format version; the message
            names it.
    """
    with _files.reading(path, _FORMAT, "a file saved by gatedrnn") as (file, metadata):
        return _read(file, metadata)


def _read(file: Any, metadata: Mapping[str, str]) -> LSTM | GRU | RNN:
    cls, options = _read_config(metadata)
    expected = parameter_shapes(options, cls._cell_of(options))
    names = set(file.keys())
    if names != set(expected):
        missing, unexpected = sorted(set(expected) - names), sorted(names - set(expected))
        raise ValueError(f"missing tensors {missing[:10]}, unexpected tensors {unexpected[:10]}")
    wanted_dtype = _DTYPE_NAMES[options["dtype"].name]
    for name, shape in expected.items():
        tensor = file.get_slice(name)
        got = tuple(tensor.get_shape()), tensor.get_dtype()
        if got != (shape, wanted_dtype):
            raise ValueError(f"tensor {name} is {got[1]} of shape {got[0]}, not {wanted_dtype} of {shape}")
    module = _rebuild(cls, options, {name: file.get_tensor(name) for name in expected})
    assert isinstance(module, (LSTM, GRU, RNN))
    return module


def _read_config(metadata: Mapping[str, str]) -> tuple[type[_Recurrent[Any, Any]], dict[str, Any]]:
    """Return the class and its checked constructor arguments."""
    import json

    try:
        config = json.loads(metadata["config"])
    except (KeyError, ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ValueError("metadata config is no JSON object")
    name = config.pop("class", None)
    cls = _CLASSES.get(name) if isinstance(name, str) else None
    if cls is None:
        raise ValueError(
            f"metadata config has class {_checks.shortened(name)}, not one of {sorted(_CLASSES)}"
        )
    config = _completed(cls, config)
    wanted = {"input_size", "hidden_size", *cls._defaults}
    if set(config) != wanted:
        raise ValueError(f"metadata config has the keys {sorted(config)}, not {sorted(wanted)}")
    return cls, cls._checked(config)
