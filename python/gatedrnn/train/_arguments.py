"""Checks of arguments that only `gatedrnn.train` has; in the manner of `gatedrnn._checks`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gatedrnn import _checks

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.floating[Any]]

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))  # in the machine's byte order


def number(name: str, value: object, low: float = 0.0, *, finite: bool = True) -> float:
    """Accept a real number of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {_checks.described(value)}")
    if not value >= low or (finite and value == math.inf):  # the first is also true of NaN
        wanted = f"a {'finite ' * finite}number of at least {low:g}"
        raise ValueError(f"{name}: expected {wanted}, got {_checks.shortened(value)}")
    return float(value)


def fraction(name: str, value: object) -> float:
    """Accept a real number in 0..1, but not 1 itself."""
    share = number(name, value)
    if share >= 1:
        raise ValueError(f"{name}: expected a number of at least 0 and below 1, got {share}")
    return share


def pair_of_fractions(name: str, value: object) -> tuple[float, float]:
    """Accept two real numbers in 0..1, but not 1 itself."""
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name}: expected a pair of numbers, got {_checks.described(value)}")
    if len(value) != 2:
        raise ValueError(f"{name}: expected a pair of numbers, got {len(value)}")
    return fraction(f"{name}[0]", value[0]), fraction(f"{name}[1]", value[1])


def function(name: str, value: object, *, optional: bool = False) -> None:
    """Accept what can be called, and None where `optional`."""
    if not callable(value) and not (optional and value is None):
        raise TypeError(f"{name}: expected a callable, got {_checks.described(value)}")


def module(name: str, value: object) -> None:
    """Accept what has the methods of `gatedrnn.train.Module`."""
    for method in ("parameters", "state_dict", "load_state_dict"):
        if not callable(getattr(value, method, None)):
            raise TypeError(f"{name}: expected a module with {method}(), got {_checks.described(value)}")


def generator(name: str, value: object) -> np.random.Generator:
    """Accept a NumPy random generator."""
    if not isinstance(value, np.random.Generator):
        raise TypeError(f"{name}: expected a numpy.random.Generator, got {_checks.described(value)}")
    return value


def mapping(name: str, value: object, wanted: str = "names to arrays") -> Mapping[str, Any]:
    """Accept a mapping."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}: expected a mapping of {wanted}, got {_checks.described(value)}")
    return value


def names(name: str, got: Iterable[str], wanted: Iterable[str]) -> None:
    """Refuse anything but the wanted names, in any order."""
    expected, actual = set(wanted), set(got)
    if actual != expected:
        missing, unexpected = sorted(expected - actual), sorted(map(str, actual - expected))
        raise ValueError(
            f"{name}: expected {sorted(expected)}, got names of which {missing} are missing, "
            f"{unexpected} unexpected"
        )


def float_array(name: str, value: object, dtype: np.dtype[Any] | None = None) -> Array:
    """Accept a NumPy array of float32 or float64, or of `dtype` alone, with any shape and strides."""
    allowed = _FLOATS if dtype is None else (dtype,)
    if isinstance(value, np.ndarray) and value.dtype in allowed:
        return value
    wanted = " or ".join(each.name for each in allowed)  # only now: it takes longer than the rest
    if isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected {wanted}, got dtype {value.dtype}")
    raise TypeError(f"{name}: expected a NumPy array of {wanted}, got {_checks.described(value)}")


def shaped(name: str, value: object, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Accept a NumPy array of one shape and dtype."""
    array = float_array(name, value, dtype)
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    return array


def in_place(name: str, value: object) -> Array:
    """Accept a float32 or float64 array that can be written into."""
    array = float_array(name, value)
    if not array.flags.writeable:
        raise ValueError(f"{name}: expected an array that can be written into, got a read-only one")
    return array


def integer_array(name: str, value: object) -> npt.NDArray[np.integer[Any]]:
    """Accept integers in whatever NumPy makes an array of; bool, nearly always a misplaced mask, is none."""
    return _as_array(name, value, "integers", "iu")


def within(name: str, integers: npt.NDArray[np.integer[Any]], low: int, high: int) -> None:
    """Refuse integers outside low..high."""
    if not integers.size:
        return
    for extreme in (int(integers.min()), int(integers.max())):
        if not low <= extreme <= high:
            raise ValueError(f"{name}: expected integers in {low}..{high}, got {extreme}")


def real_array(name: str, value: object, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Accept real numbers of one shape: floating, integer or bool; rounded to `dtype`."""
    array = _as_array(name, value, "real numbers", "fiub")
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    with np.errstate(all="ignore"):  # what is beyond the dtype's range becomes infinite, or 0
        return array.astype(dtype, copy=False)


def mask(name: str, value: object, shape: tuple[int, ...], *, leading: bool) -> npt.NDArray[np.bool_]:
    """Accept booleans of one shape, or of its first axes where `leading`, with at least one True."""
    array = _as_array(name, value, "booleans", "b")
    fits = array.shape == (shape[: array.ndim] if leading else shape)
    if not fits:
        wanted = f"shape {shape}" + " or its first axes" * leading
        raise ValueError(f"{name}: expected {wanted}, got {array.shape}")
    if not array.any():
        raise ValueError(f"{name}: expected at least one True, got none")
    return array


def _as_array(name: str, value: object, wanted: str, kinds: str) -> npt.NDArray[Any]:
    """Accept what NumPy makes an array of whose dtype is of one of these kinds."""
    if value is None or isinstance(value, (str, bytes, Mapping)):
        raise TypeError(f"{name}: expected {wanted}, got {_checks.described(value)}")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name}: expected {wanted}, got {_checks.described(value)}") from None
    if array.dtype.kind not in kinds:
        came = _checks.described(value) if array.dtype.kind == "O" else f"dtype {array.dtype}"
        raise TypeError(f"{name}: expected {wanted}, got {came}")
    return array
