"""What modules and cells share: parameters, the place where they compute, files and pickles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from gatedrnn import _cell_options, _checks, _core, _device
from gatedrnn._merge import maker
from gatedrnn._options import _Option, checked, checked_precision, completed
from gatedrnn._packs import PackCache, Recipe
from gatedrnn._parameters import IncompatibleKeys, Loan, ParameterStore, refuse_incompatible

if TYPE_CHECKING:
    import numpy.typing as npt
    from typing_extensions import Self

    from gatedrnn._parameters import Shapes

    Array = npt.NDArray[np.floating[Any]]


class _Module:
    """Parameters and constructor arguments. A class adds the calls, and what they need to know."""

    __slots__ = ("__weakref__", "_device", "_identity", "_options", "_packs", "_precision", "_store")

    _store: ParameterStore
    _defaults: ClassVar[dict[str, object]]  # of the arguments after input_size and hidden_size
    _engine_suffix: ClassVar[str] = ""  # what names of parameters have in the engine alone

    input_size = _Option[int]("Width of one time step of the input, I.")
    hidden_size = _Option[int]("Number of hidden units, H.")
    bias = _Option[bool]("Whether there are bias parameters.")
    activations = _Option["dict[str, Any] | None"]("Functions of gates that are not the usual ones.")
    clip = _Option["float | None"]("Limit of pre-activations; None: none.")
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

    def _build(self, options: Mapping[str, object]) -> None:
        """Set everything up but the parameters' numbers."""
        self._options = self._checked(options)
        self._store = ParameterStore(self._shapes(self._options), self.dtype, self)
        self._refuse_shadowed()
        self._identity = object()  # by which a tape knows its module
        self._device = "cpu"
        self._precision: str | None = None
        self._packs = PackCache(self._store, self._recipe())

    @classmethod
    def _checked(cls, options: Mapping[str, object]) -> dict[str, Any]:
        plain = checked(options)
        return _cell_options.of_cell(plain, cls._plain_cell_of(plain))

    @staticmethod
    def _plain_cell_of(options: Mapping[str, Any]) -> str:
        """Return the engine's name for the cell without `_cell_options`."""
        raise NotImplementedError

    @classmethod
    def _cell_of(cls, options: Mapping[str, Any]) -> str:
        """Return the engine's name for the cell."""
        return _cell_options.engine_cell(options, cls._plain_cell_of(options))

    @property
    def _cell(self) -> str:
        return self._cell_of(self._options)

    @classmethod
    def _shapes(cls, options: Mapping[str, Any]) -> Shapes:
        """Return the shapes of all parameters by name."""
        raise NotImplementedError

    def _network_options(self) -> dict[str, Any]:
        """Return what the engine's network is made by, besides the cell and the parameters."""
        return {
            "input_size": self.input_size,
            "hidden_size": self.hidden_size,
            "num_layers": self._options.get("num_layers", 1),
            "bidirectional": self._options.get("bidirectional", False),
            "bias": self.bias,
            "proj_size": self._options.get("proj_size", 0),
            "reverse": self._options.get("direction") == "reverse",
            "learn_state": self._options.get("learn_state", False),
            "dtype": self.dtype,
            "precision": self._precision,
            **_cell_options.engine_options(self._options, self._plain_cell_of(self._options)),
        }

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

    def state_dict(self) -> dict[str, Array]:
        """Copy the parameters: names, shapes, gate order and key order of the same class in ``torch.nn``.

        For layer k: ``weight_ih_lk`` (G*H, I or D*S), ``weight_hh_lk`` (G*H, S), ``bias_ih_lk`` and
        ``bias_hh_lk`` (G*H), ``weight_hr_lk`` (P, H) with `proj_size`, ``weight_ci_lk``, ``weight_cf_lk`` and
        ``weight_co_lk`` (H) with `peephole`, without ``weight_cf_lk`` where `coupled`, those of `layer_norm`;
        then the same with ``_reverse`` for the reverse direction. At the end, with `learn_state`, ``h_0``
        (L*D, S) and for LSTM ``c_0`` (L*D, H). A cell's names end before ``_lk``.
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

    def _gradients_for(self, tape: object, accumulate_into: object) -> dict[str, Array]:
        """Check what `backward` got, and return the arrays for the parameters' gradients."""
        on_device = self._device == "cuda"
        if not isinstance(tape, _device.Tape if on_device else _core.Tape):
            where = f" on {self._device!r}" if isinstance(tape, (_core.Tape, _device.Tape)) else ""
            raise TypeError(f"tape: expected what forward returned{where}, got {_checks.described(tape)}")
        if accumulate_into is None:
            new: dict[str, Array] | None = self._packs.get_any().new_gradients(tape) if on_device else None
            if new is None:
                return self._store.like()
            return {name.removesuffix(self._engine_suffix): array for name, array in new.items()}
        if not isinstance(accumulate_into, dict):
            described = _checks.described(accumulate_into)
            raise TypeError(f"accumulate_into: expected a dictionary of arrays by name, got {described}")
        return accumulate_into

    def _packed(self) -> Any:
        return self._packs.get()

    def _place(self, device: object, precision: object) -> None:
        device = _checks.choice("device", device, ("cpu", "cuda"))
        precision = checked_precision(device, precision, self.dtype)
        if device == "cuda":
            _device.backend()
        self._device, self._precision = device, precision
        self._packs.use(self._recipe())

    def _recipe(self) -> Recipe:
        engine = _device.Network if self._device == "cuda" else _core.Network
        make = maker(self._options.get("merge", "concat"), engine)
        return Recipe(make, self._cell, self._network_options(), self._engine_suffix)

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
        """Pickle, and copy, as class, constructor arguments, parameters and what else there is.

        Copies share nothing.
        """
        state_of_subclass = getattr(self, "__dict__", None) or None
        place = (self._device, self._precision, *self._more_state())
        return _rebuild, (type(self), self._options, self.state_dict(), *place), state_of_subclass

    def _more_state(self) -> tuple[Any, ...]:
        """Return copies of what else a pickle keeps, which `_set_more_state` takes."""
        return ()

    def _set_more_state(self) -> None:
        """Take what a pickle kept."""


def _rebuild(
    cls: type[_Module],
    options: Mapping[str, object],
    state: Mapping[str, object],
    device: str = "cpu",
    precision: str | None = None,
    *more_state: Any,
) -> _Module:
    """Make a module of given parameters, without drawing any."""
    module = cls.__new__(cls)
    module._build(completed(options, cls._defaults))
    module._set_more_state(*more_state)
    module.load_state_dict(state)
    return module.to(device, precision)
