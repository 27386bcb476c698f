"""LSTMCell, GRUCell and RNNCell: one time step at a time, computed as a step of the modules is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

import numpy as np

from gatedrnn import _checks
from gatedrnn._module import _Module
from gatedrnn._modules import GRU, LSTM, RNN
from gatedrnn._options import _LAYER_NORM_DEFAULTS, _Option
from gatedrnn._parameters import cell_shapes

if TYPE_CHECKING:
    import numpy.typing as npt

    from gatedrnn._activations import Activations
    from gatedrnn._core import Tape
    from gatedrnn._parameters import Shapes

    Array = npt.NDArray[np.floating[Any]]

__all__ = ["GRUCell", "LSTMCell", "RNNCell"]

_State = TypeVar("_State")  # an array, or the pair (h, c)
_Given = TypeVar("_Given")  # the same, where parts of a pair may be None

_DEFAULTS: dict[str, object] = {
    "bias": True,
    "activations": None,
    "clip": None,
    "dtype": np.dtype(np.float32),
}


class _Cell(_Module, Generic[_State, _Given]):
    """What all cells share. To the engine they are networks of one layer, and a step a sequence of one."""

    __slots__ = ()
    _engine_suffix = "_l0"
    _has_c: ClassVar[bool] = False  # whether the state is a pair

    def _initialize(self, seed: object, device: object, precision: object, **options: object) -> None:
        """Finish a constructor: check the arguments, then draw the parameters."""
        checked_seed = _checks.seed("seed", seed)
        self._build(options)
        self._place(device, precision)
        self._store.draw(self.hidden_size**-0.5, checked_seed)

    @classmethod
    def _shapes(cls, options: Mapping[str, Any]) -> Shapes:
        return cell_shapes(options, cls._cell_of(options))

    def __call__(self, x: npt.ArrayLike, state: _Given | None = None) -> _State:
        """Take one step; keep nothing. It has the bits of a step of the module of the same parameters.

        Args:
            x: Input, (B, I), or (I,) for a single row: whatever NumPy reads as floating-point numbers.
            state: The state before, zeros where None: h of shape (B, H); for LSTMCell the pair (h, c), either
                of which may be None. Without B where x has none.

        Returns:
            The state after, in the same layout.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: An argument has the wrong shape.
        """
        network = self._packs.network or self._packs.get()
        if self._device == "cpu":
            after: _State = network.step(x, state)
            return after
        steps, before = self._as_sequence(x, state)
        return self._of_step(network.infer(steps, before, None, None, False)[1])

    def forward(self, x: npt.ArrayLike, state: _Given | None = None) -> tuple[_State, Tape]:
        """Take one step, and keep on a tape what `backward` needs.

        Args:
            x: As in a call. The tape has a copy.
            state: As in a call.

        Returns:
            The state after, with the bits of a call's, and the tape, which keeps the parameters that the cell
            has now. Errors are those of a call, and a ValueError where `precision` is "int8".
        """
        network = self._packs.get(for_backward=True)
        steps, before = self._as_sequence(x, state)
        _, after, tape = network.forward(steps, before, None, False, 0.0, 0, False, self._identity)
        return self._of_step(after), tape

    def backward(
        self, tape: Tape, d_state_n: _Given, *, accumulate_into: dict[str, Array] | None = None
    ) -> tuple[Array, _State, dict[str, Array]]:
        """Compute the gradients of a loss by everything that went into `forward`.

        Args:
            tape: What `forward` of this cell returned; its parameters may have changed since.
            d_state_n: The loss's gradient by the state after, in its shape. For LSTMCell a pair, either part
                of which may be None.
            accumulate_into: Arrays by parameter name, C-contiguous and of the cell's dtype, to which the
                gradients are added; new ones where None.

        Returns:
            The gradient by x, the gradient by the state before (also where `forward` had none), and those by
            the parameters, by name as in `state_dict()`; with `accumulate_into` this same dictionary.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: An argument has the wrong shape, or the tape is of another cell. In both cases nothing
                was written.
        """
        gradients = self._gradients_for(tape, accumulate_into)
        d_after = self._state_with_time("d_state_n", d_state_n)
        into = {name + self._engine_suffix: array for name, array in gradients.items()}
        accumulates, input_gradient = accumulate_into is not None, True
        d_x, d_before = self._packs.get_any().backward(
            tape, None, d_after, into, accumulates, input_gradient, self._identity
        )
        return d_x[0], self._of_step(d_before), gradients

    # ---- between a step and a sequence of one ----

    def _as_sequence(self, x: Any, state: Any) -> tuple[Any, Any]:
        steps = self._with_time("x", x)
        shape = steps.shape[1:]
        if _is_floating(steps) and (len(shape) not in (1, 2) or shape[-1] != self.input_size):
            raise ValueError(
                f"x: expected (B, {self.input_size}) or ({self.input_size},), got {tuple(shape)}"
            )
        return steps, self._state_with_time("state", state, (*shape[:-1], self.hidden_size))

    def _state_with_time(self, name: str, state: Any, shape: tuple[int, ...] | None = None) -> Any:
        """Put the time before h, or both parts of a pair. The engine refuses what is no pair."""
        if not self._has_c:
            return self._with_time(name, state, shape)
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            return state
        return tuple([self._with_time(f"{name}: {part}", state[i], shape) for i, part in enumerate("hc")])

    def _with_time(self, name: str, value: Any, shape: tuple[int, ...] | None = None) -> Any:
        if value is None and name != "x":
            return None
        if not isinstance(value, np.ndarray) and (self._device == "cpu" or not hasattr(value, "shape")):
            try:
                value = np.asarray(value)
            except ValueError:  # lists of different lengths
                described = _checks.described(value)
                raise TypeError(
                    f"{name}: expected an array of floating-point numbers, got {described}"
                ) from None
        if shape is not None and _is_floating(value) and tuple(value.shape) != shape:
            raise ValueError(f"{name}: expected {shape}, got {tuple(value.shape)}")
        return value[None]

    def _of_step(self, state: Any) -> _State:
        step = (state[0][0], state[1][0]) if type(state) is tuple else state[0]
        return cast(_State, step)


def _is_floating(array: Any) -> bool:
    return not isinstance(array, np.ndarray) or array.dtype.kind == "f"


class LSTMCell(_Cell["tuple[Array, Array]", "tuple[Array | None, Array | None]"]):
    """One step of `LSTM`; constructor, parameters and results like ``torch.nn.LSTMCell``.

    For loops written by hand, such as a decoder that looks at its own outputs. Where the inputs of all steps
    are there at once, a module is faster; where only the state goes from step to step, a stream is, which
    keeps the state itself. `LSTM` has the equations.

    Args:
        input_size: Width of the input, I.
        hidden_size: Number of hidden units, H.
        bias: Whether to have bias parameters.
        peephole: Whether the gates see the memory cell through ``weight_ci``, ``weight_cf``, ``weight_co``.
        coupled: Whether the forget gate is 1 - i.
        activations: Functions of gates, as for `LSTM`; so are `clip`, `cell_clip`, `layer_norm`
            and `layer_norm_eps`.
        dtype: float32 or float64, of parameters and states.
        seed: Integer of at least 0 that decides the initial parameters, uniform in +-1/sqrt(H); None for new
            ones each time.
        device: Where calls compute, "cpu" or "cuda"; see `to`.
        precision: How matrix products of float32 are computed, None for float32; see `to`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a value outside its range, or the parameters would fit in no memory.
        RuntimeError: The device backend, a driver or a device is missing.
    """

    __slots__ = ()
    _defaults = _DEFAULTS | _LAYER_NORM_DEFAULTS | {"peephole": False, "coupled": False, "cell_clip": None}
    _plain_cell_of = staticmethod(LSTM._plain_cell_of)
    _has_c = True

    peephole = _Option[bool]("Whether the gates see the memory cell.")
    coupled = _Option[bool]("Whether the forget gate is 1 - i.")
    cell_clip = _Option["float | None"]("Limit of c'; None: none.")
    layer_norm = _Option["str | None"]("What is normalised; None: nothing.")
    layer_norm_eps = _Option[float]("What layer normalisation adds to variances.")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        peephole: bool = False,
        coupled: bool = False,
        activations: Activations | None = None,
        clip: float | None = None,
        cell_clip: float | None = None,
        layer_norm: str | None = None,
        layer_norm_eps: float = 1e-5,
        dtype: npt.DTypeLike = np.float32,
        seed: int | None = None,
        device: str = "cpu",
        precision: str | None = None,
    ) -> None:
        sizes = dict(input_size=input_size, hidden_size=hidden_size)
        rest = dict(bias=bias, peephole=peephole, coupled=coupled, dtype=dtype)
        functions = dict(activations=activations, clip=clip, cell_clip=cell_clip)
        norm = dict(layer_norm=layer_norm, layer_norm_eps=layer_norm_eps)
        self._initialize(seed, device, precision, **sizes, **rest, **functions, **norm)


class GRUCell(_Cell["Array", "Array"]):
    """One step of `GRU`, in both of its forms; constructor, parameters and results like ``torch.nn.GRUCell``.

    The other arguments, and the errors raised, are those of `LSTMCell`.

    Args:
        reset_after: Whether the reset gate acts after the candidate's matrix product (True) or on h before it
            (False).
    """

    __slots__ = ()
    _defaults = _DEFAULTS | _LAYER_NORM_DEFAULTS | {"reset_after": True}
    _plain_cell_of = staticmethod(GRU._plain_cell_of)

    reset_after = _Option[bool]("Whether the reset gate acts after the candidate's matrix product.")
    layer_norm = _Option["str | None"]("What is normalised; None: nothing.")
    layer_norm_eps = _Option[float]("What layer normalisation adds to variances.")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        reset_after: bool = True,
        activations: Activations | None = None,
        clip: float | None = None,
        layer_norm: str | None = None,
        layer_norm_eps: float = 1e-5,
        dtype: npt.DTypeLike = np.float32,
        seed: int | None = None,
        device: str = "cpu",
        precision: str | None = None,
    ) -> None:
        sizes = dict(input_size=input_size, hidden_size=hidden_size)
        rest = dict(bias=bias, reset_after=reset_after, dtype=dtype)
        functions = dict(activations=activations, clip=clip)
        norm = dict(layer_norm=layer_norm, layer_norm_eps=layer_norm_eps)
        self._initialize(seed, device, precision, **sizes, **rest, **functions, **norm)


class RNNCell(_Cell["Array", "Array"]):
    """One step of `RNN`; constructor, parameters and results like ``torch.nn.RNNCell``.

    The other arguments, and the errors raised, are those of `LSTMCell`.

    Args:
        nonlinearity: "tanh" or "relu".
    """

    __slots__ = ()
    _defaults = _DEFAULTS | {"nonlinearity": "tanh"}
    _plain_cell_of = staticmethod(RNN._plain_cell_of)

    nonlinearity = _Option[str]('"tanh" or "relu".')

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *,
        activations: Activations | None = None,
        clip: float | None = None,
        dtype: npt.DTypeLike = np.float32,
        seed: int | None = None,
        device: str = "cpu",
        precision: str | None = None,
    ) -> None:
        sizes = dict(input_size=input_size, hidden_size=hidden_size)
        rest = dict(bias=bias, nonlinearity=nonlinearity, dtype=dtype)
        self._initialize(seed, device, precision, **sizes, **rest, activations=activations, clip=clip)
