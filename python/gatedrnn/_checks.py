"""Checks of single arguments. Each returns the value in its plain Python form, or raises an error.

The error names the argument. A wrong type is a TypeError, a wrong value a ValueError; the message says what
was expected and what came.
"""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

# 4 TiB. A system that promises memory it does not have would grant more, and end the process that writes it.
_MOST_BYTES = 1 << 42

ZEROS: Final = "zeros"  # the output of skipped steps, unless a call says otherwise

_PLAIN = (bool, int, float, complex, str, np.generic)


def integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """Accept Python and NumPy integers in low..high, but not bool, nearly always a misplaced flag."""
    try:
        if isinstance(value, (bool, np.bool_, np.ndarray)):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {described(value)}") from None
    if number < low or (high is not None and number > high):
        wanted = f"at least {low}" if high is None or number < low else f"at most {high}"
        raise ValueError(f"{name}: expected {wanted}, got {shortened(number)}")
    return number


def flag(name: str, value: object) -> bool:
    """Accept True and False, but not the integers that compare equal to them."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {described(value)}")
    return bool(value)


def probability(name: str, value: object) -> float:
    """Accept a real number in 0..1."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {described(value)}")
    if not 0 <= value <= 1:  # also true of NaN
        raise ValueError(f"{name}: expected a probability in 0..1, got {shortened(value)}")
    return float(value)


def choice(name: str, value: object, choices: Sequence[str], where: str = "") -> str:
    """Accept one of a few words."""
    wanted = " or ".join(map(repr, choices)) + where
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected {wanted}, got {described(value)}")
    if value not in choices:
        raise ValueError(f"{name}: expected {wanted}, got {shortened(value)}")
    return value


def repeats_output(mask_output: object) -> bool:
    """Accept a word for the output of skipped steps; tell whether it is that of the step before."""
    return choice("mask_output", mask_output, (ZEROS, "previous")) == "previous"


def float_dtype(name: str, value: object) -> np.dtype[Any]:
    """Accept what NumPy takes for float32 or float64 in the machine's byte order, but not None."""
    wanted = "float32 or float64"
    if value is None:
        raise TypeError(f"{name}: expected {wanted}, got None")
    try:
        dtype = np.dtype(value)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected {wanted}, got {described(value)}") from None
    if not dtype.isnative:
        raise ValueError(f"{name}: expected {wanted} in the machine's byte order, got {dtype.str!r}")
    if dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"{name}: expected {wanted}, got {dtype}")
    plain: np.dtype[Any] = np.dtype(dtype.type)
    return plain


def seed(name: str, value: object) -> int | None:
    """Accept None or an integer of at least 0."""
    if value is None:
        return None
    return integer(name, value, 0)


def fitting(names: str, elements: int, dtype: np.dtype[Any]) -> None:
    """Refuse sizes whose product overflows or that no machine can hold, before anything is allocated."""
    size = elements * dtype.itemsize
    if size > _MOST_BYTES:
        raise ValueError(
            f"{names}: expected sizes that fit in memory, got about 2**{size.bit_length()} bytes"
        )


def foreign_array(name: str, value: object) -> npt.NDArray[np.floating[Any]]:
    """Take a floating-point array out of whatever a framework calls one, without importing the framework.

    Args:
        name: How errors call it.
        value: A NumPy array, or an object that has ``detach().cpu().numpy()`` or ``__array__``.

    Returns:
        An array of any floating dtype in the machine's byte order; no copy is made where none is needed.
    """
    array = _extracted(name, value)
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask, got {described(value)}")
    if array.dtype.kind != "f":
        raise TypeError(f"{name}: expected floating-point numbers, got dtype {array.dtype}")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _extracted(name: str, value: Any) -> npt.NDArray[Any]:
    if isinstance(value, np.ndarray):
        return value
    try:
        if hasattr(value, "detach"):
            tensor = value.detach().cpu()
            try:
                return np.asarray(tensor.numpy())
            except TypeError:  # bfloat16 and its like have no NumPy form
                return np.asarray(tensor.float().numpy())
        if hasattr(value, "__array__"):
            return np.asarray(value)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise TypeError(f"{name}: expected an array, got {described(value)}, which gives none") from error
    raise TypeError(f"{name}: expected a NumPy array or a tensor, got {described(value)}")


def shortened(value: object) -> str:
    """Write a value for an error message, of bounded length."""
    try:
        text = repr(value)
    except ValueError:  # integers of thousands of digits have no decimal form
        text = "a huge integer"
    return text if len(text) <= 60 else text[:57] + "..."


def described(value: object) -> str:
    """Write a value of the wrong type for an error message: plain ones in full, others by type alone."""
    if value is None:
        return "None"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    kind = type(value).__name__
    return f"{shortened(value)} ({kind})" if isinstance(value, _PLAIN) else f"an object of type {kind}"


INIT = "super().__init__()"


def half_made(module: object) -> str:
    """Write a module whose constructor has not run."""
    return f"<{type(module).__name__}, before {INIT}>"


def no_attribute(module: object, name: str, made: str) -> AttributeError:
    """Make the error for an attribute that is not there; `made` is one that every constructed object has."""
    text = f"{type(module).__name__!r} object has no attribute {name!r}"
    if name == made or not hasattr(module, made):
        text += f": {INIT} was not called yet"
    return AttributeError(text, name=name, obj=module)


def path(name: str, value: object) -> str:
    """Accept a path."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name}: expected a str or os.PathLike, got {described(value)}")
    return os.fsdecode(value)


def warn_of_dropout(dropout: float, num_layers: int) -> None:
    """Warn that dropout does nothing, at the line that calls a module's constructor."""
    if dropout > 0 and num_layers == 1:
        message = f"dropout={dropout} has no effect with num_layers=1: it acts between layers"
        warnings.warn(message, UserWarning, stacklevel=4)  # above this, a helper and the constructor
