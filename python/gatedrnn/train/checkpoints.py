"""A training run in one safetensors file: parameters, the optimiser's state, the random generators, notes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from gatedrnn import _checks, _files
from gatedrnn.train import _arguments, _generators
from gatedrnn.train._optimizer import check_optimizer
from gatedrnn.train.modules import generators_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from gatedrnn.train._optimizer import Optimizer
    from gatedrnn.train.modules import Module

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

    That is what the arguments hold, and what LSTM, GRU and RNN draw their dropout from (alone, or as parts of
    `Modules`).

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
    check_optimizer("optimizer", optimizer)
    _checks.path("path", path)
    if rng is not None:
        _arguments.generator("rng", rng)
    metadata = {
        "notes": _json("notes", dict(_arguments.mapping("notes", notes or {}, "names to values"))),
        "rng": _generators.state_text(None if rng is None else rng.bit_generator.state),
        "generators": _generators.state_text(_states(generators_of(module))),
    }
    parts = (module.state_dict(), optimizer.state_dict(), _arguments.mapping("arrays", arrays or {}))
    tensors = {
        f"{part}.{name}": np.ascontiguousarray(array).reshape(np.shape(array))
        for part, values in zip(_PARTS, parts, strict=True)
        for name, array in values.items()
    }
    for name, array in tensors.items():
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise TypeError(f"{name}: expected an array of numbers of at most 64 bits, got {array.dtype}")
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
        optimizer: Of the same class and parameters; its hyper-parameters become those of the file, see
            `Optimizer.load_state_dict`.
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
    check_optimizer("optimizer", optimizer)
    name = _checks.path("path", path)
    if rng is not None:
        _arguments.generator("rng", rng)
    parts, notes, rng_state, generator_states = _read(name)
    # What has begun or ceased to drop since goes on from where it is.
    own = {key: generator for key, generator in generators_of(module).items() if key in generator_states}
    generators = own if rng is None else own | {"rng": rng}
    states = generator_states if rng is None else generator_states | {"rng": rng_state}
    try:
        with _all_or_nothing(module, optimizer, generators):
            module.load_state_dict(parts["parameters"])
            optimizer.load_state_dict(parts["optimizer"])
            for key, generator in generators.items():
                _generators.restore(key, generator, states[key])
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{name}: expected a checkpoint of this run: {error}") from error
    return notes, parts["arrays"]


def _read(name: str) -> tuple[dict[str, Arrays], dict[str, Any], Any, dict[str, Any]]:
    with _files.reading(name, _FORMAT, "a checkpoint of gatedrnn.train") as (file, metadata):
        notes, rng_state = json.loads(metadata["notes"]), json.loads(metadata["rng"])
        generators = json.loads(metadata.get("generators", "{}"))
        if not isinstance(notes, dict) or not isinstance(generators, dict):
            raise ValueError("metadata notes or generators is no JSON object")
        return _split(_files.tensors_of(file)), notes, rng_state, generators


def notes_of(path: object) -> dict[str, Any]:
    """Return a checkpoint's notes alone; errors are those of `load_checkpoint`."""
    return _read(_checks.path("path", path))[1]


def _split(tensors: Arrays) -> dict[str, Arrays]:
    parts: dict[str, Arrays] = {part: {} for part in _PARTS}
    for key, array in tensors.items():
        part, _, name = key.partition(".")
        if part not in parts:
            raise ValueError(f"unexpected tensor {_checks.shortened(key)}")
        parts[part][name] = array
    return parts


@contextmanager
def _all_or_nothing(
    module: Module, optimizer: Optimizer, generators: Mapping[str, np.random.Generator]
) -> Iterator[None]:
    """Undo what the block did to all of them if it fails."""
    before = module.state_dict(), optimizer.state_dict()
    states = _states(generators)
    try:
        yield
    except BaseException:
        module.load_state_dict(before[0])
        optimizer.load_state_dict(before[1])
        for name, generator in generators.items():
            generator.bit_generator.state = states[name]
        raise


def _states(generators: Mapping[str, np.random.Generator]) -> dict[str, Any]:
    return {name: generator.bit_generator.state for name, generator in generators.items()}


def _json(name: str, value: object) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected values that JSON has a form for, got another: {error}") from None
