"""The methods that LSTM, GRU and RNN share; `_core.Network` computes, and `_packs` has it ready."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar, overload

import numpy as np

from gatedrnn import _checks, _core, _device, _storage
from gatedrnn._options import _Option, checked, checked_precision, completed
from gatedrnn._packs import PackCache, Recipe
from gatedrnn._parameters import (
    IncompatibleKeys,
    Loan,
    ParameterStore,
    parameter_shapes,
    refuse_incompatible,
)

if TYPE_CHECKING:
    import os

    import numpy.typing as npt
    from typing_extensions import Self

    Array = npt.NDArray[np.floating[Any]]

_State = TypeVar("_State")  # an array, or the pair (h, c)
_Given = TypeVar("_Given")  # the same, where parts of a pair may be None


class _Recurrent(Generic[_State, _Given]):
    """What all modules share. A class adds data: constructor arguments, the engine's name for the cell."""

    __slots__ = (
        "__weakref__",
        "_batch_first",
        "_device",
        "_dropout_generator",
        "_identity",
        "_options",
        "_packs",
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

    @property
    def packed_nbytes(self) -> int:
        """Bytes of the weights as the engine reads them, packed by `precision`; on the CPU.

        Weights are packed at the first call (or when this is asked), and beside that for `backward` at the
        first `forward`; nothing else is kept but the parameters themselves.
        """
        if self._device != "cpu":
            raise ValueError(f"packed_nbytes: expected a module on 'cpu', got one on {self._device!r}")
        nbytes: int = self._packs.get().nbytes
        return nbytes

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
        self._identity = object()  # by which a tape knows its module
        self._dropout_generator = np.random.default_rng()
        self._device = "cpu"
        self._precision: str | None = None
        self._packs = PackCache(self._store, self._recipe())

    @classmethod
    def _checked(cls, options: Mapping[str, object]) -> dict[str, Any]:
        return checked(options)

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
        network = self._packs.network or self._packs.get()
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
            Errors are those of a call, and a ValueError where `precision` is "int8".
        """
        recompute = _checks.flag("recompute", recompute)
        seed = _checks.seed("dropout_seed", dropout_seed)
        network = self._packs.get(for_backward=True)
        dropout = self.dropout if self.num_layers > 1 else 0.0
        if seed is None:
            seed = int(self._dropout_generator.integers(2**63)) if dropout else 0
        result: tuple[Array, _State, _core.Tape] = network.forward(
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
        network = self._packs.get_any()
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
            precision: None for float32 (or float64) throughout. Else, where the dtype is float32, how
                matrix products are computed; parameters, states and outputs stay float32. On "cpu":
                "bfloat16", "bfloat16x3" (nearly float32), or "int8" (weights of 8 bits, for inference only),
                see docs/precision.md. On "cuda": "tf32" for products whose factors are rounded to 10 bits,
                "float16" or "bfloat16" for weights and states of that type and sums of float32.

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
        stream: _core.Stream[_State, _Given] = self._packs.get_for_streams().stream(batch_size)
        return stream

    def state_dict(self) -> dict[str, Array]:
        """Copy the parameters: names, shapes, gate order and key order of the same class in ``torch.nn``.

        For layer k: ``weight_ih_lk`` (G*H, I or D*S), ``weight_hh_lk`` (G*H, S), ``bias_ih_lk`` and
        ``bias_hh_lk`` (G*H), ``weight_hr_lk`` (P, H) with `proj_size`, ``weight_ci_lk``, ``weight_cf_lk`` and
        ``weight_co_lk`` (H) with `peephole`, without ``weight_cf_lk`` where `coupled`; then the same with
        ``_reverse`` for the reverse direction.
        """
        return self._packs.copies()

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
        refuse_incompatible(self, keys, strict)
        self._packs.write({name: d[name] for name in self._store.views if name in d})
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

        The file appears as a whole or not at all. Any reader of safetensors can read the tensors. A module on
        "cuda" is written as one on the CPU, without its precision there.

        Args:
            path: Where to; a file that exists is replaced.

        Raises:
            TypeError: `path` is not a path.
            OSError: The file cannot be written.
        """
        known = next(base.__name__ for base in type(self).__mro__ if _Recurrent in base.__bases__)
        precision = self._precision if self._device == "cpu" else None
        _storage.save(path, known, self._options, precision, self.state_dict())

    def _packed(self) -> Any:
        return self._packs.get()

    def _generators(self) -> dict[str, np.random.Generator]:
        """What a training run draws from, by name: it belongs to the state of the run."""
        return {"dropout": self._dropout_generator} if self.dropout > 0 else {}

    def _place(self, device: object, precision: object) -> None:
        device = _checks.choice("device", device, ("cpu", "cuda"))
        precision = checked_precision(device, precision, self.dtype)
        if device == "cuda":
            _device.backend()
        self._device, self._precision = device, precision
        self._packs.use(self._recipe())

    def _recipe(self) -> Recipe:
        make = _device.Network if self._device == "cuda" else _core.Network
        return Recipe(make, self._cell, self._network_options())

    def _network_options(self) -> dict[str, Any]:
        return {
            "input_size": self.input_size,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "bidirectional": self.bidirectional,
            "bias": self.bias,
            "proj_size": self._options.get("proj_size", 0),
            "dtype": self.dtype,
            "precision": self._precision,
        }

    def _lend(self) -> Loan:
        return self._packs.lend()

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
            self._packs.write({name: value})
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
    module._build(completed(options, cls._defaults))
    if dropout_generator is not None:
        module._dropout_generator = dropout_generator
    module.load_state_dict(state)
    return module.to(device, precision)
