"""A training run in one safetensors file: parameters, the optimiser's state, the random generator, notes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from gatedrnn import _checks, _files
from gatedrnn.train import _arguments

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from gatedrnn.train.layers import Module
    from gatedrnn.train.optimizers import Optimizer

    Arrays = dict[str, npt.NDArray[Any]]

__all__ = ["load_checkpoint", "save_checkpoint"]

_FORMAT = "gatedrnn.train"
_PARTS = ("parameters", "optimizer", "arrays")


def save_checkpoint(
    path: str | os.PathLike[str],
    module: Module,
    optimizer: Optimizer,
    *,
    rng: np.random.Generator | None = None,
    notes: Mapping[str, Any] | None = None,
    arrays: Mapping[str, npt.NDArray[Any]] | None = None,
) -> None:
    """Write all that a run needs to go on with the same bits.

    The file appears as a whole or not at all, and one that was there stays until then. Its tensors are named
    ``parameters.<name>``, ``optimizer.<name>`` and ``arrays.<name>``; any reader of safetensors can read it.

    Args:
        path: Where to; a file that exists is replaced.
        module: Whose ``state_dict()`` to write.
        optimizer: Whose ``state_dict()`` to write.
        rng: Generator whose state to write; None: none.
        notes: Anything else that JSON has a form for, such as the number of the epoch.
        arrays: Anything else that is an array, such as a state that is carried on, by name.

    Raises:
        TypeError: An argument has the wrong type, or JSON has no form for the notes.
        OSError: The file cannot be written.
    """
    _arguments.module("module", module)
    _arguments.optimizer("optimizer", optimizer)
    _checks.path("path", path)
    if rng is not None:
        _arguments.generator("rng", rng)
    metadata = {
        "notes": _json("notes", dict(_arguments.mapping("notes", notes or {}, "names to values"))),
        "rng": json.dumps(None if rng is None else rng.bit_generator.state, default=_listed),
    }
    parts = (module.state_dict(), optimizer.state_dict(), _arguments.mapping("arrays", arrays or {}))
    tensors = {
        f"{part}.{name}": np.ascontiguousarray(array).reshape(np.shape(array))
        for part, values in zip(_PARTS, parts, strict=True)
        for name, array in values.items()
    }
    _files.write(path, _FORMAT, tensors, metadata)


def load_checkpoint(
    path: str | os.PathLike[str],
    module: Module,
    optimizer: Optimizer,
    *,
    rng: np.random.Generator | None = None,
) -> tuple[dict[str, Any], Arrays]:
    """Bring a module, its optimiser and a generator to where they were; on an error they are as before.

    Nothing in the file is executed.

    Args:
        path: A file that `save_checkpoint` wrote.
        module: With parameters of the same names and shapes.
        optimizer: Of the same class and parameters.
        rng: Of the same kind as the one that was saved; None leaves it in the file.

    Returns:
        The notes and the arrays that were saved.

    Raises:
        TypeError: An argument has the wrong type.
        FileNotFoundError: There is no such file. Other errors of reading are an OSError too.
        ValueError: The file is no checkpoint, is damaged, is of a later format version, or is one of another
            module, optimiser or kind of generator; the message names the file.
    """
    _arguments.module("module", module)
    _arguments.optimizer("optimizer", optimizer)
    name = _checks.path("path", path)
    if rng is not None:
        _arguments.generator("rng", rng)
    parts, notes, rng_state = _read(name)
    try:
        with _all_or_nothing(module, optimizer):
            module.load_state_dict(parts["parameters"])
            optimizer.load_state_dict(parts["optimizer"])
            if rng is not None:
                _restore(rng, rng_state)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{name}: expected a checkpoint of this run: {error}") from error
    return notes, parts["arrays"]


def _read(name: str) -> tuple[dict[str, Arrays], dict[str, Any], Any]:
    with _files.reading(name, _FORMAT, "a checkpoint of gatedrnn.train") as (file, metadata):
        notes, rng_state = json.loads(metadata["notes"]), json.loads(metadata["rng"])
        if not isinstance(notes, dict):
            raise ValueError("metadata notes is no JSON object")
        return _split(_files.tensors_of(file)), notes, rng_state


def _split(tensors: Arrays) -> dict[str, Arrays]:
    parts: dict[str, Arrays] = {part: {} for part in _PARTS}
    for key, array in tensors.items():
        part, _, name = key.partition(".")
        if part not in parts:
            raise ValueError(f"unexpected tensor {_checks.shortened(key)}")
        parts[part][name] = array
    return parts


@contextmanager
def _all_or_nothing(module: Module, optimizer: Optimizer) -> Iterator[None]:
    """Undo what the block did to both if it fails."""
    before = module.state_dict(), optimizer.state_dict()
    try:
        yield
    except BaseException:
        module.load_state_dict(before[0])
        optimizer.load_state_dict(before[1])
        raise


def _restore(rng: np.random.Generator, state: Any) -> None:
    kind = type(rng.bit_generator).__name__
    saved = state.get("bit_generator") if isinstance(state, dict) else None
    if saved != kind:
        raise ValueError(f"rng: expected the state of a {kind}, got {_checks.shortened(saved)}")
    rng.bit_generator.state = state


def _json(name: str, value: object) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected values that JSON has a form for, got another: {error}") from None


def _listed(value: object) -> object:
    """Give JSON lists for the arrays in a generator's state, which takes them back, and plain integers."""
    if isinstance(value, (np.ndarray, np.integer)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no form in JSON")
