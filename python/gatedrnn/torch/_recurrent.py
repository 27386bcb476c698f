"""What all modules share: arguments, parameters, forms of input; `_eager` and `_ops` compute."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from gatedrnn import _checks
from gatedrnn._cell_options import engine_options
from gatedrnn._merge import merged
from gatedrnn._options import checked_precision
from gatedrnn._parameters import fixed_start
from gatedrnn.torch import _eager, _ops, _transforms
from gatedrnn.torch._cache import DTYPE_NAMES, DTYPES, LOW_PRECISIONS, NetworkCache, Stack, shapes_of
from gatedrnn.torch._errors import DtypeError, ShapeError
from gatedrnn.torch._formulas import Options

if TYPE_CHECKING:
    import numpy.typing as npt
    from typing_extensions import Self

    Lengths: TypeAlias = Tensor | npt.NDArray[np.integer[Any]] | Sequence[int]
    Flags: TypeAlias = Tensor | npt.NDArray[np.bool_] | Sequence[bool] | Sequence[Sequence[bool]]

# What tells whether something watches torch's operators. A torch without these names is always asked to tell.
_dispatch_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: True)
_tracing = getattr(torch._C, "_get_tracing_state", lambda: True)

# Arguments of all modules, in the order in which they are written.
_COMMON_OPTIONS = (
    "num_layers",
    "bias",
    "batch_first",
    "dropout",
    "bidirectional",
    "activations",
    "clip",
    "direction",
    "merge",
    "learn_state",
)

# Attributes that `_Recurrent._prepare` makes, and those of torch.nn's modules in whose place we have others.
_PRIVATE = ("_stack", "_names", "_cache")
_PRIVATE_OF_NN = ("mode", "all_weights", "_all_weights", "_flat_weights", "_flat_weights_names")


class _Steps(NamedTuple):
    """What a call says of its steps: how many are valid, which are skipped, and where the state is zero."""

    lengths: Lengths | None = None
    mask: Flags | None = None
    resets: Flags | None = None
    repeats: bool = False

    def checked(self, x: Tensor) -> _Steps:
        """Check what the engine cannot: it checks the numbers."""
        if self is EVERY_STEP:
            return self
        if self.lengths is not None and x.dim() == 2:
            described = _checks.described(self.lengths)
            raise ValueError(f"lengths: expected None for an unbatched input, got {described}")
        for name, value in zip(self._fields, self[:3], strict=False):
            if isinstance(value, Tensor) and value.device.type not in ("cpu", "meta"):
                raise ValueError(f"{name}: expected a tensor on the CPU, got one on {value.device}")
        return self

    def of_packed(self, row_lengths: Tensor) -> _Steps:
        """Return those of a PackedSequence, which has the lengths, and no place for the rest."""
        for name, value in zip(self._fields, self[:3], strict=False):
            if value is not None:
                why = ", which has its own" if name == "lengths" else ""
                raise ValueError(f"{name}: expected None with a PackedSequence{why}")
        return _Steps(row_lengths)

    def tensors(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, bool]:
        lengths, mask, resets = [None if s is None else torch.as_tensor(s) for s in self[:3]]
        return lengths, mask, resets, self.repeats

    def arrays(self) -> tuple[Any, Any, Any, bool]:
        lengths, mask, resets = [s.numpy() if isinstance(s, Tensor) else s for s in self[:3]]
        return lengths, mask, resets, self.repeats


EVERY_STEP = _Steps()


def steps_of(lengths: Lengths | None, mask: Flags | None, resets: Flags | None, mask_output: str) -> _Steps:
    repeats = mask_output is not _checks.ZEROS and _checks.repeats_output(mask_output)
    if lengths is None and mask is None and resets is None:
        return EVERY_STEP
    return _Steps(lengths, mask, resets, repeats)


class _Recurrent(nn.Module):
    """What all modules share."""

    _numpy_class: ClassVar[Any]  # checks the constructor's arguments
    _nn_class: ClassVar[Any]  # torch.nn's
    _nn_options: ClassVar[tuple[str, ...]]  # those that it has, beside sizes and bias
    _own_options: ClassVar[tuple[str, ...]] = ()  # those of the cell alone
    _engine_suffix: ClassVar[str] = ""  # what names of parameters have in the engine alone
    proj_size = 0
    precision: str | None = None  # these are those of pickles from before them, too
    direction: str = "forward"
    merge: str = "concat"
    learn_state: bool = False
    activations: dict[str, Any] | None = None
    clip: float | None = None

    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    h_0: Tensor  # these with `learn_state`
    c_0: Tensor

    def __init__(
        self,
        device: torch.device | str | int | None,
        dtype: torch.dtype | None,
        precision: str | None,
        **options: object,
    ) -> None:
        nn.Module.__init__(self)  # and no torch.nn.RNNBase, which would make parameters of its own
        dtype = dtype or torch.get_default_dtype()
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected {DTYPE_NAMES}, got {dtype}")
        self.precision = checked_precision("cpu", precision, DTYPES[dtype])
        for name, value in self._numpy_class._checked(options).items():
            setattr(self, name, value)
        _checks.warn_of_dropout(self.dropout, self.num_layers)
        for name, shape in self._prepare().items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    def _prepare(self) -> dict[str, tuple[int, ...]]:
        """Make what is private of what is public, and return the parameters' shapes."""
        cls = self._numpy_class
        options = {name: getattr(self, name) for name in cls._defaults if name != "dtype"}
        self._stack = Stack(
            cls._cell_of(options),
            self.num_layers,
            self.bidirectional,
            self.bias,
            functions=json.dumps(engine_options(options, cls._plain_cell_of(options))),
            reverse=self.direction == "reverse",
            learn_state=self.learn_state,
        )
        shapes = shapes_of(self._stack, self.input_size, self.hidden_size, self._state_size)
        named = {name.removesuffix(self._engine_suffix): shape for name, shape in shapes.items()}
        self._names = tuple(named)
        self._cache = NetworkCache()
        return named

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in _PRIVATE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what `__getstate__` gave, or what torch.nn's module of that name does."""
        public = {name: value for name, value in state.items() if name not in _PRIVATE + _PRIVATE_OF_NN}
        cast(Any, nn.Module).__setstate__(self, public)
        self._prepare()

    def _beyond_nn(self) -> str:
        """Return an option that torch.nn has not, or nothing."""
        usual = self._numpy_class._defaults
        for name in usual.keys() - {"bias", "dtype", *self._nn_options}:
            if getattr(self, name) != usual[name]:
                return f"{name}={getattr(self, name)!r}"
        return ""

    @property
    def _state_size(self) -> int:
        return self.proj_size or self.hidden_size

    def reset_parameters(self) -> None:
        """Draw all parameters again, uniform in +-1/sqrt(H), as torch.nn would with the same seed.

        Those of `learn_state` become zeros, weights of `layer_norm` ones and its further bias zeros.
        """
        bound = self.hidden_size**-0.5
        for name, parameter in self.named_parameters():
            start = fixed_start(name)
            if start is None:
                nn.init.uniform_(parameter, -bound, bound)
            else:
                nn.init.constant_(parameter, start)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._cache.forget()  # or it would keep the memory of what `to()` leaves behind
        cast(Any, nn.Module)._apply(self, fn, recurse)
        return self

    def extra_repr(self) -> str:
        """Write the arguments that are not torch.nn's defaults."""
        parts = [f"{self.input_size}, {self.hidden_size}"]
        defaults = self._numpy_class._defaults
        for name in (*_COMMON_OPTIONS, *self._own_options):
            value = getattr(self, name)
            if value != defaults[name]:
                parts.append(f"{name}={value!r}")
        if self.precision is not None:
            parts.append(f"precision={self.precision!r}")
        return ", ".join(parts)

    # ---- a call ----

    def _weights(self) -> tuple[Tensor, ...]:
        """Return the parameters in order, also where something put other tensors in their place."""
        parameters = self._parameters
        if tuple(parameters) == self._names:
            return cast("tuple[Tensor, ...]", tuple(parameters.values()))
        return tuple([getattr(self, name) for name in self._names])

    def _compute(
        self, x: Tensor | PackedSequence, h: Tensor | None, c: Tensor | None, steps: _Steps
    ) -> tuple[Any, ...]:
        """Return output, h_n and, for LSTM, c_n, for any form of input."""
        weights = self._weights()
        if isinstance(x, PackedSequence):
            return self._compute_packed(x, h, c, steps, weights)
        x, h, c = _cast(x, h, c, weights[0].dtype)
        self._check_input(x, weights[0].dtype, packed=False)
        if h is not None:
            self._check_state(h, c, _ops.batch_of(x, None, self.batch_first, False), x.dtype)
        return self._dispatch_cast(x, h, c, steps.checked(x), False, weights)

    def _compute_packed(
        self,
        packed: PackedSequence,
        h: Tensor | None,
        c: Tensor | None,
        steps: _Steps,
        weights: tuple[Tensor, ...],
    ) -> tuple[Any, ...]:
        x, batch_sizes, order, inverse = packed
        batch = int(batch_sizes[0]) if order is None else order.shape[0]
        x, h, c = _cast(x, h, c, weights[0].dtype)
        self._check_input(x, weights[0].dtype, packed=True)
        if h is not None:
            self._check_state(h, c, (batch,), x.dtype)
        steps = steps.of_packed((batch_sizes.unsqueeze(1) > torch.arange(batch)).sum(0))
        h, c = _reordered(h, order), _reordered(c, order)
        results = self._dispatch_cast(x, h, c, steps, True, weights)
        output = PackedSequence(results[0], batch_sizes, order, inverse)
        return output, *[_reordered(state, inverse) for state in results[1:]]

    def _dispatch_cast(
        self,
        x: Tensor,
        h: Tensor | None,
        c: Tensor | None,
        steps: _Steps,
        packed: bool,
        weights: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        """Compute in what the engine has: float32 where tensors are of less, or are to be.

        The results are of the parameters' dtype, or where autocast's is bfloat16 and theirs no more than
        float32, of that.
        """
        dtype = weights[0].dtype
        cast_to = torch.bfloat16 if dtype != torch.float64 and _autocasts_to_bfloat16() else dtype
        precision = self.precision
        if precision is None:
            precision = LOW_PRECISIONS.get(cast_to)
        elif dtype == torch.float64:
            raise ValueError(f"precision: expected None for {dtype}, got {precision!r}")
        stack = self._stack if precision is None else self._stack._replace(precision=precision)
        if dtype in LOW_PRECISIONS:
            x, h, c = _converted(x, h, c, torch.float32)
        output, *states = self._dispatch(x, h, c, steps, packed, weights, stack)
        results = (merged(self.merge, output), *states)
        return results if cast_to == x.dtype else tuple([result.to(cast_to) for result in results])

    def _dispatch(
        self,
        x: Tensor,
        h: Tensor | None,
        c: Tensor | None,
        steps: _Steps,
        packed: bool,
        weights: tuple[Tensor, ...],
        stack: Stack,
    ) -> tuple[Tensor, ...]:
        """Choose the way to the engine (see `_ops`), and whether to keep a tape."""
        batch_first = self.batch_first and not packed
        dropout = self.dropout if self.training and self.num_layers > 1 else 0.0
        seed = torch.randint(2**63 - 1, ()) if dropout else None
        keep = bool(dropout) or _wants_gradients(x, h, c, weights)
        if (
            torch.compiler.is_compiling()
            or type(x) is not Tensor
            or x.is_meta
            or _dispatch_modes()
            or _tracing()
        ):
            arguments = (x, h, c, weights, *steps.tensors(), batch_first, packed, *stack, self._cache.number)
            return self._through_operators(arguments, dropout, seed, keep)
        if _eager.transforming():
            options = Options(stack, *steps.arrays(), batch_first, packed, dropout)
            return _transforms.transformed(self._cache, options, seed, x, h, c, weights)
        cached = self._cache.get(stack, weights, keep)
        dropout_seed = 0 if seed is None else int(seed)
        call = _ops.Call(cached, *steps.arrays(), batch_first, packed, dropout, dropout_seed)
        return _eager.forward(call, x, h, c, weights) if keep else _eager.run(call, x, h, c)

    def _through_operators(
        self, arguments: tuple[Any, ...], dropout: float, seed: Tensor | None, keep: bool
    ) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...]
        if keep:
            results = torch.ops.gatedrnn.forward(*arguments, dropout, seed)[:3]
        else:
            results = torch.ops.gatedrnn.run(*arguments)
        return results if self._stack.has_c else results[:2]

    # ---- checks ----

    def _check_input(self, x: Tensor, dtype: torch.dtype, *, packed: bool) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"input: expected a tensor or a PackedSequence, got {_checks.described(x)}")
        if dtype not in DTYPES:
            raise DtypeError(f"{self._names[0]}: expected {DTYPE_NAMES}, got {dtype}")
        _check_tensor("input", x, dtype)
        axes = x.dim()
        if not (axes == 2 or (axes == 3 and not packed)) or x.size(-1) != self.input_size:
            features = str(self.input_size)
            batched = ("(B, T, " if self.batch_first else "(T, B, ") + features + ") or (T, " + features + ")"
            expected = f"packed rows (N, {features})" if packed else batched
            raise ShapeError(f"input: expected {expected}, got {tuple(x.shape)}")

    def _check_state(self, h: Tensor, c: Tensor | None, batch: tuple[int, ...], dtype: torch.dtype) -> None:
        parts: list[tuple[str, Any, int]] = [("hx", h, self._state_size)]
        if self._stack.has_c:
            parts = [("hx: h", h, self._state_size), ("hx: c", c, self.hidden_size)]
        for name, tensor, width in parts:
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name}: expected a tensor, got {_checks.described(tensor)}")
            _check_tensor(name, tensor, dtype)
            expected = (self._stack.tracks, *batch, width)
            if tensor.shape != expected:
                raise ShapeError(f"{name}: expected {expected}, got {tuple(tensor.shape)}")


