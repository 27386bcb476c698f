"""Modules in safetensors files: tensors by parameter name, class and constructor arguments as metadata."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gatedrnn import _checks
from gatedrnn._modules import GRU, LSTM, RNN
from gatedrnn._parameters import parameter_shapes
from gatedrnn._recurrent import _rebuild

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from gatedrnn._recurrent import _Recurrent

    Array = npt.NDArray[np.floating[Any]]

_FORMAT = "gatedrnn"
_FORMAT_VERSION = "1"
_CLASSES: dict[str, type[_Recurrent[Any]]] = {cls.__name__: cls for cls in (LSTM, GRU, RNN)}
_DTYPE_NAMES = {"float32": "F32", "float64": "F64"}  # safetensors' own


def save(
    path: object, cls: type[_Recurrent[Any]], options: Mapping[str, Any], parameters: Mapping[str, Array]
) -> None:
    """Write a module's class, constructor arguments and parameters; see `LSTM.save`."""
    import json

    from safetensors.numpy import save as serialized

    target = os.path.realpath(_checked_path(path))  # a link stays a link, and what it points to is replaced
    known = next(base.__name__ for base in cls.__mro__ if base in _CLASSES.values())  # cls may be derived
    config = {"class": known, **options, "dtype": options["dtype"].name}
    metadata = {"format": _FORMAT, "format_version": _FORMAT_VERSION, "config": json.dumps(config)}
    _write_atomically(target, serialized(dict(parameters), metadata=metadata))


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
    from safetensors import SafetensorError, safe_open

    name = _checked_path(path)
    with open(name, "rb"):
        pass  # errors of the operating system come from here, as its own classes
    try:
        with safe_open(name, framework="numpy") as file:
            return _read(file)
    except (SafetensorError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name}: expected a file saved by gatedrnn: {error}") from error


def _checked_path(path: object) -> str:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: expected a str or os.PathLike, got {_checks.described(path)}")
    return os.fsdecode(path)


def _write_atomically(target: str, content: bytes) -> None:
    """Write beside the target, then rename; whatever happens, no half of a file is left."""
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name[:100]}.{os.urandom(8).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:  # with the permissions of any new file, unlike those of tempfile
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def _read(file: Any) -> LSTM | GRU | RNN:
    cls, options = _read_config(file.metadata() or {})
    expected = parameter_shapes(options, cls._gates)
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


def _read_config(metadata: Mapping[str, str]) -> tuple[type[_Recurrent[Any]], dict[str, Any]]:
    """Return the class and its checked constructor arguments."""
    import json

    if metadata.get("format") != _FORMAT:
        raise ValueError(f"metadata format is {_checks.shortened(metadata.get('format'))}, not {_FORMAT!r}")
    version = metadata.get("format_version")
    if version != _FORMAT_VERSION:
        raise ValueError(
            f"metadata format_version is {_checks.shortened(version)}, not {_FORMAT_VERSION!r}: "
            "a newer gatedrnn may be able to read it"
        )
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
    wanted = {"input_size", "hidden_size", *cls._defaults}
    if set(config) != wanted:
        raise ValueError(f"metadata config has the keys {sorted(config)}, not {sorted(wanted)}")
    return cls, cls._checked(config)
