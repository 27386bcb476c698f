"""The recurrent modules of a file of any kind that can be read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from gatedrnn import _checks, _files
from gatedrnn._modules import load
from gatedrnn.convert._keras import from_keras
from gatedrnn.convert._onnx import from_onnx
from gatedrnn.convert._state_dicts import load_all_parameters

if TYPE_CHECKING:
    from collections.abc import Callable

_READERS: dict[str, Callable[[str], dict[str, Any]]] = {
    ".onnx": from_onnx,
    ".keras": from_keras,
    ".h5": from_keras,
    ".hdf5": from_keras,
    ".safetensors": load_all_parameters,
    ".pt": load_all_parameters,
    ".pth": load_all_parameters,
    ".bin": load_all_parameters,
}


def modules_in(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Make a module of everything recurrent in a file, by name; errors are those of the reader for its kind.

    Raises:
        ValueError: The end of its name is none that is known.
    """
    name = _checks.path("path", path)
    end = os.path.splitext(name)[1].lower()
    if end not in _READERS:
        raise ValueError(f"{name}: expected a name that ends with {', '.join(_READERS)}")
    if end == ".safetensors" and _files.format_of(name) == "gatedrnn":
        return {"": load(name)}
    return _READERS[end](name)
