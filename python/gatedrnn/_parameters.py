"""Names, shapes and storage of a module's parameters, in the order of ``torch.nn``'s ``state_dict()``."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

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


def refuse_incompatible(module: object, keys: IncompatibleKeys, strict: object) -> None:
    """Raise a ValueError if there are any such keys and `strict`, the argument of that name, is true."""
    if _checks.flag("strict", strict) and any(keys):
        raise ValueError(
            f"d: expected the parameters of {module!r}, got missing keys {keys.missing_keys}, "
            f"unexpected keys {keys.unexpected_keys}"
        )


class Cell(NamedTuple):
    """What the engine says of a cell."""

    gates: int
    has_c: bool  # whether the state is the pair (h, c)
    peepholes: tuple[str, ...]  # names of parameters
    activations: tuple[tuple[str, str], ...]  # gates and their usual functions, of a general cell
    # Parameters of layer normalisation, without and with biases: names, and how many times H values.
    norms: tuple[tuple[tuple[str, int], ...], tuple[tuple[str, int], ...]]


CELLS = {name: Cell(*described) for name, described in _core.cells().items()}


INITIAL_STATE = ("h_0", "c_0")  # where it is learnt


def fixed_start(name: str) -> float | None:
    """Return the value that a parameter has in a new module; None where it is drawn."""
    if name.startswith("weight_ln"):
        return 1.0
    return 0.0 if name in INITIAL_STATE or name.startswith("bias_ln") else None


def parameter_shapes(options: Mapping[str, Any], cell: str) -> Shapes:
    """Lay out all layers and directions; refuse sizes that no machine can hold.

    Args:
        options: A module's constructor arguments, each checked on its own.
        cell: The engine's name for the cell.
    """
    directions = 1 + options["bidirectional"]
    state_size = options.get("proj_size") or options["hidden_size"]
    first = _cell_shapes(options, CELLS[cell], options["input_size"])
    upper = _cell_shapes(options, CELLS[cell], directions * state_size)
    layers = options["num_layers"]
    elements = directions * (_elements(first) + (layers - 1) * _elements(upper))
    _checks.fitting("input_size, hidden_size, num_layers", elements, options["dtype"])
    shapes = {
        f"{name}_l{layer}{suffix}": shape
        for layer in range(layers)
        for suffix in ("", "_reverse")[:directions]
        for name, shape in (upper if layer else first).items()
    }
    if options.get("learn_state"):
        shapes |= initial_state_shapes(layers * directions, state_size, options["hidden_size"], cell)
    return shapes


def initial_state_shapes(tracks: int, state_size: int, hidden_size: int, cell: str) -> Shapes:
    """Lay out the initial state of all layers and directions, where it is learnt."""
    widths = (state_size, hidden_size) if CELLS[cell].has_c else (state_size,)
    return {name: (tracks, width) for name, width in zip(INITIAL_STATE, widths, strict=False)}


def cell_shapes(options: Mapping[str, Any], cell: str) -> Shapes:
    """Lay out a cell that is used by itself, as `parameter_shapes` does a whole module."""
    shapes = _cell_shapes(options, CELLS[cell], options["input_size"])
    _checks.fitting("input_size, hidden_size", _elements(shapes), options["dtype"])
    return shapes


def _cell_shapes(options: Mapping[str, Any], cell: Cell, input_size: int) -> Shapes:
    """Shapes of one direction of one layer."""
    hidden_size, proj_size = options["hidden_size"], options.get("proj_size", 0)
    rows = cell.gates * hidden_size
    shapes: Shapes = {"weight_ih": (rows, input_size), "weight_hh": (rows, proj_size or hidden_size)}
    if options["bias"]:
        shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
    if proj_size:
        shapes["weight_hr"] = (proj_size, hidden_size)
    shapes |= dict.fromkeys(cell.peepholes, (hidden_size,))
    return shapes | {name: (blocks * hidden_size,) for name, blocks in cell.norms[options["bias"]]}


def _elements(shapes: Shapes) -> int:
    return sum(map(math.prod, shapes.values()))


class Owner(Protocol):
    """A module or layer whose parameters are in a `ParameterStore`."""

    _store: ParameterStore

    def _lend(self) -> Loan:
        """Take note that somebody may write into the parameters, from now on until the loan is gone."""
        ...


class Loan:
    """What every array of parameters that was handed out keeps alive, through its chain of bases.

    So one weak reference tells whether anybody outside can still write into the parameters. Counting
    references would not: what they count depends on the interpreter.
    """

    __slots__ = ("__weakref__", "store")

    def __init__(self, store: ParameterStore) -> None:
        self.store = store

    @property
    def __array_struct__(self) -> object:
        """For `numpy.asarray`, whose result has this object as its base."""
        return self.store.flat.__array_struct__

    def arrays(self) -> dict[str, Array]:
        """Views of all parameters by name, which keep the loan alive."""
        flat = np.asarray(self)
        return {name: self.store.cut(flat, name) for name in self.store.views}

    def array(self, name: str) -> Array:
        """Return a view of one parameter, which keeps the loan alive."""
        return self.store.cut(np.asarray(self), name)


def store_of(array: Array) -> ParameterStore | None:
    """Find out whose parameters an array is a view of; None where they are no module's."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, tuple):  # NumPy may put the loan and what it described itself with together
        base = base[0]
    return base.store if isinstance(base, Loan) and array.dtype == base.store.flat.dtype else None


