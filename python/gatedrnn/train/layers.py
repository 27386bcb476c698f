"""What stands before and after a recurrent module: `Embedding` and `Linear`; `Modules` holds them together.

The matrix products of `Linear` are NumPy's own. The same call on the same machine gives the same bits, but,
unlike in the engine, a row's bits may depend on the rows beside it and on the BLAS library and its threads.
Sums over rows are added up in blocks of a fixed number of them, so that their errors hardly grow with that of
the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np

import gatedrnn
from gatedrnn import _checks
from gatedrnn._parameters import IncompatibleKeys, Loan, ParameterStore
from gatedrnn.train import _arguments

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.floating[Any]]
    Gradients = dict[str, Array]

_T = TypeVar("_T")

# Rows whose sum is a block's. Of products more, since each block is a pass over all sums; but no more than
# OpenBLAS adds up in the same order on any number of threads. And blocks whose sum is a group's.
_BLOCK_ROWS = 128
_BLOCK_PRODUCTS = 512
_GROUP = 128

__all__ = ["Embedding", "Linear", "Module", "Modules", "Tape"]


class Module(Protocol):
    """What an optimiser and a checkpoint need of a module: `LSTM`, `GRU`, `RNN`, the layers, `Modules`."""

    def parameters(self) -> dict[str, Array]:
        """Hand out the module's own arrays by name."""
        ...

    def state_dict(self) -> dict[str, Array]:
        """Copy the parameters."""
        ...

    def load_state_dict(self, d: Mapping[str, object], strict: bool = True) -> IncompatibleKeys:
        """Copy parameters in."""
        ...


class Tape(NamedTuple):
    """What a layer's `forward` keeps for its `backward`: a copy of the input, which may be written into."""

    layer: object
    inputs: npt.NDArray[Any]


