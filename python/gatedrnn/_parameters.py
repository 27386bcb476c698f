"""Names, shapes and storage of a module's parameters, in the order of ``torch.nn``'s ``state_dict()``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gatedrnn import _checks, _core

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.floating[Any]]
    Shapes = dict[str, tuple[int, ...]]


class IncompatibleKeys(NamedTuple):
    """What ``load_state_dict`` did not find and did not expect; both empty where all names matched."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def parameter_shapes(options: Mapping[str, Any], gates: int) -> Shapes:
    """Lay out all layers and directions; refuse sizes that no machine can hold.

    Args:
        options: A module's constructor arguments, each checked on its own.
        gates: How many gates the cell has.
    """
    directions = 1 + options["bidirectional"]
    state_size = options.get("proj_size") or options["hidden_size"]
    first = _cell_shapes(options, gates, options["input_size"])
    upper = _cell_shapes(options, gates, directions * state_size)
    layers = options["num_layers"]
    elements = directions * (_elements(first) + (layers - 1) * _elements(upper))
    _checks.fitting("input_size, hidden_size, num_layers", elements, options["dtype"])
    return {
        f"{name}_l{layer}{suffix}": shape
        for layer in range(layers)
        for suffix in ("", "_reverse")[:directions]
        for name, shape in (upper if layer else first).items()
    }


def _cell_shapes(options: Mapping[str, Any], gates: int, input_size: int) -> Shapes:
    """Shapes of one direction of one layer."""
    hidden_size, proj_size = options["hidden_size"], options.get("proj_size", 0)
    rows = gates * hidden_size
    shapes: Shapes = {"weight_ih": (rows, input_size), "weight_hh": (rows, proj_size or hidden_size)}
    if options["bias"]:
        shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
    if proj_size:
        shapes["weight_hr"] = (proj_size, hidden_size)
    if options.get("peephole"):
        shapes |= {f"weight_c{gate}": (hidden_size,) for gate in "ifo"}
    return shapes


def _elements(shapes: Shapes) -> int:
    return sum(map(math.prod, shapes.values()))


class ParameterStore:
    """All parameters of a module in one contiguous array, so that one fingerprint covers them."""

    __slots__ = ("_starts", "flat", "views")

    def __init__(self, shapes: Shapes, dtype: np.dtype[Any]) -> None:
        """Allocate; the numbers are undefined until written."""
        self.flat: Array = np.empty(_elements(shapes), dtype)
        sizes = [math.prod(shape) for shape in shapes.values()]
        self._starts = list(itertools.accumulate(sizes, initial=0))[:-1]
        self.views: dict[str, Array] = {
            name: self.flat[start : start + size].reshape(shape)
            for start, size, (name, shape) in zip(self._starts, sizes, shapes.items(), strict=True)
        }

    def like(self) -> dict[str, Array]:
        """New arrays of the same names, shapes and dtype; the numbers are undefined."""
        flat = _core.aligned_array(self.flat.size, self.flat.dtype)
        return {
            name: flat[start : start + view.size].reshape(view.shape)
            for start, (name, view) in zip(self._starts, self.views.items(), strict=True)
        }

    def draw(self, bound: float, seed: int | None) -> None:
        """Fill with numbers uniform in +-bound, the same for both dtypes but for rounding."""
        rng = np.random.default_rng(seed)
        for view in self.views.values():
            view[...] = rng.uniform(-bound, bound, view.shape)

    def accept(self, values: Mapping[str, object]) -> dict[str, Array]:
        """Check and convert new values for some of the parameters, without writing any.

        Raises:
            TypeError: A value is not an array of floating-point numbers.
            ValueError: A value has the wrong shape, or numbers beyond the range of the module's dtype.
        """
        return {name: self._accept(name, value) for name, value in values.items()}

    def _accept(self, name: str, value: object) -> Array:
        array = _checks.foreign_array(name, value)
        target = self.views[name]
        if array.shape != target.shape:
            raise ValueError(f"{name}: expected shape {target.shape}, got {array.shape}")
        if np.may_share_memory(array, self.flat):  # such as m.weight_hh_l0 for weight_ih_l0
            array = array.copy()
        try:
            with np.errstate(over="raise", under="ignore", invalid="ignore"):
                return array.astype(target.dtype, copy=False)
        except FloatingPointError:
            raise ValueError(f"{name}: expected the range of {target.dtype}, got larger numbers") from None

    def write(self, values: Mapping[str, Array]) -> None:
        """Write what `accept` returned; other threads, forks and signal handlers see all or nothing of it."""
        _core.copy_all([(self.views[name], np.ascontiguousarray(value)) for name, value in values.items()])

    def compare(self, names: Mapping[str, object]) -> IncompatibleKeys:
        """Compare names with the store's own."""
        missing = [name for name in self.views if name not in names]
        unexpected = [name for name in names if name not in self.views]
        return IncompatibleKeys(missing, unexpected)
