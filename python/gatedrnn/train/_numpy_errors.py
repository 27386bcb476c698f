"""What `numpy.seterr` has to say of a piece of work, when the work is complete."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

# What NumPy calls its errors when it reports one, by their names in `numpy.seterr`; and how to make one.
_ERRORS: dict[str, tuple[str, Callable[[], object]]] = {
    "divide": ("divide by zero", lambda: np.ones(1) / np.zeros(1)),
    "over": ("overflow", lambda: np.square(np.full(1, 1e300))),
    "invalid": ("invalid value", lambda: np.zeros(1) / np.zeros(1)),
}


@contextmanager
def floating_point_errors_later(where: str) -> Iterator[None]:
    """Do the block to its end, and only then let NumPy do what `numpy.seterr` said of what happened.

    Underflow is passed over.
    """
    told: dict[str, str] = {**np.geterr()}  # type: ignore[dict-item]
    seen: set[str] = set()
    later: dict[str, Any] = {kind: "call" for kind in _ERRORS if told[kind] != "ignore"}
    with np.errstate(**later, under="ignore", call=lambda message, _: seen.add(message)):
        yield
    for kind, (message, repeat) in _ERRORS.items():
        if message not in seen:
            continue
        if told[kind] == "raise":
            raise FloatingPointError(f"{message} encountered in {where}")
        if told[kind] == "warn":
            warnings.warn(f"{message} encountered in {where}", RuntimeWarning, stacklevel=4)
        else:  # print, log or call
            repeat()