class _Layer:
    """Parameters of a layer, under the names and with the methods of `LSTM`, `GRU` and `RNN`."""

    __slots__ = ("__weakref__", "_store")

    _store: ParameterStore

    def _lend(self) -> Loan:
        return self._store.loan()  # nothing is packed that could be outdated

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of parameters, outputs and gradients: float32 or float64."""
        return self._store.flat.dtype

    @property
    def weight(self) -> Array:
        """The layer's own array: writing into it changes the layer."""
        return self._lend().array("weight")

    def parameters(self) -> dict[str, Array]:
        """Hand out the layer's own arrays by name: writing into them changes the layer."""
        return self._lend().arrays()

    def state_dict(self) -> dict[str, Array]:
        """Copy the parameters, with the names, shapes and order of the same class in ``torch.nn``."""
        return {name: view.copy() for name, view in self._store.views.items()}

    def load_state_dict(self, d: Mapping[str, object], strict: bool = True) -> IncompatibleKeys:
        """Copy parameters in, after all of them were checked; like `LSTM.load_state_dict`.

        Args:
            d: By name, NumPy arrays or tensors of any floating dtype.
            strict: Whether every name must match; False leaves what is missing as it is and ignores what is
                unexpected.

        Returns:
            The named tuple (missing_keys, unexpected_keys).

        Raises:
            TypeError: `d` is not a mapping, or a value is not an array of floating-point numbers.
            ValueError: Names do not match while `strict`, a shape is wrong, or a number is beyond the range
                of the dtype.
        """
        keys = self._store.compare(_arguments.mapping("d", d))
        _refuse_incompatible(self, keys, strict)
        self._store.write(self._store.accept({name: d[name] for name in self._store.views if name in d}))
        return keys

    def _inputs_of(self, tape: object) -> npt.NDArray[Any]:
        if not isinstance(tape, Tape) or tape.layer is not self:
            came = f"that of {tape.layer!r}" if isinstance(tape, Tape) else _checks.described(tape)
            raise TypeError(f"tape: expected what forward of this {self!r} returned, got {came}")
        return tape.inputs

    if not TYPE_CHECKING:  # which would take it for a promise of any attribute

        def __getattr__(self, name: str) -> Any:
            # Called only for what is no ordinary attribute.
            raise _checks.no_attribute(self, name, "_store")

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle, and copy, with the parameters first: an attribute may be an optimiser, which needs them.

        Copies share nothing.
        """
        shapes = {name: view.shape for name, view in self._store.views.items()}
        state: Any = object.__reduce_ex__(self, 2)[2]
        attributes, slots = state
        del slots["_store"]
        return _rebuild, (type(self), shapes, self.dtype, self.state_dict()), (attributes, slots)


def _rebuild(
    cls: type[_Layer], shapes: dict[str, tuple[int, ...]], dtype: np.dtype[Any], state: Mapping[str, Array]
) -> _Layer:
    """Make a layer of given parameters, without drawing any; its other attributes come afterwards."""
    layer = cls.__new__(cls)
    layer._store = ParameterStore(shapes, dtype, layer)
    layer._store.write(state)
    return layer


def _refuse_incompatible(module: object, keys: IncompatibleKeys, strict: bool) -> None:
    if _checks.flag("strict", strict) and any(keys):
        raise ValueError(
            f"d: expected the parameters of {module!r}, got missing keys {keys.missing_keys}, "
            f"unexpected keys {keys.unexpected_keys}"
        )


class Linear(_Layer):
    """y = x W^T + b over the last axis; constructor, parameters and initial range like ``torch.nn.Linear``.

    Args:
        in_features: Width of the input, I.
        out_features: Width of the output, O.
        bias: Whether to have the parameter b.
        dtype: float32 or float64, of parameters and all arithmetic.
        seed: Integer of at least 0 that decides the initial parameters, uniform in +-1/sqrt(I); None for new
            ones each time.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a value outside its range, or the parameters would fit in no memory.
    """

    __slots__ = ("in_features", "out_features")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
        seed: int | None = None,
    ) -> None:
        self.in_features = _checks.integer("in_features", in_features, 1)
        self.out_features = _checks.integer("out_features", out_features, 1)
        has_bias = _checks.flag("bias", bias)
        kind = _checks.float_dtype("dtype", dtype)
        seed = _checks.seed("seed", seed)
        _checks.fitting("in_features, out_features", (self.in_features + 1) * self.out_features, kind)
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.out_features, self.in_features)}
        if has_bias:
            shapes["bias"] = (self.out_features,)
        self._store = ParameterStore(shapes, kind, self)
        self._store.draw(self.in_features**-0.5, seed)

    @property
    def bias(self) -> Array | None:
        """The layer's own array, or None."""
        return self._lend().array("bias") if self._has_bias else None

    @property
    def _has_bias(self) -> bool:
        return "bias" in self._store.views

    def __call__(self, x: Array) -> Array:
        """Apply the layer; keep nothing. Arguments, result and errors are those of `forward`."""
        return self._apply(self._accept("x", x, self.in_features))

    def _apply(self, x: Array) -> Array:
        own = self._store.views
        with np.errstate(under="ignore"):
            y: Array = x.reshape(-1, self.in_features) @ own["weight"].T
            if self._has_bias:
                y += own["bias"]
        return y.reshape(*x.shape[:-1], self.out_features)

    def forward(self, x: Array) -> tuple[Array, Tape]:
        """Apply the layer.

        Args:
            x: (..., I) in the layer's dtype, with any axes before the last and any strides.

        Returns:
            y (..., O), and the tape for `backward`, which has a copy of x: it may be written into at once.

        Raises:
            TypeError: `x` is not an array of the layer's dtype.
            ValueError: The last axis is not I wide.
        """
        kept = self._accept("x", x, self.in_features).copy(order="C")
        return self._apply(kept), Tape(self, kept)

    def backward(self, tape: Tape, d_y: Array) -> tuple[Array, Gradients]:
        """Go back from the derivative of the loss by y, with the parameters that the layer has now.

        A position of which no output counts (its part of `d_y` is 0, as where a loss's mask is False) adds
        nothing to any gradient, whatever it was computed from, NaN included.

        Args:
            tape: What `forward` returned.
            d_y: (..., O), in the shape of y.

        Returns:
            The derivatives by x, (..., I), and by the parameters, by name.

        Raises:
            TypeError: `tape` is not of this layer, or `d_y` is not an array of its dtype.
            ValueError: `d_y` has another shape than y.
        """
        x = self._inputs_of(tape)
        _arguments.shaped("d_y", d_y, (*x.shape[:-1], self.out_features), self.dtype)
        d_rows, rows = d_y.reshape(-1, self.out_features), x.reshape(-1, self.in_features)
        with np.errstate(under="ignore"):
            grads: Gradients = {"weight": _summed_products(d_rows, rows)}
            if self._has_bias:
                grads["bias"] = np.empty_like(self._store.views["bias"])
                _sum_rows(d_rows, grads["bias"])
            return (d_rows @ self._store.views["weight"]).reshape(x.shape), grads

    def _accept(self, name: str, value: object, width: int) -> Array:
        array = _arguments.float_array(name, value, self.dtype)
        if array.ndim == 0 or array.shape[-1] != width:
            raise ValueError(f"{name}: expected (..., {width}), got {array.shape}")
        return array

    def __repr__(self) -> str:
        if not hasattr(self, "_store"):
            return _checks.half_made(self)
        options = "" if self._has_bias else ", bias=False"
        options += "" if self.dtype == np.float32 else f", dtype={self.dtype}"
        return f"Linear({self.in_features}, {self.out_features}{options})"


