"""States of NumPy's random generators in files: as JSON, and checked before a generator takes them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from gatedrnn import _checks


def restore(name: str, rng: np.random.Generator, state: Any) -> None:
    """Set a generator's state to one that was read from a file; errors are those of `check_state`."""
    check_state(name, rng, state)
    rng.bit_generator.state = state


def check_state(name: str, rng: np.random.Generator, state: Any) -> None:
    """Refuse what is no state of such a generator; NumPy does not look."""
    kind = type(rng.bit_generator)
    saved = state.get("bit_generator") if isinstance(state, dict) else None
    if saved != kind.__name__:
        raise ValueError(f"{name}: expected the state of a {kind.__name__}, got {_checks.shortened(saved)}")
    if not _is_like(state, kind(0).state, name):
        raise ValueError(f"{name}: expected the state of a {kind.__name__}, got a damaged one")


# Numbers in the states of NumPy's generators are below these, or below 2**128; it does not look itself.
_LIMITS = {"has_uint32": 2, "uinteger": 2**32, "pos": 625, "buffer_pos": 5}


def _is_like(value: Any, like: Any, name: str) -> bool:
    """Whether a state has the structure of another one of its kind, and numbers that can be in it."""
    if isinstance(like, dict):
        same = isinstance(value, dict) and value.keys() == like.keys()
        return same and all(_is_like(value[key], like[key], key) for key in like)
    if isinstance(like, np.ndarray):
        limit = int(np.iinfo(like.dtype).max) + 1
        return (
            isinstance(value, list) and len(value) == len(like) and all(_is_in(each, limit) for each in value)
        )
    if isinstance(like, str):
        return bool(value == like)
    return _is_in(value, _LIMITS.get(name, 2**128))


def _is_in(value: object, limit: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < limit


def state_text(state: object) -> str:
    """Write states, or None, as JSON."""
    return json.dumps(state, default=_listed)


def plain_state(rng: np.random.Generator) -> dict[str, Any]:
    """Return a generator's state in types that JSON has a form for; the generator takes it back."""
    state: dict[str, Any] = json.loads(state_text(rng.bit_generator.state))
    return state


def _listed(value: object) -> object:
    """Give JSON lists for the arrays in a generator's state, which takes them back, and plain integers."""
    if isinstance(value, (np.ndarray, np.integer)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no form in JSON")