class Part(NamedTuple):
    """A piece of a module's parameters, as one or whole rows of one. It follows the module into copies."""

    owner: Owner
    start: int
    shape: tuple[int, ...]


class ParameterStore:
    """All parameters of a module in one contiguous array, so that one fingerprint covers them.

    Its own views never leave the module: whoever gets an array gets it from a `Loan`.
    """

    __slots__ = ("_loan", "_places", "flat", "owner", "views")

    def __init__(self, shapes: Shapes, dtype: np.dtype[Any], owner: Owner) -> None:
        """Allocate; the numbers are undefined until written."""
        self.flat: Array = np.empty(_elements(shapes), dtype)
        sizes = [math.prod(shape) for shape in shapes.values()]
        places = zip(itertools.accumulate(sizes, initial=0), sizes, shapes.values(), strict=False)
        self._places = {
            name: (slice(start, start + size), shape)
            for name, (start, size, shape) in zip(shapes, places, strict=True)
        }
        self.views: dict[str, Array] = {name: self.cut(self.flat, name) for name in shapes}
        self.owner = weakref.ref(owner)
        self._loan: weakref.ref[Loan] | None = None

    @property
    def is_lent(self) -> bool:
        """Whether anybody outside may write into the parameters."""
        return self._loan is not None and self._loan() is not None

    def loan(self) -> Loan:
        """Return the loan of all who hold arrays now, or a new one. One thread at a time."""
        loan = None if self._loan is None else self._loan()
        if loan is None:
            loan = Loan(self)
            self._loan = weakref.ref(loan)
        return loan

    def lend(self) -> Loan:
        """Let the owner, where it is alive, take note of a loan, and return that."""
        owner = self.owner()
        return self.loan() if owner is None else owner._lend()

    def own(self, array: Array) -> Array:
        """Return a view of the same memory as a contiguous lent array that does not count as lent.

        It is for those who take a loan whenever they write.
        """
        return self._view(self._start(array), array.shape)

    def part(self, array: Array) -> Part | Array:
        """Say of such a view whose parameters it is, so that a copy can find those of the copied module."""
        owner = self.owner()
        return array if owner is None else Part(owner, self._start(array), array.shape)

    def found(self, part: Part) -> Array:
        """Return the view that became a part."""
        return self._view(part.start, part.shape)

    def _start(self, array: Array) -> int:
        return (array.ctypes.data - self.flat.ctypes.data) // self.flat.itemsize

    def _view(self, start: int, shape: tuple[int, ...]) -> Array:
        return self.flat[start : start + math.prod(shape)].reshape(shape)

    def cut(self, flat: Array, name: str) -> Array:
        """Return a view of one parameter in an array that has all of them side by side."""
        place, shape = self._places[name]
        return flat[place].reshape(shape)

    def like(self) -> dict[str, Array]:
        """New arrays of the same names, shapes and dtype; the numbers are undefined."""
        flat = _core.aligned_array(self.flat.size, self.flat.dtype)
        return {name: self.cut(flat, name) for name in self.views}

    def draw(self, bound: float, seed: int | None) -> None:
        """Fill with numbers uniform in +-bound, the same for both dtypes but for rounding; or fixed ones."""
        rng = np.random.default_rng(seed)
        with np.errstate(under="ignore"):
            for name, view in self.views.items():
                start = fixed_start(name)
                view[...] = rng.uniform(-bound, bound, view.shape) if start is None else start

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