def _summed_products(d_rows: Array, rows: Array) -> Array:
    """Return the sum over rows n of the outer products of d_rows[n] and rows[n].

    Where d_rows[n] is 0 the product is 0, also with an infinite or NaN row, which BLAS would make NaN.
    """
    with np.errstate(invalid="ignore"):
        products = _products_by_block(d_rows, rows)
    if np.isfinite(products).all():
        return products
    counts = d_rows.any(axis=1, keepdims=True)
    return _products_by_block(d_rows, np.where(counts, rows, rows.dtype.type(0)))


def _products_by_block(d_rows: Array, rows: Array) -> Array:
    """Return d_rows^T rows: the products of blocks of rows, added up in groups of blocks, and so on."""
    count, part = len(rows), _BLOCK_PRODUCTS
    if count <= part:
        product: Array = d_rows.T @ rows
        return product
    while part * _GROUP < count:
        part *= _GROUP
    total = _products_by_block(d_rows[:part], rows[:part])
    for first in range(part, count, part):
        total += _products_by_block(d_rows[first : first + part], rows[first : first + part])
    return total


def _sum_rows(rows: Array, out: Array) -> None:
    """Write the sum of the rows to `out`: sums of blocks of rows, added up in blocks, and so on."""
    while len(rows) > _BLOCK_ROWS:
        whole = len(rows) // _BLOCK_ROWS
        blocks = rows[: whole * _BLOCK_ROWS].reshape(whole, _BLOCK_ROWS, -1).sum(axis=1)
        rest = rows[whole * _BLOCK_ROWS :].sum(axis=0, keepdims=True)
        rows = np.concatenate([blocks, rest]) if len(rows) % _BLOCK_ROWS else blocks
    np.add.reduce(rows, axis=0, out=out)