def _check_tensor(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise DtypeError(f"{name}: expected {dtype} like the parameters, got {tensor.dtype}")
    if tensor.device.type not in ("cpu", "meta"):
        raise ShapeError(f"{name}: expected a tensor on the CPU, got one on {tensor.device}")


def _cast(
    x: Tensor, h: Tensor | None, c: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Within `torch.autocast`, undo what it did to the results of other modules, and to our own."""
    return _converted(x, h, c, dtype) if torch.is_autocast_enabled("cpu") else (x, h, c)


def _converted(
    x: Tensor, h: Tensor | None, c: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return what are tensors in this dtype, and leave the rest to checks."""

    def convert(tensor: Any) -> Any:
        return tensor.to(dtype) if isinstance(tensor, Tensor) else tensor

    return convert(x), convert(h), convert(c)


def _autocasts_to_bfloat16() -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def _reordered(state: Tensor | None, order: Tensor | None) -> Any:
    return state if state is None or order is None else state.index_select(1, order)


def _wants_gradients(x: Tensor, h: Tensor | None, c: Tensor | None, weights: tuple[Tensor, ...]) -> bool:
    if getattr(forward_ad, "_current_level", -1) >= 0:
        return True  # forward-mode derivatives, which only what is recorded refuses
    return torch.is_grad_enabled() and (
        x.requires_grad
        or any([w.requires_grad for w in weights])  # of a list, since that is faster
        or (h is not None and h.requires_grad)
        or (c is not None and c.requires_grad)
    )
