"""What LSTM, GRU and RNN share: parameters and when to pack them; the computing is in `_core.Network`."""

from __future__ import annotations

import copy
import os
import threading
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar, overload

import numpy as np

from gatedrnn import _checks, _core, _device
from gatedrnn._parameters import IncompatibleKeys, Loan, ParameterStore, parameter_shapes

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from typing_extensions import Self

    Array = npt.NDArray[np.floating[Any]]

_T = TypeVar("_T")
_State = TypeVar("_State")  # an array, or the pair (h, c)
_Given = TypeVar("_Given")  # the same, where parts of a pair may be None

_MAX_LAYERS = 1 << 16

# What each constructor argument may be. A class takes those that it has.
_OPTION_CHECKS: dict[str, Callable[[str, object], Any]] = {
    "input_size": lambda name, value: _checks.integer(name, value, 1),
    "hidden_size": lambda name, value: _checks.integer(name, value, 1),
    "num_layers": lambda name, value: _checks.integer(name, value, 1, _MAX_LAYERS),
    "nonlinearity": lambda name, value: _checks.choice(name, value, ("tanh", "relu")),
    "bias": _checks.flag,
    "batch_first": _checks.flag,
    "dropout": _checks.probability,
    "bidirectional": _checks.flag,
    "proj_size": lambda name, value: _checks.integer(name, value, 0),
    "peephole": _checks.flag,
    "coupled": _checks.flag,
    "reset_after": _checks.flag,
    "dtype": _checks.float_dtype,
}

_COMMON_DEFAULTS: dict[str, object] = {
    "num_layers": 1,
    "bias": True,
    "batch_first": False,
    "dropout": 0.0,
    "bidirectional": False,
    "dtype": np.dtype(np.float32),
}


class _Option(Generic[_T]):
    """A constructor argument as a read-only attribute."""

    def __init__(self, doc: str) -> None:
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, module: None, owner: type) -> Self: ...
    @overload
    def __get__(self, module: _Recurrent[Any, Any], owner: type) -> _T: ...
    def __get__(self, module: _Recurrent[Any, Any] | None, owner: type) -> Self | _T:
        if module is None:
            return self
        value: _T = module._options[self.name]
        return value

    def __set__(self, module: _Recurrent[Any, Any], value: object) -> None:
        raise AttributeError(f"{self.name}: fixed when the module is made, cannot be assigned")