class Embedding(_Layer):
    """A learnt row for each integer; constructor, parameters, initialisation like ``torch.nn.Embedding``.

    Args:
        num_embeddings: Number of rows, V: indices are 0..V-1.
        embedding_dim: Width of a row, E.
        padding_idx: Index whose row is zero at first and never gets a gradient; None: no such row.
        dtype: float32 or float64, of parameters and all arithmetic.
        seed: Integer of at least 0 that decides the initial parameters, standard normal; None for new ones
            each time.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a value outside its range, or the parameters would fit in no memory.
    """

    __slots__ = ("embedding_dim", "num_embeddings", "padding_idx")

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        dtype: npt.DTypeLike = np.float32,
        seed: int | None = None,
    ) -> None:
        self.num_embeddings = _checks.integer("num_embeddings", num_embeddings, 1)
        self.embedding_dim = _checks.integer("embedding_dim", embedding_dim, 1)
        self.padding_idx = padding_idx
        if padding_idx is not None:
            self.padding_idx = _checks.integer("padding_idx", padding_idx, 0, self.num_embeddings - 1)
        kind = _checks.float_dtype("dtype", dtype)
        seed = _checks.seed("seed", seed)
        shape = self.num_embeddings, self.embedding_dim
        _checks.fitting("num_embeddings, embedding_dim", shape[0] * shape[1], kind)
        self._store = ParameterStore({"weight": shape}, kind, self)
        weight = self._store.views["weight"]
        with np.errstate(under="ignore"):
            weight[...] = np.random.default_rng(seed).standard_normal(shape)
        if self.padding_idx is not None:
            weight[self.padding_idx] = 0

    def __call__(self, indices: npt.ArrayLike) -> Array:
        """Look rows up; keep nothing. Arguments, result and errors are those of `forward`."""
        return np.take(self._store.views["weight"], self._accept(indices), axis=0)

    def forward(self, indices: npt.ArrayLike) -> tuple[Array, Tape]:
        """Look rows up.

        Args:
            indices: Integers in 0..V-1, of any shape (...).

        Returns:
            The rows, (..., E), and the tape for `backward`, which has a copy of the indices: what they came
            in may be written into at once.

        Raises:
            TypeError: `indices` are not integers.
            ValueError: An index is outside 0..V-1.
        """
        kept = self._accept(indices).copy(order="C")
        return np.take(self._store.views["weight"], kept, axis=0), Tape(self, kept)

    def backward(self, tape: Tape, d_y: Array) -> tuple[None, Gradients]:
        """Add up the derivatives of each row, in blocks of positions in order: the same bits every time.

        Args:
            tape: What `forward` returned.
            d_y: (..., E), in the shape of the rows.

        Returns:
            None, since integers have no derivative, and the derivative by the parameter, by name. It has all
            V rows.

        Raises:
            TypeError: `tape` is not of this layer, or `d_y` is not an array of its dtype.
            ValueError: `d_y` has another shape than the rows.
        """
        indices = self._inputs_of(tape)
        _arguments.shaped("d_y", d_y, (*indices.shape, self.embedding_dim), self.dtype)
        gradient = np.zeros_like(self._store.views["weight"])
        with np.errstate(under="ignore"):
            _sum_by_index(indices.reshape(-1), d_y.reshape(-1, self.embedding_dim), gradient)
        if self.padding_idx is not None:
            gradient[self.padding_idx] = 0
        return None, {"weight": gradient}

    def _accept(self, indices: object) -> npt.NDArray[np.integer[Any]]:
        array = _arguments.integer_array("indices", indices)
        _arguments.within("indices", array, 0, self.num_embeddings - 1)
        return array.astype(np.intp, copy=False)

    def __repr__(self) -> str:
        if not hasattr(self, "_store"):
            return _checks.half_made(self)
        options = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        options += "" if self.dtype == np.float32 else f", dtype={self.dtype}"
        return f"Embedding({self.num_embeddings}, {self.embedding_dim}{options})"


