"""Modules in safetensors files: tensors by parameter name, class and constructor arguments as metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gatedrnn import _checks, _files
from gatedrnn._options import checked_precision, completed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.floating[Any]]
    Class = Any  # LSTM, GRU or RNN, which import this module
    # Class, constructor arguments, parameters, device, precision.
    Content = tuple[Class, dict[str, Any], dict[str, Array], str, str | None]

_FORMAT = "gatedrnn"
_DTYPE_NAMES = {"float32": "F32", "float64": "F64"}  # safetensors' own


def save(
    path: object,
    class_name: str,
    options: Mapping[str, Any],
    precision: str | None,
    parameters: Mapping[str, Array],
) -> None:
    """Write a module's class, constructor arguments and parameters; see `LSTM.save`."""
    import json

    config = {"class": class_name, **options, "dtype": options["dtype"].name}
    if precision is not None:
        config["precision"] = precision
    _files.write(path, _FORMAT, parameters, {"config": json.dumps(config)})


def read(path: object, classes: Mapping[str, Class]) -> Content:
    """Read what `save` wrote of a module of one of these classes; errors are those of `gatedrnn.load`."""
    with _files.reading(path, _FORMAT, "a file saved by gatedrnn") as (file, metadata):
        cls, options, precision = _read_config(metadata, classes)
        expected = cls._shapes(options)
        names = set(file.keys())
        if names != set(expected):
            missing, unexpected = sorted(set(expected) - names), sorted(names - set(expected))
            raise ValueError(f"missing tensors {missing[:10]}, unexpected tensors {unexpected[:10]}")
        wanted_dtype = _DTYPE_NAMES[options["dtype"].name]
        for name, shape in expected.items():
            tensor = file.get_slice(name)
            got = tuple(tensor.get_shape()), tensor.get_dtype()
            if got != (shape, wanted_dtype):
                raise ValueError(
                    f"tensor {name} is {got[1]} of shape {got[0]}, not {wanted_dtype} of {shape}"
                )
        return cls, options, {name: file.get_tensor(name) for name in expected}, "cpu", precision


def _read_config(
    metadata: Mapping[str, str], classes: Mapping[str, Class]
) -> tuple[Class, dict[str, Any], str | None]:
    """Return the class, its checked constructor arguments, and the precision."""
    import json

    try:
        config = json.loads(metadata["config"])
    except (KeyError, ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ValueError("metadata config is no JSON object")
    name = config.pop("class", None)
    cls = classes.get(name) if isinstance(name, str) else None
    if cls is None:
        raise ValueError(f"metadata config has class {_checks.shortened(name)}, not one of {sorted(classes)}")
    precision = config.pop("precision", None)
    config = completed(config, cls._defaults)
    wanted = {"input_size", "hidden_size", *cls._defaults}
    if set(config) != wanted:
        raise ValueError(f"metadata config has the keys {sorted(config)}, not {sorted(wanted)}")
    options = cls._checked(config)
    return cls, options, checked_precision("cpu", precision, options["dtype"])