class _Recurrent(Generic[_State, _Given]):
    """What all modules share. A class adds data: constructor arguments, the engine's name for the cell.

    The pack, an engine `Network` made from the parameters, is immutable and replaced as a whole, so that a
    call in another thread finishes with the one it took. While nobody outside holds the parameters' arrays,
    only this class can change them, and `_network` is the pack, ready to use without a question. To lend them
    sets it to None, and while the loan lives every call compares fingerprints (see `_packed`).
    """

    __slots__ = (
        "__weakref__",
        "_batch_first",
        "_device",
        "_dropout_generator",
        "_identity",
        "_lock",
        "_network",
        "_options",
        "_pack",
        "_precision",
        "_store",
    )

    _store: ParameterStore
    _defaults: ClassVar[dict[str, object]]  # of the arguments after input_size and hidden_size

    input_size = _Option[int]("Width of one time step of the input, I.")
    hidden_size = _Option[int]("Number of hidden units, H.")
    num_layers = _Option[int]("Layers, each fed with the output of the one below, L.")
    bias = _Option[bool]("Whether there are bias parameters.")
    batch_first = _Option[bool]("Whether x and the output are (B, T, ...) instead of (T, B, ...).")
    dropout = _Option[float]("Probability of dropout between layers, in training only.")
    bidirectional = _Option[bool]("Whether each layer also runs from the end to the start.")
    dtype = _Option[np.dtype[Any]]("Type of parameters, states and outputs: float32 or float64.")

    @property
    def device(self) -> str:
        """Where calls compute: "cpu" or "cuda"."""
        return self._device

    @property
    def precision(self) -> str | None:
        """What `to` or the constructor was given."""
        return self._precision

    def _initialize(self, seed: object, device: object, precision: object, **options: object) -> None:
        """Finish a constructor: check the arguments, then draw the parameters."""
        checked_seed = _checks.seed("seed", seed)
        self._build(options)
        self._place(device, precision)
        _checks.warn_of_dropout(self.dropout, self.num_layers)
        self._store.draw(self.hidden_size**-0.5, checked_seed)
        self._dropout_generator = np.random.default_rng(checked_seed)

    def _build(self, options: Mapping[str, object]) -> None:
        """Set everything up but the parameters' numbers."""
        self._options = self._checked(options)
        self._batch_first = self.batch_first
        self._store = ParameterStore(parameter_shapes(self._options, self._cell), self.dtype, self)
        self._refuse_shadowed()
        self._lock = threading.Lock()
        self._identity = object()  # by which a tape knows its module
        self._dropout_generator = np.random.default_rng()
        self._device = "cpu"
        self._precision: str | None = None
        self._network: Any = None  # a _core.Network, or one of _device
        self._pack: tuple[int, Any] | None = None
        _all_modules.add(self)

    @classmethod
    def _checked(cls, options: Mapping[str, object]) -> dict[str, Any]:
        checked = {name: _OPTION_CHECKS[name](name, value) for name, value in options.items()}
        if checked.get("proj_size", 0) >= checked["hidden_size"]:
            expected = f"less than hidden_size={checked['hidden_size']}"
            raise ValueError(f"proj_size: expected {expected}, got {checked['proj_size']}")
        return checked

    @staticmethod
    def _cell_of(options: Mapping[str, Any]) -> str:
        """Return the engine's name for the cell."""
        raise NotImplementedError

    @property
    def _cell(self) -> str:
        return self._cell_of(self._options)

    def __call__(
        self,
        x: npt.ArrayLike,
        state: _Given | None = None,
        *,
        lengths: npt.ArrayLike | None = None,
        out: Array | None = None,
    ) -> tuple[Array, _State]:
        """Run over whole sequences; keep nothing.

        With D directions (1 or 2) and S the width of h (`proj_size` where it is set, else `hidden_size`):

        Args:
            x: Input, (T, B, I), or (B, T, I) with `batch_first`, or (T, I) for a single row: whatever NumPy
                reads as floating-point numbers (arrays of any strides, lists, data frames, tensors on the
                CPU). What is not of the module's dtype is converted to it.
            state: Initial state, zeros where None: h of shape (L*D, B, S); for LSTM the pair (h, c), c of
                shape (L*D, B, H). Where x is unbatched, B may be left out.
            lengths: B integers in 0..T, in any order: how many steps of each row are valid. Output past them
                is 0, the final state is that of the row's last valid step (the initial state for a row of
                length 0), and the reverse direction starts there.
            out: Array to write the output into, of the output's shape and dtype; a new one where None.

        Returns:
            The output, (T, B, D*S) laid out like x, and the final state, (L*D, B, S), without B where x is
            unbatched.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: An argument has the wrong shape or value. In both cases nothing was written.
        """
        network = self._network or self._packed()
        result: tuple[Array, _State] = network.infer(x, state, lengths, out, self._batch_first)
        return result

    def forward(
        self,
        x: npt.ArrayLike,
        state: _Given | None = None,
        *,
        lengths: npt.ArrayLike | None = None,
        recompute: bool = False,
        dropout_seed: int | None = None,
    ) -> tuple[Array, _State, _core.Tape]:
        """Run over whole sequences and keep on a tape what `backward` needs.

        Output and final state have the bits of a call's, but for `dropout`, which acts here and not there:
        between layers, each value is zeroed with this probability and the others are divided by what is left
        (Srivastava et al. 2014).

        Args:
            x: As in a call. The tape has a copy, so that you may write into it as soon as this returns.
            state: As in a call.
            lengths: As in a call.
            recompute: Whether to keep only the states and compute the rest again in `backward`, block by
                block, for 1.3 times the time. Of the memory, a long sequence takes a sixth with an LSTM, a
                fifth or a quarter with a GRU, with `dropout` up to a third; an RNN keeps only states anyway.
                (Chen et al. 2016, Training deep nets with sublinear memory cost.) No bit changes on the
                processor.
            dropout_seed: Integer of at least 0 that decides what is dropped; None for one drawn from the
                module's own generator, which its `seed` started.

        Returns:
            The output, the final state, and the tape. A tape may be used more than once, from any thread; it
            keeps the parameters that the module has now. ``tape.nbytes`` is its size without the copy of x.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: An argument has the wrong shape or value.
        """
        recompute = _checks.flag("recompute", recompute)
        seed = _checks.seed("dropout_seed", dropout_seed)
        dropout = self.dropout if self.num_layers > 1 else 0.0
        if seed is None:
            seed = self._draw_dropout_seed() if dropout else 0
        network = self._packed(for_backward=True)
        result: tuple[Array, _State, _core.Tape] = network.record(
            x, state, lengths, self._batch_first, dropout, seed % 2**64, recompute, self._identity
        )
        return result

    @overload
    def backward(
        self,
        tape: _core.Tape,
        d_output: npt.ArrayLike | None,
        d_state_n: _Given | None = None,
        *,
        accumulate_into: dict[str, Array] | None = None,
        input_gradient: Literal[True] = True,
    ) -> tuple[Array, _State, dict[str, Array]]: ...
    @overload
    def backward(
        self,
        tape: _core.Tape,
        d_output: npt.ArrayLike | None,
        d_state_n: _Given | None = None,
        *,
        accumulate_into: dict[str, Array] | None = None,
        input_gradient: bool,
    ) -> tuple[Array | None, _State, dict[str, Array]]: ...
    def backward(
        self,
        tape: _core.Tape,
        d_output: npt.ArrayLike | None,
        d_state_n: _Given | None = None,
        *,
        accumulate_into: dict[str, Array] | None = None,
        input_gradient: bool = True,
    ) -> tuple[Array | None, _State, dict[str, Array]]:
        """Compute the gradients of a loss by everything that went into `forward`.

        The equations stand in docs/lstm-backward.md and docs/gru-backward.md. The results have the same bits
        for any number of threads.

        Args:
            tape: What `forward` of this module returned; its parameters may have changed since.
            d_output: The loss's gradient by the output, in its shape; None for zeros. What it says past a
                row's length is ignored.
            d_state_n: The gradient by the final state, in its shape; None for zeros. For LSTM a pair, either
                part of which may be None.
            accumulate_into: Arrays by parameter name, C-contiguous and of the module's dtype, to which the
                gradients are added; new ones where None.
            input_gradient: Whether to compute that by x, which an input that is data does not need.

        Returns:
            The gradient by x (None without `input_gradient`), the gradient by the initial state (in the
            state's shape, also where `forward` had none), and those by the parameters, by name as in
            `state_dict()`; with `accumulate_into` this same dictionary.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: An argument has the wrong shape, or the tape is of another module. In both cases
                nothing was written.
        """
        on_device = self._device == "cuda"
        if not isinstance(tape, _device.Tape if on_device else _core.Tape):
            where = f" on {self._device!r}" if isinstance(tape, (_core.Tape, _device.Tape)) else ""
            raise TypeError(f"tape: expected what forward returned{where}, got {_checks.described(tape)}")
        gradients = accumulate_into
        if gradients is not None and not isinstance(gradients, dict):
            described = _checks.described(gradients)
            raise TypeError(f"accumulate_into: expected a dictionary of arrays by name, got {described}")
        input_gradient = _checks.flag("input_gradient", input_gradient)
        pack = self._pack
        network = pack[1] if pack is not None else self._packed()
        if gradients is None and on_device:
            gradients = network.new_gradients(tape)
        if gradients is None:
            gradients = self._store.like()
        d_x, d_state = network.backward(
            tape, d_output, d_state_n, gradients, accumulate_into is not None, input_gradient, self._identity
        )
        return d_x, d_state, gradients

    def to(self, device: str, precision: str | None = None) -> Self:
        """Compute somewhere else from now on. The parameters stay in the host's memory, a copy goes along.

        Args:
            device: "cpu" or "cuda", the current CUDA device. There, arguments and results are NumPy arrays,
                which are copied, or arrays of the device (of PyTorch, CuPy, or with DLPack or
                ``__cuda_array_interface__``), which are shared. See docs/cuda.md.
            precision: For "cuda" and float32: "tf32" for products whose factors are rounded to 10 bits,
                "float16" or "bfloat16" for weights and states of that type and sums of float32. None for
                float32 throughout.

        Returns:
            The module itself.

        Raises:
            TypeError: An argument is not a string.
            ValueError: An argument is another string, or `precision` does not go with the rest.
            RuntimeError: The backend, a driver or a device is missing; the message says which.
        """
        self._place(device, precision)
        return self

    def stream(self, batch_size: int = 1) -> _core.Stream[_State, _Given]:
        """Make a stream: `batch_size` sequences that go forward together, one time step at a time.

        The steps give the same bits as one call over the whole sequences. A stream keeps the parameters that
        the module has now. One stream belongs to one thread at a time; any number of streams share a module.
        Streams can be copied and pickled, and the copies go on by themselves, wherever they are.

        Args:
            batch_size: Number of sequences, B.

        Returns:
            A stream with ``step(x, out=None)``, x (B, I) to output (B, S), ``state`` in the layout of a
            batched call's, and ``reset(rows=None)``.

        Raises:
            TypeError: `batch_size` is not an integer.
            ValueError: `batch_size` is below 1 or more than fits in memory, or the module is bidirectional:
                its reverse direction would need the end of the sequence first.
        """
        batch_size = _checks.integer("batch_size", batch_size, 1)
        if self.bidirectional:
            raise ValueError("stream: expected a module with bidirectional=False, got bidirectional=True")
        elements_per_row = self.input_size + self.num_layers * self.hidden_size
        _checks.fitting("batch_size", batch_size * elements_per_row, self.dtype)
        stream: _core.Stream[_State, _Given] = self._packed_for_streams().stream(batch_size)
        return stream

    def state_dict(self) -> dict[str, Array]:
        """Copy the parameters: names, shapes, gate order and key order of the same class in ``torch.nn``.

        For layer k: ``weight_ih_lk`` (G*H, I or D*S), ``weight_hh_lk`` (G*H, S), ``bias_ih_lk`` and
        ``bias_hh_lk`` (G*H), ``weight_hr_lk`` (P, H) with `proj_size`, ``weight_ci_lk``, ``weight_cf_lk`` and
        ``weight_co_lk`` (H) with `peephole`, without ``weight_cf_lk`` where `coupled`; then the same with
        ``_reverse`` for the reverse direction.
        """
        with self._lock:
            return {name: view.copy() for name, view in self._store.views.items()}

    def load_state_dict(self, d: Mapping[str, object], strict: bool = True) -> IncompatibleKeys:
        """Copy parameters in, after all of them were checked: on an error the module is as it was.

        Args:
            d: By name, NumPy arrays or tensors of any floating dtype (a ``state_dict()`` of ``torch.nn`` as
                it is).
            strict: Whether every name must match; False leaves what is missing as it is and ignores what is
                unexpected.

        Returns:
            The named tuple (missing_keys, unexpected_keys).

        Raises:
            TypeError: `d` is not a mapping, or a value is not an array of floating-point numbers.
            ValueError: Names do not match while `strict`, a shape is wrong, or a number is beyond the range
                of the dtype.
        """
        if not isinstance(d, Mapping):
            raise TypeError(f"d: expected a mapping of names to arrays, got {_checks.described(d)}")
        keys = self._store.compare(d)
        if _checks.flag("strict", strict) and any(keys):
            raise ValueError(
                f"d: expected the parameters of {self!r}, got missing keys {keys.missing_keys}, "
                f"unexpected keys {keys.unexpected_keys}"
            )
        self._write({name: d[name] for name in self._store.views if name in d})
        return keys

    def parameters(self) -> dict[str, Array]:
        """Hand out the module's own arrays by name: writing into them changes the module.

        A change takes effect at the next call. To notice it, as long as anybody holds one of these arrays (or
        a view of one) every call reads all parameters once and compares a 64-bit fingerprint (as fast as
        memory is read: about 10 to 100 microseconds per megabyte); and a call after a change packs the
        weights again. When the last of the arrays is gone one more call compares, and later ones cost what
        they did before. The optimisers of `gatedrnn.train` say when they write, so that theirs do not count.
        `state_dict()` has copies and costs later calls nothing. Do not write while another thread calls the
        module, nor through an address whose array is gone. Reading a parameter as an attribute
        (``m.weight_ih_l0``) hands it out just the same.
        """
        return self._lend().arrays()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write parameters and constructor arguments to a safetensors file, for `gatedrnn.load`.

        The file appears as a whole or not at all. Any reader of safetensors can read the tensors.

        Args:
            path: Where to; a file that exists is replaced.

        Raises:
            TypeError: `path` is not a path.
            OSError: The file cannot be written.
        """
        from gatedrnn import _storage

        _storage.save(path, type(self), self._options, self.state_dict())

    def _packed(self, for_backward: bool = False) -> Any:
        """Return the pack of the parameters as they are now, packing them first where they changed."""
        network, pack = self._network, self._pack
        if network is None and pack is not None and self._store.is_lent:
            network = pack[1] if pack[0] == _core.fingerprint([self._store.flat]) else None
        if network is not None and (network.packed_for_backward or not for_backward):
            return network
        with self._lock:  # nobody writes meanwhile: both packs are of the same parameters
            lent = self._store.is_lent  # asked before the comparison: whoever lets go may have written
            fingerprint = _core.fingerprint([self._store.flat])
            if self._pack is None or self._pack[0] != fingerprint:
                self._pack = fingerprint, self._new_network()
            if not lent:
                self._network = self._pack[1]
            if for_backward:
                self._pack[1].pack_for_backward()
            return self._pack[1]

    def _packed_for_streams(self) -> Any:
        """Return the pack with what pickles of its streams are made of: copies of its parameters."""
        while (network := self._packed()).recipe is None:
            with self._lock:
                if self._pack != (_core.fingerprint([self._store.flat]), network):
                    continue  # written meanwhile: that was the pack of others
                parameters = {name: view.copy() for name, view in self._store.views.items()}
                network.recipe = self._cell, parameters, self._device, self._network_options()
        return network

    def _draw_dropout_seed(self) -> int:
        with self._lock:
            return int(self._dropout_generator.integers(2**63))

    def _generators(self) -> dict[str, np.random.Generator]:
        """What a training run draws from, by name: it belongs to the state of the run."""
        return {"dropout": self._dropout_generator} if self.dropout > 0 else {}

    def _place(self, device: object, precision: object) -> None:
        device = _checks.choice("device", device, ("cpu", "cuda"))
        if precision is not None:
            precision = _checks.choice("precision", precision, ("tf32", "float16", "bfloat16"))
            if device == "cpu" or self.dtype != np.float32:
                expected = "None but for float32 on 'cuda'"
                raise ValueError(f"precision: expected {expected}, got {precision!r}")
        if device == "cuda":
            _device.backend()
        with self._lock:
            self._device, self._precision = device, precision
            self._network = self._pack = None

    def _new_network(self) -> Any:
        if self._device == "cuda":
            return _device.Network(self._cell, self._store.views, **self._network_options())
        if self._pack is not None:
            return self._pack[1].renewed(self._store.views)
        return _core.Network(self._cell, self._store.views, **self._network_options())

    def _network_options(self) -> dict[str, Any]:
        on_device = {"precision": self._precision} if self._device == "cuda" else {}
        return on_device | {
            "input_size": self.input_size,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "bidirectional": self.bidirectional,
            "bias": self.bias,
            "proj_size": self._options.get("proj_size", 0),
            "dtype": self.dtype,
        }

    def _write(self, values: Mapping[str, object]) -> None:
        accepted = self._store.accept(values)
        with self._lock:
            self._network = None
            self._store.write(accepted)

    def _lend(self) -> Loan:
        with self._lock:
            self._network = None
            return self._store.loan()

    def _has_parameter(self, name: str) -> bool:
        # Own names start with "_", and before the constructor ran there is no store.
        return not name.startswith("_") and hasattr(self, "_store") and name in self._store.views

    def _refuse_shadowed(self) -> None:
        """Refuse what a subclass set before the constructor ran and would hide a parameter."""
        for name in getattr(self, "__dict__", {}):
            if name in self._store.views:
                raise AttributeError(f"{name}: cannot be assigned before {_checks.INIT} was called")

    def __getattr__(self, name: str) -> Array:
        # Called only for what is no ordinary attribute.
        if self._has_parameter(name):
            return self._lend().array(name)
        raise _checks.no_attribute(self, name, "_store")

    def __setattr__(self, name: str, value: object) -> None:
        if self._has_parameter(name):
            self._write({name: value})
        else:
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(self._store.views if hasattr(self, "_store") else ())]

    def __repr__(self) -> str:
        if not hasattr(self, "_options"):
            return _checks.half_made(self)
        parts = [str(self.input_size), str(self.hidden_size)]
        for name, default in self._defaults.items():
            value = self._options[name]
            if value != default:
                parts.append(f"{name}={str(value) if name == 'dtype' else value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle, and copy, as class, constructor arguments, parameters and what is to be dropped next.

        Copies share nothing.
        """
        state_of_subclass = getattr(self, "__dict__", None) or None
        place = (self._device, self._precision, copy.deepcopy(self._dropout_generator))
        return _rebuild, (type(self), self._options, self.state_dict(), *place), state_of_subclass


def _completed(cls: type[_Recurrent[Any, Any]], options: Mapping[str, object]) -> dict[str, object]:
    """Add the arguments that came after the version which wrote a file or a pickle, at their defaults."""
    return {
        **options,
        **{name: cls._defaults[name] for name in {"coupled"} & cls._defaults.keys() - options.keys()},
    }


def _rebuild(
    cls: type[_Recurrent[Any, Any]],
    options: Mapping[str, object],
    state: Mapping[str, object],
    device: str = "cpu",
    precision: str | None = None,
    dropout_generator: np.random.Generator | None = None,
) -> _Recurrent[Any, Any]:
    """Make a module of given parameters, without drawing any."""
    module = cls.__new__(cls)
    module._build(_completed(cls, options))
    if dropout_generator is not None:
        module._dropout_generator = dropout_generator
    module.load_state_dict(state)
    return module.to(device, precision)


_all_modules: weakref.WeakSet[_Recurrent[Any, Any]] = weakref.WeakSet()


def _renew_locks() -> None:
    """In a forked child: threads that held a lock are gone, and would never release it."""
    for module in _all_modules:
        module._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