def _sum_by_index(indices: npt.NDArray[np.integer[Any]], rows: Array, sums: Array) -> None:
    """Write the sum of the rows of each index that occurs into its row of `sums`.

    Sorted, so that the rows of one index stand together and are added by one call. Measured, with Zipf's
    frequencies, 256 to 30000 indices and 700 to 6400 rows of 64 to 512: as fast as `np.add.reduceat` or up to
    3 times faster, and up to 4 times faster than `np.add.at`.
    """
    if not indices.size:
        return
    order = np.argsort(indices, kind="stable")
    ordered, ordered_rows = indices[order], rows[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    ends = [*starts[1:].tolist(), ordered.size]
    for index, start, end in zip(ordered[starts].tolist(), starts.tolist(), ends, strict=True):
        _sum_rows(ordered_rows[start:end], sums[index])


def generators_of(module: Module) -> dict[str, np.random.Generator]:
    """Return what a module draws from in training, by name: that of `dropout` in LSTM, GRU and RNN."""
    return (
        module._generators()
        if isinstance(module, (Modules, gatedrnn.LSTM, gatedrnn.GRU, gatedrnn.RNN))
        else {}
    )


class Modules:
    """Several modules under names, as one for an optimiser and a checkpoint.

    ``Modules(rnn=gr.GRU(8, 16), head=train.Linear(16, 1))`` has the modules as attributes, and the parameters
    ``rnn.weight_ih_l0``, ..., ``head.weight``, ``head.bias``. A `Modules` can be one of the modules.

    Args:
        **modules: Modules by name, each only once.

    Raises:
        TypeError: A value has no ``parameters()``, ``state_dict()`` and ``load_state_dict()``.
        ValueError: A name is one of this class's own or has a dot, a module comes twice, or there is none.
    """

    __slots__ = ("_modules",)

    def __init__(self, **modules: Module) -> None:
        if not modules:
            raise ValueError("modules: expected at least one, got none")
        for name, module in modules.items():
            if name.startswith("_") or "." in name or hasattr(self, name):
                raise ValueError(
                    f"modules: expected names without a dot, an underscore in front or a meaning of their "
                    f"own, got {_checks.shortened(name)}"
                )
            _arguments.module(name, module)
        if len({id(module) for module in modules.values()}) < len(modules):
            raise ValueError(f"modules: expected distinct ones, got one twice among {list(modules)}")
        self._modules: dict[str, Module] = dict(modules)

    def parameters(self) -> dict[str, Array]:
        """Hand out the modules' own arrays, by the module's name, a dot, and the parameter's name."""
        return _joined({name: module.parameters() for name, module in self._modules.items()})

    def state_dict(self) -> dict[str, Array]:
        """Copy the parameters, by the same names."""
        return _joined({name: module.state_dict() for name, module in self._modules.items()})

    def load_state_dict(self, d: Mapping[str, object], strict: bool = True) -> IncompatibleKeys:
        """Copy parameters in; on an error all modules are as they were.

        Args, returns and errors are those of `Linear.load_state_dict`.
        """
        own = self.parameters()
        missing = [name for name in own if name not in _arguments.mapping("d", d)]
        keys = IncompatibleKeys(missing, [name for name in d if name not in own])
        _refuse_incompatible(self, keys, strict)
        before = self.state_dict()
        try:
            self._load(d)
        except BaseException:
            self._load(before)
            raise
        return keys

    def gradients(self, **gradients: Mapping[str, Array]) -> dict[str, Array]:
        """Put the gradients of all modules into one dictionary with the names of `parameters()`.

        Args:
            **gradients: By each module's name, what its ``backward`` returned for its parameters.

        Raises:
            TypeError: A value is not a mapping.
            ValueError: A module is missing, or a name is none of a module.
        """
        _arguments.names("gradients", gradients, self._modules)
        return _joined({name: _arguments.mapping(name, gradients[name]) for name in self._modules})

    def _generators(self) -> dict[str, np.random.Generator]:
        return _joined({name: generators_of(module) for name, module in self._modules.items()})

    def _load(self, d: Mapping[str, object]) -> None:
        for name, module in self._modules.items():
            prefix = f"{name}."
            own = {key[len(prefix) :]: value for key, value in d.items() if str(key).startswith(prefix)}
            module.load_state_dict(own, strict=False)

    def _has(self, name: str) -> bool:
        return not name.startswith("_") and hasattr(self, "_modules") and name in self._modules

    def __getattr__(self, name: str) -> Any:
        # Called only for what is no ordinary attribute.
        if self._has(name):
            return self._modules[name]
        raise _checks.no_attribute(self, name, "_modules")

    def __setattr__(self, name: str, value: object) -> None:
        if self._has(name):  # an attribute would hide the module from its user, and not from the optimiser
            raise AttributeError(f"{name}: fixed when {type(self).__name__} is made, cannot be assigned")
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(self._modules if hasattr(self, "_modules") else ())]

    def __repr__(self) -> str:
        if not hasattr(self, "_modules"):
            return _checks.half_made(self)
        return f"Modules({', '.join(f'{name}={module!r}' for name, module in self._modules.items())})"


def _joined(parts: Mapping[str, Mapping[str, _T]]) -> dict[str, _T]:
    return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
